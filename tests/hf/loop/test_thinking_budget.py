"""generate(thinking_budget=): a thought is closed after exactly so many tokens, wherever it was opened."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from scripted_model import PAD, PLANS, run, scripted
from tiny_models import FAST, SLOW, build, left_padded, prompts
from transformers import GenerationConfig

import adapt_kernels as ak

SPANS = {"think": ak.Span(1, 2, breaks=7)}
MODES = ak.Modes(fast=12, slow=ak.Mode(1, max_new_tokens=30, closing=(3, 2)))


def budget(wishes, tokens, prompt=(1,), rows=1, **arguments):
    return run(wishes, prompt, rows, spans=SPANS, thinking_budget=tokens, **arguments)


@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_every_origin_of_the_thought(plan, more):
    """The template opened it, the model did, a mode did."""
    settings = {"eos_token_id": 6, **more}
    rows, out = budget("8 9 . 10 6", 2, (9, 1), **settings)
    assert rows == [[8, 9, 2, 10, 6]] and out.stats.plan == plan
    assert out.fired.tolist() == [[1]] and out.spans == [[("think", 0, 2, "rule")]]
    assert out.forced.tolist() == [[False, False, True, False, False]]
    # White space after the tag of a template is none of the tokens.
    assert budget("8 9 . 10 6", 2, (9, 1, 3), **settings)[0] == [[8, 9, 2, 10, 6]]
    assert budget("1 8 9 . 10 6", 2, (9,), **settings)[0] == [[1, 8, 9, 2, 10, 6]]
    modes = ak.Modes(fast=12, slow=(1, 3))
    rows, out = budget(". . 8 9 . 10 6", 2, (9,), rows=2, modes=modes, mode=["slow", "fast"], **settings)
    assert rows == [[1, 3, 8, 2, 14, 10, 6], [12, 14, 8, 9, 14, 10, 6]] and out.modes.tolist() == [1, 0]
    assert out.spans == [[("think", 1, 3, "rule")], []]
    assert out.never_armed == [[], ["rules[0] (force)"]] and out.fired.tolist() == [[1], [0]]


@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_what_the_model_ends_by_itself(plan, more):
    for wishes, end in (("8 2 10 10 10 6", "model"), ("8 7 9 9 9 6", "break"), ("8 9 6", "end")):
        rows, out = budget(wishes, 3, **more)
        assert rows == [[int(each) for each in wishes.split()]]
        assert [visit[3] for visit in out.spans[0]] == [end] and out.fired.tolist() == [[0]]
    assert budget("8 8 8 8 . 6", 4, (9, 1, 8, 2), **more)[0] == [[8, 8, 8, 8, 14, 6]]


def test_every_visit_is_capped():
    rows, out = budget("8 8 . 1 8 8 . 1 8 2 10 6", 2)
    assert rows == [[8, 8, 2, 1, 8, 8, 2, 1, 8, 2, 10, 6]]
    assert out.spans == [[("think", 0, 2, "rule"), ("think", 4, 6, "rule"), ("think", 8, 9, "model")]]


def test_no_tokens_at_all():
    assert budget(". 10 6", 0)[0] == [[2, 10, 6]]
    assert budget("1 . 10 6", 0, (9,))[0] == [[1, 2, 10, 6]]
    assert budget("8 10 6", 0, (9,))[0] == [[8, 10, 6]]


def test_per_row_and_per_prompt():
    expected = [[2, 8, 8, 8, 6], [8, 8, 2, 8, 6], [8, 8, 8, 8, 6], [8, 8, 8, 2, 6]]
    for tokens in ([0, 2, None, 3], (0, 2, 9, 3), torch.tensor([0, 2, 9, 3])):
        assert budget("8 8 8 8 6", tokens, rows=4)[0] == expected
    wide = {"num_return_sequences": 2, "do_sample": True, "top_k": 1, "rows": 2}
    assert budget("8 8 8 8 6", [0, None], **wide)[0] == [expected[0]] * 2 + [expected[2]] * 2
    rows, out = budget("8 8 8 8 6", [0, 2, None, 3], **wide)
    assert rows == expected and out.fired.tolist() == [[1], [1], [-1], [1]]
    assert budget("8 8 8 8 6", 2, rng="hf", **wide)[0] == [expected[1]] * 4


def test_the_closing_of_a_mode_is_what_is_forced():
    own = {"modes": MODES, "eos_token_id": None}
    assert run(". 8 8 . . 8", (9,), thinking_budget=2, mode="slow", **own)[0] == [[1, 8, 8, 3, 2, 8]]
    assert run("8 8 . . 8", (9, 1), thinking_budget=2, **own)[0] == [[8, 8, 3, 2, 8]]
    # The model's own tag, and the tighter of two caps.
    assert run(". 8 3 2 8 8 8", (9,), thinking_budget=3, mode="slow", **own)[0] == [[1, 8, 3, 2, 8, 8, 8]]
    tight = ak.Modes(fast=12, slow=ak.Mode(1, max_new_tokens=3, closing=(3, 2)))
    own = {"modes": tight, "eos_token_id": None, "mode": "slow"}
    assert run(". 8 8 8 8 . . 8 8", (9,), thinking_budget=4, **own)[0] == [[1, 8, 8, 3, 2, 14, 14, 8, 8]]
    assert run(". 8 8 8 8 . . 8 8", (9,), thinking_budget=2, **own)[0] == [[1, 8, 8, 3, 2, 14, 14, 8, 8]]
    assert run(". 8 8 8 8 . . 8 8", (9,), thinking_budget=1, **own)[0] == [[1, 8, 3, 2, 8, 14, 14, 8, 8]]
    # A span of patch overrules the mode's, whose closing is still what is written where it holds the tag.
    spans = {"think": ak.Span(1, 2, breaks=7)}
    rows, _ = run(". 8 8 . . 8 6", (9,), spans=spans, thinking_budget=2, mode="slow", modes=MODES)
    assert rows == [[1, 8, 8, 3, 2, 8, 6]]


def test_program_rules_come_first():
    cap = {"force": [10, 2], "when": {"in": "think", "count": 2}}
    rules = ak.Program.from_dict({"spans": {"think": {"open": 1, "close": 2}}, "rules": [cap]})
    rows, out = budget("8 8 . . 6", [2, 1], rows=2, program=[rules, rules])
    assert rows == [[8, 8, 10, 2, 6], [8, 2, 14, 14, 6]] and out.fired.tolist() == [[1, 0], [0, 1]]
    # Both mean the same span, which is told once.
    assert out.spans == [[("think", 0, 3, "rule")], [("think", 0, 1, "rule")]]


def test_templates_and_words_of_the_user():
    """Only the reply that the prompt begins is looked at: what follows the last EOS id (6 here)."""
    for prompt in ((9, 1, 9, 6, 9), (6, 1, 8, 2, 8, 6, 9), (1, 8, 6)):
        rows, out = budget("8 8 8 8 6", 2, prompt)
        assert rows == [[8, 8, 8, 8, 6]] and out.never_armed == [["rules[0] (force)"]]
    for prompt in ((9, 2, 6, 9, 1), (6, 9, 6, 1, 3), (6, 1)):
        assert budget("8 8 . 8 6", 2, prompt)[0] == [[8, 8, 2, 8, 6]]


def test_sampled_rows_of_a_real_model_in_both_plans():
    ids = prompts(6, 6)
    ids[::2, -1] = SLOW
    padded = left_padded(ids, [6, 4, 6, 3, 5, 6])
    modes = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=40, closing=(8, 9)))
    model = ak.patch(build("llama"), modes)
    settings = {"max_new_tokens": 14, "do_sample": True, "top_k": 30, "eos_token_id": list(range(50, 56)), "seed": 4}
    settings |= {"return_dict_in_generate": True, "pad_token_id": PAD, "thinking_budget": [3, 3, 5, 5, None, 2]}
    outs = [model.generate(**padded, **settings, **more) for _, more in [*PLANS, ("full", {"compact_at": 1.0})]]
    whole = outs[0]
    capped = [whole.sequences[row, 6 + n : 8 + n].tolist() for row, n in ((0, 3), (2, 5)) if whole.lengths[row] > n + 1]
    assert capped and all(each == [8, 9] for each in capped)
    for out in outs[1:]:
        for row, n in enumerate(whole.lengths.tolist()):
            assert torch.equal(out.sequences[row, : 6 + n], whole.sequences[row, : 6 + n])
        assert torch.equal(out.fired, whole.fired) and out.spans == whole.spans


@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_stop_strings_sleep_inside_the_thought(plan, more):
    """vLLM #52393, lm-eval PR #3700, SGLang #40529; one may want them all the same (vLLM PR #21952)."""
    stops = {"stop_strings": ["fg"], "tokenizer": char_tokenizer(), **more}  # ids 8 and 9
    wishes = "8 9 8 2 8 9 10 6"
    assert run(wishes, **stops)[0] == [[8, 9]]
    rows, out = budget(wishes, [9, None], rows=2, **stops)
    assert rows == [[8, 9, 8, 2, 8, 9], [8, 9]] and out.stats.plan == plan
    spans = {"think": ak.Span(1, 2, stops="end")}
    assert run(wishes, spans=spans, thinking_budget=9, **stops)[0] == [[8, 9]]


