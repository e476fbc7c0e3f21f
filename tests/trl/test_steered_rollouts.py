"""ADaPTConfig(program=, thinking_budget=): rollouts are steered, and what rules write carries no loss."""

import json

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import FAST, SLOW, WORDS, first_batch, make_model, make_trainer

import adapt_kernels as ak

NEW, CLOSING = 8, (8, 9)
MODES = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=NEW - 1, closing=CLOSING))
HINT = {"rules": [{"force": ["y", "z"], "when": {"at": 3}}]}
WRITTEN = [WORDS.index("y"), WORDS.index("z")]


def built(tmp_path, modes=MODES, **settings):
    return make_trainer(tmp_path, make_model(), modes, max_completion_length=NEW, **settings)


def program(tokenizer=None):
    rules = [{"force": WRITTEN, "when": {"at": 3}}] if tokenizer is None else HINT["rules"]
    return ak.Program.from_dict({"rules": rules}, tokenizer)


@pytest.mark.parametrize("given", ["program", "json", "folder"])
def test_what_a_program_writes_has_no_loss(tmp_path, given):
    program().save_pretrained(tmp_path / "saved")
    rules = {"program": program(), "json": HINT, "folder": str(tmp_path / "saved")}[given]
    trainer = built(tmp_path, ak.Modes(fast=FAST, slow=SLOW), program=rules)
    batch = first_batch(trainer)
    long = batch["completion_mask"].sum(1) > 5
    assert long.any() and (batch["completion_ids"][long][:, 3:5] == torch.tensor(WRITTEN)).all()
    assert not batch["loss_mask"][:, 3:5].any() and batch["loss_mask"][:, 0].all()
    assert (batch["loss_mask"][long].sum(1) == batch["completion_mask"][long].sum(1) - 2).all()
    assert json.loads(trainer.args.to_json_string())["program"] in (HINT, program().to_dict(), rules)


def test_a_budget_closes_thoughts_without_loss(tmp_path):
    trainer = built(tmp_path, thinking_budget=2)
    batch = first_batch(trainer)
    slow = (batch["completion_ids"][:, 0] == SLOW) & (batch["completion_mask"].sum(1) > 5)
    assert slow.any() and (batch["completion_ids"][slow][:, 3:5] == torch.tensor(CLOSING)).all()
    assert not batch["loss_mask"][slow][:, 3:5].any() and batch["loss_mask"][slow][:, :3].all()
    fast = batch["completion_ids"][:, 0] == FAST
    assert torch.equal(batch["loss_mask"][fast], batch["completion_mask"][fast].bool())


REFUSED = [
    ({"thinking_budget": -1}, ValueError, "thinking_budget must be >= 0; got -1"),
    ({"thinking_budget": 4, "modes": ak.Modes(fast=FAST, slow=SLOW)}, ValueError, "thinking_budget needs to know"),
    (
        {"program": {"rules": [{"bias": "y", "by": "ban", "when": {}}]}},
        ValueError,
        r"program: rules\[0\] \(bias\) reshapes the rollout's log-probs",
    ),
    (
        {"program": {"rules": [{"sample": {"temperature": 2.0}, "when": {}}]}},
        ValueError,
        r"program: rules\[0\] \(sample\) reshapes the rollout's log-probs",
    ),
    (
        {"program": {"rules": [{"force": ["y"], "when": {"at": 1, "if": {"effort": [1, None]}}}]}},
        ValueError,
        "program: it reads the row input 'effort'",
    ),
    ({"program": {"rules": [{"force": ["y"], "when": {}}]}}, ValueError, "would start again for ever"),
    ({"program": 7}, TypeError, "program must be an adapt_kernels.Program"),
]


@pytest.mark.parametrize(("settings", "error", "message"), REFUSED)
def test_refused_when_the_trainer_is_made(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        built(tmp_path, **settings)
