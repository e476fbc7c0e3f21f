"""What a checkpoint of ADaPTTrainer holds beside TRL's: modes, the rollout being trained on, the scheme's state."""

from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from adapt_kernels.trl.kept_rollouts import load_rollouts, save_rollouts
from adapt_kernels.trl.scheme_state import load_state, save_state

_BeforeATrainer: Any = object  # whose methods `super()` finds


class Checkpoints(_BeforeATrainer):
    """Before the trainer whose `super()` it calls."""

    _step: int
    _buffered_inputs: Any

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        self.modes.save_pretrained(self.args.output_dir if output_dir is None else output_dir)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        kept = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        save_rollouts(folder, *self._rank, self._step, self._buffered_inputs if kept else None)
        if self.args.method.stateful and self.args.should_save:
            save_state(folder, self.args.scheme, self.scheme_state)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint:
            # Another number of ranks has no use for the rollout, but goes on with the seeds.
            start = self.state.global_step * self.args.gradient_accumulation_steps, None
            kept = load_rollouts(checkpoint, *self._rank, self.accelerator.device)
            self._step, self._buffered_inputs = kept or start
            if self.args.method.stateful:
                self.scheme_state.clear()
                self.scheme_state.update(load_state(checkpoint, self.args.scheme, self.accelerator.device))

    @property
    def scheme_state(self) -> dict[str, torch.Tensor]:
        """What the scheme carries from batch to batch; the same on all ranks, and saved in every checkpoint."""
        return self._crediting.state

    @property
    def _rank(self) -> tuple[int, int]:
        return self.accelerator.process_index, self.accelerator.num_processes
