"""torchrun --nproc_per_node N distributed_run.py folder kind ...: short runs, written down by rank 0.

kinds: "single" (without torchrun), "ddp", "fsdp2", "fsdp2-tied", "KIND-SCHEME" of the stateful schemes below, and
"KIND-resumed": KIND stopped at a checkpoint, then resumed by a new trainer. "killed" is a run that ends by SIGKILL
after its third checkpoint. FSDP2 comes last, as accelerate takes the whole process for sharded from then on.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import gather_object
from tiny_trainer import losses, make_model, make_trainer
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"],
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def let_accelerate_shard_on_cpus():
    """accelerate drops an FSDP plugin where the ranks are CPUs, and runs DDP; from here on it takes it."""
    own = AcceleratorState.__init__

    def with_plugin(self, *args, fsdp_plugin=None, **kwargs):
        own(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_plugin


# Their signals from a column that the tiny data set has.
STATEFUL = {
    "traac": {"scheme": "traac"},
    "adathink": {"scheme": "adathink_med", "signals": {"repetition": "reference_accuracy"}},
    "laser": {"scheme": "laser_de", "signals": {"repetition": "reference_accuracy"}, "constants": {"laser_lower": 3}},
}


class EndAt(TrainerCallback):
    """Ends a run behind the checkpoint of a step, without any goodbye where `signal` says so."""

    def __init__(self, step, kill=False):
        self.step, self.kill = step, kill

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedError


def trainer_of(kind, folder, **settings):
    """8 rows of one prompt for each of two accumulated batches, over all ranks: with two, groups span them."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    defaults = {
        "per_device_train_batch_size": 8 // world,
        "num_generations": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
    }
    for name, scheme in STATEFUL.items():
        if name in kind:
            defaults |= scheme
    model = make_model(tie_word_embeddings="tied" in kind)
    trainer = make_trainer(folder, model, **{**defaults, **settings, **(FSDP2 if "fsdp2" in kind else {})})
    trainer.credits = []
    advantages = trainer._crediting.advantages

    def noted(*arguments):
        found = advantages(*arguments)
        trainer.credits.append([found.mode.tolist(), found.rest.tolist()])
        return found

    trainer._crediting.advantages = noted
    return trainer


def run(kind, folder):
    saving = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2} if "-resumed" in kind else {}
    trainer = trainer_of(kind, folder, **saving)
    if saving:
        trainer.add_callback(EndAt(1))
        try:
            trainer.train()
        except InterruptedError:
            trainer.accelerator.wait_for_everyone()  # rank 0 may still be writing
            trainer = trainer_of(kind, folder, **saving)
    trainer.train(resume_from_checkpoint=bool(saving))
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    weight = trainer.model.model.layers[0].mlp.up_proj.weight
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return {
        "sharded": isinstance(weight, DTensor),
        "weight": whole.flatten()[:5].tolist(),
        "distributed": trainer.accelerator.distributed_type.name,
        "world": trainer.accelerator.num_processes,
        "losses": losses(trainer),
        "credits": trainer.credits,
        "state": {name: value.flatten().tolist() for name, value in trainer.scheme_state.items()},
        "rank_states": gather_object([{name: value.tolist() for name, value in trainer.scheme_state.items()}]),
        "prob_fast": [entry["modes/prob_fast"] for entry in history if "modes/prob_fast" in entry],
        "ratio": [entry["modes/ratio"] for entry in history],
    }


def main(folder, *kinds):
    torch.set_num_threads(1)
    if kinds[0].startswith("killed"):
        trainer = trainer_of(kinds[0], folder, save_strategy="steps", save_steps=1, num_iterations=2, max_steps=6)
        trainer.add_callback(EndAt(3, kill=True))
        trainer.train()
    for kind in kinds:
        if "fsdp2" in kind and "fsdp2" not in AcceleratorState.__init__.__code__.co_name:
            let_accelerate_shard_on_cpus()
        found = run(kind, str(Path(folder, kind)))
        if int(os.environ.get("RANK", 0)) == 0:
            Path(folder, kind, "found.json").write_text(json.dumps(found))
        AcceleratorState._reset_state(reset_partial_state=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
