"""The guard: every request of a vLLM engine is checked where it enters, and its row gets its seed."""

import sys
import weakref
from copy import copy
from functools import wraps

from adapt_kernels.philox import row_seed
from adapt_kernels.serving.entrance import Entrance
from adapt_kernels.serving.settings import NAMES, ROW_KEY, Settings, check_names, misplaced, parse
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
    """Entry point of `vllm.general_plugins`; harmless when called again.

    Under a vLLM that lacks what this wraps it stays off, and requests with settings are refused.
    """
    if _state["on"]:
        return
    try:
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.engine.parallel_sampling import ParentRequest

        enter, children = InputProcessor.process_inputs, ParentRequest._get_child_sampling_params
    except (ImportError, AttributeError):
        return
    InputProcessor.process_inputs = _checking(enter)
    ParentRequest._get_child_sampling_params = _own_seed(children)
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
                seed = _admitted(self, params, request.prompt_token_ids)
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


_ENTRANCES: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def _admitted(processor, params, prompt) -> int:
    """The seed of a request's row. Raises ValueError, beginning with a setting's name, for what is refused."""
    config = processor.vllm_config
    if processor not in _ENTRANCES:
        # Ranks that each have an entrance of their own must draw the same.
        ranks = config.parallel_config.distributed_executor_backend == "external_launcher"
        stream = int(config.model_config.seed or 0) if ranks else None
        _ENTRANCES[processor] = Entrance(served_model(config), config.model_config.get_vocab_size(), stream)
    entrance = _ENTRANCES[processor]
    settings = parse(params.extra_args, entrance.served)
    try:
        check_engine(config, settings)
        _check_beside(settings, params, prompt)
        return entrance.admit(settings, prompt, params.max_tokens or 2**30, params.seed, bool(params.stop))
    except ValueError as error:
        field = next(n for n, value in params.extra_args.items() if n in NAMES and value is not None)
        raise ValueError(f"{field}: {error}") from None


def _check_beside(settings: Settings, params, prompt) -> None:
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
    capped = settings.thinking_budget is not None or settings.program is not None
    if capped and getattr(params, "thinking_token_budget", None) is not None:
        raise ValueError("thinking_token_budget is vLLM's own cap of the same thought: send one of them")
