"""Programs inside the decode loop: what rules write, bias, choose and sample, and which rows they end."""

import math
from typing import Any

import torch
from transformers.generation.stopping_criteria import StopStringCriteria

from adapt_kernels import dispatch
from adapt_kernels.hf.loop.processors import SplitProcessors
from adapt_kernels.ops.mode_sample import FLAG_EMPTY, ModeSample, class_edited, gated_logits, mode_sample
from adapt_kernels.ops.steer import ENDS_BEFORE, POSITION, Decision
from adapt_kernels.program.clauses import RowInput
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Bias, Force, Probe, Sample, label_of
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.settings import zipf_exponent
from adapt_kernels.program.slots import Slots
from adapt_kernels.program.step_signals import step_signals

_CALL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
_ZIPF_TOP = 100  # tokens from which Mirostat's first form estimates the exponent, as its authors' code does
_NEG_INF = float("-inf")


class Steering:
    """The programs of one call. In each step, for the slots [slots] that are decoded:

        forced = steering.decide(logits, alive, choosing)  # ids that rules write, -1 = none
        shaped = steering.biased(shaped)                   # after every mask; or, where the fused sampler draws,
        edits = steering.class_edits()                     # the same as its arguments
        settings = steering.settings(shaped)               # of sample rules
        tokens = steering.choose(...)                      # rows at a gate of a program
        tokens = steering.settle(tokens, sample)           # rules that replace what was drawn
        steering.commit(tokens, logits, alive)

    decision: of this step. ended: [slots] uint8 of `ops.steer`, None where no rule ends rows. replaced: [slots] bool.
    looks_ahead: whether rules may end a row before a token that need not be computed then, see `stops_next`.
    sleeps: [slots] bool: rows whose stop strings sleep now; None where none ever do. lost: [slots] bool: rows that
    rules left no token, which `blame` tells of; None where that has been asked at once.
    """

    _choosing = False

    def __init__(self, run: ProgramRun, processors: SplitProcessors, config, criteria, gate: Program | None = None):
        """gate: the program of the call's own choice among the modes, whose draw is the caller's."""
        self.run, self._gate = run, gate
        self.decision: Decision
        self.ended: torch.Tensor | None = None
        self.replaced: torch.Tensor | None = None
        self.sleeps: torch.Tensor | None = None
        self.probes: Any = None  # `Probes`, where a program has such rules
        rules = run.compiled.rules
        # The call's own choice is every row's first program.
        self._gates = {index: rule for index, rule in run.gates().items() if gate is None or index >= len(gate.rules)}
        opened = [] if gate is None else [own.choices for own in gate.rule_tokens]
        self._goes_on = any(own.prefix or any(own.suffixes) for own in opened)
        self._gate_modes = {index: run.compiled.rule_tokens(index).choices for index in self._gates}
        self._biases = any(isinstance(rule, Bias) for rule in rules)
        self._samples = any(isinstance(rule, Sample) for rule in rules)
        drawn = any(isinstance(rule, (Force, Probe)) and rule.when.drawn is not None for rule in rules)
        self._settles = bool(drawn or self._gates or run.compiled.surprise)
        self.may_end = any(isinstance(rule, Force) and rule.stop for rule in rules)
        silent = any(
            isinstance(rule, Force) and rule.stop and (isinstance(rule.sequence, RowInput) or not rule.sequence)
            for rule in rules
        )
        self.looks_ahead = silent and not run.signals
        held = any(span.stops == "hold" for program in run.compiled.programs for span in program.spans.values())
        self._may_sleep = held and any(isinstance(each, StopStringCriteria) for each in criteria)
        self._call = {**_CALL, **(processors.fused or {})} | ({} if config.do_sample else {"temperature": 0.0})
        self._classes = run.compiled.tables.bias_classes
        self.lost: torch.Tensor | None = None
        self._emptied = torch.zeros(len(run.slots), len(rules), dtype=torch.bool, device=run.device)
        self._logp = None  # [rows] of the last token, where a rule reads it
        if any(signal.kind == "logp" for signal in run.signals.values()):
            self._logp = torch.full((len(run.slots),), math.nan, device=run.device)
        if self._samples:
            self._check_samples(rules, processors, config)

    def _check_samples(self, rules, processors: SplitProcessors, config) -> None:
        index = next(i for i, rule in enumerate(rules) if isinstance(rule, Sample))
        if processors.fused is None:
            names = ", ".join(type(each).__name__ for each in processors.tail)
            raise ValueError(
                f"{self._label(index)} sets temperature, top_k, top_p or min_p of single rows, and this call's own"
                f" warpers cannot be set so: {names}. Leave out what adds them (typical_p, a watermark ...)"
            )
        if config.return_dict_in_generate and config.output_scores:
            raise ValueError(
                f"output_scores shows logits under the call's own settings, and {self._label(index)} has others: use"
                " output_logits"
            )

    @property
    def only_chooses(self) -> bool:
        """Whether the choice among the modes is all there is."""
        return self.run.compiled.programs == (self._gate,)

    def _owner(self, index: int) -> int:
        return sum(first <= index for first in self.run.compiled.first_rule) - 1

    def _label(self, index: int) -> str:
        first = self.run.compiled.first_rule[self._owner(index)]
        return label_of(index - first, self.run.compiled.rules[index])

    def place(self, slots: Slots) -> None:
        """From now on the slots are these rows."""
        self.run.place(slots)

    def decide(self, logits, alive, choosing: bool) -> torch.Tensor:
        """[slots] int64: the ids that rules write, -1 = none.

        logits [slots, V]: the model's. alive [slots] bool. choosing: until the modes are chosen no other rule holds.
        """
        self._choosing = choosing
        self.run.admit(alive, self._gate if choosing else None)
        if self.run.signals:
            values = step_signals(self.run.signals.values(), logits)
            if self._logp is not None:
                values["logp"] = self.run.slots.take(self._logp)
            self.run.fill(values)
        if self.probes is not None:
            self.probes.fill()
        self.lost = None
        self.decision = self.run.decide()
        return self.decision.forced

    def biased(self, shaped) -> torch.Tensor:
        """Logits [slots, V] under the bias rules that hold; float32 where one does, else as they are."""
        edits = self.class_edits()
        if not edits:
            return shaped
        biased = class_edited(shaped, *edits.values())
        self.check_some_left(shaped, (biased == _NEG_INF).all(1))
        return biased

    def class_edits(self) -> dict:
        """Arguments of `mode_sample` that bias the logits as the rules that hold do; {} where none holds."""
        acting = self.decision.acting
        if not self._biases or (not dispatch.host_waits(acting.device) and not acting.any()):
            return {}
        return {
            "token_classes": self._classes,
            "class_scale": self.decision.scale,
            "class_bias": self.decision.bias,
        }

    @property
    def reads_biased(self) -> bool:
        """Whether sample rules look at the logits under the bias rules, not only at what is drawn from them."""
        return bool(self.run.compiled.surprise)

    def check_some_left(self, shaped, empty) -> None:
        """Raise ValueError if rules left a slot no token, where the logits [slots, V] before them had some.

        empty [slots] bool: no token is left under the rules. Where the host would wait for it, `lost` [slots] bool says
        it instead, and `blame` raises when the stop check has read that.
        """
        acting, waits = self.decision.acting, dispatch.host_waits(empty.device)
        none = empty & acting.any(1)
        if waits or none.any():
            none = none & (shaped.amax(1) != _NEG_INF)
        if waits:
            self.lost = none
            emptied = torch.where(none[:, None], acting, self.run.slots.take(self._emptied))
            self._emptied = self.run.slots.put(self._emptied, emptied)
        elif none.any():
            slot = int(none.nonzero()[0, 0])
            self._refuse(self.run.slots.row(slot), acting[slot])

    def blame(self, row: int) -> None:
        """Raise ValueError if rules left this row no token."""
        if self._emptied[row].any():
            self._refuse(row, self._emptied[row])

    def _refuse(self, row: int, acting) -> None:
        rules = ", ".join(self._label(index) for index in acting.nonzero()[:, 0].tolist())
        raise ValueError(
            f"row {row}: {rules} leave no token to draw (with the call's own bans): let one of them keep a token, or"
            " act elsewhere"
        )

    def settings(self, shaped) -> dict | None:
        """temperature, top_k, top_p and min_p [slots] under the sample rules; None where no program has any."""
        if not self._samples:
            return None
        top1 = zipf = None
        if self.run.compiled.surprise:
            settings = self.run.settings(self.decision, self._call, top1=self._ones(), zipf=self._ones() * 2)
            heat = torch.where(settings["temperature"] > 0, settings["temperature"], 1.0).float()[:, None]
            logp = torch.log_softmax(shaped.float().masked_fill(shaped.isnan(), _NEG_INF) / heat, -1)
            top1, top = logp.amax(1).exp(), logp.topk(min(_ZIPF_TOP, logp.shape[1]), 1).values
            zipf = zipf_exponent(top.clamp(min=-1e4))
        return self.run.settings(self.decision, self._call, top1=top1, zipf=zipf)

    def _ones(self):
        return torch.ones(len(self.run.slots), device=self.run.device)

    def choose(self, step: int, shaped, tokens, scores, logprobs, settings, seeds):
        """(tokens, scores, logprobs): those of rows at a gate of their program drawn among its modes."""
        for index, gate in self._gates.items():
            slots = (self.decision.gate == index).nonzero()[:, 0]
            if not len(slots):
                continue
            heat = self._call["temperature"] if settings is None else settings["temperature"][slots]
            bias = gate.bias if any(gate.bias.values()) else None
            chance = {"fast_prob": gate.prob} if gate.prob is not None else {"mode_bias": bias}
            own = {"modes": self._gate_modes[index], "at_mode": True, "temperature": heat, **chance}
            sample = mode_sample(shaped[slots], seeds=seeds[slots], step=step, **own)
            self._check_mode_left(index, slots, sample)
            tokens = tokens.index_copy(0, slots, sample.tokens)
            if logprobs is not None:
                logprobs = logprobs.index_copy(0, slots, sample.tempered_logprobs)
            if scores is not None:
                scores = scores.index_copy(0, slots, self._gate_scores(index, gate, shaped[slots], heat))
        return tokens, scores, logprobs

    def _check_mode_left(self, index: int, slots, sample: ModeSample) -> None:
        empty = (sample.flags & FLAG_EMPTY) != 0
        if empty.any():
            row = self.run.slots.row(slots[empty.nonzero()[0, 0]])
            raise ValueError(
                f"row {row}: every mode of {self._label(index)} has logit -inf, so none can be drawn; a logits"
                " processor (suppress_tokens, bad_words_ids, a grammar ...) bans them. Allow one of them"
            )

    def _gate_scores(self, index: int, gate, shaped, heat) -> torch.Tensor:
        n, device = len(shaped), shaped.device
        heat = torch.as_tensor(heat, dtype=torch.float64, device=device).expand(n)
        modes = self._gate_modes[index]
        bias = torch.tensor([[gate.bias.get(name, 0.0) for name in modes]], dtype=torch.float64, device=device)
        prob = torch.full((n,), math.nan if gate.prob is None else gate.prob, dtype=torch.float64, device=device)
        z = shaped.double().masked_fill(shaped.isnan(), _NEG_INF)
        everywhere, heat = torch.ones(n, dtype=torch.bool, device=device), torch.where(heat > 0, heat, 1.0)
        bias = bias.expand(n, -1)
        return gated_logits(z, modes.token_ids, everywhere, bias, heat, fast_prob=prob).float()

    def settle(self, tokens, shaped, settings):
        """[slots] int64: what is written in the end; `replaced` says where a rule took the place of what was drawn.

        shaped [slots, V] and settings: what the tokens were drawn from.
        """
        self.replaced, self.ended = None, self.decision.ends if self.may_end else None
        if not self._settles:
            if self._choosing and self._goes_on:
                self.run.settle(self.decision, tokens)
            return tokens
        if self.probes is not None:
            self.probes.fill(self.decision, tokens)
        surprise = self._surprise(tokens, shaped, settings) if self.run.compiled.surprise else None
        tokens, ends, self.replaced = self.run.settle(self.decision, tokens, surprise)
        if self.may_end:
            self.ended = ends
        return tokens

    def _surprise(self, tokens, shaped, settings) -> torch.Tensor:
        """[slots] bits of what was drawn: under the temperature alone, or renormalised over what was kept."""
        drawn = mode_sample(shaped, seeds=0, forced_tokens=tokens, **settings)
        bits = -drawn.tempered_logprobs
        for index in self.run.compiled.surprise:
            rule = self.run.compiled.rules[index]
            if isinstance(rule, Sample) and rule.renormalise:
                bits = torch.where(self.decision.sample == index, -drawn.logprobs, bits)
        return bits / math.log(2)

    def commit(self, tokens, logits, alive) -> None:
        """Take the tokens [slots] that were written; logits [slots, V]: the model's at this step."""
        self.run.admit(alive if self.ended is None else alive & (self.ended != ENDS_BEFORE))
        self.run.advance(tokens)
        if self._logp is not None:
            logp = torch.log_softmax(logits.float().masked_fill(logits.isnan(), _NEG_INF), -1)
            self._logp = self.run.slots.put(self._logp, logp.gather(1, tokens[:, None])[:, 0])
        if self._may_sleep:
            self.sleeps = self.run.holds_stops()

    def stops_next(self, free) -> torch.Tensor:
        """[slots] bool: of the rows `free` [slots] bool, that go on, those that a rule ends before their next token."""
        self.run.admit(free & (self.run.rows.max_new_tokens > self.run.state.numbers[:, POSITION]))
        return self.run.stops_next()

    def report(self, tokens, lengths, forced) -> dict:
        """`fired`, `spans` and `never_armed` of `ModeGenerateOutput`; tokens [rows, T], of which lengths [rows] count;
        forced [rows, T] bool."""
        spans = self.run.visits(tokens, lengths, forced)
        return {
            "fired": self.run.fired(),
            # A program and thinking_budget may mean the same span.
            "spans": [[tuple(visit) for visit in dict.fromkeys(row)] for row in spans],
            "never_armed": self.run.never_armed(),
        }