class Tags:
    """A tokenizer of few words."""

    unk_token_id = None
    texts = {"<think>": 1, "</think>": 2, "\n": 3, ".\n\n": 4, "<tool_call>": 7, "<short>": 12, " a": 8, "b ": 9}

    def get_vocab(self):
        return dict(self.texts)

    def get_added_vocab(self):
        return {text: token for text, token in self.texts.items() if text[0] == "<"}

    def encode(self, text, add_special_tokens=False):
        return [3, 2] if text == "\n</think>" else [self.texts[text]]

    def decode(self, ids):
        return {token: text for text, token in self.texts.items()}[ids[0]]

    def convert_ids_to_tokens(self, ids):
        return ["?" for _ in ids]


def test_presets_and_saved_modes_tell_the_span(tmp_path):
    modes = ak.Modes.preset("thinkless", Tags())
    modes.save_pretrained(tmp_path)
    for given in (modes, ak.Modes.from_pretrained(tmp_path)):
        assert run("8 8 . 8 6", (9, 1), thinking_budget=2, modes=given)[0] == [[8, 8, 2, 8, 6]]
        assert run("8 7 8 8 6", (9, 1), thinking_budget=2, modes=given)[0] == [[8, 7, 8, 8, 6]]


@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_white_space_that_the_thought_ends_with_is_not_written_twice(plan, more, tmp_path):
    """`.\\n\\n` and a closing of `\\n</think>`: SGLang's processor compares ids, and so writes a second line's end."""
    slow = ak.Mode("<think>", max_new_tokens=30, closing="\n</think>")
    modes = ak.Modes.from_tokenizer(Tags(), fast="<short>", slow=slow)
    assert modes.prompt_tokens.endings == (("\n", (3,)), (".\n\n", (4,)))
    modes.save_pretrained(tmp_path)
    for given in (modes, ak.Modes.from_pretrained(tmp_path)):
        own = {"modes": given, "eos_token_id": None, **more}
        for wishes, written in (
            ("8 4 . 10 8", [8, 4, 2, 10, 8]),
            ("8 3 . 10 8", [8, 3, 2, 10, 8]),
            ("8 8 . . 10", [8, 8, 3, 2, 10]),
            ("4 9 . . 10", [4, 9, 3, 2, 10]),
        ):
            rows, out = run(wishes, (9, 1), thinking_budget=2, **own)
            assert rows == [written] and out.spans == [[("think", 0, written.index(2), "rule")]]
            assert out.stats.plan == plan
    # Nobody knows the white space of ids alone.
    plain = ak.Modes(fast=12, slow=ak.Mode(1, max_new_tokens=30, closing=(3, 2), close=2))
    rows, _ = run("8 4 . . 10", (9, 1), thinking_budget=2, modes=plain, eos_token_id=None, **more)
    assert rows == [[8, 4, 3, 2, 10]]


