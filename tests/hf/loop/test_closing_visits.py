"""When a closing is due: what the model would write, token by token, against what comes out. `[x]` is forced."""

import pytest
import torch
from chat_tokenizers import chat, chat_model, chat_tokenizer
from recorders import Wishes
from tiny_models import prompts, shared

import adapt_kernels as ak

OPEN, CLOSE, NEWLINE, EOS, TOOL, OTHER = 1, 2, 3, 6, 7, 90
CLOSING = {"closing": (NEWLINE, CLOSE), "close": CLOSE, "breaks": TOOL}


def run(wish: str, prompt: tuple = (OPEN,), modes=None, new=None, **mode):
    """New tokens after `prompt` where the model would write `wish`, one token a step, "." = whatever."""
    wishes = [80 if w == "." else int(w) for w in wish.split()]
    modes = modes or ak.Modes(fast=OTHER, slow=ak.Mode(OPEN, **mode))
    ids = torch.cat([prompts(1, 4), torch.tensor([prompt], dtype=torch.long)], 1)
    settings = {"max_new_tokens": new or len(wishes), "eos_token_id": EOS, "pad_token_id": 0, "do_sample": False}
    with ak.patched(shared("llama"), modes) as model:
        out = model.generate(ids, logits_processor=[Wishes(ids.shape[1], [wishes])], **settings)
    return " ".join(map(str, out[0, ids.shape[1] :].tolist()))


# name: (wish, output, prompt, max_new_tokens, more of the mode)
TRACES = {
    "forced": ("8 9 8 . . 10 6", "8 9 8 3 2 10 6", (OPEN,), 3, CLOSING),
    "closed by the bare tag": ("8 9 2 10 10 10 6", None, (OPEN,), 3, CLOSING),
    "closed among merged neighbours": ("8 4 2 5 10 10 10 6", None, (OPEN,), 4, CLOSING),
    "closed at once": ("2 10 10 10 6", None, (OPEN,), 1, CLOSING),
    "not open": ("10 10 10 10 6", None, (9,), 2, CLOSING),
    "one token": ("1 . . 10 6", "1 3 2 10 6", (9,), 1, CLOSING),
    "opened by the model": ("1 8 9 . . 10 6", "1 8 9 3 2 10 6", (9,), 3, CLOSING),
    "opened by the model after other tokens": ("3 3 1 8 9 . . 10 6", "3 3 1 8 9 3 2 10 6", (9,), 3, CLOSING),
    "second visit": ("8 2 10 1 8 9 . . 10 6", "8 2 10 1 8 9 3 2 10 6", (OPEN,), 3, CLOSING),
    "second visit after a forced end": ("8 8 . . 1 8 . . 6", "8 8 3 2 1 8 3 2 6", (OPEN,), 2, CLOSING),
    "third visit": ("1 2 1 2 1 8 . . 6", "1 2 1 2 1 8 3 2 6", (9,), 2, CLOSING),
    "opened again while open": ("1 8 1 9 . . 6", "1 8 1 9 3 2 6", (9,), 4, CLOSING),
    "tool call": ("8 7 9 9 9 9 11 10 6", None, (OPEN,), 3, CLOSING),
    "thought after a tool call": ("7 9 1 8 9 . . 6", "7 9 1 8 9 3 2 6", (OPEN,), 3, CLOSING),
    "two breaks": ("8 12 9 9 9 6", None, (OPEN,), 3, {**CLOSING, "breaks": (TOOL, 12)}),
    "no break known": ("8 7 . . 9 6", "8 7 3 2 9 6", (OPEN,), 2, {**CLOSING, "breaks": None}),
    "half a close in time": ("8 2 15 10 10 10 6", None, (OPEN,), 2, {"closing": (9, 2, 15), "close": (2, 15)}),
    "half a close, then none": (
        *("8 2 8 . . . 10 6", "8 2 8 9 2 15 10 6", (OPEN,), 2),
        {"closing": (9, 2, 15), "close": (2, 15)},
    ),
    "half of the whole closing": ("8 9 2 15 10 10 6", None, (OPEN,), 2, {"closing": (9, 2, 15)}),
    "two thirds of it": ("8 9 2 8 . . . 6", "8 9 2 8 9 2 15 6", (OPEN,), 3, {"closing": (9, 2, 15)}),
    "a close begun for ever": ("2 2 2 . . 6", "2 2 2 2 15 6", (OPEN,), 2, {"closing": (2, 15)}),
    "a close that begins like the opening": (
        *("8 8 8 . . . 6", "8 8 8 9 1 8 6", (OPEN,), 3),
        {"closing": (9, OPEN, 8), "close": (OPEN, 8)},
    ),
    "a close that begins like an opening of the model's": (
        *("1 8 8 . . . 6", "1 8 8 9 1 8 6", (9,), 3),
        {"closing": (9, OPEN, 8), "close": (OPEN, 8)},
    ),
    "closed by the prompt": ("8 9 8 9 10 6", None, (OPEN, 8, CLOSE), 2, CLOSING),
    "closed and opened again by the prompt": ("8 9 . . 6", "8 9 3 2 6", (OPEN, CLOSE, OPEN), 2, CLOSING),
    "half closed by the prompt": ("15 9 9 9 6", None, (OPEN, 8, 2), 1, {"closing": (9, 2, 15), "close": (2, 15)}),
    "broken off by the prompt": ("9 9 9 9 6", None, (OPEN, TOOL), 2, CLOSING),
    "close outside the closing": ("8 8 . 9 9 2 6", "8 8 9 9 9 2 6", (OPEN,), 2, {"closing": 9, "close": CLOSE}),
    "the whole closing without a close": ("8 3 2 9 9 6", None, (OPEN,), 4, {"closing": (NEWLINE, CLOSE)}),
}


