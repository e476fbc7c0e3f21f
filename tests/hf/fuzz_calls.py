"""Makes the fuzzer's calls: a case's arguments for `generate`, the conditions it runs under, and what it gave."""

import contextlib
import copy
import os
from dataclasses import dataclass

import torch
from char_tokenizer import char_tokenizer
from fuzz_cases import Case, prompts
from recorders import RecordingStreamer, RowLengths
from small_models import build, shared
from tiny_models import FAST, PAD, SLOW, VOCAB
from transformers import DynamicCache, LogitsProcessor
from transformers.generation.utils import ALL_CACHE_NAMES

from adapt_kernels.hf.kv.batch import cached_tokens

CACHE = ALL_CACHE_NAMES[0]
# Where models and inputs are; tensors the package makes by itself must follow them.
DEVICE = torch.device(os.environ.get("FUZZ_DEVICE", "cpu"))
_MODE_IDS = {"fast": FAST, "slow": SLOW}


def model_of(case: Case):
    """Raises what transformers raises where it cannot build the model."""
    return shared(case.architecture, case.attention, case.weights).to(DEVICE)


def model_again(case: Case):
    """The same model, built anew."""
    return build(case.architecture, case.weights, case.attention).to(DEVICE)


@dataclass
class Outcome:
    """What a case gave: one or two outputs of `generate`, the streamers' calls, positions in caches, and the error."""

    outputs: tuple = ()
    streamed: tuple = ()
    cached: tuple = ()
    error: BaseException | None = None


class ForcedFirst(LogitsProcessor):
    """Leaves each row one token at the first step; tokens [rows] int64."""

    def __init__(self, start: int, tokens):
        self._start, self._tokens = start, tokens

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] != self._start:
            return scores
        return torch.full_like(scores, float("-inf")).scatter(1, self._tokens[:, None], 0.0)


class PadsEnded(LogitsProcessor):
    """Leaves rows that have ended the padding token alone, as they are given it anyway."""

    def __init__(self, start: int, case: Case, eos: list[int]):
        self._start, self._case, self._eos = start, case, eos

    def __call__(self, input_ids, scores):
        new = input_ids[:, self._start :]
        ended = torch.isin(new, torch.tensor(self._eos, device=new.device)).any(1)
        if self._case.row_ends is not None:
            ended |= torch.tensor(self._case.row_ends, device=new.device) <= new.shape[1]
        padding = torch.full_like(scores, float("-inf"))
        padding[:, PAD] = 0.0
        return torch.where(ended[:, None], padding, scores)


def with_ended_padded(model, case: Case, arguments: dict) -> dict:
    """The call for Hugging Face's loop, which goes on drawing for rows that have ended, and fails where it cannot."""
    pads = PadsEnded(start_of(model, case), case, arguments.get("eos_token_id") or [])
    return {**arguments, "logits_processor": [*arguments.get("logits_processor", ()), pads]}


@contextlib.contextmanager
def conditions(model, case: Case):
    """The case's hook, training mode and missing token ids, around its calls."""
    handle, settings = None, model.generation_config
    model.generation_config = copy.copy(settings)
    # None among a call's arguments stands for these.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD if case.has_pad else None
    if case.hook is not None:
        handle = _some_layer(model).register_forward_hook(_steer if case.hook == "rows" else _look)
    checkpointing = case.checkpointing and model.supports_gradient_checkpointing
    if checkpointing:
        _checkpointing(model, "enable")
    model.train(case.training)
    try:
        yield
    finally:
        model.generation_config = settings
        if handle is not None:
            handle.remove()
        if checkpointing:
            _checkpointing(model, "disable")
        model.eval()


def call(model, case: Case, arguments: dict, ours: dict) -> Outcome:
    """One `generate` call, or two where the case goes on. ours: arguments that only a patched model takes."""
    arguments = {**arguments, **_fresh(model, case, arguments)}
    torch.manual_seed(case.seed)
    streams, outputs = [], []
    try:
        outputs.append(model.generate(**arguments, **ours, **_streamer(case, streams)))
        if case.continued:
            again = _continuation(case, arguments, outputs[0])
            outputs.append(model.generate(**again, **ours, **_streamer(case, streams)))
        cached = tuple(cached_tokens(output) for output in outputs if not torch.is_tensor(output))
    except Exception as error:
        return Outcome(tuple(outputs), error=error)
    return Outcome(tuple(outputs), tuple(tuple(stream.calls) for stream in streams), cached)


def arguments_of(model, case: Case) -> dict:
    """Arguments of `generate` for the unpatched and the patched model; no state of a call is in them."""
    arguments = {**_inputs(model, case), **_choice(case), **dict(case.processors)}
    start = start_of(model, case)
    arguments |= {"max_new_tokens": case.new} if case.limit == "max_new_tokens" else {"max_length": start + case.new}
    arguments |= {"eos_token_id": None, "pad_token_id": PAD if case.has_pad else None}
    if not case.use_cache:
        arguments["use_cache"] = False
    if case.cache == "static":
        arguments["cache_implementation"] = "static"
    if case.row_ends is not None:
        arguments["stopping_criteria"] = [RowLengths(start, case.row_ends)]
    if case.eos or case.stop_at:
        arguments |= _ends(model, arguments, case)
    if case.rich or case.continued:
        arguments |= {"return_dict_in_generate": True} | dict.fromkeys(case.outputs, True)
    return arguments


