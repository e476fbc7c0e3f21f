"""What a request says alone, by the machine that `generate` uses: `ProgramRun`, step by step, and `mode_sample`."""

import torch
from fake_engines import VOCAB, Request

from adapt_kernels.ops.mode_sample import class_edited, mode_sample
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.steer_request import delimiters, reply_tails
from adapt_kernels.serving.settings import ROW_KEY, parse


def alone(request: Request, served, seed: int) -> list[int]:
    """The greedy continuation of `request.length` tokens."""
    settings = parse({k: v for k, v in (request.extra or {}).items() if k != ROW_KEY}, served)
    programs = [*served.programs_of(settings)]
    inputs = {"thinking_budget": [settings.thinking_budget]} if settings.thinking_budget is not None else {}
    run = ProgramRun(
        [programs], vocab_size=VOCAB, max_new_tokens=request.length, seeds=torch.tensor([seed]), inputs=inputs,
        outer_modes=served.modes.names,
    )  # fmt: skip
    prompt = torch.tensor([request.prompt])
    run.begin(reply_tails(prompt, None, set(served.turns), delimiters(programs)))
    said: list[int] = []
    for step in range(request.length):
        logits = request.logits(said)[None]
        decision = run.decide()
        edited = class_edited(logits, run.compiled.tables.bias_classes, decision.scale, decision.bias)
        token = int(edited.argmax()) if decision.forced[0] < 0 else int(decision.forced[0])
        if decision.gate[0] >= 0:
            token = _gated(run, decision, settings, served, edited, seed, step, request.temperature)
        drawn, *_ = run.settle(decision, torch.tensor([token]))
        if settings.gated:
            run.tell_modes(run.modes(0))
        run.advance(drawn)
        said.append(int(drawn))
    return said


def _gated(run, decision, settings, served, logits, seed, step, temperature) -> int:
    index = int(decision.gate[0])
    rule, modes = run.gates()[index], run.compiled.rule_tokens(index).modes
    chance = {"fast_prob": rule.prob} if rule.prob is not None else {"mode_bias": dict(rule.bias)}
    if settings.gated and index == 0:
        if settings.mode not in (None, "auto"):
            return modes.token_ids[modes.index(settings.mode)]
        bias = None if settings.bias is None else torch.tensor([settings.bias])
        chance = {"mode_bias": bias, "fast_prob": settings.fast_prob}
    return int(
        mode_sample(
            logits, modes=modes, at_mode=True, temperature=temperature, seeds=torch.tensor([seed]), step=step, **chance
        ).tokens
    )
