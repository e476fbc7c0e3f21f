"""Two CPU ranks train as one process does: DDP and FSDP2, groups that span ranks, and what a checkpoint continues."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from distributed_run import STATEFUL, run, trainer_of
from tiny_trainer import losses

HERE = Path(__file__).parent


def torchrun(folder, *kinds):
    """What rank 0 found, for each kind."""
    root = HERE.parents[1]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "python"), os.environ.get("PYTHONPATH", "")]),
    }
    # Port 0: the rendezvous binds a free port itself; one found free here may be taken before it does.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    launch += ["--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1"]
    command = [*launch, str(HERE / "distributed_run.py"), str(folder), *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {kind: json.loads(Path(folder, kind, "found.json").read_text()) for kind in kinds}


def same_curve(found, expected):
    for name in ("losses", "prob_fast", "ratio", "weight"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=2e-6), name
    assert len(set(expected["losses"])) == 3


def same_credit(found, expected):
    """Advantages and state of a stateful scheme; groups span the ranks, whose states are the same to the last bit."""
    assert found["world"] == 2 and found["rank_states"][0] == found["rank_states"][1]
    # Entropies are rounded by the shape of the forward, and after a step the weights differ in the last bits too.
    counted = "traac_recent" in expected["state"]
    exact, first = (1e-7, 1e-7) if counted else (2e-5, 5e-7)
    credit, wanted = torch.tensor(found["credits"]), torch.tensor(expected["credits"])
    assert credit.shape == (3, 2, 16)
    torch.testing.assert_close(credit, wanted, rtol=0, atol=exact)
    torch.testing.assert_close(credit[0], wanted[0], rtol=0, atol=first)
    assert found["state"].keys() == expected["state"].keys() and expected["state"]
    for name, values in expected["state"].items():
        assert found["state"][name] == pytest.approx(values, abs=exact, rel=0), name


def test_two_ranks_are_one_process(tmp_path):
    found = torchrun(tmp_path, "ddp", "ddp-traac", "ddp-adathink", "fsdp2")
    for scheme in ("traac", "adathink"):
        same_credit(found.pop(f"ddp-{scheme}"), run(f"single-{scheme}", str(tmp_path / scheme)))
    single = run("single", str(tmp_path / "single"))
    assert [found[kind]["distributed"] for kind in ("ddp", "fsdp2")] == ["MULTI_CPU", "FSDP"]
    assert [found[kind]["sharded"] for kind in ("ddp", "fsdp2")] == [False, True]
    assert all(result["world"] == 2 for result in found.values()) and single["world"] == 1
    same_curve(found["ddp"], single)
    same_curve(found["fsdp2"], single)


@pytest.mark.full
def test_ranks_resume_and_tie_their_embeddings(tmp_path):
    found = torchrun(tmp_path, "ddp-resumed", "fsdp2-tied", "fsdp2-resumed")
    assert [result["sharded"] for result in found.values()] == [False, True, True]
    same_curve(found["fsdp2-tied"], run("single-tied", str(tmp_path / "tied")))
    resumed = run("single-resumed", str(tmp_path / "resumed"))
    same_curve(found["ddp-resumed"], resumed)
    same_curve(found["fsdp2-resumed"], resumed)


SAVING = {"save_strategy": "steps", "save_steps": 1}
SCHEDULES = {
    "a rollout for each step": {},
    "two iterations": {"num_iterations": 2},
    "two steps for each rollout": {"steps_per_generation": 4, "per_device_train_batch_size": 4},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_run_continues_its_curve(tmp_path, schedule):
    settings = {**SAVING, **SCHEDULES[schedule], "max_steps": 4}
    whole = trainer_of("single", str(tmp_path / "whole"), **settings)
    whole.train()
    for stopped in (2, 3):
        checkpoint = tmp_path / "whole" / f"checkpoint-{stopped}"
        again = trainer_of("single", str(tmp_path / "again"), **settings)
        again.train(resume_from_checkpoint=str(checkpoint))
        assert losses(again) == pytest.approx(losses(whole), rel=1e-6)
    assert len(set(losses(whole))) == 4
    for path in checkpoint.glob("rollout_*"):
        path.rename(path.with_name("rollout_0_of_8.safetensors"))
    again = trainer_of("single", str(tmp_path / "again"), **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again._step == whole._step, "a checkpoint of other ranks: a new rollout, from new seeds"


@pytest.mark.parametrize("scheme", ["adathink", *(pytest.param(s, marks=pytest.mark.full) for s in ("traac", "laser"))])
def test_a_resumed_run_goes_on_with_the_schemes_state(tmp_path, scheme):
    """To the last bit, in the middle of a rollout too."""
    settings = {**SAVING, "num_iterations": 2, "max_steps": 6}
    whole = trainer_of(f"single-{scheme}", str(tmp_path / "whole"), **settings)
    whole.train()
    for stopped in (3, 4):
        checkpoint = tmp_path / "whole" / f"checkpoint-{stopped}"
        again = trainer_of(f"single-{scheme}", str(tmp_path / "again"), **settings)
        again.train(resume_from_checkpoint=str(checkpoint))
        assert losses(again) == losses(whole) and again.credits == whole.credits[-len(again.credits) :]
        assert again.scheme_state.keys() == whole.scheme_state.keys() != set()
        assert all(torch.equal(value, whole.scheme_state[name]) for name, value in again.scheme_state.items())
    path = checkpoint / "scheme_state.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    refused(
        scheme, tmp_path, checkpoint, settings, rf"{path.name} is not whole .*resume from a checkpoint of this scheme"
    )
    path.unlink()
    refused(scheme, tmp_path, checkpoint, settings, rf"{path.name} is missing, and scheme .* carries state")
    other = next(name for name in STATEFUL if name != scheme)
    saved = tmp_path / "whole" / "checkpoint-3"
    refused(other, tmp_path, saved, settings, rf"{path.name} is of scheme '{whole.args.scheme}', this run of")


def refused(scheme, folder, checkpoint, settings, text):
    with pytest.raises(ValueError, match=text):
        trainer_of(f"single-{scheme}", str(folder / "no"), **settings).train(resume_from_checkpoint=str(checkpoint))


def test_evaluation_leaves_the_schemes_state(tmp_path):
    trainer = trainer_of("single-traac", str(tmp_path), max_steps=1)
    trainer.train()
    before = dict(trainer.scheme_state)
    trainer.evaluate(trainer.train_dataset)
    assert trainer.scheme_state == before and len(trainer.credits) > 2


@pytest.mark.parametrize("damage", ["cut", "empty", "another file"])
def test_a_rollout_that_is_not_whole_is_named(tmp_path, damage):
    trainer_of("single", str(tmp_path), **SAVING, num_iterations=2, max_steps=1).train()
    path = tmp_path / "checkpoint-1" / "rollout_0_of_1.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "another file": save({"x": torch.ones(1)})}[damage])
    again = trainer_of("single", str(tmp_path), **SAVING, num_iterations=2, max_steps=2)
    with pytest.raises(ValueError, match=rf"checkpoint-1/{path.name} is not a whole saved rollout .*delete the file"):
        again.train(resume_from_checkpoint=True)
    path.unlink()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2, "with a new rollout, as the error says"


@pytest.mark.full
@pytest.mark.parametrize("kind", ["killed", "killed-adathink"])
def test_a_killed_run_continues_its_curve(tmp_path, kind):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "distributed_run.py"), str(tmp_path), kind]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode == -9
    settings = {**SAVING, "num_iterations": 2, "max_steps": 6}
    again = trainer_of(kind, str(tmp_path), **settings)
    again.train(resume_from_checkpoint=True)
    whole = trainer_of(kind, str(tmp_path / "whole"), **settings)
    whole.train()
    assert again.state.global_step == 6 and losses(again) == pytest.approx(losses(whole), rel=1e-6)
    assert all(torch.equal(value, whole.scheme_state[name]) for name, value in again.scheme_state.items())
