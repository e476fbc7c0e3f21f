"""What `Modes.from_tokenizer` learns beside the ids it was asked for: closes, breaks, and tokens around a reply."""

import json

import pytest
from test_mode_tokens import byte_level, word_level
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from adapt_kernels import Mode, Modes
from adapt_kernels.prompt_tokens import PromptTokens

TAGS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<answer>", "<tool_call>"]
TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}{%- endif -%}"
)


def ids(tokenizer, *texts):
    return tuple(tokenizer.convert_tokens_to_ids(list(texts)))


def resolved(tokenizer, closing="</think>", **mode):
    mode = Mode("<think>", max_new_tokens=9, closing=closing, **mode)
    return Modes.from_tokenizer(tokenizer, fast="The", slow=mode)["slow"]


class TestClose:
    def test_is_the_last_tag_of_the_closing(self):
        tokenizer = byte_level(TAGS)
        think, answer = ids(tokenizer, "</think>", "<answer>")
        assert resolved(tokenizer, "\n</think>\n\n").close == (think,)
        assert resolved(tokenizer, "Time is up.\n</think>\n\n").close == (think,)
        assert resolved(tokenizer, "</think><answer>").close == (answer,)
        assert resolved(tokenizer, (1, think, 2)).close == (think,), "also where the closing came as ids"

    def test_is_the_whole_closing_without_a_tag(self):
        assert resolved(byte_level(TAGS), "Let The").close is None

    def test_that_is_the_closing_is_not_told_apart_from_none(self):
        tokenizer = byte_level(TAGS)
        assert resolved(tokenizer) == resolved(tokenizer, close="</think>")
        assert Mode(5, max_new_tokens=3, closing=7, close=(7,)) == Mode(5, max_new_tokens=3, closing=7)

    def test_given_is_kept(self):
        tokenizer = byte_level(TAGS)
        assert resolved(tokenizer, "</think><answer>", close="</think>").close == ids(tokenizer, "</think>")
        assert Mode(5, max_new_tokens=3, closing=(8, 7, 9), close=7).close == (7,)

    def test_a_tag_of_the_vocabulary_that_was_not_added(self):
        tokenizer = word_level("<think>", "</think>", "done", "The")
        assert resolved(tokenizer, "done </think>").close == ids(tokenizer, "</think>")

    @pytest.mark.parametrize("field", ["close", "breaks"])
    def test_needs_a_closing(self, field):
        with pytest.raises(ValueError, match=rf"Mode\.{field} says when no closing is needed.*give closing too"):
            Mode(5, max_new_tokens=3, **{field: 7})

    @pytest.mark.parametrize("field", ["close", "breaks"])
    def test_text_must_be_resolved(self, field):
        with pytest.raises(TypeError, match=r"'a'.*'</think>'.*from_tokenizer"):
            Modes(a=Mode(5, max_new_tokens=3, closing=7, **{field: "</think>"}), b=6)
        with pytest.raises(ValueError, match=r"(?s)mode 'slow': '</think>' is not one token"):
            resolved(byte_level(["<think>"]), closing=7, **{field: "</think>"})
        with pytest.raises(ValueError, match=f"mode 'slow' has an empty text as {field}"):
            resolved(byte_level(TAGS), **{field: ""})


class TestBreaks:
    def test_are_the_tool_calls_that_the_tokenizer_knows(self):
        tokenizer = byte_level([*TAGS, "[TOOL_CALLS]"])
        assert resolved(tokenizer).breaks == ids(tokenizer, "<tool_call>", "[TOOL_CALLS]")
        assert resolved(byte_level(["<think>", "</think>"])).breaks is None

    def test_given_are_kept(self):
        tokenizer = byte_level(TAGS)
        assert resolved(tokenizer, breaks=()).breaks == ()
        assert resolved(tokenizer, breaks=(3, 4)).breaks == (3, 4)
        assert resolved(tokenizer, breaks="<answer>").breaks == ids(tokenizer, "<answer>")

    def test_only_of_modes_with_a_closing(self):
        assert Modes.from_tokenizer(byte_level(TAGS), fast="The", slow="<think>")["slow"] == Mode(
            byte_level(TAGS).convert_tokens_to_ids("<think>")
        )


