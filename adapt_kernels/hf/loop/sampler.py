"""Chooses the next token of every row: prefix, mode gate, forced suffix, what rules write, free sampling."""

import warnings

import torch

from adapt_kernels import dispatch
from adapt_kernels.hf.loop.gate_logits import observe
from adapt_kernels.hf.loop.mode_refusals import no_mode_left, refusal_of_token
from adapt_kernels.hf.loop.processors import of_rows, refused_by_memory, split, with_memory
from adapt_kernels.hf.loop.steering import Steering
from adapt_kernels.modes import Modes
from adapt_kernels.ops.mode_sample import (
    FLAG_EMPTY,
    FLAG_INF,
    FLAG_NAN,
    gated_logits,
    mode_probs,
    mode_sample,
    selected_modes,
)
from adapt_kernels.ops.token_logprobs import token_logprobs
from adapt_kernels.program.openings import Openings
from adapt_kernels.program.request import RowRequest
from adapt_kernels.program.slots import Slots


class TokenSelector:
    """Selection of one `generate` call; `modes`, `mode_probs`, `mode_logprobs` [rows, ...] are filled in at the gate.

    lost: after a call, [rows] bool: rows whose logits left nothing to draw; None where no row's can have.

    State is kept for all rows in Hugging Face's order; slots: those of them that the logits are for.
    """

    def __init__(self, modes: Modes, request: RowRequest, processors, config, prompt, return_logprobs, device):
        self.definition, self.gated, self.return_logprobs = modes, request.gated, return_logprobs
        self.processors = split(processors)
        self.records = config.return_dict_in_generate and (config.output_scores or config.output_logits)
        self.greedy = not config.do_sample
        self.gate_step = len(modes.prefix)
        self.forced_mode = request.forced_mode.to(device)
        self.bias = request.banned_bias(modes).to(device)
        self.exact = not bool(request.fast_prob.isnan().all())
        self.fast_prob = request.fast_prob.to(device)
        self.seeds = None if request.seeds is None else request.seeds.to(device)
        self.modes = prompt.modes.to(device)
        self.mode_probs = torch.nn.functional.one_hot(self.modes.clamp(min=0).long(), len(modes)).float()
        self.mode_probs[self.modes < 0] = 0
        self.mode_logprobs = torch.zeros(len(self.modes), device=device) if return_logprobs else None
        self.forced: torch.Tensor | None = (
            None  # [slots] bool with return_logprobs or reported rules: whose latest token was written, not drawn
        )
        self.steering: Steering | None = None
        self.lost: torch.Tensor | None = None
        self._on_prefix = self.modes < 0
        self._flags = torch.zeros(len(self.modes), dtype=torch.int32, device=device)
        self._openings = Openings(modes, device)
        self._slot_seeds, self._head = self.seeds, self.processors.head
        self._edits: dict = {}
        self.slots = Slots(len(self.modes), device)

    def place(self, slots: Slots) -> None:
        """From now on logits come for these rows."""
        self.slots = slots
        self._slot_seeds = None if self.seeds is None else slots.take(self.seeds)
        self._head = self.processors.head if slots.in_order else of_rows(self.processors.head, slots.index)
        if self.steering is not None:
            self.steering.place(slots)

    def __call__(self, step: int, input_ids, logits, alive):
        """(tokens [slots] int64, scores [slots, V] or None, logprobs [slots] or None) for the logits [slots, V].

        input_ids [slots, T]. alive [rows] bool: rows that ended before the gate have no mode.
        """
        self.lost = None
        if self.steering is not None and self.steering.only_chooses and step > self._openings.last_step:
            self.steering = None
        at_gate = step == self.gate_step
        if step <= self.gate_step:
            self._on_prefix = self._on_prefix & alive
        if at_gate:
            self._observe(logits)
        shaped = logits
        if self._head or self.records:
            shaped = self._head(input_ids, logits.to(copy=True, dtype=torch.float32))
        opening = None
        if self.gated:
            opening = self._openings.tokens(step, self.slots.take(self.forced_mode), self.slots.take(self.modes))
        if opening is not None:
            self._refuse_by_memory(self._certain_tokens(opening, at_gate), input_ids, logits, shaped, alive)
        forced = self._forced_tokens(step, input_ids, opening if at_gate else None, logits, alive)
        if self.return_logprobs or (self.steering is not None and self.steering.run.reports):
            self.forced = torch.zeros_like(logits[:, 0], dtype=torch.bool) if forced is None else forced >= 0
        gate = self._gate() if at_gate and self.gated else {}
        if gate:
            observe(shaped, self.definition.token_ids, self._temperature, self.slots)
        settings, self._edits = None, {}
        if self.steering is not None:
            if self._fuses(gate) and not self.steering.reads_biased:
                self._edits = self.steering.class_edits()
            else:
                shaped = self.steering.biased(shaped)
            settings = self.steering.settings(shaped)
        tokens, scores, logprobs = self._select(step, input_ids, shaped, gate, forced, settings)
        if self.steering is not None:
            drawn = self.steering.choose(step, shaped, tokens, scores, logprobs, settings, self._slot_seeds)
            tokens, scores, logprobs = self._settle(self.steering, logits, shaped, settings, alive, *drawn)
        if at_gate and self.mode_logprobs is not None:
            drawn = token_logprobs(logits, tokens, self.slots.take(self._on_prefix), self._temperature or 1.0)[0]
            self.mode_logprobs = self.slots.put(self.mode_logprobs, drawn.float())
        self._record_modes(step, tokens, logits.shape[1], alive)
        return tokens, scores, logprobs

    def warn_of_nan(self) -> None:
        """One warning if any row's logits held NaN; call it once, after the loop (it reads from the device)."""
        rows = int(((self._flags & FLAG_NAN) != 0).sum())
        if rows:
            warnings.warn(
                f"the model gave NaN logits in {rows} of {len(self._flags)} rows; they count as -inf", stacklevel=2
            )

    def _settle(self, steering: Steering, logits, shaped, settings, alive, tokens, scores, logprobs):
        """The same after the rules that look at what was drawn, which is then committed."""
        if steering.lost is not None:
            lost = self.slots.put(torch.zeros_like(self._on_prefix), steering.lost)
            self.lost = lost if self.lost is None else self.lost | lost
        tokens = steering.settle(tokens, shaped, settings)
        if steering.replaced is not None:
            self.forced = steering.replaced if self.forced is None else self.forced | steering.replaced
            if logprobs is not None:
                logprobs = torch.where(steering.replaced, self._tempered(shaped, {}, tokens, settings), logprobs)
        steering.commit(tokens, logits, self.slots.take(alive))
        return tokens, scores, logprobs

    def blame(self, row: int) -> None:
        """Raise ValueError if it is rules that left this row nothing to draw."""
        if self.steering is not None:
            self.steering.blame(row)

    def stops_next(self, step: int, alive):
        """[slots] bool: rows of `alive` [rows] that a rule ends after this step; None where none can be told to."""
        opening = self.gated and step < self._openings.last_step
        if self.steering is None or not self.steering.looks_ahead or opening:
            return None
        return self.steering.stops_next(self.slots.take(alive))

    def _select(self, step: int, input_ids, shaped, gate: dict, forced, settings=None):
        scores = None if self._fuses(gate) else self._scores(input_ids, shaped, gate)
        if self.seeds is None:
            assert scores is not None  # only our own stream is fused
            if gate:
                self._refuse_masked_modes((scores == float("-inf")).all(1), forced)
            # A forced row may have no token left to draw, and is not drawn anyway.
            open_scores = scores if forced is None else scores.masked_fill((forced >= 0)[:, None], 0.0)
            tokens = self._huggingface_draw(open_scores, drawn=bool(gate) and self.exact)
            tokens = tokens if forced is None else torch.where(forced >= 0, forced, tokens)
            return tokens, scores, self._tempered(shaped, gate, tokens)
        if self.greedy and not gate and settings is None and not self._edits and not self.return_logprobs:
            tokens = (shaped if scores is None else scores).argmax(-1)
            return (tokens if forced is None else torch.where(forced >= 0, forced, tokens)), scores, None
        drawn = {"seeds": self._slot_seeds, "step": step, "forced_tokens": forced, **self._edits}
        if scores is not None and not gate and settings is None:
            sample = mode_sample(scores, temperature=float(not self.greedy), **drawn)
        else:
            fused = {"temperature": 0.0} if self.greedy else self.processors.fused or {}
            given = {"temperature": self._temperature, **gate} if gate else fused if settings is None else settings
            sample = mode_sample(shaped, **given, **drawn)
        self._note_flags(sample.flags, drawn=not gate and not (self.greedy and settings is None), forced=forced)
        if self.steering is not None and self._edits:
            self.steering.check_some_left(shaped, (sample.flags & FLAG_EMPTY) != 0)
        if gate:
            self._refuse_masked_modes((sample.flags & FLAG_EMPTY) != 0, forced)
        own = scores is None or settings is not None
        logprobs = sample.tempered_logprobs if own else self._tempered(shaped, gate, sample.tokens)
        return sample.tokens, scores, logprobs if self.return_logprobs else None

    def _fuses(self, gate: dict) -> bool:
        """Whether the fused sampler draws from the logits themselves, and no scores are asked for."""
        return not self.records and self.seeds is not None and (self.processors.fused is not None or bool(gate))

    @property
    def _temperature(self) -> float:
        return 0.0 if self.greedy else self.processors.temperature

    def _gate(self) -> dict:
        return {
            "modes": self.definition,
            "at_mode": True,
            "mode_bias": None if self.exact else self.slots.take(self.bias),
            "fast_prob": self.slots.take(self.fast_prob) if self.exact else None,
        }

    def _scores(self, input_ids, shaped, gate: dict) -> torch.Tensor:
        if not gate:
            return self.processors.tail(input_ids, shaped.float())
        rows = len(shaped)
        z = shaped.double().masked_fill(shaped.isnan(), float("-inf"))
        everywhere = torch.ones(rows, dtype=torch.bool, device=z.device)
        temperature = torch.full((rows,), self._temperature or 1.0, dtype=torch.float64, device=z.device)
        bias, fast_prob = self.slots.take(self.bias), self.slots.take(self.fast_prob)
        return gated_logits(z, self.definition.token_ids, everywhere, bias, temperature, fast_prob=fast_prob).float()

    def _huggingface_draw(self, scores, drawn: bool) -> torch.Tensor:
        if self.greedy and not drawn:
            return scores.argmax(-1)
        return torch.multinomial(torch.softmax(scores, -1), num_samples=1).squeeze(1)

    def _tempered(self, shaped, gate: dict, tokens, settings=None):
        if not self.return_logprobs:
            return None
        temperature = self._temperature if settings is None else settings["temperature"]
        return mode_sample(
            shaped, temperature=temperature, seeds=0, forced_tokens=tokens, **gate, **self._edits
        ).tempered_logprobs

    def _forced_tokens(self, step: int, input_ids, named, logits, alive):
        """[slots] int64, -1 = draw; None where no row is forced. named: at the gate, the tokens of modes asked for."""
        if self.steering is None:
            return None
        self.steering.run.tell_modes(self.slots.take(self.modes))
        if self.steering.probes is not None:
            self.steering.probes.input_ids = input_ids
        choosing = self.gated and step <= self.gate_step
        ruled = self.steering.decide(logits, self.slots.take(alive), choosing)
        return ruled if named is None else torch.where(named >= 0, named, ruled)

    def _observe(self, logits) -> None:
        ids = self.definition.token_ids
        if None not in ids:
            # Only these columns count.
            logits, ids = logits[:, list(ids)], tuple(range(len(ids)))
        own = mode_probs(logits.double().masked_fill(logits.isnan(), float("-inf")), ids).float()
        seen = torch.where(self.slots.take(self._on_prefix)[:, None], own, self.slots.take(self.mode_probs))
        self.mode_probs = self.slots.put(self.mode_probs, seen)

    def _record_modes(self, step: int, tokens, vocab_size: int, alive) -> None:
        if step > self._openings.last_step:
            return
        on_prefix, modes = self.slots.take(self._on_prefix), self.slots.take(self.modes)
        if step < self.gate_step:
            self._on_prefix = self.slots.put(self._on_prefix, on_prefix & (tokens == self.definition.prefix[step]))
            return
        if step == self.gate_step:
            modes = torch.where(on_prefix, selected_modes(tokens, self.definition.token_ids, vocab_size), modes)
        else:
            # Unrestricted rows may leave a multi-token mode half way: then they never entered it.
            # One that has ended keeps it.
            expected, decoding = self._openings.suffix(step, modes), on_prefix & self.slots.take(alive)
            modes = modes.masked_fill(decoding & (expected >= 0) & (tokens != expected), -1)
        self.modes = self.slots.put(self.modes, modes)

    def _note_flags(self, flags, drawn: bool, forced) -> None:
        if not dispatch.host_waits(flags.device) and not flags.numpy().any():
            return
        if drawn:
            lost = (flags & (FLAG_EMPTY | FLAG_INF)) != 0
            lost = lost if forced is None else lost & (forced < 0)
            self.lost = self.slots.put(torch.zeros_like(self._on_prefix), lost)
        self._flags = self.slots.put(self._flags, self.slots.take(self._flags) | flags)

    def _certain_tokens(self, opening, at_gate: bool):
        """opening, with mode 0's token where `fast_prob` draws it whatever its logit."""
        fast = self.definition.token_ids[0]
        if not (at_gate and self.exact) or fast is None:
            return opening
        return opening.masked_fill(~self.slots.take(self.fast_prob).isnan(), fast)

    def _refuse_by_memory(self, certain, input_ids, logits, shaped, alive) -> None:
        certain = certain.where(self.slots.take(alive), -1)
        for slot in refused_by_memory(self._head, input_ids, logits, shaped, certain):
            row, token = self.slots.row(slot), int(certain[slot])
            mode = max(int(self.forced_mode[row]), int(self.modes[row]))
            mode = 0 if self.exact and token == self.definition.token_ids[0] else mode
            raise ValueError(refusal_of_token(self.definition, row, mode, token, with_memory(self._head)))

    def _refuse_masked_modes(self, empty, forced) -> None:
        masked = empty & self.slots.take(self._on_prefix)
        masked = masked if forced is None else masked & (forced < 0)
        if masked.any():
            row = self.slots.row(masked.nonzero()[0, 0])
            raise ValueError(no_mode_left(self.definition, row, int(self.forced_mode[row])))
