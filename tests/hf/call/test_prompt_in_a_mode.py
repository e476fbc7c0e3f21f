"""Templates that open or close a mode in the prompt: seen, reported, refused beside a mode argument, and capped."""

import pytest
import torch
from chat_tokenizers import EOS, TEMPLATES, chat, chat_model, chat_tokenizer
from tiny_models import EOS as TINY_EOS
from tiny_models import FAST, SLOW, prompts, shared

import adapt_kernels as ak
from adapt_kernels.prompt_spans import CLOSED, prompt_spans

# What a template writes at the beginning of the reply -> the mode it has entered, by preset; "part": none of them, but
# none can be chosen any more.
TAILS = {
    "": {"qwen3": None, "adapt": None, "adaptthink": None},
    "<think>": {"qwen3": "slow", "adapt": "slow", "adaptthink": None},
    "<think>\n": {"qwen3": "slow", "adapt": "slow", "adaptthink": None},
    "<think>\n\n": {"qwen3": "slow", "adapt": "slow", "adaptthink": None},
    "<think>  \n ": {"qwen3": "slow", "adapt": "slow", "adaptthink": None},
    "<think>\nTo begin": {"qwen3": "slow", "adapt": "slow", "adaptthink": "slow"},
    "<think>\n\n</think>\n\n": {"qwen3": "fast", "adapt": "slow", "adaptthink": "fast"},
    "<think></think>": {"qwen3": "fast", "adapt": "slow", "adaptthink": "fast"},
    "<think>\n</think>\n": {"qwen3": "fast", "adapt": "slow", "adaptthink": "fast"},
    "<think>\nTo begin.\n</think>\n\nThe": {"qwen3": "slow", "adapt": "slow", "adaptthink": "slow"},
    "</think>": {"qwen3": "part", "adapt": "part", "adaptthink": "fast"},
    "<answer>": {"qwen3": None, "adapt": "fast", "adaptthink": None},
    "<answer> ": {"qwen3": None, "adapt": "fast", "adaptthink": None},
}
HISTORY = ({"role": "user", "content": "<think>?"}, {"role": "assistant", "content": "<think>\n1</think>\n\n<answer>2"})


def entered(modes, text, tokenizer, eos=()):
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    found = prompt_spans(modes, ids, eos_ids=eos)
    mode, may_be = int(found.modes[0]), int(found.entered[0])
    assert mode == may_be or (mode, may_be) == (-1, len(modes)), "a tokenizer leaves no doubt"
    return (*modes.names, "part", None)[may_be]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("preset", ["qwen3", "adapt", "adaptthink"])
@pytest.mark.parametrize("tail", TAILS)
def test_the_last_tag_of_the_reply_decides(template, preset, tail):
    tokenizer = chat_tokenizer(template)
    modes = ak.Modes.preset(preset, tokenizer)
    # Neither what the user says nor an earlier turn counts.
    for question, history in (("2+2?", ()), ("What do <think>, </think> and <answer> do?", HISTORY)):
        assert entered(modes, chat(template, tail, question, history), tokenizer) == TAILS[tail][preset]


@pytest.mark.parametrize(
    ("preset", "tail", "mode"),
    [
        ("thinkless", "<think>\n", "slow"),
        ("thinkless", "<short>", "fast"),
        ("arm", "<CODE>\n", "code"),
        ("arm", "<LONG_COT>1+", "long_cot"),
        ("avr", "<perception>\n", "perception"),
        ("avr", "<answer>", "answer"),
        ("avr", "<think>\n", None),
    ],
)
def test_other_presets(preset, tail, mode):
    tokenizer = chat_tokenizer("qwen")
    assert entered(ak.Modes.preset(preset, tokenizer), chat("qwen", tail), tokenizer) == mode


@pytest.mark.parametrize("template", ["qwen", "llama"])
def test_the_models_eos_marks_turns_where_no_template_is_known(template):
    modes = ak.Modes.preset("adapt", chat_tokenizer(None))
    assert modes.prompt_tokens.turns == ()
    eos = chat_tokenizer(None).convert_tokens_to_ids([EOS[template]])
    text = chat(template, "<think>\nTo begin", "What does <answer> do?", HISTORY)
    assert entered(modes, text, chat_tokenizer(None), eos) == "slow"
    without = chat(template, "", "What does <answer> do?", HISTORY)
    assert entered(modes, without, chat_tokenizer(None), eos) is None


