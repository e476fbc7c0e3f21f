"""`adapt export`, `adapt serve` and `adapt load`: models on serving engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adapt_recipes.terminal import console, plain_errors, progress


def export(
    model: Annotated[Path, typer.Argument(help="Local Hugging Face model folder.")],
    out: Annotated[Path, typer.Argument(help="New folder for the copy.")],
    target: Annotated[str, typer.Option("--for", help="The engine: vllm.")] = "vllm",
) -> None:
    """Copy a model folder so that another engine can load it: heads too small for vLLM on a CPU are re-laid."""
    with plain_errors():
        from adapt_recipes.serving.export import export_for_vllm

        if target != "vllm":
            raise ValueError(f"--for must be vllm; got {target!r}")
        console.print(export_for_vllm(model, out), highlight=False, soft_wrap=True)


def serve(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="Local Hugging Face model folder.")],
    engine: Annotated[str, typer.Option(help="vllm; hf is refused, with its reason.")] = "vllm",
    program: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER with a program.json; repeatable.")] = None,
    fast: Annotated[str | None, typer.Option(help="Text that opens a fast answer; default: modes.json.")] = None,
    slow: Annotated[str | None, typer.Option(help="Text that opens a slow answer; default: modes.json.")] = None,
) -> None:
    """Launch the engine's own OpenAI-compatible server with the model's modes and programs; other arguments are the
    engine's."""
    with plain_errors():
        from adapt_recipes.serving.launch import serve as launch

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        code = launch(model, engine, program or (), fast, slow, context.args, say)
    raise typer.Exit(code)


def load(
    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The name that the server gives the model.")],
    out: Annotated[Path, typer.Option(help="Folder for load.json and load.png.")] = Path("adapt_load"),
    requests: Annotated[int, typer.Option(help="Requests in all.", min=1)] = 200,
    clients: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 32,
    setting: Annotated[list[str] | None, typer.Option(help="JSON added to the body; repeat for more, in turn.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, a prompt a line; default: the shipped task.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="NAME=TEXT that the mode's answers begin with.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="Of every request.")] = 1.0,
) -> None:
    """Ask an OpenAI-compatible server by many clients at once, with mixed settings, and measure."""
    with plain_errors():
        import adapt_recipes as ar
        from adapt_recipes.serving.load import Load, run, save_plot, summary

        settings = [_setting(each) for each in setting or ["{}"]]
        asked = (
            prompts.read_text("utf-8").splitlines() if prompts else [each.prompt for each in ar.problems(256, seed=0)]
        )
        modes = dict(_mode(each) for each in mode or ("fast=<answer>", "slow=<think>"))
        what = Load(url, model, [each for each in asked if each], settings, modes, max_tokens, temperature)
        with progress("asking", requests) as advance:
            answers, seconds = run(what, requests, clients, advance)
        result = summary(what, answers, seconds)
        out.mkdir(parents=True, exist_ok=True)
        (out / "load.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        save_plot(result, out / "load.png")
    console.print(_lines(result, out), markup=False, highlight=False, soft_wrap=True)
    if not any(each.status == 200 for each in answers):
        raise typer.Exit(1)


def _setting(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--setting must be a JSON object, such as '{{\"vllm_xargs\": ...}}'; got {text!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--setting must be a JSON object; got {text!r}")
    return found


def _mode(text: str) -> tuple[str, str]:
    name, equals, opening = text.partition("=")
    if not equals or not name or not opening:
        raise ValueError(f"--mode must be NAME=TEXT; got {text!r}")
    return name, opening


def _lines(result: dict, out: Path) -> str:
    lines = [
        f"{result['requests']} requests in {result['seconds']:.1f} s, {result['tokens_per_second']:.1f} tokens/s;"
        f" {out / 'load.json'}, {out / 'load.png'}"
    ]
    for row in result["settings"]:
        share = ", ".join(f"{name} {value:.3f}" for name, value in row["share"].items() if value is not None)
        latency = ", ".join(f"{name} {value:.2f} s" for name, value in row["latency"].items())
        lines.append(f"  {json.dumps(row['setting'])}: {row['requests']} requests; {share or 'no answer'}; {latency}")
        lines += [f"    {each['count']} x {each['status']}: {each['error']}" for each in row["errors"]]
    return "\n".join(lines)