@pytest.mark.parametrize("name", TRACES)
def test_trace(name):
    wish, output, prompt, cap, mode = TRACES[name]
    assert run(wish, prompt, max_new_tokens=cap, **mode) == (output or wish)


def test_rows_of_another_mode_are_not_closed():
    wish = f"{OTHER} 1 8 8 8 8 8 6"
    assert run(wish, (9,), max_new_tokens=2, **CLOSING) == wish


def test_a_mode_of_any_other_token_closes_too():
    # As in AdaptThink, whose prompt opens the thought; a later one is only known by its tag.
    modes = ak.Modes(fast=CLOSE, slow=ak.Mode(None, max_new_tokens=3, **CLOSING))
    assert run("8 9 8 . . 10 6", (9,), modes) == "8 9 8 3 2 10 6"
    assert run("8 2 8 9 9 10 6", (9,), modes) == "8 2 8 9 9 10 6"
    assert run("2 8 8 9 9 10 6", (9,), modes) == "2 8 8 9 9 10 6"


def test_each_mode_has_its_own_cap():
    low, high = (ak.Mode(i, max_new_tokens=cap, **CLOSING) for i, cap in ((OPEN, 2), (5, 4)))
    modes = ak.Modes(low=low, high=high)
    assert run("1 8 . . 9 6", (9,), modes) == "1 8 3 2 9 6"
    assert run("5 8 9 8 . . 9 6", (9,), modes) == "5 8 9 8 3 2 9 6"
    assert run("9 5 8 9 8 . . 1 8 . . 6", (9,), modes) == "9 5 8 9 8 3 2 1 8 3 2 6"


def test_rows_close_at_their_own_steps():
    wishes = [[8, 9, 8, 80, 80, 10, 6], [8, 2, 10, 1, 8, 9, 80, 80, 10, 6], [2, 10, 10, 10, 10, 10, 10, 10, 6]]
    ids = torch.cat([prompts(3, 4), torch.full((3, 1), OPEN)], 1)
    modes = ak.Modes(fast=OTHER, slow=ak.Mode(OPEN, max_new_tokens=3, **CLOSING))
    settings = {"max_new_tokens": 10, "eos_token_id": EOS, "pad_token_id": 0, "do_sample": False}
    with ak.patched(shared("llama"), modes) as model:
        for rng in (None, "hf"):
            wish = [Wishes(5, wishes)]
            new = model.generate(ids, logits_processor=wish, rng=rng, **settings)[:, 5:].tolist()
            assert new == [[8, 9, 8, 3, 2, 10, 6, 0, 0, 0], [8, 2, 10, 1, 8, 9, 3, 2, 10, 6], [*wishes[2], 0]]