class TestWithoutTurns:
    """Plain prompts: nothing tells the reply from the question."""

    def test_a_tag_counts_with_nothing_but_tags_and_white_space_after_it(self):
        tokenizer = chat_tokenizer(None)
        adapt, qwen3 = (ak.Modes.preset(name, tokenizer) for name in ("adapt", "qwen3"))
        for text, wanted in (
            ("Q: 2+2? <think> \n", "slow"),
            ("Q: <think> or <answer>? A: ", None),
            ("Q: 2+2? <think>\n\n</think>\n\n", "slow"),
        ):
            assert entered(adapt, text, tokenizer) == wanted
        assert entered(qwen3, "Q: 2+2?\n<think>\n\n</think>\n\n", tokenizer) == "fast"

    def test_a_mode_with_a_closing_may_have_begun_anywhere(self):
        tokenizer = chat_tokenizer(None)
        slow = ak.Mode("<think>", max_new_tokens=9, closing="</think>")
        modes = ak.Modes.from_tokenizer(tokenizer, fast="<answer>", slow=slow)
        assert entered(modes, "Q: 2+2? <think>Two and", tokenizer) == "slow"

    def test_words_must_be_the_last_ones(self):
        tokenizer = chat_tokenizer("qwen")
        modes = ak.Modes.from_tokenizer(tokenizer, fast="y", slow="n")
        assert entered(modes, chat("qwen", "any answer"), tokenizer) is None
        assert entered(modes, chat("qwen", "y"), tokenizer) == "fast"

    def test_ids_alone(self):
        modes, ids = ak.Modes(fast=FAST, slow=SLOW), prompts(1, 6)[0].tolist()

        def found(*tail, eos=()):
            spans = prompt_spans(modes, torch.tensor([[*ids, *tail]]), eos_ids=eos)
            return int(spans.modes[0]), int(spans.entered[0])

        # 8 may be white space or not.
        assert [found(SLOW), found(SLOW, 8), found(SLOW, 8, 8)] == [(1, 1), (-1, 1), (-1, 1)]
        assert [found(SLOW, 8, 9), found(SLOW, 8, FAST)] == [(-1, -1), (0, 0)]
        assert found(TINY_EOS, SLOW, 8, 9, 20, eos=[TINY_EOS]) == (1, 1)
        assert found(SLOW, TINY_EOS, 20, eos=[TINY_EOS]) == (-1, -1)

    def test_what_may_be_a_mode_leaves_none_to_choose(self):
        ids = torch.cat([prompts(2, 6), torch.tensor([[20, 21], [SLOW, 8]])], 1)
        refused = pytest.raises(ValueError, match="prompt 1 already ends in the tokens of mode 'slow'")
        with ak.patched(shared("llama"), ak.Modes(fast=FAST, slow=SLOW)) as model, refused:
            model.generate(ids, mode="fast", max_new_tokens=2)

    @pytest.mark.parametrize("tail", [(7,), (7, 20), (7, 20, 8)])
    def test_the_first_ids_of_a_mode_alone(self, tail):
        modes = ak.Modes(fast=(7, 20, 8, 20), slow=(7, 21))
        spans = prompt_spans(modes, torch.tensor([[30, 31, *tail]]))
        assert (int(spans.modes[0]), int(spans.entered[0])) == (-1, len(modes))


