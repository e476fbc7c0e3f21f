"""Thinking budgets over Qwen3's real tokenizer and chat template: merged tokens, white space, tool calls."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from qwen3_tokenizer import qwen3_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak

THINK, CLOSE, TOOL_CALL = 151667, 151668, 151657
BUDGET, NEW = 64, 96
SENTENCE = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)
FILLER = " so"


class Teller(LlamaForCausalLM):
    """Writes `told`, ids by new position, and then `filler` for ever."""

    told, width, filler = (), 0, 0

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, **kwargs)
        cache = next(kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None)
        step = cache.get_seq_length() - self.width
        out.logits = torch.full((len(out.logits), 1, self.config.vocab_size), -30.0)
        out.logits[:, 0, self.told[step] if step < len(self.told) else self.filler] = 0.0
        return out


@cache
def teller() -> Teller:
    """Patched: only for tests that set what it tells."""
    tokenizer = qwen3_tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(
        vocab_size=151936, tie_word_embeddings=True, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    return ak.patch(Teller(config).eval(), ak.Modes.preset("qwen3", tokenizer))


def generate(told: str, tail="", new=NEW, **arguments):
    """(the new text, the output) of a model that tells this after the chat template's own tail."""
    tokenizer, model = qwen3_tokenizer(), teller()
    chat = [{"role": "user", "content": "2+2?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + tail
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model.told, model.width = tokenizer(told)["input_ids"], ids.shape[1]
    model.filler = tokenizer(FILLER)["input_ids"][0]
    settings = {"max_new_tokens": new, "do_sample": False, "return_dict_in_generate": True, **arguments}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return tokenizer.decode(out.sequences[0, ids.shape[1] :]), out


@contextmanager
def another_patch(modes):
    model = teller()
    ak.unpatch(model)
    try:
        with ak.patched(model, modes):
            yield
    finally:
        ak.patch(model, ak.Modes.preset("qwen3", qwen3_tokenizer()))


@cache
def budget(tokens=BUDGET):
    return ak.Program.preset("qwen3", qwen3_tokenizer(), tokens=tokens)


ORIGINS = {
    "the template opened it": {"told": "", "tail": "<think>\n"},
    "the template opened it, with more white space": {"told": "", "tail": "<think>\n\n"},
    "the model opened it": {"told": "<think>\n"},
    "the gate opened it": {"told": "", "mode": "slow"},
}


@pytest.mark.parametrize("tokens", [0, 1, BUDGET])
@pytest.mark.parametrize("origin", ORIGINS)
def test_the_official_sentence_after_exactly_so_many_tokens(origin, tokens):
    tokenizer = qwen3_tokenizer()
    _, out = generate(**ORIGINS[origin], program=budget(tokens))
    ((name, start, end, closed_by),) = out.spans[0]
    sentence = tokenizer(SENTENCE)["input_ids"]
    new = out.sequences[0, -NEW:].tolist()
    assert (name, closed_by) == ("think", "rule") and out.fired.tolist() == [[1]]
    # The ids of the mode that the gate chose are written whole.
    at = start + max(tokens, int("mode" in ORIGINS[origin]))
    # White space that the text ends with is not written twice.
    for begin in range(3):
        if new[at : at + len(sentence) - begin] == sentence[begin:]:
            break
    else:
        pytest.fail(f"no sentence at {at}: {tokenizer.decode(new[at : at + 40])!r}")
    assert end == at + len(sentence) - begin - 2 and new[end] == CLOSE
    assert begin == 0 or tokenizer.decode(new[:at])[-1:] in ("\n", "")


@pytest.mark.parametrize("origin", ORIGINS)
def test_thinking_budget_is_the_same_cap(origin):
    _, out = generate(**ORIGINS[origin], thinking_budget=BUDGET)
    ((_, start, end, closed_by),) = out.spans[0]
    assert closed_by == "rule" and end - start == BUDGET
    assert out.sequences[0, -NEW:].tolist()[end] == CLOSE


@pytest.mark.parametrize("end", [".\n", "\n", ".\n\n", "so", ". "])
def test_a_closing_does_not_repeat_the_line_end_of_the_thought(end):
    tokenizer = qwen3_tokenizer()
    slow = ak.Mode("<think>\n", max_new_tokens=NEW, closing="\n</think>\n\n")
    modes = ak.Modes.from_tokenizer(tokenizer, fast="<think>\n\n</think>\n\n", slow=slow)
    told = "2 and 2 are" + end
    tokens = len(tokenizer(told)["input_ids"])
    with another_patch(modes):
        text, out = generate(told, "<think>\n", thinking_budget=tokens)
    assert text.startswith(told + ("\n" * (not end.endswith("\n"))) + "</think>\n\n so")
    assert out.fired.tolist() == [[1]] and out.spans[0][0][3] == "rule"


ENDS = [".\n</think>\n\n", "</think>\n", ".</think>", "\n</think>\n\n", " </think>", ".\n\n</think>\n\n", ")</think>"]


@pytest.mark.parametrize("origin", ["the template opened it", "the model opened it"])
@pytest.mark.parametrize("end", ENDS)
def test_a_thought_that_the_model_closes_is_left_alone(end, origin):
    before = ORIGINS[origin]
    told = before["told"] + "2 and 2 are 4" + end + "4<|im_end|>"
    for steering in ({"program": budget()}, {"thinking_budget": BUDGET}):
        text, out = generate(told, before.get("tail", ""), **steering)
        assert text == told and out.fired.tolist() == [[0]]
        assert [visit[3] for visit in out.spans[0]] == ["model"]


@pytest.mark.parametrize("white", ["\n", "", "\n\n"])
def test_a_tool_call_ends_the_thought(white):
    told = (
        f"I look it up{white}<tool_call>\n" + '{"name": "add", "arguments": {"a": "</think>"}}\n</tool_call><|im_end|>'
    )
    for steering in ({"program": budget(30)}, {"thinking_budget": 30}):
        text, out = generate(told, "<think>\n", **steering)
        assert text == told and out.fired.tolist() == [[0]]
        assert [visit[3] for visit in out.spans[0]] == ["break"]


def test_the_empty_block_of_the_template_is_no_thought():
    told = "4 it is, and so on and on and on and on<|im_end|>"
    text, out = generate(told, "<think>\n\n</think>\n\n", thinking_budget=2)
    assert text == told and out.spans == [[]] and out.fired.tolist() == [[0]]


def test_a_ban_of_words_knows_every_spelling():
    """NoWait: with and without the leading space, capital or not; never part of another word."""
    tokenizer = qwen3_tokenizer()
    program = ak.Program.preset("nowait", tokenizer)
    (size,) = program.report()["sets"].values()
    assert 30 <= size <= 200
    for word in ("wait", " wait", "Wait", " Wait", " WAIT"):
        (token, *rest) = tokenizer(word)["input_ids"]
        if not rest:
            text, out = generate(word + " 4<|im_end|>", program=program, new=4)
            assert token not in out.sequences[0, -4:].tolist(), word
    text, _ = generate(" waiting butter 4<|im_end|>", program=program, new=8)
    assert text.startswith(" waiting butter 4")
