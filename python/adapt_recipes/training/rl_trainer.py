"""An `ADaPTTrainer` set up from a recipe's settings; everything here needs trl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

import adapt_kernels as ak
from adapt_recipes.evaluation.frontier import measure_modes
from adapt_recipes.tasks.problem import Problem
from adapt_recipes.training.rl_config import RlConfig
from adapt_recipes.training.task_signals import OFFERED

# Names of the curve, and of the trainer's logs; {0} is the first mode, {1} the last.
METRICS = {
    "reward": "reward",
    "p_fast": "modes/prob_{0}",
    "fast_accuracy": "accuracy/{0}",
    "slow_accuracy": "accuracy/{1}",
    "mean_tokens": "completions/mean_length",
}


# Fields of the trainer about its optimiser and schedule begin so; the recipe hands it both.
_OPTIMISER = ("adam_", "lr_scheduler", "optim", "warmup", "weight_decay")


def trainer_config(config: RlConfig, out: Path, max_completion_length: int) -> Any:
    """The `ADaPTConfig` of a recipe: one optimiser step on one rollout at temperature 1, no checkpoints of its own.

    Raises ValueError for a value that it refuses, and for names in `config.trainer` that it does not have.
    """
    from adapt_kernels.trl import ADaPTConfig

    allowed = {item.name for item in fields(ADaPTConfig) if item.init}
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in allowed)
    kl = 2.0 * (config.scheme == "separate") if config.kl is None else config.kl
    ours = {
        "output_dir": str(out),
        "seed": config.seed,
        "max_steps": config.iterations,
        "num_generations": config.samples,
        "per_device_train_batch_size": config.prompts * config.samples // config.passes,
        "gradient_accumulation_steps": config.passes,
        "learning_rate": config.learning_rate,
        "scheme": config.scheme,
        "rollout": config.rollout,
        "gamma": config.gamma,
        "mode_weight": config.mode_weight,
        "mode_margin_coef": config.mode_margin_coef,
        "beta": kl,
        "use_bias_correction_kl": False,
        "max_completion_length": max_completion_length,
        "shuffle_dataset": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "dataloader_pin_memory": False,
        checkpointing: False,  # newer versions of transformers warn about the older name
    }
    if unknown := [name for name in config.trainer if name not in allowed]:
        raise ValueError(f"trainer: unknown key {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")
    if twice := [name for name in config.trainer if name in ours or name.startswith(_OPTIMISER)]:
        raise ValueError(f"trainer: {', '.join(twice)} is decided by the recipe's own settings")
    return ADaPTConfig(**ours, **config.trainer)


def build_trainer(
    model: Any,
    tokenizer: Any,
    modes: ak.Modes,
    settings: Any,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler],
    tasks: Sequence[Problem],
    reward: Callable[..., list[float]],
    steps: tuple[int, int],
    after_step: Callable[[int, dict[str, float]], None],
) -> Any:
    """A trainer that goes from the finished steps[0] to steps[1] on `tasks`, the problems of the steps left in order.

    Beside `reward`, which grades, come the functions of `task_signals` that the scheme reads.
    after_step(finished_steps, metrics) is called after every step, with the rollout's means named as in `METRICS`.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from adapt_kernels.trl import ADaPTTrainer

    class Steps(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            state.global_step = steps[0]

        def on_step_begin(self, args, state, control, **_):
            # TRL shuffles the rows of a rollout, and their order is in the last bit of the gradient.
            torch.manual_seed(ak.row_seed(settings.seed, 1 + state.global_step))

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop |= state.global_step >= steps[1]

        def on_log(self, args, state, control, logs, **_):
            if "reward" in logs:  # not in the summary at the end
                ends = modes.names[0], modes.names[-1]
                found = {name: _number(logs.get(key.format(*ends))) for name, key in METRICS.items()}
                after_step(state.global_step, found)

    rows = [{"prompt": _prompt(tokenizer, task), "problem": asdict(task)} for task in tasks]
    if settings.scheme == "adaptthink":
        for row, accuracy in zip(rows, slow_accuracy(model, tokenizer, modes, tasks), strict=True):
            row[settings.reference_accuracy_column] = accuracy
    known = [OFFERED[signal] for signal in settings.method.signals if signal in OFFERED]
    trainer = ADaPTTrainer(
        model, [reward, *known], modes=modes, args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, optimizers=optimizers, callbacks=[Steps()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    # A rollout's seeds depend on it, so a resumed run draws what it would have drawn.
    trainer._step = steps[0] * settings.gradient_accumulation_steps
    return trainer


def slow_accuracy(model: Any, tokenizer: Any, modes: ak.Modes, tasks: Sequence[Problem]) -> list[float]:
    """Greedy accuracy of the last mode on each problem: what AdaptThink compares with."""
    with ak.patched(model, modes):
        return measure_modes(model, tokenizer, modes, tasks).correct[:, -1].tolist()


def _number(logged: float | None) -> float:
    """None, for the accuracy of a mode that no sample is in, as NaN."""
    return float("nan") if logged is None else float(logged)


def _prompt(tokenizer: Any, task: Problem) -> Any:
    if tokenizer.chat_template is None:
        return task.prompt
    return [{"role": "user", "content": task.prompt}]
