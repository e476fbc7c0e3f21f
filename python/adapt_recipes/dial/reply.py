"""One answer, streamed: the thought apart from the rest, and what it cost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from adapt_recipes.dial.served import Served
from adapt_recipes.dial.setting import Setting
from adapt_recipes.dial.thought import is_open, split, without_opening
from adapt_recipes.programs import described

REFRESH_S = 0.08  # between two snapshots: the page cannot show more


@dataclass(frozen=True)
class Reply:
    """A snapshot. tokens: generated so far, thought_tokens of them thought. probs: the model's own P(mode), before any
    bias, and mode: the one taken, both known at the end. note: what program and budget did. stopped: by the user."""

    thought: str = ""
    text: str = ""
    tokens: int = 0
    thought_tokens: int = 0
    seconds: float = 0.0
    probs: tuple[float, ...] | None = None
    mode: str | None = None
    note: str = ""
    done: bool = False
    stopped: bool = False


def stream(served: Served, prompt: str, setting: Setting, stop: threading.Event) -> Iterator[Reply]:
    """Yield snapshots of the answer to `prompt`, the last one `done`.

    Setting `stop`, or closing the iterator, ends the computation at the next token and frees the model. Raises what
    `generate` and the arguments raise, before anything is yielded where it can be known then.
    """
    inputs = served.inputs(prompt, setting.max_new_tokens)
    arguments = setting.arguments()
    program = served.program(setting.program, setting.program_settings)
    if program is not None:
        arguments["program"] = program
    left = threading.Event()  # the reader went away; `stop` may serve the user's next answer too
    run = _Run(served, inputs, arguments, stop, left)
    inside = is_open(inputs["input_ids"][0].tolist(), served.tags)
    try:
        yield from run.snapshots(inside)
    finally:
        left.set()
        run.join()


def own_probs(served: Served, prompt: str) -> tuple[float, ...]:
    """The model's own P(mode) after `prompt`: a prefill and the tokens before the gate, nothing is answered."""
    steps = max((len(served.modes[name].ids or (0,)) for name in served.names), default=1)
    inputs = served.inputs(prompt, steps)
    with served.lock:
        out = served.model.generate(
            **inputs, mode_bias=0.0, do_sample=False, max_new_tokens=steps, return_dict_in_generate=True, seed=0,
            pad_token_id=served.tokenizer.pad_token_id,
        )  # fmt: skip
    return tuple(out.mode_probs[0].tolist())


class _Run:
    """`generate` in a thread of its own, its tokens in a queue."""

    def __init__(self, served: Served, inputs: Any, arguments: dict[str, Any], *stops: threading.Event):
        self._served, self._inputs, self._arguments, self._stops = served, inputs, arguments, stops
        self._arrived: queue.Queue = queue.Queue()  # token ids, then the output or the error
        self._ids: list[int] = []
        self._thread = threading.Thread(target=self._generate, daemon=True)
        self._began = time.perf_counter()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def snapshots(self, inside: bool) -> Iterator[Reply]:
        self._thread.start()
        shown = time.perf_counter()
        while True:
            item = self._arrived.get()
            if isinstance(item, BaseException):
                raise item
            if not isinstance(item, int):
                yield self._last(item, self._snapshot(inside))
                return
            self._ids.append(item)
            if time.perf_counter() - shown >= REFRESH_S:
                shown = time.perf_counter()
                yield self._snapshot(inside)

    def _snapshot(self, inside: bool) -> Reply:
        thought, answer = split(self._ids, self._served.tags, inside)
        answer = without_opening(answer, self._served.openings)
        decode = self._served.tokenizer.decode
        texts = (decode(ids, skip_special_tokens=True).strip() for ids in (thought, answer))
        return Reply(*texts, len(self._ids), len(thought), time.perf_counter() - self._began)

    def _last(self, out: Any, reply: Reply) -> Reply:
        mode, probs = int(out.modes[0]), tuple(out.mode_probs[0].tolist())
        note = "" if out.fired is None else described(out.fired[0].tolist(), out.spans[0], out.never_armed[0])
        name = self._served.modes.names[mode] if mode >= 0 else None
        stopped = any(stop.is_set() for stop in self._stops)
        return replace(reply, probs=probs, mode=name, note=note, done=True, stopped=stopped)

    def _generate(self) -> None:
        served, prompt = self._served, self._inputs
        try:
            with served.lock:
                self._began = time.perf_counter()  # waiting for others is not thinking
                out = served.model.generate(
                    **prompt, **self._arguments, return_dict_in_generate=True, streamer=_Tokens(self._arrived),
                    stopping_criteria=[Stopped(*self._stops)], pad_token_id=served.tokenizer.pad_token_id,
                )  # fmt: skip
            self._arrived.put(out)
        except BaseException as error:  # the reader raises it
            self._arrived.put(error)


class _Tokens(BaseStreamer):
    """Puts the new tokens of a single row into a queue, one by one."""

    def __init__(self, into: queue.Queue):
        self._into, self._prompt_seen = into, False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # Hugging Face hands over the prompt first
            self._prompt_seen = True
            return
        for token in value.tolist():
            self._into.put(token)

    def end(self) -> None:
        pass


class Stopped(StoppingCriteria):
    """Ends every row after the token at which one of `stops` was seen set."""

    def __init__(self, *stops: threading.Event):
        self._stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ended = any(stop.is_set() for stop in self._stops)
        return torch.full((len(input_ids),), ended, dtype=torch.bool, device=input_ids.device)
