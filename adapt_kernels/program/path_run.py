"""`PathRun`: the paths of one call, step by step, over all rows in Hugging Face's order."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch

from adapt_kernels import dispatch
from adapt_kernels.philox import PURPOSE_PATH, uniform
from adapt_kernels.program.path_scores import Windows, kept_rows, own_statistics
from adapt_kernels.program.paths import Bar, Paths
from adapt_kernels.program.votes import answer_of

PRUNED, AGREED, BELOW = 1, 2, 3
_NAMES = {PRUNED: "pruned", AGREED: "agreed", BELOW: "below"}


class Moment(NamedTuple):
    """The rows [rows] after a step: new_tokens of every unfinished one; lengths int64, modes int8; ids [rows, T]: their
    new tokens; view(rows int64) -> `PathView`."""

    new_tokens: int
    lengths: torch.Tensor
    modes: torch.Tensor
    ids: torch.Tensor
    view: Callable


class PathRun:
    """Which rows `paths` has ended, and why: `codes` int8 [rows], 0 = none; `scores` float32 [rows], NaN = unscored.

    prompts int64 [rows] on the CPU: equal for rows of one prompt. seeds int64 [rows] or None.
    """

    def __init__(self, paths: Paths, prompts: torch.Tensor, seeds: torch.Tensor | None, device):
        rows = len(prompts)
        self.paths, self.prompts, self.seeds, self.device = paths, prompts, seeds, device
        self.codes = torch.zeros(rows, dtype=torch.int8, device=device)
        self.scores = torch.full((rows,), math.nan, device=device)
        self._confidences = Windows(rows, paths.group_tokens, device)
        self._logprobs = torch.zeros(rows, dtype=torch.float64, device=device)
        self._answers: dict[int, Counter] = {prompt: Counter() for prompt in prompts.tolist()}
        self._asked = torch.zeros(rows, dtype=torch.bool)
        self._bars = torch.full((rows,), -math.inf, dtype=torch.float64, device=device)
        self._warming = self._warm_ups(paths.below.warmup) if isinstance(paths.below, Bar) else {}
        if paths.below is not None and not isinstance(paths.below, Bar):
            self._bars.fill_(paths.below)
        self._chose = self._judged = self._voted = False
        self._stages: list[int] = []  # numbers of new tokens at which unfinished rows were scored

    def _warm_ups(self, count: int) -> dict[int, list[int]]:
        """The warm-up rows of each prompt that has more rows than those."""
        rows = {p: (self.prompts == p).nonzero()[:, 0].tolist() for p in self.prompts.unique().tolist()}
        return {p: own[:count] for p, own in rows.items() if len(own) > count}

    @property
    def reads_ends(self) -> bool:
        """Whether the host must know after every step which rows have ended."""
        return self.paths.agree is not None or isinstance(self.paths.below, Bar)

    def statistics(self, new_tokens: int, logits, tokens):
        """(confidences, log-probs) of a step whose tokens are the rows' `new_tokens`-th, each None where not read."""
        paths = self.paths
        if new_tokens > paths.last_look or not (paths.reads_confidence or paths.reads_logprobs):
            return None, None
        return own_statistics(logits, tokens, paths.top if paths.reads_confidence else None, paths.reads_logprobs)

    def observe(self, confidences, logprobs, alive) -> None:
        """The same, [rows]; of the rows `alive` [rows] bool."""
        if confidences is not None:
            self._confidences.add(confidences, alive)
        if logprobs is not None:
            self._logprobs = torch.where(alive, self._logprobs + logprobs, self._logprobs)

    def end(self, alive, moment: Moment):
        """[rows] bool: which of the rows `alive` [rows] bool end now; None: none.

        An exception of the user's functions goes on, with a note, and with the tokens so far as its `sequences`.
        """
        before = alive
        for judge, code in ((self._agreed, AGREED), (self._below, BELOW), (self._chosen, PRUNED)):
            leaving = judge(alive, moment)
            if leaving is not None:
                leaving = leaving.to(self.device) & alive
                self.codes = self.codes.masked_fill(leaving, code)
                alive = alive & ~leaving
        return None if alive is before else before & ~alive

    def _agreed(self, alive, moment: Moment):
        agree = self.paths.agree
        if agree is None:
            return None
        living = alive.cpu()
        ended = ~living & ~self._asked
        self._asked |= ended
        waiting = self.prompts[living].unique()
        # Nobody is helped by the answers of a prompt that has no unfinished row.
        rows = (ended & (self.codes.cpu() == 0) & torch.isin(self.prompts, waiting)).nonzero()[:, 0]
        with _told("agree", moment):
            for row in rows.tolist():
                given = answer_of(agree.answer, moment.ids[row, : int(moment.lengths[row])].cpu(), row)
                self._voted = True
                if given is not None:
                    self._answers[int(self.prompts[row])][given] += 1
        changed = self.prompts[rows].unique().tolist()
        done = [p for p in changed if agree.holds(list(self._answers[p].values()))]
        return torch.isin(self.prompts, torch.tensor(done)) if done else None

    def _below(self, alive, moment: Moment):
        if self.paths.below is None:
            return None
        if isinstance(self.paths.below, Bar) and self._warming:
            self._raise_bars(self.paths.below, alive.cpu(), moment.lengths)
        if moment.new_tokens < self.paths.group_tokens:
            return None
        if not self._judged:
            fixed = not isinstance(self.paths.below, Bar)
            self._judged = fixed or bool((alive & (self._bars > -math.inf)).any())
        leaving = self._confidences.lowest < self._bars
        return leaving if dispatch.host_waits(leaving.device) or bool((leaving & alive).any()) else None

    def _raise_bars(self, below: Bar, living, lengths) -> None:
        """Of the prompts whose warm-up rows have all ended; those that were cut off count for nothing."""
        for prompt, warm in list(self._warming.items()):
            if living[warm].any() or not living.any():
                continue
            del self._warming[prompt]
            whole = [row for row in warm if not self.codes[row]]
            if whole:
                lowest = self._confidences.groups(lengths)[whole]
                bar = torch.quantile(lowest, below.percentile / 100)
                judged = (self.prompts == prompt).index_fill(0, torch.tensor(warm), False)
                self._bars[judged.to(self.device)] = bar

    def _chosen(self, alive, moment: Moment):
        paths = self.paths
        if paths.keep is None or moment.new_tokens not in paths.looks:
            return None
        rows = alive.nonzero()[:, 0]
        if not len(rows):
            return None
        stage = paths.looks.index(moment.new_tokens)
        self._stages.append(moment.new_tokens)
        modes = moment.modes[rows].tolist() if paths.per_mode else [0] * len(rows)
        groups = list(zip(self.prompts[rows.cpu()].tolist(), modes, strict=True))
        with _told(f"score at {moment.new_tokens} tokens", moment):
            scores = self._scores(rows, moment)
            stays = kept_rows(scores.tolist(), groups, lambda unfinished: paths.kept_of(stage, unfinished))
        self.scores[rows] = scores.to(self.scores)
        if all(stays):
            return None
        self._chose = True
        return torch.zeros_like(alive).index_fill(0, rows[~torch.tensor(stays, device=rows.device)], True)

    def _scores(self, rows, moment: Moment) -> torch.Tensor:
        paths = self.paths
        if paths.score == "confidence":
            return self._confidences.groups(moment.lengths)[rows]
        if paths.score == "logprob":
            return self._logprobs[rows] / moment.new_tokens
        if paths.score == "random":
            assert self.seeds is not None  # rng="hf" was refused
            seeds = self.seeds[rows]
            step = torch.full_like(seeds, moment.new_tokens)
            return uniform(seeds, step, PURPOSE_PATH, torch.zeros_like(seeds))
        assert callable(paths.score)
        return _checked_scores(paths.score(moment.view(rows)), len(rows))

    def sums(self, rows) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(log-prob sums, confidence sums) of rows, None where nothing reads them."""
        if not self.paths.reads_tokens:
            return None, None
        return self._logprobs[rows], self._confidences.sums[rows]

    def ends(self, finished) -> list[str]:
        """Per row why it has ended; finished [rows] bool: by itself, rather than by a length."""
        codes, finished = self.codes.tolist(), finished.tolist()
        return [_NAMES.get(c) or ("finished" if own else "length") for c, own in zip(codes, finished, strict=True)]

    def inactive(self) -> tuple[str, ...]:
        """Of the settings that changed nothing, why."""
        return tuple(self._idle())

    def _idle(self) -> Iterator[str]:
        paths = self.paths
        if paths.keep is not None and not self._stages:
            yield f"keep={paths.keep}: no row was unfinished at {paths.looks[0]} new tokens"
        elif paths.keep is not None and not self._chose:
            where = "mode of a prompt" if paths.per_mode else "prompt"
            yield f"keep={paths.keep}: no {where} had more unfinished rows at {self._stages} new tokens"
        if paths.below is not None and not self._judged:
            yield self._idle_bar()
        if paths.agree is not None and not self._voted:
            yield "agree: no row ended while another one of its prompt was unfinished"

    def _idle_bar(self) -> str:
        below = self.paths.below
        if not isinstance(below, Bar):
            return f"below={below}: no row reached a full window of {self.paths.group_tokens} tokens"
        if self._warming:
            return f"below={below}: warm-up rows were unfinished to the end: run them in a call of their own"
        return f"below={below}: no prompt had more rows than the warm-up, or a full window after it"


def _checked_scores(scores, rows: int) -> torch.Tensor:
    try:
        values = torch.as_tensor(scores, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Paths: score must return one number per row of the view ({rows}); got {scores!r}") from error
    if values.shape != (rows,):
        raise ValueError(
            f"Paths: score must return one number per row of the view, shape ({rows},); got shape {tuple(values.shape)}"
        )
    return values


@contextmanager
def _told(what: str, moment: Moment):
    try:
        yield
    except Exception as error:
        error.add_note(
            f"raised by paths ({what}); the rows' new tokens so far are in this exception's .sequences, and the model"
            " is ready for the next call"
        )
        with suppress(AttributeError):
            error.sequences = moment.ids.cpu()  # type: ignore[attr-defined]  # any exception takes attributes
        raise
