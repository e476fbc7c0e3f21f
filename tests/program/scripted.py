"""A model that wishes: its first choice has logit 0, the second -1, and the draw is greedy under what the rules say."""

from dataclasses import dataclass, field

import torch

from adapt_kernels.ops.steer import ENDS_AFTER, ENDS_BEFORE
from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun

VOCAB = 16
FILLER = 14  # what a model draws where the trace does not care


@dataclass
class Played:
    """tokens and how each came: "" drawn, "~" drawn under a bias, "[]" forced, "*" replaced."""

    tokens: list[int] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    ended: bool = False
    run: ProgramRun | None = None

    @property
    def shown(self) -> str:
        shown = [f"[{t}]" if m == "[]" else f"{t}{m}" for t, m in zip(self.tokens, self.marks, strict=True)]
        return " ".join(shown)

    def forced(self):
        return torch.tensor([[mark in ("[]", "*") for mark in self.marks]])

    def visits(self):
        return self.run.visits(torch.tensor([self.tokens]), torch.tensor([len(self.tokens)]), self.forced())[0]


def play(
    program: Program,
    wishes: str,
    prompt=(1,),
    *,
    max_new=64,
    uniforms=None,
    registers=None,
    probed=None,
    backend="auto",
) -> Played:
    """One row through its wishes ("8 5>9 ."): the ProgramRun's calls in the order a generation makes them.

    uniforms {step: u}; registers {step: {name: value}}; probed {step: value} of the only probe.
    """
    run = ProgramRun(
        [program],
        vocab_size=VOCAB,
        max_new_tokens=max_new,
        seeds=torch.tensor([7]),
        inputs={name: [None if name in program.sequences else 0.0] for name in program.inputs},
        backend=backend,
    )
    run.begin([prompt])
    played = Played(run=run)
    for step, wish in enumerate(wishes.split()):
        if step:
            run.advance(torch.tensor([played.tokens[-1]]))
        u = (
            None
            if uniforms is None
            else torch.full((1, len(program.rules)), uniforms.get(step, 0.5), dtype=torch.float64)
        )
        run.fill({name: torch.tensor([value]) for name, value in (registers or {}).get(step, {}).items()})
        answer(run, run.wanted_probes(uniforms=u), probed, step)
        decision = run.decide(u)
        if decision.ends[0] == ENDS_BEFORE:
            played.ended = True
            return played
        token = torch.where(decision.forced >= 0, decision.forced, choose(run, decision, wish))
        answer(run, run.wanted_probes(decision, token, u), probed, step)
        token, ends, replaced = run.settle(decision, token, uniforms=u)
        played.tokens.append(int(token[0]))
        biased = "~" if decision.acting[0].any() else ""
        played.marks.append("[]" if decision.forced[0] >= 0 else "*" if replaced[0] else biased)
        if ends[0] == ENDS_AFTER:
            played.ended = True
            return played
    return played


def answer(run, probes, probed, step):
    for index, wanted in probes:
        if bool(wanted[0]):
            run.fill({run.compiled.rules[index].into: torch.tensor([probed[step]])}, wanted)


def choose(run, decision, wish: str):
    choices = [FILLER] if wish == "." else [int(each) for each in wish.split(">")]
    logits = torch.full((VOCAB,), -50.0)
    for place, token in enumerate(choices):
        logits[token] = -float(place)
    gate = int(decision.gate[0])
    if gate >= 0:
        rule, modes = run.gates()[gate], run.compiled.programs[0].rule_tokens[gate].modes
        for name, token in zip(modes, modes.token_ids, strict=True):
            logits[[token] if token is not None else [i for i in range(VOCAB) if i not in modes.token_ids]] += (
                rule.bias.get(name, 0.0)
            )
        if None not in modes.token_ids:
            logits[[i for i in range(VOCAB) if i not in modes.token_ids]] = float("-inf")
        return logits.argmax()[None]
    classes = run.compiled.tables.bias_classes.long()
    return (logits * decision.scale[0, classes] + decision.bias[0, classes]).argmax()[None]