def start_of(model, case: Case) -> int:
    """Width of the ids before the first new token."""
    if model.config.is_encoder_decoder or case.inputs == "none":
        return 1
    return case.width if case.inputs == "input_ids" else 0


def forced_modes(case: Case) -> list[str]:
    """The mode of each row under draw "forced"."""
    return [("fast", "slow")[(case.seed >> row) & 1] for row in range(case.rows)]


def with_modes_forced(model, case: Case, arguments: dict) -> dict:
    """The unpatched model's arguments that give what forced modes give."""
    first = torch.tensor([_MODE_IDS[mode] for mode in forced_modes(case)])
    return {**arguments, "logits_processor": [ForcedFirst(start_of(model, case), first.to(DEVICE))]}


def _inputs(model, case: Case) -> dict:
    if case.inputs == "none":
        return {"bos_token_id": 2}
    inputs = {name: tensor.to(DEVICE) for name, tensor in prompts(case).items()}
    if case.token_types:
        inputs["token_type_ids"] = inputs["input_ids"] % 2
    if case.inputs == "inputs_embeds":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    return inputs


def _choice(case: Case) -> dict:
    sampled = {"do_sample": True, "num_return_sequences": case.samples}
    return {
        "greedy": {"do_sample": False},
        "forced": {"do_sample": False},
        "top_k_1": {**sampled, "top_k": 1},
        "rng_hf": {**sampled, "top_k": 0, "temperature": 0.9, "top_p": 0.9},
        "own_seeds": {**sampled, "top_k": 20, "temperature": 1.1},
        "beams": {"num_beams": 3, "do_sample": False},
        "beam_sample": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
        "assisted": {"do_sample": False},
        "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
    }[case.draw]


def _ends(model, arguments: dict, case: Case) -> dict:
    """EOS ids and stop strings that greedy decoding reaches in different rows at different steps."""
    free = {**arguments, "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "pad_token_id": PAD}
    for name in ("prompt_lookup_num_tokens", "top_k", "top_p", "temperature", "stopping_criteria"):
        free.pop(name, None)
    try:
        new = model.generate(**free)[:, start_of(model, case) :]
    except Exception:
        return {"eos_token_id": [7]}

    def token(place):
        return new[place[0] % len(new), min(place[1], new.shape[1] - 1)]

    ends = {}
    if case.eos:
        ends["eos_token_id"] = sorted({int(token(place)) for place in case.eos})
    if case.stop_at is not None:
        tokenizer = char_tokenizer()
        ends |= {"tokenizer": tokenizer, "stop_strings": [tokenizer.decode(token(case.stop_at)[None])]}
    return ends


def _fresh(model, case: Case, arguments: dict) -> dict:
    """What a call may change, made anew for each."""
    fresh = {}
    if case.draw == "assisted":
        fresh["assistant_model"] = shared(case.architecture, case.attention, case.weights + 1).to(DEVICE)
    if case.cache == "given":
        config = model.config.get_text_config(decoder=True)
        fresh[CACHE] = DynamicCache(config=config) if hasattr(config, "num_hidden_layers") else DynamicCache()  # blt
    return fresh


def _streamer(case: Case, streams: list) -> dict:
    if not case.streamed:
        return {}
    streams.append(RecordingStreamer())
    return {"streamer": streams[-1]}


def _continuation(case: Case, arguments: dict, output) -> dict:
    """A second turn: the sequences, two more tokens and the returned cache."""
    rows = len(output.sequences)
    more = torch.randint(3, VOCAB, (rows, 2), generator=torch.Generator().manual_seed(case.seed + 1))
    ids = torch.cat([output.sequences, more.to(DEVICE)], 1)
    again = {**arguments, "num_return_sequences": 1, "input_ids": ids, "max_new_tokens": case.new}
    for name in ("stopping_criteria", "max_length", "attention_mask", "token_type_ids", "position_ids"):
        again.pop(name, None)
    mask = arguments.get("attention_mask")
    if mask is not None:
        mask = mask.repeat_interleave(rows // len(mask), 0)
        again["attention_mask"] = torch.cat([mask, mask.new_ones(rows, ids.shape[1] - mask.shape[1])], 1)
    return {**again, CACHE: next((output[n] for n in ALL_CACHE_NAMES if output.get(n) is not None), None)}


def _checkpointing(model, what: str) -> None:
    # Renamed in transformers 5.24.
    new = getattr(model, f"activation_checkpointing_{what}", None)
    (new or getattr(model, f"gradient_checkpointing_{what}"))()


def _some_layer(model):
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    return lists[0][0] if lists else next(model.children())


def _look(module, args, output):
    return None


def _steer(module, args, output):
    """Adds row i of the batch i / 2."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not torch.is_tensor(hidden) or hidden.ndim != 3:
        return output
    steered = hidden + torch.arange(len(hidden), device=hidden.device).view(-1, 1, 1) * 0.5
    return (steered, *output[1:]) if isinstance(output, tuple) else steered
