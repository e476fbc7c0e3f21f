"""branch against a sort written in plain Python; the Triton kernel against the reference, under the interpreter."""

import random

import pytest
import torch

import adapt_kernels as ak
from adapt_kernels.ops.branch import branch

CASES = range(24)
LARGE = range(100, 130)


def random_case(seed):
    """(modes, prompts, kv_tokens, num_prompts, alive) of random sizes; some vectors strided."""
    dice = random.Random(seed)
    rows, modes, count = (
        dice.choice([0, 1, 2, 3, 7, 33] + [64, 129] * (seed >= 100)),
        dice.choice([1, 2, 4]),
        dice.choice([1, 3, 9]),
    )
    mode = torch.tensor([dice.randrange(-1, modes) for _ in range(rows)], dtype=torch.int8)
    prompt = torch.tensor([dice.randrange(count) for _ in range(rows)], dtype=torch.int64)
    tokens = torch.tensor([dice.choice([0, 1, 64, 64, 2**40]) for _ in range(modes + 1)], dtype=torch.int64)
    alive = torch.tensor([dice.random() < 0.8 for _ in range(rows)], dtype=torch.bool)
    if dice.random() < 0.5:
        prompt = torch.stack([prompt, prompt + 1], 1)[:, 0]
        mode = torch.stack([mode, mode], 1)[:, 0]
    return mode, prompt, tokens, count, None if dice.random() < 0.2 else alive


def expected(mode, prompt, tokens, count, alive):
    rows = len(mode)
    alive = [True] * rows if alive is None else alive.tolist()
    length = [int(tokens[m]) if a else 0 for m, a in zip(mode.tolist(), alive, strict=True)]
    order = sorted(range(rows), key=lambda r: (not alive[r], -length[r], int(prompt[r]), r))
    starts = [sum(length[r] for r in order[:i]) for i in range(rows + 1)]
    per_prompt = [sum(alive[r] and int(prompt[r]) == p for r in range(rows)) for p in range(count)]
    return order, [order.index(r) for r in range(rows)], starts, per_prompt


@pytest.mark.parametrize("seed", [*CASES, *LARGE])
def test_reference(seed):
    case = random_case(seed)
    got = branch(*case, backend="reference")
    assert [x.tolist() for x in got] == list(expected(*case))
    assert [x.dtype for x in got] == [torch.int64, torch.int64, torch.int64, torch.int32]


def test_slow_rows_come_first_and_finished_rows_last():
    modes = torch.tensor([0, 1, 0, 1, -1, 0], dtype=torch.int8)
    alive = torch.tensor([True, True, False, True, True, True])
    got = branch(modes, torch.zeros(6, dtype=torch.int64), torch.tensor([50, 400, 60]), 1, alive)
    assert got.order.tolist() == [1, 3, 4, 0, 5, 2]
    assert got.kv_start.tolist() == [0, 400, 800, 860, 910, 960, 960]
    assert got.rows_per_prompt.tolist() == [5]


class TestArguments:
    GOOD = (torch.zeros(3, dtype=torch.int8), torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 3]), 1)

    @pytest.mark.parametrize(
        ("place", "value", "error", "text"),
        [
            (0, torch.zeros(3), TypeError, "modes must be a tensor of torch.int8; got torch.float32"),
            (0, [0, 1], TypeError, "modes must be a tensor of torch.int8; got list"),
            (
                1,
                torch.zeros(2, dtype=torch.int64),
                ValueError,
                r"prompts must have shape \(3,\), one entry per row; got",
            ),
            (
                2,
                torch.zeros(0, dtype=torch.int64),
                ValueError,
                "kv_tokens needs one entry per mode and one for rows in",
            ),
            (2, torch.zeros(1, 2, dtype=torch.int64), ValueError, "kv_tokens must have one dimension"),
            (3, -1, ValueError, "num_prompts must be an integer >= 0; got -1"),
            (3, True, ValueError, "num_prompts must be an integer >= 0; got True"),
        ],
    )
    def test_bad(self, place, value, error, text):
        arguments = list(self.GOOD)
        arguments[place] = value
        with pytest.raises(error, match=text):
            branch(*arguments)

    def test_backends(self):
        with pytest.raises(ValueError, match="branch has no backend='native'; allowed: 'auto', 'reference', 'triton'"):
            branch(*self.GOOD, backend="native")
        if ak.backends()["triton"] is not None:
            with pytest.raises(RuntimeError, match="backend='triton' cannot run here"):
                branch(*self.GOOD, backend="triton")
