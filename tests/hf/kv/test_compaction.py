"""`compact_at` to the row: finished rows leave when exactly this share is left, and not one row earlier."""

import pytest
import torch
from recorders import RowLengths
from tiny_models import EOS, FAST, SLOW, prompts, shared
from transformers import RepetitionPenaltyLogitsProcessor

import adapt_kernels as ak

WIDTH, NEW, EARLY = 6, 9, 3
MODES = ak.Modes(fast=FAST, slow=SLOW)


def generate(rows: int, living: int, compact_at: float, samples: int = 1):
    """All but `living` rows have EARLY tokens, these have NEW."""
    lengths = [EARLY] * (rows - living) + [NEW] * living
    arguments = {"max_new_tokens": NEW, "eos_token_id": EOS, "suppress_tokens": [EOS], "do_sample": samples > 1}
    arguments |= {"top_k": 1, "num_return_sequences": samples} if samples > 1 else {}
    ends = [RowLengths(WIDTH, lengths)]
    with ak.patched(shared("llama"), MODES) as model:
        out = model.generate(
            prompts(rows // samples, WIDTH),
            **arguments,
            stopping_criteria=ends,
            compact_at=compact_at,
            return_dict_in_generate=True,
        )
    assert out.stats.plan == "full"
    assert torch.equal(out.lengths, torch.tensor(lengths))
    return out.stats.row_steps


@pytest.mark.parametrize(
    ("rows", "living", "share"), [(4, 2, 0.5), (4, 3, 0.75), (4, 1, 0.25), (8, 6, 0.75), (8, 4, 0.5), (5, 4, 0.8)]
)
@pytest.mark.parametrize("samples", [1, 2])
def test_rows_leave_at_exactly_the_share(rows, living, share, samples):
    if rows % samples:
        samples = 1
    early, late = EARLY - 1, NEW - EARLY
    assert generate(rows, living, share, samples) == early * rows + late * living
    just_below = share - 1e-6
    assert generate(rows, living, just_below, samples) == (early + late) * rows


def test_one_lets_every_row_leave_at_once():
    assert generate(5, 4, 1.0) == (EARLY - 1) * 5 + (NEW - EARLY) * 4
    assert generate(5, 5, 1.0) == (NEW - 1) * 5


@pytest.mark.parametrize("ignored", [None, 3, torch.tensor([0, 6, 4, 2])], ids=["none", "all alike", "each its own"])
def test_a_repetition_penalty_goes_with_its_row(ignored):
    """Its number per row is that of the rows that are left."""
    try:
        penalty = RepetitionPenaltyLogitsProcessor(5.0, ignored)
    except ValueError:
        pytest.skip("this release of transformers takes one prompt_ignore_length for all rows")
    ends = [RowLengths(WIDTH, [2, 9, 2, 9])]
    settings = {"max_new_tokens": NEW, "eos_token_id": EOS, "suppress_tokens": [EOS], "do_sample": False}
    settings |= {"logits_processor": [penalty], "stopping_criteria": ends}
    plain = shared("llama").generate(prompts(4, WIDTH), **settings)
    with ak.patched(shared("llama"), MODES) as model:
        ours = model.generate(prompts(4, WIDTH), **settings, compact_at=1.0)
        stats = ak.last_stats(model)
    assert torch.equal(ours, plain) and stats.plan == "full" and stats.row_steps < stats.row_steps_padded
