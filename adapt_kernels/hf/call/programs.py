"""From the program arguments of a call to the `ProgramRun` that its loop steps through; all that can be refused is."""

import torch

from adapt_kernels.hf.call.state import PatchState
from adapt_kernels.modes import Modes
from adapt_kernels.ops.steer import UNBOUNDED
from adapt_kernels.program.program import Program
from adapt_kernels.program.request import ModeRequest
from adapt_kernels.program.rules import Force, Gate, Probe, label_of
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.steer_request import RowPrograms, SteerRequest, reply_tails, thought_spans
from adapt_kernels.prompt_spans import CLOSED, PromptSpans


def program_run(
    model,
    state: PatchState,
    steer: SteerRequest,
    request: ModeRequest,
    prompt,
    mask,
    samples: int,
    config,
    eos_ids,
    spans: PromptSpans,
) -> ProgramRun | None:
    """The programs of the rows after their prompts, or None where there are none: the choice among the modes, if there
    is one, what the call asks, and the caps of modes with a closing.

    prompt [batch, T] int64 (T = 0 for embeddings), mask its attention mask or None; spans: of the rows. Raises
    ValueError or TypeError that names the argument or the rule. Reads the prompts.
    """
    asked = _asked(state, steer, request, len(prompt), samples)
    closings, gate = state.closings, state.gate if request.gated else None
    before, after = [] if gate is None else [gate], [] if closings is None else [closings.program]
    programs = [[*before, *own, *after] for own in asked.programs]
    if not any(programs):
        return None
    run = ProgramRun(
        programs,
        vocab_size=vocab_size(model),
        # Both are known when the loop begins: `bind`.
        max_new_tokens=UNBOUNDED - 1,
        seeds=torch.zeros(len(programs), dtype=torch.int64, device=prompt.device),
        inputs=asked.inputs,
        outer_modes=state.modes.names,
        min_new_tokens=config.min_new_tokens or 0,
        unreported=[*before, *after],
    )
    if any(asked.programs):
        told = state.modes.prompt_tokens
        turns = {*eos_ids, *(() if told is None else told.turns)}
        tails = reply_tails(prompt, mask, turns, asked.delimiters())
    else:
        # What the closings' spans are inside of is known; a token at a time is slow.
        tails = _ends(prompt, mask, 0 if closings is None else closings.reads)
    run.begin([tail for tail in tails for _ in range(samples)])
    if closings is not None:
        chosen, begins = torch.tensor(closings.chosen)[:, None], spans.contents
        run.enter(closings.program, (begins < CLOSED) | chosen, (begins == 0) | (chosen & (begins == CLOSED)))
    if gate is not None and any(asked.programs):
        _check_no_choice(run, gate)
    return run


def _ends(prompt: torch.Tensor, mask, count: int) -> list[list[int]]:
    """The last `count` tokens of the prompts [batch, T]."""
    begin = max(prompt.shape[1] - count, 0)
    whole = torch.is_tensor(mask) and mask.shape == prompt.shape
    return reply_tails(prompt[:, begin:], mask[:, begin:] if whole else None, set(), set())


def _asked(state: PatchState, steer: SteerRequest, request: ModeRequest, batch: int, samples: int) -> RowPrograms:
    """What the call's arguments ask of the rows."""
    none = RowPrograms([[] for _ in range(batch * samples)], {})
    if not steer.given_arguments():
        return none
    asked = steer.spread(batch, samples, thought_spans(state.modes, state.spans))
    if asked is None:
        return none
    if request.rng == "hf" and steer.program is not None:
        raise ValueError(
            "program draws from a stream of each row, and rng='hf' is one of the whole batch: leave out rng (seed=..."
            " fixes the draws), or use thinking_budget, which draws nothing"
        )
    if request.gated:
        _check_opening(asked, state.modes)
    return asked


def has_probes(run: ProgramRun | None) -> bool:
    """Whether a rule of any row decodes aside."""
    return run is not None and any(isinstance(rule, Probe) for rule in run.compiled.rules)


def _check_opening(asked: RowPrograms, modes: Modes) -> None:
    """Refuse rules that act only where a mode argument decides the mode: nothing else acts there."""
    for program in dict.fromkeys(program for own in asked.programs for program in own):
        for index, rule in enumerate(program.rules):
            at = rule.when.ranges.get("at")
            only_there = at is not None and isinstance(at.high, int) and at.high <= len(modes.prefix) + 1
            if isinstance(rule, (Gate, Force)) and only_there:
                raise _both_choose(label_of(index, rule))


def _check_no_choice(run: ProgramRun, gate: Program) -> None:
    decision, rules = run.foresee(gate), run.compiled.rules
    writes = (decision.forced >= 0) | (decision.gate >= 0) | (decision.ends > 0)
    if writes.any():
        row = int(writes.nonzero()[0, 0])
        rule = rules[int(decision.gate[row])] if decision.gate[row] >= 0 else None
        who = f"the gate {list(rule.modes)}" if isinstance(rule, Gate) else "the program"
        raise _both_choose(f"{who} of row {row}")


def _both_choose(who: str) -> ValueError:
    return ValueError(
        f"{who} acts at position 0, where mode, mode_bias or fast_prob chooses the mode: leave these out, or let the"
        " rule act later ('at': [n, null])"
    )


def vocab_size(model) -> int:
    head = model.get_output_embeddings()
    size = model.config.get_text_config().vocab_size
    return size if getattr(head, "weight", None) is None else max(size, head.weight.shape[0])
