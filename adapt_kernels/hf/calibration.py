"""calibrate: the mode bias that meets a mean-token budget or a share of fast rows, with a confidence interval."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count as counted

import torch
from transformers import StoppingCriteria

from adapt_kernels.hf.call.patch import modes_of
from adapt_kernels.hf.loop.gate_logits import GateLogits, observed_gates
from adapt_kernels.ops.mode_sample import chances

_REACH = 1e3  # logit units; beyond it a mode's probability is 0 or 1 in float64
_RESAMPLES = 1000


@dataclass(frozen=True)
class Calibration:
    """A bias for `generate(mode_bias=...)` and what it should give.

    bias: logit units. low, high: its confidence interval, from resampling the prompts; +-inf where a resample cannot
    meet the target. fast: expected share of mode 0. tokens: expected new tokens per row, None without target_tokens.
    """

    bias: float
    low: float
    high: float
    fast: float
    tokens: float | None


@torch.no_grad()
def calibrate(
    model,
    inputs,
    target_tokens=None,
    target_fast=None,
    *,
    samples=4,
    confidence=0.95,
    batch_size=64,
    seed=0,
    progress=None,
    **settings,
) -> Calibration:
    """Find the `mode_bias` (on mode 0) under which `generate` spends target_tokens per row, or picks mode 0 for
    target_fast of the rows.

        P(mode 0 | b) = softmax((z + b e_0) / T)[0] per prompt
        target_fast:   mean over prompts of P(mode 0 | b) = target_fast
        target_tokens: mean over prompts of sum_m P(mode m | b) (mean length of the prompt's rows in mode m)

    z and T are what a call of `generate` with these settings has at its gate: the modes' logits after every processor
    (penalties, biases, bans, your own), and its temperature, wherever each was set. target_tokens also generates
    `samples` rows per prompt in every mode that is not banned for it. The bias then comes from a bisection, its
    interval from 1000 bootstrap resamples of the prompts: many prompts make it narrow.

    Args:
        model: patched with its modes; left as it is.
        inputs: what `generate` takes, as tensors with one row per prompt ([prompts, T], left padded): a dict or a
            tokenizer's output with `input_ids` and `attention_mask`, or the ids alone.
        target_tokens: new tokens per row, mode token and EOS included; target_fast: inside (0, 1). Give one.
        samples: rows per prompt and mode for target_tokens; 1 when greedy.
        confidence: of the interval, inside (0, 1).
        batch_size: prompts per `generate` call.
        seed: of the generated rows and of the resampling; torch's generators are left alone.
        progress: called as progress(done, total) after each of the `generate` calls, which take most of the time.
        settings: as for `generate` later on (generation_config, temperature, do_sample, max_new_tokens, top_p ...).
            When greedy, a prompt takes the mode of the larger biased logit. A processor that counts rows sees those of
            these calls: batch_size prompts, times samples for the lengths.

    Raises ValueError or TypeError for bad arguments, and ValueError when no bias meets the target, with the range that
    can be met; everything `generate` raises.
    """
    modes = modes_of(model)
    _check(target_tokens, target_fast, samples, confidence, batch_size)
    prompts = _prompt_tensors(inputs)
    chunks = [
        {name: x[i : i + batch_size] for name, x in prompts.items()} for i in range(0, _count(prompts), batch_size)
    ]
    settings = {**settings, "return_dict_in_generate": True, "seed": seed}
    total = len(chunks) * (1 if target_tokens is None else 1 + len(modes))
    told = _told(progress, total)
    gates = [told(_gate(model, modes, chunk, settings)) for chunk in chunks]
    lengths, temperature = None, gates[0].temperature
    if target_tokens is not None:
        rows = samples if temperature else 1
        each = [
            torch.stack([told(_lengths(model, modes, m, chunk, gate, rows, settings)) for m in range(len(modes))], 1)
            for chunk, gate in zip(chunks, gates, strict=True)
        ]
        lengths = torch.cat(each)
    logits = torch.cat([gate.logits for gate in gates])
    return _solve(logits, lengths, temperature, target_tokens, target_fast, confidence, seed)


def _told(progress, total):
    """What passes a result on and reports that one more of `total` is there."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of (done, total) or None; got {type(progress).__name__}")
    done = counted(1)

    def told(result):
        if progress is not None:
            progress(next(done), total)
        return result

    return told


