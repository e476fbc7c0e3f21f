"""The commands of `adapt train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapt_recipes import extras
from adapt_recipes.terminal import console, plain_errors

train_app = typer.Typer(help="Train the models that this package ships.", no_args_is_help=True)

MEASURED, MEASURED_ADAPTED = 1600, 240  # problems answered after a training; those of a language model take minutes

Out = Annotated[Path, typer.Option(help="Folder for the model and for the state to resume from.")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file, or the name of a shipped one.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every draw; the default gives the shipped checkpoint.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run saved in the folder.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the configuration.")
]


@train_app.command()
def sft(
    out: Out,
    config: ConfigFile = None,
    seed: Seed = None,
    resume: Resume = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between saved states; default 200, with a base model 16.")
    ] = None,
    settings: Setting = None,
) -> None:
    """Teach both modes of a task: to a small model from random weights, in minutes, or (--config smollm2) to SmolLM2
    by a LoRA adapter, in about an hour; that needs the extra `lora`."""
    with plain_errors():
        from adapt_recipes.config import load_config, named, parse_settings, raw_settings
        from adapt_recipes.training import adapter_sft, sft
        from adapt_recipes.training.adapter_config import AdapterConfig
        from adapt_recipes.training.sft_config import SftConfig

        config, given = named("sft", config), parse_settings(settings, seed=seed)
        adapts = "base" in raw_settings(config) | given
        kind, recipe = (AdapterConfig, adapter_sft) if adapts else (SftConfig, sft)
        chosen = load_config(kind, config, given)
        with _bar(chosen.total_steps, "loss") as update:
            every = {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
            result = recipe.train(chosen, out, resume, on_step=update, **every)
        _finish(out, chosen.task, result)


@train_app.command()
def rl(
    out: Out,
    config: ConfigFile = None,
    model: Annotated[str | None, typer.Option(help="Shipped checkpoint or model folder to start from.")] = None,
    task: Annotated[str | None, typer.Option(help="Task family: running_sum, chain_sum, words or idle_words.")] = None,
    scheme: Annotated[str | None, typer.Option(help="How the mode token and the response are credited.")] = None,
    seed: Seed = None,
    resume: Resume = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between saved states; default 25, with an adapter 1.")
    ] = None,
    settings: Setting = None,
) -> None:
    """Teach a model with two modes which problems deserve the slow one (ADaPT); needs the extra `trl`."""
    with plain_errors():
        extras.require("trl", "trl", "training by reinforcement")
        from adapt_recipes.config import load_config, named, parse_settings
        from adapt_recipes.training.rl import train
        from adapt_recipes.training.rl_config import RlConfig

        given = parse_settings(settings, model=model, task=task, scheme=scheme, seed=seed)
        chosen = load_config(RlConfig, named("rl", config), given)
        with _bar(chosen.iterations, "reward") as update:
            result = train(chosen, out, resume, checkpoint_every, on_step=update)
        _finish(out, chosen.task, result)


Control = Annotated[bool, typer.Option(help="Also train what must fail, and show that it does.")]


@train_app.command()
def paths(
    out: Out,
    seed: Seed = None,
    resume: Resume = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 100,
    control: Control = True,
    settings: Setting = None,
) -> None:
    """Teach a model to guess and check, and a scorer (STOP) to see which of its samples are doomed, in minutes."""
    with plain_errors():
        from adapt_recipes.config import load_config, parse_settings
        from adapt_recipes.training.paths import PathsConfig, report, train

        chosen = load_config(PathsConfig, None, parse_settings(settings, seed=seed))
        with _bar(chosen.steps, "loss") as update:
            result, scorer = train(chosen, out, resume, checkpoint_every, update, console.is_terminal)
        for table in report(_told(out, result), scorer, chosen, control, console.is_terminal):
            console.print(table)


@train_app.command()
def keep(
    out: Out,
    seed: Seed = None,
    resume: Resume = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 100,
    settings: Setting = None,
) -> None:
    """Teach a model to remember the marked, and a head (DynTS) which tokens its answers will need, in minutes.

    --set marked=false is the control: the thought does not say what was asked for.
    """
    with plain_errors():
        from adapt_recipes.config import load_config, parse_settings
        from adapt_recipes.training.keep import KeepConfig, report, train

        chosen = load_config(KeepConfig, None, parse_settings(settings, seed=seed))
        with _bar(chosen.steps, "loss") as update:
            result, head = train(chosen, out, resume, checkpoint_every, update, console.is_terminal)
        console.print(report(_told(out, result), head))


@train_app.command()
def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training of an adapter.")],
    measured: Annotated[Path, typer.Argument(help="The difficulty.csv that `adapt eval` wrote.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder for the card, if not that of the training.")] = None,
) -> None:
    """Write the model card of an adapter (its README.md) with measured results."""
    with plain_errors():
        from adapt_recipes.training.adapter_card import write_card

        path = write_card(run, measured, adapter)
    console.print(f"wrote {path}", soft_wrap=True, highlight=False)


@contextmanager
def _bar(total: int, value: str) -> Iterator[Any]:
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn(value + " {task.fields[shown]}"),
               TimeRemainingColumn())  # fmt: skip
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    bar = progress.add_task("", total=total, shown="-")

    def update(step: int, shown: float) -> None:
        progress.start()  # not before the first step: what is wrong with the settings is said by then
        progress.update(bar, completed=step, shown=f"{shown:.3f}")

    try:
        yield update
    finally:
        progress.stop()


def _spent(folder: Path, result: Any) -> str:
    return f"saved {folder}: {result.wall_s:.0f} s wall time, {result.cpu_s:.0f} s CPU time"


def _told(folder: Path, result: Any) -> Any:
    """Say what a run took. Its model, patched."""
    import adapt_kernels as ak

    console.print(_spent(folder, result), soft_wrap=True)
    return ak.patch(result.model, ak.Modes.from_pretrained(folder))


def _finish(folder: Path, task: str, result: Any) -> None:
    """Say what the run took, and what the model in `folder` can do."""
    import adapt_kernels as ak
    from adapt_recipes.adapters import is_adapter
    from adapt_recipes.evaluation.compare import level_rows
    from adapt_recipes.evaluation.frontier import levels, measure_modes, spread_problems
    from adapt_recipes.evaluation.report import level_table, save_rows
    from adapt_recipes.models import load, load_modes
    from adapt_recipes.training.adapter_card import write_card

    console.print(_spent(folder, result), soft_wrap=True)
    model, tokenizer = load(folder)
    modes = load_modes(folder, tokenizer, None, None)
    ak.patch(model, modes)
    tasks = spread_problems(task, count=MEASURED_ADAPTED if is_adapter(folder) else MEASURED, seed=1)
    found = measure_modes(model, tokenizer, modes, tasks)
    console.print(level_table(levels(found), folder.name))
    if is_adapter(folder):
        save_rows(level_rows(folder.name, found, [each.family for each in tasks]), folder / "difficulty.csv")
        write_card(folder, folder / "difficulty.csv")
