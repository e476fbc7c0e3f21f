"""Only what the policy drew carries loss: no closing that was forced, no prefix, no suffix; the mode token as ever."""

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import FAST, SLOW, first_batch, make_model, make_trainer

import adapt_kernels as ak

CAP, CLOSING = 3, (8, 9)
CLOSED = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=CLOSING))
OPENED = ak.Modes(fast=(10, FAST, 11), slow=ak.Mode((10, SLOW), max_new_tokens=CAP, closing=CLOSING))
BOTH = ak.Modes(
    fast=ak.Mode(FAST, max_new_tokens=2, closing=CLOSING), slow=ak.Mode(SLOW, max_new_tokens=CAP, closing=(8,))
)
NEW = 7


def built(tmp_path, modes, **settings):
    return make_trainer(tmp_path, make_model(), modes, max_completion_length=NEW, **settings)


def forced_positions(modes, mode):
    """Without the mode token, by the definition of the modes."""
    own, gate = modes[mode], len(modes.prefix)
    suffix = modes.suffixes[modes.index(mode)]
    closing = range(own.max_new_tokens, own.max_new_tokens + len(own.closing)) if own.closing else ()
    return {*range(gate), *range(gate + 1, gate + 1 + len(suffix)), *closing}


@pytest.mark.parametrize("modes", [CLOSED, OPENED, BOTH])
@pytest.mark.parametrize("rollout", ["balanced", "auto"])
def test_forced_tokens_have_no_loss_and_no_say(tmp_path, modes, rollout):
    trainer = built(tmp_path, modes, rollout=rollout)
    batch = first_batch(trainer)
    names = [modes.names[mode] for mode in trainer._rollout.modes.tolist()]
    assert rollout == "auto" or set(names) == {"fast", "slow"}
    closed = 0
    for row, name in enumerate(names):
        length, forced = int(batch["completion_mask"][row].sum()), forced_positions(modes, name)
        expected = [position < length and position not in forced for position in range(NEW)]
        assert batch["loss_mask"][row, :NEW].tolist() == expected
        closed += length > modes[name].max_new_tokens if modes[name].closing else 0
    assert closed, "the rows that this is about"
    seen = trainer._rollout.rows(trainer.modes).drawn.tolist()
    assert seen == batch["loss_mask"].sum(1).tolist(), "lengths that the schemes see"
    assert batch["num_items_in_batch"] == batch["loss_mask"].sum()
    loss = trainer.compute_loss(trainer.model, batch)
    changed = {**batch, "old_logprobs": torch.where(batch["loss_mask"], batch["old_logprobs"], -50.0)}
    changed["advantages"] = torch.where(batch["loss_mask"], batch["advantages"], 1e6)
    assert trainer.compute_loss(trainer.model, changed) == loss
    assert trainer._metrics["train"]["modes/ratio"][-1] == pytest.approx(1, abs=1e-4)


def test_a_mode_token_that_is_masked_and_rows_that_were_cut(tmp_path):
    trainer = built(tmp_path, CLOSED, mask_mode_token=True)
    batch = first_batch(trainer)
    slow = batch["completion_ids"][:, 0] == SLOW
    assert not batch["loss_mask"][:, 0].any() and not batch["loss_mask"][slow][:, CAP : CAP + 2].any()
    closed = slow & (batch["completion_mask"].sum(1) >= CAP + 2)
    assert closed.any() and (batch["completion_ids"][closed][:, CAP : CAP + 2] == torch.tensor(CLOSING)).all()
    trainer = built(tmp_path, CLOSED, mask_truncated_completions=True)
    batch = first_batch(trainer)
    assert batch["loss_mask"][:, 0].all() and not batch["loss_mask"][batch["completion_mask"].all(1), 1:].any()