class TestPromptTokens:
    def test_of_a_chat_template(self):
        tokenizer = byte_level(TAGS)
        tokenizer.chat_template = TEMPLATE
        told = Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>").prompt_tokens
        assert told.tags == tuple(sorted(ids(tokenizer, "<answer>", "<think>", "</think>")))
        assert told.turns == ids(tokenizer, "<|im_end|>", "<|im_start|>"), "not <think>"
        assert told.opener is None

    def test_the_opener_of_a_mode_that_only_closes(self):
        told = Modes.preset("adaptthink", byte_level(TAGS)).prompt_tokens
        assert told.opener == byte_level(TAGS).convert_tokens_to_ids("<think>")
        assert Modes.preset("adaptthink", byte_level(["</think>"])).prompt_tokens.opener is None

    @pytest.mark.parametrize(
        "template", [None, "{{ raise_exception('only with tools') }}", "{{ messages[1].content }}"]
    )
    def test_no_turns_without_a_template_that_takes_a_question(self, template):
        tokenizer = byte_level(TAGS)
        tokenizer.chat_template = template
        assert Modes.preset("adapt", tokenizer).prompt_tokens.turns == ()

    def test_white_space_spelt_as_bytes(self):
        tokenizer = byte_level(TAGS)
        told = Modes.preset("adapt", tokenizer).prompt_tokens
        assert set(ids(tokenizer, "Ċ", "ĊĊ", "Ġ", "ĉ", "č")) <= set(told.white_space)
        assert {tokenizer.decode([i]).strip() for i in told.white_space} == {""}

    def test_white_space_as_sentencepiece_spells_it(self):
        vocab = {"<unk>": 0, "▁": 1, "▁▁": 2, "<0x0A>": 3, "a": 4, "▁a": 5, "Ġ": 6, "<think>": 7, "b": 8}
        inner = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
        # "Ġ" is a letter here.
        assert Modes.from_tokenizer(tokenizer, a="<think>", b="b").prompt_tokens.white_space == (1, 2, 3)

    def test_are_saved_but_not_compared(self, tmp_path):
        tokenizer = byte_level(TAGS)
        tokenizer.chat_template = TEMPLATE
        modes = Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")
        same = Modes(fast=modes["fast"].ids, slow=modes["slow"].ids)
        assert modes == same and hash(modes) == hash(same) and same.prompt_tokens is None
        modes.save_pretrained(tmp_path / "told")
        same.save_pretrained(tmp_path / "ids")
        assert Modes.from_pretrained(tmp_path / "told").prompt_tokens == modes.prompt_tokens
        assert Modes.from_pretrained(tmp_path / "ids").prompt_tokens is None


def test_files_of_before_are_read(tmp_path):
    entries = [
        {"name": name, "ids": [i], "max_new_tokens": None, "kv_tokens": None} for name, i in (("a", 1), ("b", 2))
    ]
    (tmp_path / "modes.json").write_text(json.dumps({"modes": entries}))
    modes = Modes.from_pretrained(tmp_path)
    assert modes == Modes(a=1, b=2) and modes.prompt_tokens is None


@pytest.mark.parametrize("told", [[], {"tags": 3}, {"tags": ["x"]}, {"colour": 1}, {"opener": "x"}])
def test_a_damaged_file_is_named(told, tmp_path):
    content = {"modes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [2]}], "prompt_tokens": told}
    (tmp_path / "modes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"modes\.json does not hold modes as save_pretrained writes them"):
        Modes.from_pretrained(tmp_path)


def test_ids_must_be_ids():
    with pytest.raises(TypeError, match="must hold token ids"):
        PromptTokens(turns=("<|im_end|>",))
