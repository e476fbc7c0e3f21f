"""Splits Hugging Face's logits processors into those that run as they are and those the sampler does itself."""

import math
from copy import copy
from functools import partial
from typing import NamedTuple

import torch
from transformers.generation import logits_process as lp
from transformers.generation.logits_process import LogitsProcessorList

from adapt_kernels.hf.compat import existing

# Processors that look at one row at a time and remember nothing about rows, or what `processors.of_rows` selects.
ROWWISE_PROCESSORS = existing(
    lp,
    *("RepetitionPenaltyLogitsProcessor", "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"),
    *("TemperatureLogitsWarper", "TopPLogitsWarper", "TopKLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper"),
    *("TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "NoRepeatNGramLogitsProcessor"),
    *("SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor", "ForcedBOSTokenLogitsProcessor"),
    *("ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor", "ExponentialDecayLengthPenalty"),
    *("LogitNormalization", "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor"),
)
_NEG_INF = float("-inf")
_FUSED = (lp.TemperatureLogitsWarper, lp.TopKLogitsWarper, lp.TopPLogitsWarper, lp.MinPLogitsWarper)
# A watermark would shift the choice between two modes, so it starts the tail too, which the mode gate does not run.
_WATERMARKS = (lp.WatermarkLogitsProcessor, lp.SynthIDTextWatermarkLogitsProcessor)
_WARPERS = _FUSED + (lp.TopHLogitsWarper, lp.TypicalLogitsWarper, lp.EpsilonLogitsWarper, lp.EtaLogitsWarper)


class SplitProcessors(NamedTuple):
    """head runs first (penalties, bans, user processors); tail are the warpers of sampling and what follows them.

    fused: the tail as arguments of mode_sample, or None when it holds anything else (typical_p, watermarks ...).
    temperature: the tail's temperatures multiplied, 1.0 without one.
    """

    head: LogitsProcessorList
    tail: LogitsProcessorList
    fused: dict | None
    temperature: float


def split(processors: LogitsProcessorList) -> SplitProcessors:
    """Split at the first sampling warper or watermark. Only exact types are fused: a subclass may differ."""
    processors = list(processors)
    first = next((i for i, p in enumerate(processors) if type(p) in _WARPERS + _WATERMARKS), len(processors))
    tail = processors[first:]
    temperature = math.prod(p.temperature for p in tail if type(p) is lp.TemperatureLogitsWarper)
    return SplitProcessors(
        LogitsProcessorList(processors[:first]), LogitsProcessorList(tail), _fused_arguments(tail), temperature
    )


def of_rows(processors: LogitsProcessorList, rows) -> LogitsProcessorList:
    """The same processors for the rows in `rows` [slots] int64; only a repetition penalty keeps a number per row."""
    return LogitsProcessorList(map(partial(_of_rows, rows=rows), processors))


def _of_rows(processor, rows):
    lengths = getattr(processor, "prompt_ignore_length", None)
    if type(processor) is not lp.RepetitionPenaltyLogitsProcessor or not torch.is_tensor(lengths):
        return processor
    chosen = copy(processor)
    chosen.prompt_ignore_length = lengths.to(rows.device)[rows]
    return chosen


def with_memory(processors: LogitsProcessorList) -> list:
    """The processors that may remember what they refused, such as grammars; the others merely mask or shift."""
    return [p for p in processors if type(p) not in ROWWISE_PROCESSORS]


def refused_by_memory(head: LogitsProcessorList, input_ids, logits, shaped, tokens) -> list[int]:
    """Slots whose forced token (tokens [slots], -1 = none) one of `with_memory` puts at -inf in shaped [slots, V]."""
    if not with_memory(head):
        return []
    column = tokens.clamp(min=0)[:, None]
    masked = (tokens >= 0) & (shaped.gather(1, column)[:, 0] == _NEG_INF)
    if masked.any():
        others = LogitsProcessorList(p for p in head if type(p) in ROWWISE_PROCESSORS)
        without = others(input_ids, logits.to(copy=True, dtype=torch.float32))
        masked &= without.gather(1, column)[:, 0] != _NEG_INF
    return masked.nonzero()[:, 0].tolist()


def _fused_arguments(tail: list) -> dict | None:
    order = [_FUSED.index(type(p)) if type(p) in _FUSED else None for p in tail]
    known = [place for place in order if place is not None]
    if known != order or known != sorted(set(known)):
        return None
    arguments = {}
    for processor in tail:
        if type(processor) is lp.TemperatureLogitsWarper:
            arguments["temperature"] = processor.temperature
            continue
        if processor.filter_value != _NEG_INF:
            return None
        if type(processor) is lp.TopKLogitsWarper:
            arguments["top_k"] = processor.top_k
        elif processor.min_tokens_to_keep != 1:
            return None
        elif type(processor) is lp.TopPLogitsWarper:
            arguments["top_p"] = processor.top_p
        else:
            arguments["min_p"] = processor.min_p
    return arguments
