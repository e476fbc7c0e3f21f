"""What a request says alone, by the machine that `generate` uses: `ProgramRun`, step by step, and `mode_sample`."""

import torch

from adapt_kernels.ops.mode_sample import class_edited, mode_sample
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.steer_request import delimiters, reply_tails
from adapt_kernels.serving.settings import ROW_KEY, parse


def alone(request, served, seed: int) -> list[int]:
    """The greedy continuation of `request.length` tokens of a request of `fake_engines`."""
    settings = {k: v for k, v in (request.extra or {}).items() if k != ROW_KEY}
    return _play(settings, served, request.prompt, request.logits, request.length, seed, request.temperature)[0]


def replay(settings, served, prompt, logits, length: int) -> tuple[list[int], int]:
    """(tokens, how many of them rules wrote) of greedy decoding on the recorded logits [T, V], at most `length`."""

    def row(said):
        return logits[len(said)]

    tokens, forced = _play(settings, served, list(prompt), row, len(logits), 0, 0.0, length)
    return tokens, forced


def _play(given, served, prompt, logits_of, steps, seed, temperature, length=None) -> tuple[list[int], int]:
    settings = parse(given, served)
    programs = [*served.programs_of(settings)]
    inputs = {"thinking_budget": [settings.thinking_budget]} if settings.thinking_budget is not None else {}
    run = ProgramRun(
        [programs], vocab_size=len(logits_of([])), max_new_tokens=length or steps, seeds=torch.tensor([seed]),
        inputs=inputs, outer_modes=served.modes.names,
    )  # fmt: skip
    run.begin(reply_tails(torch.tensor([prompt]), None, set(served.turns), delimiters(programs)))
    said: list[int] = []
    forced = 0
    for step in range(steps):
        logits = logits_of(said)[None]
        decision = run.decide()
        edited = class_edited(logits, run.compiled.tables.bias_classes, decision.scale, decision.bias)
        token = int(edited.argmax()) if decision.forced[0] < 0 else int(decision.forced[0])
        forced += int(decision.forced[0]) >= 0
        if decision.gate[0] >= 0:
            token = _gated(run, decision, settings, served, edited, seed, step, temperature)
        drawn, *_ = run.settle(decision, torch.tensor([token]))
        if settings.gated:
            run.tell_modes(run.modes(0))
        run.advance(drawn)
        said.append(int(drawn))
    return said, forced


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
