"""Fuzzer: random `generate` calls on small random models of every architecture of the installed transformers.

    python tests/hf/fuzz.py --seconds 600 --seed 0 --architecture llama
    FUZZ_DEVICE=cuda python -m pytest tests/hf/test_fuzz.py

A patched model must give the unpatched one's tokens, or the same kind of error. Greedy calls may differ where two
tokens tie up to rounding, which is counted; calls under rng="hf" and those of Hugging Face's own loops may not. Rows
drawn from seeds of ours must be the same alone and in their batch.

It also stands for Hugging Face's own generation tests: the source distribution of transformers carries the common
mixins of its tests, but neither tests/generation nor the models' tests, so there is nothing to install that has them.
What GenerationTesterMixin checks is drawn here: greedy, sampling, beams, assistants, prompt look-up, dict outputs,
continuations, static caches, no cache, embeddings, no inputs at all, left padding.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))

import transformers
from fuzz_calls import (
    Outcome,
    arguments_of,
    call,
    conditions,
    forced_modes,
    model_again,
    model_of,
    start_of,
    with_ended_padded,
    with_modes_forced,
)
from fuzz_cases import Case, draw_case
from recorders import RowLengths
from small_models import architectures
from tiny_models import FAST, SLOW

import adapt_kernels as ak
from adapt_kernels.hf.kv import layouts

# Of the largest logit: what another batch size or another order of sums may change.
TIE = 1e-4
# Documented ones: a model or a call that the asked layout, or our arguments, cannot serve.
_NOTHING_TO_DRAW = "probability tensor contains either"  # torch.multinomial's
_REFUSALS = ("kv_layout='shared' cannot serve this call", "cannot be honoured by this call")


class Result(NamedTuple):
    """wrong: how the patched model differs, or None. ties: rows that differ where two tokens tie."""

    wrong: str | None
    ties: int = 0


def run(case: Case) -> Result:
    """Raises what `model_of` does."""
    model = model_of(case)
    with conditions(model, case):
        arguments = arguments_of(model, case)
        theirs = with_modes_forced(model, case, arguments) if case.draw == "forced" else arguments
        expected = call(model, case, theirs, {})
        if expected.error is not None and _NOTHING_TO_DRAW in str(expected.error):
            # Ours does not draw for rows that have ended: the others may have something.
            theirs = with_ended_padded(model, case, theirs)
            expected = call(model, case, theirs, {})
        worth = 0 if case.shares_early else layouts._WORTH_SHARING
        modes = ak.Modes(fast=ak.Mode(FAST, kv_tokens=case.kv_tokens), slow=SLOW)
        with ak.patched(model, modes), mock.patch.object(layouts, "_WORTH_SHARING", worth):
            ours = _our_arguments(case)
            if case.draw == "own_seeds":
                return Result(None if expected.error else _alone_and_together(model, case, arguments, ours))
            got = call(model, case, arguments, ours)
        result = _compared(model, case, theirs, expected, got)
    return result if result.wrong is None or _repeatable(case, theirs) else Result(None)


def _our_arguments(case: Case) -> dict:
    ours = {"compact_at": case.compact_at, "kv_layout": case.layout}
    if case.draw == "rng_hf":
        ours["rng"] = "hf"
    if case.draw == "forced":
        ours["mode"] = forced_modes(case)
    return ours


def _alone_and_together(model, case: Case, arguments: dict, ours: dict) -> str | None:
    rows = case.rows * case.samples
    seeds = [1000 * case.seed + row for row in range(rows)]
    arguments = {**arguments, "return_dict_in_generate": False, **dict.fromkeys(case.outputs, False)}
    together = call(model, case, arguments, {**ours, "seed": seeds})
    if together.error is not None:
        return None if _refused(together.error) else f"patched raises {_text(together.error)}"
    row = case.seed % len(together.outputs[0])
    one = {n: v[row // case.samples :][:1] if torch.is_tensor(v) else v for n, v in arguments.items()}
    one["num_return_sequences"] = 1
    if case.row_ends is not None:
        one["stopping_criteria"] = [RowLengths(start_of(model, case), case.row_ends[row : row + 1])]
    alone = call(model, case, one, {**ours, "seed": seeds[row : row + 1]})
    if alone.error is not None:
        return f"patched raises for row {row} alone {_text(alone.error)}"
    a, b = alone.outputs[0][0], together.outputs[0][row]
    width = min(len(a), len(b))
    if torch.equal(a[:width], b[:width]) or not _same_in_any_batch(model, case, arguments, one, row):
        return None
    return f"row {row} with a seed of its own: {a.tolist()} alone, {b.tolist()} in the batch"


def _same_in_any_batch(model, case: Case, arguments: dict, one: dict, row: int) -> bool:
    """Whether the model gives a row the same logits alone and in its batch, which not all do (RWKV)."""
    greedy = {"do_sample": False, "num_return_sequences": 1, "return_dict_in_generate": True, "output_logits": True}
    batches = []
    for inputs in (arguments, one):
        copies = case.samples if inputs is arguments else 1
        repeated = {n: v.repeat_interleave(copies, 0) if torch.is_tensor(v) else v for n, v in inputs.items()}
        unpatched = type(model).original_class.generate
        batches.append(unpatched(model, **{**repeated, **greedy, "stopping_criteria": None}))
    pairs = zip(batches[0].logits, batches[1].logits, strict=False)
    return all(torch.allclose(x[row], y[0], atol=1e-3, rtol=1e-3) for x, y in pairs)


def _repeatable(case: Case, arguments: dict) -> bool:
    """Whether an unpatched model gives the same tokens twice: some keep a state on their modules while training."""
    model = model_again(case)
    with conditions(model, case):
        first, second = (call(model, case, arguments, {}).outputs for _ in range(2))
    tokens = [[x if torch.is_tensor(x) else x.sequences for x in outputs] for outputs in (first, second)]
    return all(torch.equal(x, y) for x, y in zip(*tokens, strict=True))


def _compared(model, case: Case, arguments: dict, expected: Outcome, got: Outcome) -> Result:
    gaps, ties = _Gaps(model, case, arguments), 0
    for turn, (theirs, ours) in enumerate(zip(expected.outputs, got.outputs, strict=False)):
        where = f"call {turn + 1}: "
        if not isinstance(ours, type(theirs)):
            return Result(f"{where}{type(ours).__name__} for {type(theirs).__name__}")
        if not torch.is_tensor(theirs):
            if (wrong := _fields(theirs, ours)) is not None:
                return Result(f"{where}{wrong} ({ours.stats.plan})")
            theirs, ours = theirs.sequences, ours.sequences
        wrong, tied = _tokens(theirs, ours, gaps, turn)
        ties += tied
        if wrong is not None or tied:
            return Result(wrong and where + wrong, ties)
    if got.error is not None and _refused(got.error):
        return Result(None)
    if expected.error is not None or got.error is not None:
        same = type(expected.error) is type(got.error)
        return Result(None if same else f"unpatched {_summary(expected)}, patched {_summary(got)}")
    for name in ("streamed", "cached"):
        if getattr(expected, name) != getattr(got, name):
            return Result(f"{name}: {getattr(expected, name)} and {getattr(got, name)}")
    return Result(None)


def _tokens(theirs, ours, gaps, turn: int) -> Result:
    """Compares sequences [rows, T]; a row may differ from a near tie on."""
    if torch.equal(theirs, ours):
        return Result(None)
    width = min(theirs.shape[1], ours.shape[1])
    differs = theirs[:, :width] != ours[:, :width]
    rows = differs.any(1).nonzero()[:, 0].tolist()
    for row in rows:
        gap = gaps.at(turn, row, int(differs[row].nonzero()[0, 0]))
        if not gap < TIE:
            return Result(f"row {row}: unpatched {theirs[row].tolist()}, patched {ours[row].tolist()}, gap {gap:.2g}")
    if not rows:
        return Result(f"shapes {tuple(theirs.shape)} and {tuple(ours.shape)}")
    return Result(None, len(rows))


class _Gaps:
    """Distances of the unpatched model's two best tokens, relative to its largest logit; computed when asked for."""

    def __init__(self, model, case: Case, arguments: dict):
        self._model, self._case, self._arguments, self._tables = model, case, arguments, None

    def at(self, turn: int, row: int, place: int) -> float:
        """place: in the row's sequence. NaN where nothing may differ: a token that was drawn, or part of a prompt."""
        if self._case.draw not in ("greedy", "top_k_1", "forced"):
            return float("nan")
        if self._tables is None:
            self._tables = [_gap_table(output) for output in self._outputs()]
        table = self._tables[turn] if turn < len(self._tables) else torch.zeros(0, 0)
        return float(table[row, place]) if place < table.shape[-1] else float("nan")

    def _outputs(self) -> tuple:
        rich = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        arguments = {**self._arguments, **rich}
        if self._case.draw == "top_k_1":
            # The same call without the filter, which would hide the second token.
            del arguments["top_k"]
            copies = self._case.samples
            arguments = {n: v.repeat_interleave(copies, 0) if torch.is_tensor(v) else v for n, v in arguments.items()}
            arguments |= {"do_sample": False, "num_return_sequences": 1}
        return call(self._model, self._case, arguments, {}).outputs


