"""Rows that teach both modes at once: what they compute is what two plain sequences would."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapt_recipes.training.adapter_config import AdapterConfig
from adapt_recipes.training.adapter_sft import branch_loss
from adapt_recipes.training.branch_rows import BranchRow, build_pass

ROWS = [
    BranchRow([3, 4, 5, 6], [1, 7, 9], [2, 8, 8, 7, 9]),
    BranchRow([5, 3], [1, 6, 6, 9], [2, 4, 4, 5, 6, 6, 9]),
    BranchRow([7], [1, 8, 9], [2, 9]),
]
CONFIG = AdapterConfig(fast_weight=0.5, slow_weight=0.3, mode_weight=0.1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(shape).double().eval()


def plain_loss(model, rows):
    """The mean over the tokens of each branch, its mode tokens apart, from one sequence per branch."""
    parts = {"fast": [], "slow": [], "mode": []}
    for row in rows:
        for name, branch in (("fast", row.fast), ("slow", row.slow)):
            ids = torch.tensor([[*row.prompt, *branch]])
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            mode, *rest = losses[len(row.prompt) - 1 :]
            parts["mode"].append(mode)
            parts[name] += rest
    weights = {"fast": CONFIG.fast_weight, "slow": CONFIG.slow_weight, "mode": CONFIG.mode_weight}
    return sum(weight * torch.stack(parts[name]).mean() for name, weight in weights.items())


def test_shared_prompts_give_the_loss_of_separate_sequences(model):
    wanted = plain_loss(model, ROWS)
    wanted.backward()
    gradients = [value.grad.clone() for value in model.parameters()]
    for passes in ([ROWS], [ROWS[:1], ROWS[1:]]):
        model.zero_grad()
        got = torch.zeros((), dtype=torch.float64)
        for rows in passes:
            loss = branch_loss(model, build_pass(rows, ROWS, CONFIG, pad=0))
            loss.backward()
            got += loss.detach()
        # Weights are float32.
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-6, atol=0)
        for value, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-5, atol=1e-7)


def test_no_branch_sees_the_other(model):
    other = [row._replace(fast=[1, *[10] * (len(row.fast) - 1)]) for row in ROWS]
    one, two = (build_pass(rows, rows, CONFIG, pad=0) for rows in (ROWS, other))

    def slow_losses(each):
        hidden = model.model(input_ids=each.ids, attention_mask=each.mask, position_ids=each.positions)[0]
        return [hidden[i, len(row.prompt) + len(row.fast) : row.length] for i, row in enumerate(ROWS)]

    with torch.no_grad():
        for ours, theirs in zip(slow_losses(one), slow_losses(two), strict=True):
            assert torch.equal(ours, theirs)
