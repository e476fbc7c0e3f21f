"""ADaPTConfig(paths=): rows that paths ends carry no loss and count for no one else's."""

import json

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from tiny_trainer import PROMPTS, first_batch, make_trainer

import adapt_kernels as ak

NEW, AT = 8, 3
PATHS = ak.Paths(keep=2, at=AT, score=lambda view: view.rows)
SETTINGS = {"max_completion_length": NEW, "rollout": "auto", "scheme": "grpo"}


def last_rows_matter(completions, **_):
    """A reward that differs from row to row."""
    return [float(index % 3) for index in range(len(completions))]


def built(tmp_path, paths=PATHS, **settings):
    return make_trainer(tmp_path, paths=paths, **{"reward": last_rows_matter, **SETTINGS, **settings})


def test_pruned_rows_carry_no_loss(tmp_path):
    trainer = built(tmp_path)
    batch, cut = first_batch(trainer), trainer._rollout.cut
    ended = trainer._rollout.lengths < AT
    assert cut.any() and not (cut & ended).any() and (trainer._rollout.lengths[cut] == AT).all()
    for group in range(2):
        own = slice(4 * group, 4 * group + 4)
        # Of the unfinished rows the last two of each prompt live on.
        assert (~cut[own] & ~(trainer._rollout.lengths[own] <= AT)).sum() <= 2
    assert not batch["loss_mask"][cut].any() and batch["loss_mask"][~cut].any(1).all()
    assert (batch["advantages"][cut] == 0).all()


def test_pruned_rows_count_for_no_one(tmp_path):
    """The others' advantages are those of a group without them."""
    trainer = built(tmp_path)
    first_batch(trainer)
    cut, rewards = trainer._rollout.cut, trainer._rewards[:, 0]
    batch = first_batch(trainer)
    for group in range(2):
        own = torch.arange(4 * group, 4 * group + 4)
        alive = own[~cut[own]]
        scores = rewards[alive]
        expected = (scores - scores.mean()) / (scores.std() + 1e-4)
        found = torch.stack([batch["advantages"][row][batch["loss_mask"][row]][-1] for row in alive])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_training_runs_and_evaluation_lets_rows_live(tmp_path):
    trainer = built(tmp_path)
    seen = []
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **kwargs: seen.append(kwargs["paths"]) or generate(*args, **kwargs)
    try:
        trainer.train()
    finally:
        del trainer.model.generate
    assert seen and all(paths is PATHS for paths in seen)
    trainer.model.eval()
    assert trainer._row_arguments([[5]] * 4, 4)["paths"] is None
    assert "Paths(keep=2, at=(3,)" in json.loads(trainer.args.to_json_string())["paths"]


def test_settings_as_a_mapping(tmp_path):
    trainer = built(tmp_path, paths={"keep": 0.5, "at": 3, "score": "random"})
    assert trainer.args.paths == ak.Paths(keep=0.5, at=3, score="random")


def test_groups_that_paths_cannot_tell(tmp_path):
    trainer = built(tmp_path)
    with pytest.raises(ValueError, match="every group of 4 rows on one rank, and this rank has 6 rows"):
        trainer._row_arguments([[5]] * 6, 4)
    with pytest.raises(ValueError, match="group 1 of this rollout has the prompt of an earlier one"):
        first_batch(trainer, [PROMPTS[0]] * 2)


def test_refused_settings(tmp_path):
    with pytest.raises(ValueError, match="keep=1 leaves no two rows of a prompt to compare"):
        built(tmp_path, paths=ak.Paths(keep=1, at=3))
    with pytest.raises(TypeError, match="paths must be an adapt_kernels.Paths or its settings; got 4"):
        built(tmp_path, paths=4)
