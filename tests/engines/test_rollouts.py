"""GRPO rollouts through the vLLM engine that TRL keeps in the trainer's process."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trl"))

FAST, SLOW = 2, 3
WRITTEN = {"rules": [{"force": [10], "when": {"at": 3}}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with heads that vLLM's CPU attention knows."""
    from tiny_trainer import make_model, make_tokenizer

    path = tmp_path_factory.mktemp("policy")
    make_model(hidden_size=64).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def trainer(folder, tmp_path, monkeypatch):
    from tiny_trainer import make_trainer
    from transformers import AutoModelForCausalLM
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils

    # vLLM's CPU build packs float32 weights for its matrix product and then cannot take new ones.
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", _unpacked)
    small = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 32}
    monkeypatch.setattr(vllm_generation, "LLM", partial(_engine, vllm_generation.LLM, small))

    def make(**settings):
        model = AutoModelForCausalLM.from_pretrained(folder)
        engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
        return make_trainer(tmp_path, model, vllm_max_model_length=64, max_steps=3, **engine, **settings)

    yield make
    from adapt_kernels.vllm.model import serve_here

    serve_here(None)


def _unpacked(layer, remove_weight):
    layer.cpu_linear = torch.nn.functional.linear


def _engine(cls, small, **arguments):
    return cls(**{**arguments, **small})


def check_ratios(trainer) -> dict:
    """Where engine and trainer share weights, the importance ratio of every token that carries loss is 1."""
    from tiny_trainer import first_batch

    batch = first_batch(trainer)
    policy, _ = trainer._policy_scores(batch)
    gap = ((policy - batch["old_logprobs"]).exp() - 1).abs() * batch["loss_mask"]
    print(f"largest distance of a ratio from 1: {gap.max():.2e}, at the mode {gap[:, 0].max():.2e}")
    assert batch["loss_mask"][:, 0].all() and gap.max() < 1e-3
    return batch


def test_three_steps_with_each_row_its_mode(trainer):
    made = trainer(rollout="balanced", program=WRITTEN)
    batch = check_ratios(made)
    assert batch["completion_ids"][:, 0].tolist() == [FAST, FAST, SLOW, SLOW] * 2
    assert (made._rollout.mode_probs.sum(1) - 1).abs().max() < 1e-5
    reached = made._rollout.lengths > 3
    assert (batch["completion_ids"][reached, 3] == 10).all() and not batch["loss_mask"][:, 3].any()
    made.train()
    assert made.state.global_step == 3
    weights = torch.cat([each.flatten() for each in made.model.parameters()])
    assert weights.isfinite().all()
    check_ratios(made)  # the engine has the weights of the last step
