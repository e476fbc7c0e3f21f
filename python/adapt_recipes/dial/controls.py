"""The controls of one setting, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from adapt_recipes.dial.served import Served
from adapt_recipes.dial.setting import Setting, whole

UNKNOWN = ("fast", "slow")  # shown until the modes are named
SWITCHES = (("bias", "bias"), ("exact share", "share"), ("forced mode", "mode"))


class Dial:
    """One set of controls; `components` is what `setting_of` takes, in its order."""

    def __init__(self, served: Served):
        names = list(served.names or UNKNOWN)
        self.control = gr.Radio(list(SWITCHES), value="bias", label="The mode is set by")
        self.bias = gr.Slider(-8, 8, value=0, step=0.25, label=f"Bias towards {names[0]} (logit units)")
        self.share = gr.Slider(0.01, 0.99, value=0.5, step=0.01, label=f"Exact share of {names[0]}")
        self.mode = gr.Radio(names, value=names[-1], label="Forced mode")
        with gr.Accordion("Budget and program", open=False):
            self.budget = gr.Textbox(label="Thinking budget, tokens", placeholder="no budget", max_lines=1)
            self.program = gr.Dropdown(_choices(served), value="", label="Program")
            self.program_settings = gr.Textbox(label="Settings of the program", placeholder="tokens=32", max_lines=1)
        self._connect(served)

    @property
    def components(self) -> list[Any]:
        return [self.control, self.bias, self.share, self.mode, self.budget, self.program, self.program_settings]

    def refreshed(self, served: Served) -> list[Any]:
        """Updates of mode and program, for modes that were named after the page was built."""
        names = list(served.names or UNKNOWN)
        return [gr.Radio(choices=names, value=names[-1]), gr.Dropdown(choices=_choices(served), value="")]

    def _connect(self, served: Served) -> None:
        light = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for name in ("bias", "share", "mode"):
            # What was moved last is what counts.
            getattr(self, name).input(lambda name=name: name, None, self.control, **light)
        self.program.input(lambda name: served.programs().get(name, ""), self.program, self.program_settings, **light)


def _choices(served: Served) -> list[tuple[str, str]]:
    return [("none", ""), *((name, name) for name in served.programs())]


def setting_of(dial: Sequence[Any], max_new_tokens: Any, seed: Any, sample: bool) -> Setting:
    """The setting that the values of `Dial.components` and the shared fields say. Raises ValueError."""
    control, bias, share, mode, budget, program, program_settings = dial
    return Setting(
        control, bias, share, mode, _budget(budget), program or None, program_settings or "",
        whole(max_new_tokens), whole(seed), bool(sample),
    )  # fmt: skip


def _budget(text: str | None) -> int | None:
    text = (text or "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"the thinking budget must be a whole number of tokens, or empty for none; got {text[:40]!r}")
    return int(text)
