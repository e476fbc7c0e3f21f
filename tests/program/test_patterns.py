"""Patterns against their definition, token by token, over vocabularies whose pieces merge in every way."""

import itertools
import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models
from toy_tokenizer import TRACE_TOKENIZER, ToyTokenizer
from transformers import PreTrainedTokenizerFast

from adapt_kernels.program import automata
from adapt_kernels.program.patterns import Resolver
from adapt_kernels.program.vocabulary import Vocabulary

AB = ToyTokenizer(
    ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab", repeat=n)] + ["c", "cab", "abc"]
)
BYTES = Vocabulary(AB).bytes


def run(automaton, tokens):
    """(accepts, back) after every token."""
    state, seen = 0, []
    for token in tokens:
        state = automaton.step(state, token)
        seen.append((automaton.accept[state], automaton.back[state]))
    return seen


def by_definition(wanted, tokens, at_end, spelled):
    """(accepts, tokens behind the match) from the whole history at once."""
    history = b"".join(spelled[token] for token in tokens)
    starts = list(itertools.accumulate((len(spelled[token]) for token in tokens), initial=0))
    last = starts[-2]

    def tokens_from(position):
        return sum(end > position for end in starts[1:])

    ends = [i for i in range(len(history)) if history.startswith(wanted, i) and i + len(wanted) > last]
    if at_end:
        return history.endswith(wanted), None
    # A text completed by an earlier token is over; what is half written may still begin inside it.
    if ends:
        return True, tokens_from(ends[0])
    half = [n for n in range(len(wanted) - 1, 0, -1) if history.endswith(wanted[:n])]
    return False, tokens_from(len(history) - half[0]) if half else 0


@pytest.mark.parametrize("wanted", ["a", "ab", "aab", "aba", "aabaa", "abab", "aaaa", "cab", "abcab"])
@pytest.mark.parametrize("at_end", [False, True])
def test_a_text_is_seen_through_every_tokenisation(wanted, at_end):
    counted = not at_end
    automaton = automata.text(wanted.encode(), BYTES, at_end=at_end, counted=counted)
    rng = random.Random(wanted)
    for _ in range(150):
        tokens = [rng.randrange(len(BYTES)) for _ in range(12)]
        for n, (accepts, back) in enumerate(run(automaton, tokens), 1):
            expected = by_definition(wanted.encode(), tokens[:n], at_end, BYTES)
            assert accepts == expected[0], tokens[:n]
            if counted:
                assert back == expected[1], tokens[:n]


def test_a_closing_tag_of_pieces_has_few_states():
    pieces = ["<", "</", "/", "think", "th", "ink", ">", ">\n", ".</", "t", "h", "i", "n", "k", "x", "<x"]
    vocabulary = Vocabulary(ToyTokenizer(pieces)).bytes
    automaton = automata.text(b"</think>", vocabulary)
    assert len(automaton.table) == 9 and len(automaton.table[0]) <= 16
    counted = automata.text(b"</think>", vocabulary, counted=True)
    ids = {piece: token for token, piece in enumerate(pieces)}
    tokens = [ids[piece] for piece in ("x", "<", "</", "th", "ink", ">\n", "<x")]
    assert run(counted, tokens) == [(False, n) for n in (0, 1, 1, 2, 3)] + [(True, 4), (False, 0)]


def test_sequences_end_the_history():
    automaton = automata.sequences([(1,), (1, 3), (2, 1, 2)])
    tokens = [1, 3, 3, 2, 1, 2, 1, 4, 2, 2, 1]
    seen = run(automaton, tokens)
    for n in range(1, len(tokens) + 1):
        ends = [len(ids) for ids in ((1,), (1, 3), (2, 1, 2)) if tuple(tokens[:n][-len(ids) :]) == ids]
        assert seen[n - 1][0] == bool(ends)
        if ends:
            assert seen[n - 1][1] == max(ends)
    close = automata.sequences([(2, 15)])
    assert [back for accepts, back in run(close, [8, 2, 2, 15, 8]) if not accepts] == [0, 1, 1, 0]


def test_any_of_joins_ids_sequences_and_texts():
    resolver = Resolver(AB)
    joined = resolver.automaton(["c", {"seq": [["b", "b"]]}, {"text": "abab"}], "after")
    parts = [automata.sequences([(AB.encode("c")[0],)]), automata.sequences([tuple(AB.encode("b") * 2)])]
    parts.append(automata.text(b"abab", BYTES))
    rng = random.Random(5)
    for _ in range(200):
        tokens = [rng.randrange(len(BYTES)) for _ in range(10)]
        expected = [any(each) for each in zip(*([a for a, _ in run(p, tokens)] for p in parts), strict=True)]
        assert [accepts for accepts, _ in run(joined, tokens)] == expected, tokens


@pytest.mark.parametrize(
    "pattern", [list(range(5, 5000, 2)), {"ends": "\n"}, {"word": ["wait"]}, [{"ends": "\n"}, "a"]]
)
def test_a_set_of_many_ids_is_one_class(pattern):
    pieces = ["a", "b"] + [f"x{i}\n" for i in range(2999)] + [" " * i + "wait" for i in range(3000)]
    automaton = Resolver(ToyTokenizer(pieces)).automaton(pattern, "settle")
    assert len(automaton.table) <= 3 and len(automaton.table[0]) <= 3
    ids = Resolver(ToyTokenizer(pieces)).ids(pattern, "bias")
    assert [i for i in range(len(pieces)) if automaton.accept[automaton.step(0, i)]] == list(ids) and len(ids) > 2400