REFUSED = [
    ({"thinking_budget": -1}, ValueError, "thinking_budget must be >= 0; got -1"),
    ({"thinking_budget": [3, -2]}, ValueError, "thinking_budget must be >= 0; got -2"),
    ({"thinking_budget": True}, TypeError, "thinking_budget must be a number of tokens, or one .* got True"),
    ({"thinking_budget": 2.5}, TypeError, "thinking_budget must be a number of tokens, or one .* got 2.5"),
    ({"thinking_budget": "64"}, TypeError, "thinking_budget must be a number of tokens, or one .* got '64'"),
    ({"thinking_budget": [1, 2, 3]}, ValueError, "thinking_budget must be one value, or one per row .* got shape"),
    ({"thinking_budget": 4, "num_beams": 2}, ValueError, "thinking_budget cannot be honoured by this call: beam"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_refused_before_anything_is_computed(arguments, error, message):
    model = ak.patch(scripted("8 8 8 8", (1,)), ak.Modes(fast=12, slow=13), SPANS)
    model.forward = None  # nothing may be computed
    with pytest.raises(error, match=message):
        model.generate(torch.tensor([[1], [1]]), max_new_tokens=4, pad_token_id=PAD, **arguments)


def test_a_budget_without_a_known_span_and_spans_that_are_none():
    for modes in (ak.Modes(fast=12, slow=13), ak.Modes(fast=12, slow=ak.Mode(None, max_new_tokens=9, closing=2))):
        with pytest.raises(ValueError, match="thinking_budget needs to know where a thought opens"):
            run("8 8", modes=modes, thinking_budget=3)
    modes = ak.Modes(fast=12, slow=13)
    for spans, error, message in (
        ({"think": (1, 2)}, TypeError, "spans must be {name: adapt_kernels.Span"),
        ({"think": ak.Span("<think>", 2)}, ValueError, r"spans of patch: spans\['think'\] 'open': the text '<think>'"),
        ({"think": ak.Span(1, 16)}, ValueError, r"spans of patch: spans\['think'\]: token id 16 is outside"),
    ):
        with pytest.raises(error, match=message):
            ak.patch(scripted("8", (1,)), modes, spans)
    model = ak.patch(scripted("8", (1,)), modes, SPANS)
    assert ak.patch(model, modes, SPANS) is model
    with pytest.raises(ValueError, match=r"this model is patched with {'think': .*; call unpatch\(model\)"):
        ak.patch(model, modes)


def test_places_that_would_ignore_them_raise():
    model = ak.patch(scripted("8 8 8 8", (1,)), ak.Modes(fast=12, slow=13), SPANS)
    ids = torch.tensor([[1]])
    for name, value in (("thinking_budget", 3), ("program", ak.Program.from_dict({"rules": []}))):
        with pytest.raises(ValueError, match=f"{name} is no setting of a GenerationConfig: pass it to generate"):
            model.generate(ids, GenerationConfig(max_new_tokens=4, **{name: value}), pad_token_id=PAD)
        with pytest.raises(ValueError, match=f"{name} cannot be honoured by generate_batch"):
            model.generate_batch([[1]], **{name: value})