def test_left_padding_is_no_part_of_the_prompt():
    modes = ak.Modes(fast=FAST, slow=SLOW)
    ids = torch.tensor([[SLOW, SLOW, 20, 30], [20, 30, 40, SLOW], [SLOW, SLOW, SLOW, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    assert prompt_spans(modes, ids, mask).modes.tolist() == [-1, 1, -1]
    # Padding with the id of EOS, or a BOS that has it, ends no turn.
    padded = torch.tensor([[TINY_EOS, TINY_EOS, SLOW, 20, 30]])
    assert prompt_spans(modes, padded, eos_ids=[TINY_EOS]).modes.tolist() == [-1]


def test_where_the_open_mode_begins():
    slow = ak.Mode(SLOW, max_new_tokens=9, closing=(8, 9), close=9, breaks=7)
    modes = ak.Modes(fast=FAST, slow=slow)

    def content(*ids):
        return int(prompt_spans(modes, torch.tensor([[20, 21, *ids]])).contents[0, 0])

    assert [content(SLOW), content(SLOW, 8), content(SLOW, 22, 8, 23)] == [0, -1, -3]
    assert [content(), content(SLOW, 9), content(SLOW, 8, 9, 22), content(SLOW, 7, 22)] == [CLOSED] * 4
    assert content(SLOW, 9, SLOW, 22) == -1


class TestGenerate:
    """Through the patched `generate`, on a batch whose prompts differ."""

    TEXTS = ("<think>\n", "", "<think>\n\n</think>\n\n")

    def inputs(self, template, tails):
        return chat_tokenizer(template)([chat(template, tail) for tail in tails], return_tensors="pt", padding=True)

    @pytest.mark.parametrize("template", ["qwen", "deepseek"])
    def test_is_reported_and_changes_no_token(self, template):
        model, inputs = chat_model(template), self.inputs(template, self.TEXTS)
        arguments = {"max_new_tokens": 4, "do_sample": False, "num_return_sequences": 1}
        unpatched = model.generate(**inputs, **arguments)
        with ak.patched(model, ak.Modes.preset("qwen3", chat_tokenizer(template))):
            out = model.generate(**inputs, **arguments, return_dict_in_generate=True)
            beams = model.generate(**inputs, **arguments, num_beams=2, return_dict_in_generate=True)
        assert torch.equal(out.sequences, unpatched)
        assert out.modes.tolist() == beams.modes.tolist() == [1, -1, 0]
        assert out.mode_probs[0].tolist() == [0, 1] and beams.stats.plan == "original"

    @pytest.mark.parametrize("knob", [{"mode": "slow"}, {"mode": "auto"}, {"mode_bias": 0.0}, {"fast_prob": 0.5}])
    def test_leaves_no_mode_to_choose(self, knob):
        model = chat_model("qwen")
        with ak.patched(model, ak.Modes.preset("adapt", chat_tokenizer("qwen"))):
            for tail in ("<think>\n", "<think>\n\n", "<think>\n\n</think>\n\n", "<think> \n"):
                with pytest.raises(ValueError, match="prompt 1 already ends in the tokens of mode 'slow'.*template"):
                    model.generate(**self.inputs("qwen", ["", tail]), **knob)
            with pytest.raises(ValueError, match="prompt 0 already ends in the tokens of the modes, in part"):
                model.generate(**self.inputs("qwen", ["</think>\n"]), **knob)

    def test_adaptthink_chooses_after_the_opening_of_its_template(self):
        model, tokenizer = chat_model("deepseek"), chat_tokenizer("deepseek")
        inputs = self.inputs("deepseek", ["<think>\n", "<think>"])
        with ak.patched(model, ak.Modes.preset("adaptthink", tokenizer)):
            out = model.generate(**inputs, mode=["fast", "slow"], max_new_tokens=2, return_dict_in_generate=True)
            with pytest.raises(ValueError, match="prompt 0 already ends in the tokens of mode 'fast'"):
                model.generate(**self.inputs("deepseek", ["<think>\n\n</think>\n\n"]), mode="slow")
        close = tokenizer.convert_tokens_to_ids("</think>")
        first = out.sequences[:, inputs.input_ids.shape[1]]
        assert out.modes.tolist() == [0, 1] and first[0] == close and first[1] != close

    @pytest.mark.parametrize("tail", ["<think>", "<think>\n", "<think>\n\n", "<think>\nTo begin"])
    @pytest.mark.parametrize("text", ["<think>", "<think>\n", None])
    def test_is_capped_after_as_many_new_tokens(self, text, tail):
        cap, new = 4, 9
        model, tokenizer = chat_model("deepseek"), chat_tokenizer("deepseek")
        slow = ak.Mode(text, max_new_tokens=cap, closing="\n</think>\n\n")
        modes = ak.Modes.from_tokenizer(tokenizer, fast="<answer>" if text else "</think>", slow=slow)
        inputs = self.inputs("deepseek", [tail, "<think>\n\n</think>\n\n"])
        arguments = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
        free = model.generate(**inputs, **arguments)
        with ak.patched(model, modes):
            capped = model.generate(**inputs, **arguments)
        width = inputs.input_ids.shape[1]
        assert torch.equal(capped[0, : width + cap], free[0, : width + cap])
        assert tuple(capped[0, width + cap : width + cap + 3].tolist()) == modes["slow"].closing
        assert torch.equal(capped[1], free[1]), "what the prompt closed is not closed again"


def test_embeddings_open_no_mode():
    embeds = shared("llama").get_input_embeddings()(torch.tensor([[20, SLOW]]))
    with ak.patched(shared("llama"), ak.Modes(fast=FAST, slow=SLOW)) as model:
        out = model.generate(inputs_embeds=embeds, mode="slow", max_new_tokens=2, return_dict_in_generate=True)
    assert out.modes.tolist() == [1] and out.sequences[0, 0] == SLOW
