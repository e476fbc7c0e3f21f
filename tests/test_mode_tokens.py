"""From texts to modes on small tokenizers: every preset, multi-token modes, split and missing tokens."""

import re

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from adapt_kernels import Mode, Modes
from adapt_kernels.presets import PRESETS

TAGS = {
    "adapt": ["<answer>", "<think>"],
    "thinkless": ["<short>", "<think>"],
    "adaptthink": ["</think>"],
    "arm": ["<ANSWER>", "<COT>", "<CODE>", "<LONG_COT>"],
    "avr": ["<answer>", "<perception>", "<reasoning>"],
    "qwen3": ["<think>", "</think>"],
}


def byte_level(tags=(), newlines=True):
    """A byte-level BPE as Qwen's: single bytes, "\\n\\n" as one token if `newlines`, tags as added tokens."""
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for left, right in [("Ċ", "Ċ")] * newlines + [("L", "e"), ("Le", "t"), ("T", "h"), ("Th", "e")]:
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(tag, normalized=False, special=True) for tag in tags])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_level(*words):
    """A tokenizer of whole words that has an unknown token."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("[UNK]", *words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def ids(tokenizer, *texts):
    return tuple(tokenizer.convert_tokens_to_ids(list(texts)))


@pytest.mark.parametrize("name", ["adapt", "thinkless", "arm"])
def test_preset_of_one_token_per_mode(name):
    tokenizer = byte_level(TAGS[name])
    modes = Modes.preset(name, tokenizer)
    assert modes.names == tuple(PRESETS[name])
    assert modes.token_ids == ids(tokenizer, *TAGS[name])
    assert modes.prefix == () and not any(modes.suffixes)


def test_preset_adaptthink_is_fast_iff_the_first_token_closes():
    tokenizer = byte_level(TAGS["adaptthink"])
    modes = Modes.preset("adaptthink", tokenizer)
    assert (modes.names, modes.token_ids) == (("fast", "slow"), (*ids(tokenizer, "</think>"), None))


def test_preset_avr_decides_between_answer_and_perception():
    tokenizer = byte_level(TAGS["avr"])
    modes = Modes.preset("avr", tokenizer)
    assert (modes.names[0], modes.token_ids) == ("answer", ids(tokenizer, "<answer>", "<perception>"))


def test_preset_qwen3_decides_after_the_common_tag():
    tokenizer = byte_level(TAGS["qwen3"])
    think, close, one, two = ids(tokenizer, "<think>", "</think>", "Ċ", "ĊĊ")
    modes = Modes.preset("qwen3", tokenizer)
    assert (modes.prefix, modes.token_ids, modes.suffixes) == ((think,), (two, one), ((close, two), ()))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_without_its_tokens_shows_pieces_and_remedy(name):
    with pytest.raises(ValueError, match=r"(?s)is not one token.*\['<', .*add_special_tokens.*resize_token_embeddings"):
        Modes.preset(name, byte_level())


def test_preset_qwen3_needs_the_double_newline():
    with pytest.raises(ValueError, match=r"'slow'.*only the beginning of 'fast'"):
        Modes.preset("qwen3", byte_level(TAGS["qwen3"], newlines=False))


def test_unknown_preset_lists_them():
    with pytest.raises(ValueError, match=r"'gpt'.*adapt.*adaptthink.*arm.*avr.*qwen3.*thinkless"):
        Modes.preset("gpt", byte_level())


def test_plain_words_may_open_a_mode():
    tokenizer = byte_level()
    assert Modes.from_tokenizer(tokenizer, fast="The", slow="Let").token_ids == ids(tokenizer, "The", "Let")


def test_ids_modes_and_none_pass_unchanged():
    tokenizer = byte_level(["<think>"])
    modes = Modes.from_tokenizer(tokenizer, a=7, b=(8, 9), c=Mode("<think>", max_new_tokens=5, kv_tokens=6), d=None)
    assert modes == Modes(a=7, b=(8, 9), c=Mode(ids(tokenizer, "<think>"), 5, 6), d=None)


def test_a_mapping_allows_any_name():
    assert Modes.from_tokenizer(byte_level(), {"very fast": "The"}, slow="Let").names == ("very fast", "slow")


def test_several_tags_make_a_multi_token_mode():
    tokenizer = byte_level(["<think>", "</think>", "<answer>"])
    modes = Modes.from_tokenizer(tokenizer, fast="<think></think><answer>", slow="<answer>")
    assert modes.suffixes == (ids(tokenizer, "</think>", "<answer>"), ())


@pytest.mark.parametrize("text", ["<think>", "[THINK]", "<|think|>", "reason", "Lets"])
def test_a_split_token_shows_its_pieces_and_the_remedy(text):
    tokenizer = byte_level()
    pieces = tokenizer.tokenize(text)
    with pytest.raises(ValueError) as caught:
        Modes.from_tokenizer(tokenizer, fast="The", slow=text)
    message = str(caught.value)
    assert "'slow'" in message and repr(text) in message
    assert str(pieces) in message and str(tokenizer.convert_tokens_to_ids(pieces)) in message
    assert "add_special_tokens" in message and "resize_token_embeddings" in message


def test_modes_that_share_only_pieces_of_a_tag_are_refused():
    # Split to characters, both tags begin with "<", "t": an accident of the tokenizer, not a common prefix.
    with pytest.raises(ValueError, match=r"(?s)'<tool>' is not one token.*\['<', 't'.*add_special_tokens"):
        Modes.from_tokenizer(byte_level(), fast="<tool>", slow="<think>")


def test_a_split_tag_inside_a_longer_text_is_refused():
    with pytest.raises(ValueError, match=r"(?s)'</think>' is not one token.*add_special_tokens"):
        Modes.from_tokenizer(byte_level(["<think>"]), fast="<think>\n\n</think>\n\n", slow="<think>\n")


@pytest.mark.parametrize("make", [byte_level, word_level], ids=["byte-level", "word-level"])
def test_the_remedy_in_the_message_works(make):
    tokenizer = make()
    for text in ("<answer>", "<think>"):
        with pytest.raises(ValueError) as caught:
            Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")
        call = re.search(r"tokenizer\.add_special_tokens\(.*\)", str(caught.value)).group()
        assert text in call
        eval(call, {"tokenizer": tokenizer})
    modes = Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")
    assert modes.token_ids == ids(tokenizer, "<answer>", "<think>")
    assert tokenizer.encode("<think>", add_special_tokens=False) == [modes.token_ids[1]]


def test_an_unknown_token_is_not_a_mode():
    with pytest.raises(ValueError, match=r"(?s)'slow'.*'<think>' is not one token.*\['\[UNK\]'\].*ids \[0\]"):
        Modes.from_tokenizer(word_level("<answer>"), fast="<answer>", slow="<think>")


VOCABULARY = {"[UNK]": 0, "<answer>": 1}
WITH_UNKNOWN = {
    "word level": lambda: models.WordLevel(VOCABULARY, unk_token="[UNK]"),
    "word piece": lambda: models.WordPiece(VOCABULARY, unk_token="[UNK]"),
    "bpe": lambda: models.BPE(VOCABULARY, [], unk_token="[UNK]", fuse_unk=True, ignore_merges=True),
    "unigram": lambda: models.Unigram([("[UNK]", 0.0), ("<answer>", -1.0)], unk_id=0),
}


@pytest.mark.parametrize("kind", WITH_UNKNOWN)
def test_an_unknown_token_that_only_the_inner_model_declares(kind):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WITH_UNKNOWN[kind]()))
    assert tokenizer.unk_token_id is None and tokenizer.encode("<think>") == [0]
    with pytest.raises(ValueError, match=r"(?s)'slow'.*'<think>' is not one token.*\['\[UNK\]'\].*ids \[0\]"):
        Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")
    assert Modes.from_tokenizer(tokenizer, fast="<answer>", slow="[UNK]").token_ids == (1, 0)


def test_an_unknown_word_inside_a_text_is_not_a_mode():
    with pytest.raises(ValueError, match=r"(?s)'slow'.*'think deeply'.*UNK"):
        Modes.from_tokenizer(word_level("<answer>", "think"), fast="<answer>", slow="think deeply")


def test_a_known_text_of_several_words_is_a_multi_token_mode():
    tokenizer = word_level("<answer>", "think", "deeply")
    modes = Modes.from_tokenizer(tokenizer, fast="<answer>", slow="think deeply")
    assert (modes.token_ids, modes.suffixes) == ((1, 2), ((), (3,)))


def test_the_unknown_token_itself_may_be_named():
    tokenizer = word_level("<answer>")
    assert Modes.from_tokenizer(tokenizer, fast="<answer>", slow="[UNK]").token_ids == (1, 0)


def test_an_empty_text_is_refused_with_the_alternative():
    with pytest.raises(ValueError, match=r"'slow'.*empty.*None"):
        Modes.from_tokenizer(byte_level(), fast="The", slow="")


def test_two_texts_of_one_token_are_refused():
    with pytest.raises(ValueError, match=r"'fast' and 'slow'.*same ids"):
        Modes.from_tokenizer(byte_level(), fast="The", slow="The")


def test_no_bos_gets_into_a_mode():
    tokenizer = byte_level(["<think>", "<answer>", "<s>"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", *ids(tokenizer, "<s>"))]
    )
    assert tokenizer.encode("<think>")[0] == ids(tokenizer, "<s>")[0]
    modes = Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")
    assert modes.token_ids == ids(tokenizer, "<answer>", "<think>")


def test_resolved_modes_need_no_tokenizer_again(tmp_path):
    modes = Modes.preset("qwen3", byte_level(TAGS["qwen3"]))
    modes.save_pretrained(tmp_path)
    assert Modes.from_pretrained(tmp_path) == modes


class TestClosing:
    def resolve(self, tokenizer, closing):
        slow = Mode("<think>", max_new_tokens=9, kv_tokens=4, closing=closing)
        return Modes.from_tokenizer(tokenizer, fast="The", slow=slow)["slow"]

    @pytest.mark.parametrize("text", ["</think>", "\n</think>\n\n", "Let The"])
    def test_from_text(self, text):
        tokenizer = byte_level(["<think>", "</think>"])
        expected = tuple(tokenizer.encode(text, add_special_tokens=False))
        ids, tag = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        mode = Mode(ids, max_new_tokens=9, kv_tokens=4, closing=expected, close=tag if tag in expected else None)
        assert self.resolve(tokenizer, text) == mode

    def test_a_split_tag_is_shown(self):
        with pytest.raises(ValueError, match=r"(?s)mode 'slow': '</think>' is not one token.*closes a mode.*tuple"):
            self.resolve(byte_level(["<think>"]), "</think>")

    def test_an_empty_text(self):
        with pytest.raises(ValueError, match="mode 'slow' has an empty text as closing; to end rows"):
            self.resolve(byte_level(["<think>"]), "")