def _gap_table(output) -> torch.Tensor:
    """[rows, tokens], NaN for those of the prompt."""
    best = torch.stack([scores.float().topk(2, -1).values for scores in output.scores], 1)
    largest = torch.stack([logits.float().abs().amax(-1) for logits in output.logits], 1)
    gaps = (best[..., 0] - best[..., 1]) / largest.clamp(min=1.0)
    prompt = output.sequences.shape[1] - gaps.shape[1]
    return torch.nn.functional.pad(gaps, (prompt, 0), value=float("nan"))


def _fields(theirs, ours) -> str | None:
    for name in ("scores", "logits", "hidden_states", "attentions"):
        a, b = theirs.get(name), ours.get(name)
        if (a is None) != (b is None) or (a is not None and len(a) != len(b)):
            return f"{name}: {a and len(a)} and {b and len(b)} steps"
        if name in ("scores", "logits") and a is not None:
            for step, pair in enumerate(zip(a, b, strict=True)):
                if pair[0].shape != pair[1].shape or not torch.allclose(*pair, atol=1e-4, rtol=1e-4, equal_nan=True):
                    return f"{name} differ at step {step}"
    return None


def _refused(error: BaseException) -> bool:
    return isinstance(error, ValueError) and any(text in str(error) for text in _REFUSALS)