def test_words_and_endings_are_sets_of_ids():
    words = ToyTokenizer(["wait", " Wait", "\tWAIT", "await", "WaitFor", " wait ", "but", "\n\n", ".\n\n", "\n\n "])
    resolver = Resolver(words)
    assert resolver.ids({"word": ["Wait", "hmm"]}, "bias") == (0, 1, 2)
    assert resolver.missing_words == ["hmm"]
    assert resolver.ids({"ends": "\n\n"}, "settle") == (7, 8)
    assert resolver.ids(["but", {"word": "wait"}, 9], "bias") == (0, 1, 2, 6, 9)


def test_leading_white_space_is_told_from_the_history():
    starts = Resolver(TRACE_TOKENIZER).blank_starts((3, 3, 2))
    assert len(starts) == 2
    assert [each.accept[each.step(0, 4)] for each in starts] == [True, True]
    assert [each.accept[each.step(0, 3)] for each in starts] == [True, False]
    assert [each.accept[each.step(0, 2)] for each in starts] == [False, False]
    assert Resolver(TRACE_TOKENIZER).blank_starts((3, 3)) == []
    assert Resolver().blank_starts((3, 2)) == []


def test_what_was_resolved_stands_in_for_the_tokenizer():
    first = Resolver(AB)
    wanted = [{"text": "aab"}, ["c", {"word": ["ab"]}], {"seq": [["a", "b"]]}]
    automatons = [first.automaton(each, "after", counted=True) for each in wanted]
    ids, sequence = first.ids("c", "bias"), first.sequence("abc", "force")
    known = json.loads(json.dumps(first.finish()))
    second = Resolver(known=known)
    assert [second.automaton(each, "after", counted=True) for each in wanted] == automatons
    assert (second.ids("c", "bias"), second.sequence("abc", "force")) == (ids, sequence)
    assert second.finish() == first.finish()


def hugging_face(vocabulary, decoder, added=()):
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_bytes_of_every_alphabet():
    byte_level = hugging_face({"<unk>": 0, "Ġwait": 1, ".ĊĊ": 2, "Ã": 3}, decoders.ByteLevel(), ["<a b>"])
    assert [Vocabulary(byte_level).bytes[i] for i in (1, 2, 3, 4)] == [b" wait", b".\n\n", b"\xc3", b"<a b>"]
    llama = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = hugging_face({"<unk>": 0, "▁wait": 1, "<0x0A>": 2, "é": 3}, llama)
    assert [Vocabulary(pieces).bytes[i] for i in (1, 2, 3)] == [b" wait", b"\n", "é".encode()]
    metaspace = hugging_face({"<unk>": 0, "▁wait": 1}, decoders.Metaspace())
    assert Vocabulary(metaspace).bytes[1] == b" wait"
    no_decoder = ToyTokenizer(["Ġwait", "Ċ", "a"])
    assert [Vocabulary(no_decoder).bytes[i] for i in (0, 1, 2)] == [b" wait", b"\n", b"a"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("</perception>", r"'</perception>' is not one token of this tokenizer but \['<', '/', "),
        ({"seq": [["ab"], ["nope"]]}, "'nope' is not one token|no tokens for 'nope'"),
        ("\u2603", "no tokens for '\u2603'"),
        ("", "must not be empty"),
        (-1, r"a token must be an id >= 0 or a text; got -1"),
        (True, r"a token must be an id >= 0 or a text; got True"),
        (1.5, r"a token must be an id >= 0 or a text; got 1.5"),
        ([], "at least one token"),
        ({"seq": []}, "'seq' takes a list of lists"),
        ({"seq": [[]]}, "'seq' takes a list of lists"),
        ({"seq": [1, 2]}, "'seq' takes a list of lists"),
        ({"word": ["zebra"]}, r"no single token of this tokenizer spells \['zebra'\]"),
        ({"ends": "zebra"}, r"no single token of this tokenizer ends with \['zebra'\]"),
        ({"text": ""}, "'text' takes a text or a list of them, none empty"),
        ({"words": ["a"]}, "one key of 'seq', 'word', 'ends', 'text'"),
        ({"word": ["a"], "ends": "b"}, "one key of 'seq', 'word', 'ends', 'text'"),
        ({"text": "x" * 300}, "needs more than 255 states"),
    ],
)
def test_patterns_that_mean_nothing_are_refused(pattern, message):
    tokenizer = ToyTokenizer([*"</perciton>abx", "ab"])
    with pytest.raises(ValueError, match=message) as error:
        Resolver(tokenizer).automaton(pattern, "rule 2 'after'")
    if "states" not in message:
        assert str(error.value).startswith("rule 2 'after'")


@pytest.mark.parametrize("pattern", [{"text": "ab"}, {"seq": [[1, 2]]}])
def test_ids_are_needed_where_logits_are_edited(pattern):
    with pytest.raises(ValueError, match="rule 0 'bias' takes ids, and"):
        Resolver(AB).ids(pattern, "rule 0 'bias'")


@pytest.mark.parametrize("pattern", ["<think>", {"text": "a"}, {"word": ["a"]}, {"ends": "a"}, [5, "a"]])
def test_texts_need_the_tokenizer_and_ids_do_not(pattern):
    with pytest.raises(ValueError, match="rule 1 'in': .* needs the tokenizer: pass tokenizer=, or write ids"):
        Resolver().automaton(pattern, "rule 1 'in'")
    assert Resolver().automaton([5, {"seq": [[6, 7]]}], "x").completes([1, 6, 7])


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(TypeError, match="tokenizer must be a Hugging Face tokenizer; dict has no get_vocab"):
        Resolver({})
    unknown = hugging_face({"<unk>": 0, "a</w>": 1}, decoders.BPEDecoder())
    with pytest.raises(ValueError, match="cannot be told from a decoder of type 'BPEDecoder'"):
        Resolver(unknown)