def _solve(logits, lengths, temperature, target_tokens, target_fast, confidence, seed) -> Calibration:
    """logits [n, M] and lengths [n, M] or None, float64, by prompt."""
    cost = lengths
    if cost is None:
        cost = torch.zeros_like(logits)
        cost[:, 0] = 1.0
    target = target_fast if lengths is None else target_tokens
    count = len(logits)
    whole = torch.full((1, count), 1.0 / count, dtype=torch.float64)
    low, high = sorted(float(_mean(whole, logits, cost, temperature, torch.tensor([b]))) for b in (-_REACH, _REACH))
    if not low <= target <= high:
        name = "target_fast" if lengths is None else "target_tokens"
        raise ValueError(f"{name} must lie in [{low:.4g}, {high:.4g}], what any bias can reach here; got {target}")
    bias = float(_bisect(whole, logits, cost, temperature, target))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (_RESAMPLES, count), generator=generator)
    shares = torch.zeros(_RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full(drawn.shape, 1.0 / count, dtype=torch.float64)
    )
    resampled = _bisect(shares, logits, cost, temperature, target).sort().values
    resampled = torch.where(resampled.abs() >= _REACH * 0.99, resampled.sign() * torch.inf, resampled)
    # Whole ranks: between two infinite ones there is nothing to interpolate.
    edge = int((1 - confidence) / 2 * (_RESAMPLES - 1))
    fast = float(_mode_shares(logits, temperature, torch.tensor([bias]))[..., 0].mean())
    tokens = None if lengths is None else float(_mean(whole, logits, cost, temperature, torch.tensor([bias])))
    return Calibration(bias, float(resampled[edge]), float(resampled[-1 - edge]), fast, tokens)


def _bisect(shares, logits, cost, temperature, target) -> torch.Tensor:
    """[R]: the bias at which each weighted mean [R] over prompts crosses the target; +-_REACH where it does not."""
    low = torch.full((len(shares),), -_REACH, dtype=torch.float64)
    high = -low
    rising = _mean(shares, logits, cost, temperature, high) >= _mean(shares, logits, cost, temperature, low)
    for _ in range(60):
        middle = (low + high) / 2
        below = _mean(shares, logits, cost, temperature, middle) < target
        up = below == rising
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    return (low + high) / 2


def _mean(shares, logits, cost, temperature, bias) -> torch.Tensor:
    """[R]: sum over prompts of shares [R, n] * expected cost at bias [R]."""
    return (shares * (_mode_shares(logits, temperature, bias) * cost).sum(-1)).sum(-1)


def _mode_shares(logits, temperature, bias) -> torch.Tensor:
    """[R, n, M]: P(mode) of each prompt at bias [R] on mode 0."""
    shift = torch.zeros(len(bias), 1, logits.shape[1], dtype=torch.float64)
    shift[:, 0, 0] = bias
    return chances(logits, shift, temperature)


class _AfterSteps(StoppingCriteria):
    def __init__(self, steps: int):
        self._left = steps

    def __call__(self, input_ids, scores, **kwargs):
        self._left -= 1
        return torch.full((len(input_ids),), self._left <= 0, device=input_ids.device)


def _gate(model, modes, chunk: dict, settings: dict) -> GateLogits:
    # Not max_new_tokens: some processors look at it.
    stop = [*(settings.get("stopping_criteria") or ()), _AfterSteps(len(modes.prefix) + 1)]
    with observed_gates() as seen:
        model.generate(**chunk, **{**settings, "num_return_sequences": 1, "stopping_criteria": stop}, mode_bias=0.0)
    if not seen or seen[-1].logits.isnan().any():
        raise ValueError(f"with these settings a row ends before token {len(modes.prefix)}, which chooses its mode")
    return seen[-1]


def _lengths(model, modes, mode: int, chunk: dict, gate: GateLogits, rows: int, settings: dict) -> torch.Tensor:
    banned = gate.logits[:, mode] == -torch.inf
    # Never drawn, so its length weighs nothing: the row only keeps its place in the batch.
    names = ["auto" if ban else modes.names[mode] for ban in banned.tolist()]
    out = model.generate(**chunk, **{**settings, "num_return_sequences": rows}, mode=names)
    return out.lengths.double().cpu().view(-1, rows).mean(1)


def _check(target_tokens, target_fast, samples, confidence, batch_size) -> None:
    if (target_tokens is None) == (target_fast is None):
        raise ValueError("give one of target_tokens and target_fast")
    if target_fast is not None and not 0 < target_fast < 1:
        raise ValueError(f"target_fast must be inside (0, 1); got {target_fast}")
    if target_tokens is not None and not 0 < target_tokens < float("inf"):
        raise ValueError(f"target_tokens must be above 0; got {target_tokens}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be inside (0, 1); got {confidence}")
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1; got {value!r}")


def _prompt_tensors(inputs) -> dict:
    tensors = {"input_ids": inputs} if torch.is_tensor(inputs) else inputs
    is_mapping = isinstance(tensors, Mapping) and "input_ids" in tensors
    if not is_mapping or not all(torch.is_tensor(x) for x in tensors.values()):
        raise TypeError("inputs must be tensors with input_ids among them: tokenizer(..., return_tensors='pt')")
    if tensors["input_ids"].ndim != 2 or not len(tensors["input_ids"]):
        raise ValueError(f"input_ids must be [prompts, T], prompts >= 1; got {tuple(tensors['input_ids'].shape)}")
    return dict(tensors)


def _count(prompts: dict) -> int:
    return len(prompts["input_ids"])
