"""Adapters on a tiny base: what training leaves, that it loads on its base only, and every way in which it cannot."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_base import save_base
from typer.testing import CliRunner

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import adapters, commands
from adapt_recipes.evaluation.frontier import measure_modes, spread_problems
from adapt_recipes.models import load, load_model, load_tokenizer, load_trainable, model_folder
from adapt_recipes.storage import write_tensors
from adapt_recipes.training import adapter_sft, rl
from adapt_recipes.training.adapter_config import AdapterConfig
from adapt_recipes.training.curve import Curve
from adapt_recipes.training.rl_config import RlConfig

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_training_leaves_a_small_adapter_that_loads(trained, base):
    tensors = load_file(trained / WEIGHTS)
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert not any(value.shape[0] > 200 for name, value in tensors.items() if "embed_tokens" in name)
    model, tokenizer = load(trained)
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer("<answer>7<think>")["input_ids"], skip_special_tokens=True) == "<answer>7<think>"
    modes = ak.Modes.from_pretrained(trained)
    assert modes == adapters.mode_token_modes(tokenizer) and modes.names == ("fast", "slow")
    ak.patch(model, modes)
    found = measure_modes(model, tokenizer, modes, spread_problems("words", 10, seed=1), max_new_tokens=8)
    assert found.tokens.shape == (10, 2) and (found.probs > 0).all()
    losses = [float(row["loss"]) for row in Curve.rows(trained)]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_what_is_loaded_is_what_was_trained(trained, adapter_config):
    """Up to bf16: the logits of the merged model, and those of the adapter beside its base."""
    merged, tokenizer = load(trained)
    apart = load_trainable(trained)
    assert sum(value.requires_grad for value in apart.parameters()) == 15  # two of each of seven layers, and the rows
    assert {value.dtype for value in apart.parameters()} == {torch.float32}
    ids = tokenizer("Tom has <think> 3", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        untrained = load_model(adapter_config.base)(ids[:, :4]).logits
        torch.testing.assert_close(merged(ids).logits, apart(ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged(ids[:, :4]).logits[..., : untrained.shape[-1]], untrained, atol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_bits(trained, adapter_config, tmp_path):
    adapter_sft.train(adapter_config, tmp_path / "out", stop_after=3)
    assert not (tmp_path / "out" / WEIGHTS).exists()
    adapter_sft.train(adapter_config, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    assert Curve.rows(tmp_path / "out") == Curve.rows(trained)
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == (trained / "adapter_config.json").read_bytes()


KILLED = """
import os, signal, sys
from adapt_recipes.cli import main
from adapt_recipes.training import adapter_sft
save = adapter_sft.save_run
def killed(out, step, *rest):
    save(out, step, *rest)
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
adapter_sft.save_run = killed
main()
"""


def test_the_command_goes_on_after_kill_9(trained, adapter_config, tmp_path):
    settings = [
        f"{name}={getattr(adapter_config, name)}"
        for name in ("steps", "problems", "rank", "alpha", "warmup_steps", "threads")
    ]
    arguments = ["train", "sft", "--config", "smollm2", "--out", str(tmp_path / "out"), "--checkpoint-every", "3"]
    arguments += [part for setting in [f"base={adapter_config.base}", *settings] for part in ("--set", setting)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = CliRunner().invoke(commands.app, [*arguments, "--resume"])
    assert result.exit_code == 0, result.output
    assert "what each mode can do, by difficulty" in result.output
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_another_base_is_refused(copied, adapter_config, tmp_path):
    told = json.loads((copied / "base.json").read_text())
    (copied / "base.json").write_text(json.dumps(told | {"base": str(save_base(tmp_path / "other", seed=1))}))
    with pytest.raises(ValueError, match="was trained on another model than the one in .*other .*put that model"):
        load_model(copied)


def test_a_base_that_is_not_there_is_named(copied, monkeypatch, tmp_path):
    told = json.loads((copied / "base.json").read_text())
    (copied / "base.json").write_text(json.dumps(told | {"base": "smollm2"}))
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"the base model smollm2 is not in .*: `adapt fetch-smollm2` downloads it"):
        load_tokenizer(copied)
    with pytest.raises(ValueError, match="`adapt fetch-smollm2` downloads it"):
        adapter_sft.train(AdapterConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def truncated(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def without_a_part(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(name for name in tensors if "q_proj.lora_B" in name))
    save_file(tensors, folder / WEIGHTS)


def of_another_rank(folder):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"r": 3}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, rf"{WEIGHTS} is not whole .*get the adapter again"),
        (lambda folder: (folder / WEIGHTS).unlink(), rf"{WEIGHTS} is not whole"),
        (without_a_part, r"does not fit .*q_proj.lora_B.weight has shape None, expected \(32, 2\)"),
        (of_another_rank, r"does not fit .*lora_A.weight has shape \(2, 48\), expected \(3, 48\)"),
        (lambda folder: (folder / "base.json").write_text("{}"), r"base.json must say what the adapter was trained on"),
    ],
)
def test_what_is_not_whole_is_said(copied, spoil, said):
    spoil(copied)
    with pytest.raises(ValueError, match=said):
        load_model(copied)


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path):
    """A limit on the size of files, which is what a full disk is to a writer."""
    write_tensors({"a": torch.zeros(4)}, tmp_path / "x.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*x.safetensors: .*; make room or choose another folder"):
            write_tensors({"a": torch.ones(100_000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"passes": 9}, r"passes must be at most problems \(8\), got 9"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        AdapterConfig(**settings)


def test_training_goes_on_from_an_adapter(trained, adapter_config, tmp_path):
    """At a rate of nearly 0 it stays what it was; a start that does not fit is refused before anything is written."""
    again = replace(adapter_config, start=str(trained), steps=1, learning_rate=1e-12)
    adapter_sft.train(again, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="start has rank 2 and alpha 4.0: set them so, got 3 and 4.0"):
        adapter_sft.train(replace(again, rank=3), tmp_path / "other")
    with pytest.raises(ValueError, match="start must be an adapter on the base .*, got sft"):
        adapter_sft.train(replace(again, start="sft"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_setting_that_came_later_is_no_other_configuration(copied, adapter_config):
    state = json.loads((copied / "training/state.json").read_text())
    del state["config"]["start"]
    (copied / "training/state.json").write_text(json.dumps(state))
    adapter_sft.train(adapter_config, copied, resume=True)
    with pytest.raises(ValueError, match=r"another configuration \(start: saved None, asked 'smollm2-sft'\)"):
        adapter_sft.load_run(copied, replace(adapter_config, start="smollm2-sft"), None, None)


def test_a_task_without_worked_solutions_is_refused(adapter_config, tmp_path):
    said = "task must be one of words, idle_words, sums, legs, stories, swaps .*got 'running_sum'"
    with pytest.raises(ValueError, match=said):
        adapter_sft.train(replace(adapter_config, task="running_sum"), tmp_path / "out")


def test_missing_peft_is_one_line(adapter_config, tmp_path):
    script = (
        "import sys; from adapt_recipes import extras\n"
        "extras.find_spec = lambda name: None if name == 'peft' else True\n"
        "base, out = sys.argv[1:]\n"
        "sys.argv = ['adapt', 'train', 'sft', '--config', 'smollm2', '--set', 'base=' + base, '--out', out]\n"
        "from adapt_recipes.cli import main; main()"
    )
    command = [sys.executable, "-c", script, adapter_config.base, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "adapt: training an adapter needs peft: pip install 'adapt-kernels[lora]'"


def test_names_of_shipped_adapters():
    with pytest.raises(ValueError, match="no shipped adapter is named 'rl'; there is: smollm2-sft, smollm2-rl"):
        ar.adapter_path("rl")
    with pytest.raises(ValueError, match="there is: sft, rl, paths, keep, smollm2-sft, smollm2-rl, smollm2"):
        model_folder("absent")


@pytest.fixture(scope="module")
def reinforced(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("reinforced") / "rl"
    config = RlConfig(
        model=str(trained), task="words", iterations=3, prompts=2, samples=4, max_new_tokens=12, passes=2,
        trainer={"merge_adapter": True},
    )  # fmt: skip
    rl.train(config, out)
    return config, out


def test_reinforcement_trains_the_adapter_and_resumes_at_every_step(reinforced, trained, tmp_path):
    config, whole = reinforced
    before, after = load_file(trained / WEIGHTS), load_file(whole / WEIGHTS)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    for stop in (1, 2):
        rl.train(config, tmp_path / "out", resume=stop > 1, stop_after=stop)
    rl.train(config, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert Curve.rows(tmp_path / "out") == Curve.rows(whole)
    assert (whole / "base.json").read_bytes() == (trained / "base.json").read_bytes()
    load(whole)
