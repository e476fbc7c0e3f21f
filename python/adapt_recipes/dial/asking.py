"""What the page shows while answers come: updates of its outputs, in their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from adapt_recipes.dial import drawing
from adapt_recipes.dial.controls import setting_of
from adapt_recipes.dial.reply import Reply, own_probs, stream
from adapt_recipes.dial.served import Served
from adapt_recipes.dial.session import guarded
from adapt_recipes.dial.setting import Setting

CONTROLS = 7  # values of one Dial
STOPPED = "Stopped."


def ask(served: Served, stop: threading.Event, prompt: str, with_slow: bool, values: Sequence[Any]) -> Iterator[list]:
    """Updates of message, answer, thought (fold and text), cost, bars and own P(mode). values: a dial, then fields."""

    def steps() -> Iterator[list]:
        if stop.is_set():
            yield [drawing.message(STOPPED, "note"), *[gr.skip()] * 6]
            return
        setting = setting_of(values[:CONTROLS], *values[CONTROLS:])
        reply = Reply()
        for reply in stream(served, prompt, setting, stop):
            yield ["", *_shown(reply), drawing.cost(reply), *_bars(served, reply, setting)]
        if not with_slow or reply.stopped:
            return
        forced = replace(setting, control="mode", mode=served.slow)
        for slow in [reply] if forced == setting else stream(served, prompt, forced, stop):
            yield [*[gr.skip()] * 4, drawing.cost(reply, slow, served.slow), gr.skip(), gr.skip()]

    yield from guarded(steps(), lambda text: [drawing.message(text), "", _fold(Reply()), "", "", gr.skip(), gr.skip()])


def compare(served: Served, stop: threading.Event, prompt: str, values: Sequence[Any]) -> Iterator[list]:
    """Updates of message, then answer, thought (fold and text) and cost of A and of B. values: two dials, then fields.

    One after the other, so that the seconds are each one's own.
    """
    fields = values[2 * CONTROLS :]
    blank = ["", _fold(Reply()), "", ""]

    def steps() -> Iterator[list]:
        settings = [setting_of(values[at : at + CONTROLS], *fields) for at in (0, CONTROLS)]
        yield ["", *blank, *blank]
        for side, setting in enumerate(settings):
            if stop.is_set():
                yield [drawing.message(STOPPED, "note"), *[gr.skip()] * 8]
                return
            for reply in stream(served, prompt, setting, stop):
                own = [*_shown(reply), drawing.cost(reply)]
                others = [gr.skip()] * 4
                yield ["", *own, *others] if side == 0 else ["", *others, *own]

    yield from guarded(steps(), lambda text: [drawing.message(text), *[gr.skip()] * 8])


def probed(served: Served, prompt: str, values: Sequence[Any]) -> Iterator[list]:
    """Updates of message, bars and own P(mode), before anything is answered."""

    def steps() -> Iterator[list]:
        own = own_probs(served, prompt)
        yield ["", moved(served, own, *values), own]

    yield from guarded(steps(), lambda text: [drawing.message(text), gr.skip(), gr.skip()])


def moved(served: Served, own: Sequence[float] | None, *values: Any) -> str:
    """The bars, after a control was moved."""
    try:
        after = own and setting_of(values, 1, 0, False).shifted(own, served.names)
    except ValueError as error:
        return drawing.message(str(error))
    return drawing.bars(served.names, own, after)


def _shown(reply: Reply) -> list[Any]:
    return [reply.text, _fold(reply), reply.thought]


def _fold(reply: Reply) -> Any:
    return gr.Accordion(
        label=f"Thought ({drawing.tokens(reply.thought_tokens)})" if reply.thought_tokens else "Thought"
    )


def _bars(served: Served, reply: Reply, setting: Setting) -> list[Any]:
    if reply.probs is None:
        return [gr.skip(), gr.skip()]
    return [drawing.bars(served.names, reply.probs, setting.shifted(reply.probs, served.names)), reply.probs]
