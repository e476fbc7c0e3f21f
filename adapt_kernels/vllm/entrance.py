"""The guard: every request is checked with its prompt and its engine where it enters, and its row gets its seed."""

import secrets
import sys
import threading
import weakref
from copy import copy
from functools import wraps

import torch

from adapt_kernels.philox import row_seed
from adapt_kernels.program.rules import Force, Gate, label_of
from adapt_kernels.prompt_spans import prompt_spans
from adapt_kernels.serving.control import RowControl
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.served import Served, reads_outer_mode
from adapt_kernels.serving.settings import ROW_KEY, Settings, check_names, misplaced, parse
from adapt_kernels.vllm.model import check_engine, served_model

_REQUESTS = {  # of vLLM's HTTP server, where that is what was started
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
    "vllm.entrypoints.openai.responses.protocol": "ResponsesRequest",
}
_state = {"on": False}


def is_on() -> bool:
    """Whether requests of this process pass the guard."""
    return _state["on"]


def guard() -> None:
    """Entry point of `vllm.general_plugins`; harmless when called again."""
    if _state["on"]:
        return
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.parallel_sampling import ParentRequest

    InputProcessor.process_inputs = _checking(InputProcessor.process_inputs)
    ParentRequest._get_child_sampling_params = _own_seed(ParentRequest._get_child_sampling_params)
    for module, name in _REQUESTS.items():
        request = getattr(sys.modules.get(module), name, None)
        if request is not None:
            request.to_sampling_params = _refusing_misplaced(request.to_sampling_params)
    _state["on"] = True


def _checking(process_inputs):
    @wraps(process_inputs)
    def checked(self, *args, **kwargs):
        request = process_inputs(self, *args, **kwargs)
        params = request.sampling_params
        if params is not None and check_names(params.extra_args):
            try:
                if self not in _ENTRANCES:
                    _ENTRANCES[self] = Entrance(self.vllm_config)
                seed = _ENTRANCES[self].admit(params, request.prompt_token_ids)
            except ValueError as error:
                raise _validation_error(str(error)) from error
            # The caller's own dict may serve other requests.
            params.extra_args = {**params.extra_args, ROW_KEY: seed}
        return request

    return checked


def _own_seed(child_params):
    @wraps(child_params)
    def seeded(self, index: int):
        params = child_params(self, index)
        if ROW_KEY in (params.extra_args or {}):
            params = copy(params)
            params.extra_args = {
                **params.extra_args,
                ROW_KEY: row_seed(self.sampling_params.extra_args[ROW_KEY], index),
            }
        return params

    return seeded


def _refusing_misplaced(to_sampling_params):
    @wraps(to_sampling_params)
    def refused(self, *args, **kwargs):
        name = misplaced(self.model_extra or ())
        if name is not None:
            raise _validation_error(f'{name}: goes into "vllm_xargs": {{"{name}": ...}}')
        return to_sampling_params(self, *args, **kwargs)

    return refused


def _validation_error(text: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(text)


class Entrance:
    """Where requests enter one engine. Raises ValueError, beginning with the setting's name, for what it refuses."""

    def __init__(self, vllm_config):
        self._config, self._served = vllm_config, served_model(vllm_config)
        self._lock, self._count = threading.Lock(), 0
        self._control = RowControl(self._served, vllm_config.model_config.get_vocab_size(), torch.device("cpu"))
        # Ranks that each have an entrance of their own must draw the same.
        ranks = vllm_config.parallel_config.distributed_executor_backend == "external_launcher"
        self._stream = int(vllm_config.model_config.seed or 0) if ranks else secrets.randbits(63)

    def admit(self, params, prompt) -> int:
        """The seed of the request's row."""
        settings = parse(params.extra_args, self._served)
        field = next(name for name in params.extra_args if params.extra_args[name] is not None)
        if not settings.steers:
            raise ValueError(f"{field}: fixes the draws of a mode or a program, send one of them too")
        try:
            check_engine(self._config, settings)
            check_beside(self._served, settings, params, prompt)
            with self._lock:
                self._check_first_token(settings, params, prompt)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        return self._seed(settings, params)

    def _seed(self, settings: Settings, params) -> int:
        given = params.seed if settings.seed is None else settings.seed
        if given is not None:
            return given if given < 2**63 else given - 2**64
        with self._lock:
            self._count += 1
            return row_seed(self._stream, self._count)

    def _check_first_token(self, settings: Settings, params, prompt) -> None:
        """A rule that acts where a mode is chosen."""
        if not settings.gated or settings.thinking_budget is None and settings.program is None:
            return
        row = Row(settings, prompt, (), 0, 1.0, params.max_tokens or 2**30)
        decision, prefix = self._control.lane(settings).foresee(row), self._served.gate_modes.prefix
        forced, gate, ends = (int(each[0]) for each in (decision.forced, decision.gate, decision.ends))
        if ends or (gate, forced) != ((-1, prefix[0]) if prefix else (0, -1)):
            raise _both_choose("a rule")


_ENTRANCES: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def check_beside(served: Served, settings: Settings, params, prompt) -> None:
    """Raises ValueError for what the rest of the request makes impossible."""
    if prompt is None:
        raise ValueError("needs the prompt's tokens, not embeddings")
    if params.structured_outputs is not None:
        raise ValueError(
            "a grammar (structured outputs) forbids the tokens that this writes, and vLLM ends such a request: leave"
            " one of them out"
        )
    if params.allowed_token_ids is not None or params.bad_words:
        raise ValueError("allowed_token_ids and bad_words may ban what this writes: use a program with a bias instead")
    if getattr(params, "thinking_token_budget", None) is not None and not settings.mode:
        raise ValueError("thinking_token_budget is vLLM's own cap of the same thought: send one of them")
    if settings.gated:
        _check_prompt(served, prompt)
    if settings.program is not None:
        _check_program(served, settings, params)


def _check_prompt(served: Served, prompt) -> None:
    modes = served.gate_modes
    entered = int(prompt_spans(modes, torch.tensor([list(prompt)]), None, served.eos_ids).entered[0])
    if entered >= 0:
        what = "the modes, in part" if entered == len(modes) else f"mode {modes.names[entered]!r}"
        raise ValueError(
            f"the prompt already ends in the tokens of {what}, so no mode is left to choose: use a chat template that"
            " does not prefill it"
        )


def _check_program(served: Served, settings: Settings, params) -> None:
    program = settings.program
    if reads_outer_mode(program) and not settings.gated:
        raise ValueError("its rules ask for a mode that only mode, mode_bias or fast_prob choose: send one of them")
    if params.stop and any(span.stops == "hold" for span in program.spans.values()):
        raise ValueError(
            "vLLM's stop strings do not sleep inside a span: leave out stop, or declare the span with 'stops': 'end'"
        )
    if settings.gated:
        for index, rule in enumerate(program.rules):
            at = rule.when.ranges.get("at")
            only_there = at is not None and isinstance(at.high, int) and at.high <= len(served.gate_modes.prefix) + 1
            if isinstance(rule, (Gate, Force)) and only_there:
                raise _both_choose(label_of(index, rule))


def _both_choose(who: str) -> ValueError:
    return ValueError(
        f"{who} acts at position 0, where mode, mode_bias or fast_prob chooses the mode: leave these out, or let the"
        " rule act later ('at': [n, null])"
    )