def assert_closed(tokens, cap: int, forced: list, ends=(EOS,)):
    """A visit of `cap` tokens, its opening included, without CLOSE or TOOL is followed by `forced`; their number."""
    begin, visits = None, 0
    for i, token in enumerate(tokens):
        if token in ends:
            return visits
        if begin is None:
            begin = i if token == OPEN else None
        elif token in (CLOSE, TOOL):
            begin = None
        if begin is not None and i + 1 - begin == cap:
            rest = tokens[i + 1 : i + 1 + len(forced)]
            assert rest == forced[: len(rest)]
            begin, visits = None, visits + 1
    return visits


def test_sampled_rows_close_each_visit_wherever_they_stand_in_the_batch():
    modes = ak.Modes(fast=OTHER, slow=ak.Mode(OPEN, max_new_tokens=4, **CLOSING))
    ids, seeds = prompts(12, 5), torch.arange(12)
    settings = {"max_new_tokens": 40, "eos_token_id": EOS, "pad_token_id": 0, "do_sample": True, "top_k": 0}
    settings |= {"sequence_bias": [[[OPEN], 4.0], [[EOS], 2.0], [[CLOSE], 1.0]], "return_dict_in_generate": True}
    with ak.patched(shared("llama"), modes) as model:
        whole = model.generate(ids, seed=seeds, compact_at=0, **settings)
        for rows, share in ((range(12), 1.0), ([7, 2, 11, 4], 0.75)):
            out = model.generate(ids[list(rows)], seed=seeds[list(rows)], compact_at=share, **settings)
            assert out.stats.plan == "full"
            assert torch.equal(out.sequences, whole.sequences[list(rows), : out.sequences.shape[1]])
    assert sum(assert_closed(row, 4, [NEWLINE, CLOSE]) for row in whole.sequences[:, 5:].tolist()) > 12


class TestResolvedByATokenizer:
    """close and breaks as `from_tokenizer` finds them."""

    def modes(self, **mode):
        slow = ak.Mode("<think>\n", **{"max_new_tokens": 4, "closing": "\n</think>\n\n", **mode})
        return ak.Modes.from_tokenizer(chat_tokenizer("qwen"), fast="<think>\n\n</think>\n\n", slow=slow)

    def run(self, modes, wish: str, prompt="<think>\n"):
        tokenizer, model = chat_tokenizer("qwen"), chat_model("qwen")
        ids = tokenizer(chat("qwen", prompt), return_tensors="pt").input_ids
        wishes = tokenizer.encode(wish, add_special_tokens=False)
        with ak.patched(model, modes):
            processor = [Wishes(ids.shape[1], [wishes])]
            out = model.generate(ids, logits_processor=processor, max_new_tokens=len(wishes), do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1] :])

    @pytest.mark.parametrize(
        "wish",
        [
            *("ab.\n</think>\n\nanswer", "ab\n</think>\nanswer", "abc</think>answer", "a.\n\n</think> answer"),
            *("a<tool_call>{}   </tool_call>", "</think>answer"),
        ],
    )
    def test_the_model_ends_it(self, wish):
        assert self.run(self.modes(), wish) == wish

    @pytest.mark.parametrize("template", ["<think>\n", "<think>", "<think>\n\n"])
    def test_we_end_it(self, template):
        assert self.run(self.modes(), "abcdefghijk", template) == "abcd\n</think>\n\nhijk"

    def test_an_opening_of_another_shape_counts(self):
        # "<think>" and "\n\n" are not the ids of "<think>\n".
        wish = "<think>\n\nabcdefgh"
        assert self.run(self.modes(), wish, "") == "<think>\n\nab\n</think>\n\nfgh"
        assert self.run(self.modes(), f"ab</think>c{wish}", "<think>") == "ab</think>c<think>\n\nab\n</think>\n\nfgh"

    def test_breaks_may_be_left_out_or_named(self):
        assert self.run(self.modes(breaks=()), "a<tool_call>bcdefg") == "a<tool_call>bc\n</think>\n\ng"
        assert self.run(self.modes(breaks="<answer>"), "a<answer>bcdefgh") == "a<answer>bcdefgh"