def _summary(outcome: Outcome) -> str:
    return "ran" if outcome.error is None else f"raises {_text(outcome.error)}"


def _text(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({Path(last.filename).name}:{last.lineno}): {str(error)[:200]}"


class Report:
    """Counts of a run, and the cases that went wrong."""

    def __init__(self):
        self.cases = self.ties = 0
        self.wrong: list[str] = []
        self.not_built: dict[str, str] = {}

    def add(self, name: str, seed: int) -> None:
        """Run the case of a seed, unless its model cannot be built."""
        case = draw_case(name, seed)
        if name in self.not_built:
            return
        try:
            model_of(case)
        except Exception as error:
            # Some have no eager attention.
            self.not_built |= {name: _text(error)} if case.attention is None else {}
            return
        result = run(case)
        self.cases, self.ties = self.cases + 1, self.ties + result.ties
        if result.wrong is not None:
            self.wrong.append(f"{name} seed {seed}: {result.wrong}\n    {case.describe()}")


def search(names, seeds, seconds: float = float("inf")) -> Iterator[tuple[Report, int]]:
    """Runs all names' cases seed by seed; yields the report and the seed after each case."""
    report, start = Report(), time.monotonic()
    for seed in seeds:
        for name in names:
            if time.monotonic() - start > seconds:
                return
            report.add(name, seed)
            yield report, seed


def main() -> int:
    """The command line. Exit status 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--count", type=int, default=10**9, help="seeds per architecture at most")
    parser.add_argument("--architecture", action="append", help="may be given several times; default: all")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    shown, report, seed = 0, Report(), given.seed
    names = given.architecture or architectures()
    for report, seed in search(names, range(given.seed, given.seed + given.count), given.seconds):  # noqa: B007
        for text in report.wrong[shown:]:
            print("WRONG", text, flush=True)
        shown = len(report.wrong)
    for name, reason in report.not_built.items():
        print(f"not built: {name}: {reason}")
    print(f"{report.cases} cases, seeds {given.seed} to {seed}, {len(names) - len(report.not_built)} architectures:")
    print(f"{len(report.wrong)} wrong, {report.ties} rows with near ties")
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
