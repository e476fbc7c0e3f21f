"""The page: components, and what they call. What is computed is in the other files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from adapt_recipes.dial import drawing
from adapt_recipes.dial.asking import ask, compare, moved, probed
from adapt_recipes.dial.controls import Dial
from adapt_recipes.dial.points import measure
from adapt_recipes.dial.served import Served
from adapt_recipes.dial.session import Runs, guarded
from adapt_recipes.dial.style import DOT_CLICKS

USERS_WAITING = 100
# One call at a time: users wait in line, and nobody else's answer is computed meanwhile.
MODEL = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "undocumented"}
LIGHT = {"queue": False, "show_progress": "hidden", "api_visibility": "undocumented"}


def build(served: Served) -> gr.Blocks:
    """The page of a model, not yet launched."""
    runs = Runs()
    with gr.Blocks(title="The dial", analytics_enabled=False) as page:
        gr.HTML(f'<h1>The dial</h1><p>{escape(served.label)}: how much it thinks is one bias on one token.</p>',
                elem_classes="dial-head")  # fmt: skip
        with gr.Group(visible=served.modes is None) as naming:
            fast, slow, name, named = _naming()
        with gr.Tabs():
            with gr.Tab("Ask"):
                dial, probe_first = _ask_tab(served, runs)
            with gr.Tab("Frontier"):
                refresh_points = _frontier_tab(served, runs, dial)
            with gr.Tab("Compare"):
                pair = _compare_tab(served, runs)
        dials = (dial, *pair)
        changed = [naming, *(each for d in dials for each in (d.mode, d.program))]

        def refresh() -> list[Any]:
            return [gr.Group(visible=served.modes is None), *(new for d in dials for new in d.refreshed(served))]

        def rename(fast_text: str, slow_text: str) -> str:
            try:
                served.name_openings(fast_text, slow_text)
            except (ValueError, TypeError) as error:
                return drawing.message(str(error))
            return ""

        name.click(rename, [fast, slow], named, **MODEL).then(refresh, None, changed, **LIGHT)
        page.load(refresh, None, changed, **LIGHT)
        probe_first(page)
        refresh_points(page)
        page.unload(_for_user(runs.leave))
    return page.queue(max_size=USERS_WAITING, api_open=False)


def _naming() -> tuple[Any, ...]:
    gr.Markdown("This model does not say how its modes begin. Give the text that opens each.")
    with gr.Row():
        fast = gr.Textbox(label="A fast answer begins with", placeholder="<answer>", max_lines=1)
        slow = gr.Textbox(label="A slow answer begins with", placeholder="<think>", max_lines=1)
    button, named = gr.Button("Use these modes", variant="primary"), gr.HTML()
    return fast, slow, button, named


def _shared_fields(served: Served) -> list[Any]:
    with gr.Accordion("Length, seed and sampling", open=False), gr.Row():
        return [
            gr.Number(served.most_new_tokens, label="Most new tokens", precision=0),
            gr.Number(7, label="Seed", precision=0),
            gr.Checkbox(False, label="Sample every token (else only the mode is drawn)"),
        ]


def _buttons(runs: Runs, label: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        go = gr.Button(label, variant="primary")
        stop = gr.Button("Stop", variant="secondary")
    stop.click(_for_user(runs.stop), **LIGHT)
    return go, stop


def _for_user(act: Callable[[str], None]) -> Callable[[gr.Request], None]:
    def acted(request: gr.Request) -> None:  # Gradio fills it in by its annotation
        act(request.session_hash)

    return acted


def _prompt(served: Served) -> gr.Textbox:
    return gr.Textbox(served.examples[0], label="Prompt", lines=2, max_lines=8, elem_id="prompt")


def _ask_tab(served: Served, runs: Runs) -> tuple[Dial, Callable[[gr.Blocks], Any]]:
    own = gr.State(None)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            prompt = _prompt(served)
            examples = gr.Dataset(components=[prompt], samples=[[each] for each in served.examples], label="Examples")
            go, _ = _buttons(runs, "Ask")
            said = gr.HTML()
            text = gr.Textbox(label="Answer", lines=2, interactive=False, elem_id="answer")
            with gr.Accordion("Thought", open=False) as folded:
                thought = gr.Textbox(show_label=False, lines=3, interactive=False, elem_id="thought")
            cost = gr.HTML()
        with gr.Column(scale=2, min_width=300):
            bars = gr.HTML(drawing.bars(served.names, None, None), elem_id="bars")
            dial = Dial(served)
            against = gr.Checkbox(True, label="Measure it against forced slow too")
            fields = _shared_fields(served)
    shown = [said, text, folded, thought, cost, bars, own]

    def answer(request: gr.Request, prompt_text: str, with_slow: bool, *values: Any) -> Iterator[list[Any]]:
        yield from ask(served, runs.stop_of(request.session_hash), prompt_text, with_slow, values)

    inputs = [prompt, against, *dial.components, *fields]
    for event in (go.click, prompt.submit):
        event(_for_user(runs.begin), **LIGHT).then(
            answer, inputs, shown, api_name="ask", show_progress="minimal", **MODEL
        )

    return dial, _connect_bars(served, dial, prompt, examples, [said, bars, own])


def _connect_bars(
    served: Served, dial: Dial, prompt: gr.Textbox, examples: gr.Dataset, shown: list[Any]
) -> Callable[[gr.Blocks], Any]:
    """P(mode) follows the controls, an example, and (by what is returned) the loading of the page."""

    def example(sample: list[str], *values: Any) -> Iterator[list[Any]]:
        for update in probed(served, sample[0], values):
            yield [sample[0], *update]

    def first(prompt_text: str, *values: Any) -> Iterator[list[Any]]:
        if served.modes is not None:
            yield from probed(served, prompt_text, values)

    _, bars, own = shown
    examples.click(example, [examples, *dial.components], [prompt, *shown], show_progress="hidden", **MODEL)
    for control in (dial.control, dial.bias, dial.share, dial.mode):
        control.change(lambda *given: moved(served, *given), [own, *dial.components], bars, **LIGHT)
    return lambda page: page.load(first, [prompt, *dial.components], shown, show_progress="hidden", **MODEL)


def _frontier_tab(served: Served, runs: Runs, dial: Dial) -> Callable[[gr.Blocks], None]:
    what = "Accuracy against cost over 400 problems" if served.graded else "P(fast) against cost over the examples"
    gr.Markdown(f"{what}, one point per bias. Click a point to set the slider of the first tab.")
    said = gr.HTML()
    chart = gr.HTML(drawing.frontier_svg([]), js_on_load=DOT_CLICKS, elem_id="frontier")
    go, _ = _buttons(runs, "Measure")

    def measured(request: gr.Request) -> Iterator[list[Any]]:
        def steps() -> Iterator[list[Any]]:
            for done, total, points in measure(served, runs.stop_of(request.session_hash)):
                yield [drawing.message("" if points else f"{done} of {total} answers", "note"),
                       drawing.frontier_svg(points)]  # fmt: skip

        yield from guarded(steps(), lambda error: [drawing.message(error), gr.skip()])

    def choose(event: gr.EventData) -> list[Any]:
        bias = event.bias
        if bias not in [point.bias for point in served.points]:
            return [drawing.message("That point is no longer measured."), gr.skip(), gr.skip(), gr.skip()]
        note = drawing.message(f"The slider of the first tab is at {bias:+g}.", "note")
        return [note, drawing.frontier_svg(served.points, bias), bias, "bias"]

    go.click(_for_user(runs.begin), **LIGHT).then(measured, None, [said, chart], api_name="frontier", **MODEL)
    chart.select(choose, None, [said, chart, dial.bias, dial.control], **LIGHT)

    def at_load(page: gr.Blocks) -> None:
        if served.graded:  # a second's work, once for all users
            page.load(measured, None, [said, chart], show_progress="hidden", **MODEL)

    return at_load


def _compare_tab(served: Served, runs: Runs) -> tuple[Dial, Dial]:
    prompt = _prompt(served)
    fields = _shared_fields(served)
    go, _ = _buttons(runs, "Ask both")
    said = gr.HTML()
    dials, shown = [], [said]
    with gr.Row():
        for side in ("A", "B"):
            with gr.Column(min_width=300, elem_id=f"setting-{side}"):
                gr.Markdown(f"### Setting {side}")
                dials.append(Dial(served))
                text = gr.Textbox(label=f"Answer {side}", lines=2, interactive=False, elem_id=f"answer-{side}")
                with gr.Accordion(f"Thought {side}", open=False) as folded:
                    thought = gr.Textbox(show_label=False, lines=3, interactive=False)
                shown += [text, folded, thought, gr.HTML()]

    def answer(request: gr.Request, prompt_text: str, *values: Any) -> Iterator[list[Any]]:
        yield from compare(served, runs.stop_of(request.session_hash), prompt_text, values)

    inputs = [prompt, *dials[0].components, *dials[1].components, *fields]
    go.click(_for_user(runs.begin), **LIGHT).then(
        answer, inputs, shown, api_name="compare", show_progress="minimal", **MODEL
    )
    return dials[0], dials[1]
