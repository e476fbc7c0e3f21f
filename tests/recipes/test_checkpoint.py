"""What the shipped checkpoint promises, measured with plain transformers (no patch)."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes.tasks.problem import FAST_TOKEN, SLOW_TOKEN

COUNT = 200
UNUSED_SEED = 77


@pytest.fixture(scope="module")
def loaded():
    folder = ar.checkpoint_path("sft")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def forced_accuracy(loaded, tasks, mode_token):
    """Greedy accuracy of the completions that follow the prompts with `mode_token` appended."""
    model, tokenizer = loaded
    inputs = tokenizer([task.prompt + mode_token for task in tasks], return_tensors="pt", padding=True)
    sequences = model.generate(**inputs)
    texts = tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :])
    return sum(ar.grade(task, mode_token + text) for task, text in zip(tasks, texts, strict=True)) / len(tasks)


def test_folder_is_small_and_complete():
    folder = ar.checkpoint_path("sft")
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(files.values()) < 1_000_000
    assert set(files) == {
        "config.json", "generation_config.json", "model.safetensors", "modes.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_loads_without_surprises(loaded):
    model, tokenizer = loaded
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    settings = model.generation_config
    assert (settings.pad_token_id, settings.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert settings.max_new_tokens == 16 and not settings.do_sample
    modes = ak.Modes.from_pretrained(ar.checkpoint_path("sft"))
    assert modes == ak.Modes.from_tokenizer(tokenizer, fast=FAST_TOKEN, slow=SLOW_TOKEN)


@pytest.mark.parametrize("difficulty", range(1, 9))
def test_slow_is_right_at_every_difficulty(loaded, difficulty):
    assert forced_accuracy(loaded, ar.problems(COUNT, difficulty, UNUSED_SEED), SLOW_TOKEN) >= 0.99


def test_fast_is_right_when_easy_and_guesses_when_hard(loaded):
    accuracy = {k: forced_accuracy(loaded, ar.problems(COUNT, k, UNUSED_SEED), FAST_TOKEN) for k in (1, 8)}
    assert accuracy[1] >= 0.97
    assert accuracy[8] <= 0.2


@pytest.mark.parametrize("difficulty", range(1, 9))
def test_both_modes_are_open_on_every_problem(loaded, difficulty):
    model, tokenizer = loaded
    prompts = [task.prompt for task in ar.problems(COUNT, difficulty, UNUSED_SEED)]
    with torch.no_grad():
        logits = model(**tokenizer(prompts, return_tensors="pt", padding=True)).logits[:, -1]
    fast, slow = tokenizer.convert_tokens_to_ids([FAST_TOKEN, SLOW_TOKEN])
    probability = logits.softmax(dim=-1)
    assert (probability[:, fast] + probability[:, slow]).min() > 0.99
    p_fast = probability[:, fast] / (probability[:, fast] + probability[:, slow])
    assert p_fast.min() > 0.35 and p_fast.max() < 0.65


def test_greedy_completion_is_readable(loaded):
    model, tokenizer = loaded
    task = ar.problems(1, difficulty=3, seed=UNUSED_SEED)[0]
    inputs = tokenizer([task.prompt + SLOW_TOKEN], return_tensors="pt", padding=True)
    text = tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True)
    digits = [int(word) for word in task.prompt.split() if word not in (".", "?")]
    sums = " ".join(str(sum(digits[: i + 2]) % 10) for i in range(3))
    assert text == f"{task.prompt} <think> {sums} </think> {task.answer}"
