"""The mode gate, thinking budgets and programs per request in Hugging Face's continuous batching.

manager = continuous_manager(model, modes, tokenizer=tokenizer)
manager.start()
manager.add_request(ids, fast_prob=0.3)
manager.add_request(ids, mode="slow", thinking_budget=64, max_new_tokens=256)
"""

import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps

import torch

from adapt_kernels.hf import compat
from adapt_kernels.hf.call.arguments import eos_ids
from adapt_kernels.hf.call.programs import vocab_size
from adapt_kernels.modes import Modes
from adapt_kernels.philox import row_seed
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Span
from adapt_kernels.serving.control import HostTokens, RowControl
from adapt_kernels.serving.entrance import Entrance
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import NAMES, ROW_KEY, Settings, check_names, parse


def continuous_manager(
    model,
    modes: Modes | None,
    *,
    programs: Mapping[str, Program] | None = None,
    spans: Mapping[str, Span] | None = None,
    tokenizer=None,
    generation_config=None,
    **config,
):
    """Hugging Face's `ContinuousBatchingManager` of this model, whose `add_request` also takes `mode` (a name or
    "auto"), `mode_bias`, `fast_prob`, `thinking_budget`, `program` (a `Program`, its JSON form, or a name of
    `programs`) and `adapt_seed`, each for that request alone.

    modes, spans: as of `patch`, which need not have been called. tokenizer: for texts, and for the tags `<think>` and
    `</think>` where modes and spans tell none. config: fields of `ContinuousBatchingConfig`. Draws come from each
    request's own stream, so they do not depend on the batch. Host syncs: as Hugging Face's loop.

    Raises ValueError or TypeError, at once and not in the loop, naming the argument; RuntimeError for a transformers
    that lacks what this needs.
    """
    for name in ("use_async_batching", "use_cuda_graph"):
        if config.setdefault(name, False):
            raise ValueError(f"{name}=True runs steps before their tokens are known here: leave it out")
    if config.setdefault("per_request_processors", True) is not True:
        raise ValueError("per_request_processors=False drops settings of single requests: leave it out")
    generation_config = generation_config or model.generation_config
    served = Served(modes, programs or {}, eos_ids(generation_config), lambda: tokenizer, spans)
    steering = _Steering(served, vocab_size(model), model.device, generation_config)
    manager = compat.continuous_manager(model, steering, ROW_KEY, generation_config, config)
    manager.add_request = _settings_taken(manager.add_request, steering)
    return manager


@dataclass(frozen=True)
class _Asked:
    """What a request brings through Hugging Face's state; shared by its samples and by what replaces it."""

    settings: Settings
    seed: int
    max_new_tokens: int

    def __deepcopy__(self, memo):
        return self


def _settings_taken(add_request, steering: "_Steering"):
    entrance = Entrance(steering.served, steering.vocab_size)

    @wraps(add_request)
    def added(input_ids, request_id=None, max_new_tokens=None, *args, **kwargs):
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in NAMES}
        check_names(kwargs)
        if any(value is not None for value in own.values()):
            if isinstance(own.get("program"), Program):
                own["program"] = steering.accepted(own["program"])
            settings = parse(own, steering.served)
            length = max_new_tokens if max_new_tokens is not None else steering.config.max_new_tokens or 2**30
            seed = entrance.admit(settings, list(input_ids), length, stops=bool(steering.config.stop_strings))
            kwargs[ROW_KEY] = _Asked(settings, seed, length)
        return add_request(input_ids, request_id, max_new_tokens, *args, **kwargs)

    return added


class _Said(Sequence):
    """The tokens of a request so far, wherever its state keeps them."""

    def __init__(self, state):
        self._state = weakref.ref(state)  # whoever forgets a request ends it

    def __len__(self) -> int:
        return len(self._tokens())

    def __getitem__(self, index):
        return self._tokens()[index]

    def _tokens(self) -> list[int]:
        state = self._state()
        return [] if state is None else compat.said(state)[1]


class _Steering:
    """What the manager's processor does: told of the requests of a step, then given their scores."""

    def __init__(self, served: Served, size: int, device, config):
        self.served, self.vocab_size, self.config = served, size, config
        self._control = RowControl(served, size, device)
        self._states: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
        self._batch: list[tuple[str, int]] = []

    def accepted(self, program: Program) -> str:
        """A name under which this program is served."""
        for name, known in self.served.programs.items():
            if known == program:
                return name
        name = f"program {len(self.served.programs)}"
        self.served.programs.update(Served(None, {name: program}).programs)
        return name

    def begin(self, states: Sequence) -> None:
        """The requests whose next token this step computes, in the order of its scores."""
        for name in list(self._control):
            state = self._states.get(name)
            if state is None or compat.is_over(state):
                self._control.drop(name)
        self._batch = []
        for number, state in enumerate(states):
            name, asked = state.request_id, state.logit_processor_kwargs.get(ROW_KEY)
            if asked is None:
                continue
            if self._states.get(name) is not state or name not in self._control:
                self._control.add(name, self._row(state, asked))
                self._states[name] = state
            self._batch.append((name, number))

    def _row(self, state, asked: _Asked) -> Row:
        sampled = bool(self.config.do_sample)
        heat = state.logit_processor_kwargs.get("temperature", self.config.temperature)
        return Row(
            asked.settings,
            compat.said(state)[0],
            _Said(state),
            _of_sample(state.request_id, asked.seed),
            float(heat if heat is not None else 1.0) if sampled else 0.0,
            asked.max_new_tokens,
        )

    def write(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores [n, V] under what this step's requests asked for."""
        if not self._batch:
            return scores
        batch = HostTokens(self._control, self._batch)
        return self._control.step(scores.clone(), batch) if self._control.due(batch) else scores


def _of_sample(name: str, seed: int) -> int:
    """The seed of one of a request's samples: Hugging Face names the others after the first."""
    _, others, sample = name.partition("__child#")
    return row_seed(seed, int(sample) + 1 if sample.isdecimal() else zlib.crc32(sample.encode())) if others else seed
