"""Random programs through a real generate: every token, firing and span is that of a plain interpreter, row by row."""

import random
import sys
from pathlib import Path

import pytest
import torch
from scripted_model import PAD, PLANS, VOCAB, scripted

import adapt_kernels as ak

sys.path.append(str(Path(__file__).parents[2] / "program"))
from interpreter import Row
from random_programs import PIECES, definition, token
from toy_tokenizer import ToyTokenizer

TOKENIZER = ToyTokenizer(PIECES, added=("<t>", "</t>"))
ROWS, STEPS = 6, 12
NEG_INF = float("-inf")


def some_program(rng):
    """A random program that draws nothing and reads no signal; what is refused is drawn again."""
    while True:
        made = definition(rng)
        made["rules"] = [rule for rule in made["rules"] if "sample" not in rule and "probe" not in rule]
        try:
            if "entropy" not in str(made):
                return made, ak.Program.from_dict(made, TOKENIZER)
        except ValueError:
            continue


class Case:
    def __init__(self, seed):
        rng = random.Random(seed)
        self.made = [some_program(rng) for _ in range(ROWS)]
        self.prompt = [token(rng) for _ in range(3)]
        self.logits = torch.tensor([[rng.gauss(0, 2) for _ in range(VOCAB)] for _ in range(STEPS)])
        self.seeds = [rng.getrandbits(63) for _ in range(ROWS)]
        needed = {name for _, program in self.made for name in program.inputs}
        values = {
            "n": [rng.choice([None, 1, 2, 3]) for _ in range(ROWS)],
            "s": [rng.choice([None, [token(rng) for _ in range(rng.randint(1, 3))]]) for _ in range(ROWS)],
            "C": [rng.random() for _ in range(ROWS)],
        }
        self.inputs = {name: values[name] for name in needed}

    def generate(self, **more):
        model = ak.patch(scripted("", self.prompt), ak.Modes(fast=12, slow=13))
        model.generation_config.eos_token_id = None  # it would end a turn of the prompt
        model._logits = lambda step: self.logits[min(step, STEPS - 1)]
        settings = {"max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": PAD, "do_sample": False}
        return model.generate(
            torch.tensor([self.prompt] * ROWS),
            attention_mask=torch.ones(ROWS, 3, dtype=torch.long),
            program=[program for _, program in self.made],
            program_inputs=self.inputs,
            seed=torch.tensor(self.seeds),
            return_dict_in_generate=True,
            **{**settings, **more},
        )

    def interpret(self, index):
        """(tokens, firings, visits) of one row; None where its rules leave nothing to draw."""
        made, program = self.made[index]
        row = Row(made, PIECES, self.prompt, self.seeds[index], STEPS, {n: v[index] for n, v in self.inputs.items()})
        row.registers["C"] = float(torch.tensor(self.inputs["C"][index])) if "C" in program.inputs else 0.0
        tokens = []
        for step in range(STEPS):
            what, *detail = row.decide()
            if what == "stop":
                break
            by_rule, ends = what == "write", ""
            if by_rule:
                written, ends = detail
            else:
                drawn = self.draw(row, program, step, what, detail)
                if drawn is None:
                    return None
                written, ends, by_rule = row.settle(drawn)
                if ends == "before":
                    break
            tokens.append(written)
            row.commit(written, by_rule=by_rule)
            if ends:
                break
        return tokens, row.fired, row.visits()

    def draw(self, row, program, step, what, detail):
        if what == "gate":
            ids = program.rule_tokens[detail[0]].modes.token_ids
            z = self.logits[step].clone()
            if None not in ids:
                z[[i for i in range(VOCAB) if i not in ids]] = NEG_INF
            return int(z.argmax())
        scale, bias = (torch.tensor(each) for each in row.bias(detail[0]))
        z = self.logits[step] * scale + bias
        return None if (z == NEG_INF).all() else int(z.argmax())


def check(seed) -> bool:
    """Whether the case could be run at all: rules may leave a row nothing to draw, which raises."""
    case = Case(seed)
    expected = [case.interpret(row) for row in range(ROWS)]
    plan, more = PLANS[seed % 3]
    if None in expected:
        with pytest.raises(ValueError, match="leave no token to draw"):
            case.generate(**more)
        return False
    out = case.generate(compact_at=random.Random(seed).choice([0.0, 0.75, 1.0]), **more)
    for row, (tokens, fired, visits) in enumerate(expected):
        where = (seed, row, case.made[row][0], case.prompt)
        assert out.sequences[row, 3 : 3 + int(out.lengths[row])].tolist() == tokens, where
        assert (out.sequences[row, 3 + len(tokens) :] == PAD).all(), where
        assert out.fired[row].tolist() == fired + [-1] * (out.fired.shape[1] - len(fired)), where
        assert out.spans[row] == visits, where
    assert out.stats.plan == plan
    return True


@pytest.mark.parametrize("first", range(0, 18, 6))
def test_rows_are_the_interpreters(first):
    assert sum(check(seed) for seed in range(first, first + 6)) >= 2


@pytest.mark.full
def test_many_rows_are_the_interpreters():
    assert sum(check(seed) for seed in range(100, 400)) >= 100
