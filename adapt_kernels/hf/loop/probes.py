"""Probe rules: what a row would say if it were asked now, decoded aside and taken back."""

from dataclasses import dataclass

import torch

from adapt_kernels.hf.kv.side_forward import restored, step
from adapt_kernels.program.rules import Probe
from adapt_kernels.program.run import ProgramRun

_NEG_INF = float("-inf")


def probes_of(model, batch, steering, config) -> "Probes | None":
    """Given to the call's `Steering`; None where no program has probe rules. Raises ValueError where none can run."""
    if steering is None or not any(isinstance(rule, Probe) for rule in steering.run.compiled.rules):
        return None
    if batch.plan.no_append:
        raise ValueError(f"program: its probe rules cannot run in this call: {batch.plan.no_append}")
    eos = [] if config.eos_token_id is None else torch.as_tensor(config.eos_token_id).flatten().tolist()
    steering.probes = Probes(model, batch, steering.run, eos)
    return steering.probes


@dataclass
class _Answer:
    """What one slot has drawn: its tokens, the probability of each, the certainty of its distribution."""

    tokens: list[int]
    probs: list[float]
    certainties: list[float]
    found: bool = False  # `until` came
    over: bool = False

    def measured(self, rule: Probe) -> float:
        """The rule's measure; 0 where nothing is left to measure, or `complete` and `until` did not come."""
        values = (self.certainties if rule.measure == "certainty" else self.probs)[rule.skip :]
        if not values or (rule.complete and not self.found):
            return 0.0
        found = torch.tensor(values, dtype=torch.float64)
        return float(found.log().mean().exp() if rule.measure == "geometric_prob" else found.mean())


class Probes:
    """The side decodes of one call. `input_ids` [slots, T] int64: the rows as they are, all of them cached.

    The rule's text is fed behind the rows, one position per forward; then the likeliest tokens follow, so that a probe
    draws nothing from a row's stream. The cache is as before afterwards. positions: computed so far, rows x forwards.
    """

    def __init__(self, model, batch, run: ProgramRun, eos_ids):
        self._model, self._batch, self._run, self._eos = model, batch, run, set(eos_ids)
        self.input_ids, self.positions = None, 0

    def fill(self, decision=None, tokens=None) -> None:
        """Run the probes that hold now, and write their registers; arguments as in `ProgramRun.wanted_probes`."""
        for index, wanted in self._run.wanted_probes(decision, tokens):
            rule = self._run.compiled.rules[index]
            if isinstance(rule, Probe) and wanted.any():
                self._run.fill({rule.into: self._values(index, rule, wanted)}, wanted)

    def _values(self, index: int, rule: Probe, wanted) -> torch.Tensor:
        tokens = self._run.compiled.rule_tokens(index)
        asked = self._batch.cached_slots(wanted[:, None])[:, 0].tolist()
        answers = [_Answer([], [], [], over=not each) for each in asked]
        self._decode(rule, tokens, answers)
        values = torch.tensor([answer.measured(rule) for answer in answers], dtype=torch.float32)
        return self._batch.of_cached_slots(values.to(wanted.device))

    @torch.no_grad()
    def _decode(self, rule: Probe, tokens, answers: list[_Answer]) -> None:
        batch = self._batch
        ids, kwargs = batch.cached_slots(self.input_ids), batch.kwargs
        batch.place_prompts()
        with restored(batch):
            for token in tokens.sequence:
                ids = torch.cat([ids, ids.new_full((len(ids), 1), token)], 1)
                outputs, kwargs = self._step(ids, kwargs)
            for drawn in range(rule.most):
                chosen = self._draw(outputs.logits[:, -1].float(), tokens.until, answers)
                if all(answer.over for answer in answers) or drawn == rule.most - 1:
                    return
                ids = torch.cat([ids, chosen.to(ids)[:, None]], 1)
                outputs, kwargs = self._step(ids, kwargs)

    def _step(self, ids, kwargs: dict):
        self.positions += len(ids)
        return step(self._model, self._batch, ids, kwargs)

    def _draw(self, logits, until, answers: list[_Answer]) -> torch.Tensor:
        logp = torch.log_softmax(logits.masked_fill(logits.isnan(), _NEG_INF), -1)
        chosen = logp.argmax(-1)
        probs = logp.gather(1, chosen[:, None])[:, 0].exp()
        entropy = torch.special.entr(logp.exp()).sum(-1)
        certainty = 1 - entropy / torch.tensor(float(logits.shape[1])).log()
        for answer, token, prob, sure in zip(answers, chosen.tolist(), probs.tolist(), certainty.tolist(), strict=True):
            if answer.over:
                continue
            answer.tokens.append(token)
            answer.probs.append(prob)
            answer.certainties.append(sure)
            answer.found = until is not None and until.completes(answer.tokens)
            answer.over = answer.found or token in self._eos
        return chosen
