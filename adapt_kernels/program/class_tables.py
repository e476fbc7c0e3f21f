"""Patterns and biased sets as one class per token id, and tables by class."""

from collections.abc import Sequence

import torch

from adapt_kernels.ops.steer import Action
from adapt_kernels.program.automata import Automaton
from adapt_kernels.program.resolved import RuleTokens
from adapt_kernels.program.rules import Bias, Rule

_ACTIONS = {"add": Action.ADD, "scale": Action.SCALE, "ban": Action.BAN, "only": Action.ONLY}
_MAX_BIAS_CLASSES = 256


def pattern_tables(automata: Sequence[Automaton], vocab_size: int) -> dict[str, torch.Tensor]:
    """classes, transitions, accept and back of `SteerTables`: the classes of all patterns joined to one per id."""
    listed = sorted({token for each in automata for token in each.classes})
    kinds: dict[tuple[int, ...], int] = {(0,) * len(automata): 0}
    joint = [kinds.setdefault(tuple(each.classes.get(token, 0) for each in automata), len(kinds)) for token in listed]
    classes = torch.zeros(vocab_size, dtype=torch.int16)
    classes[torch.tensor(listed, dtype=torch.int64)] = torch.tensor(joint, dtype=torch.int16)
    states = max((len(each.table) for each in automata), default=1)
    transitions = torch.zeros(len(automata), states, len(kinds), dtype=torch.uint8)
    accept = torch.zeros(len(automata) + 1, states, dtype=torch.bool)
    back = torch.zeros(len(automata) + 1, states, dtype=torch.uint8)
    for index, each in enumerate(automata):
        table, own = torch.tensor(each.table, dtype=torch.uint8), [kind[index] for kind in kinds]
        transitions[index, : len(table)] = table[:, own]
        accept[index, : len(table)] = torch.tensor(each.accept)
        back[index, : len(table)] = torch.tensor(each.back, dtype=torch.uint8)
    return {"classes": classes, "transitions": transitions, "accept": accept, "back": back}


def bias_tables(rules: Sequence[Rule], tokens: Sequence[RuleTokens], vocab_size: int) -> dict[str, torch.Tensor]:
    """biases, bias_amounts, bias_members and bias_classes of `SteerTables`: ids in the same sets share a class."""
    biases = [
        (index, rule, frozenset(own.ids))
        for index, (rule, own) in enumerate(zip(rules, tokens, strict=True))
        if isinstance(rule, Bias)
    ]
    listed = sorted({token for *_, ids in biases for token in ids})
    kinds: dict[tuple[bool, ...], int] = {(False,) * len(biases): 0}
    joint = [kinds.setdefault(tuple(token in ids for *_, ids in biases), len(kinds)) for token in listed]
    if len(kinds) > _MAX_BIAS_CLASSES:
        raise ValueError(
            f"the bias rules cut the vocabulary into {len(kinds)} classes of tokens, and there is room for"
            f" {_MAX_BIAS_CLASSES}: let fewer sets overlap"
        )
    classes = torch.zeros(vocab_size, dtype=torch.uint8)
    classes[torch.tensor(listed, dtype=torch.int64)] = torch.tensor(joint, dtype=torch.uint8)
    actions = [(index, int(_ACTIONS[rule.action])) for index, rule, _ in biases]
    return {
        "biases": torch.tensor(actions, dtype=torch.int32).reshape(-1, 2),
        "bias_amounts": torch.tensor([rule.amount for _, rule, _ in biases], dtype=torch.float32),
        "bias_members": torch.tensor(list(kinds), dtype=torch.bool).reshape(len(kinds), len(biases)).T.contiguous(),
        "bias_classes": classes,
    }
