"""What the page of `adapt dial` computes, without Gradio or a browser."""

import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes.dial.points import measure
from adapt_recipes.dial.reply import own_probs, stream
from adapt_recipes.dial.served import MAX_PROMPT_CHARACTERS, PROGRAMS, choose, serve_default, serve_folder
from adapt_recipes.dial.setting import Setting, whole
from adapt_recipes.dial.thought import Tags, is_open, split, thought_tags

PROMPT = "1 +1 +2 +3 +1 . . . . ?"
THINK, CLOSE = 27, 28


@pytest.fixture(scope="module")
def served():
    return serve_default()


@pytest.fixture
def without_modes(tmp_path):
    folder = tmp_path / "nameless"
    shutil.copytree(ar.checkpoint_path("rl"), folder)
    (folder / "modes.json").unlink()
    return folder


def last(served, setting, prompt=PROMPT, stop=None):
    *_, reply = stream(served, prompt, setting, stop or threading.Event())
    return reply


def short(**fields):
    return Setting(**{"max_new_tokens": 16, **fields})


# --- settings


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (Setting(bias=0.0), [0.2, 0.3, 0.5]),
        (Setting(bias=math.log(8)), [2 / 3, 0.3 * 5 / 12, 0.5 * 5 / 12]),
        (Setting(control="share", share=0.6), [0.6, 0.15, 0.25]),
        (Setting(control="mode", mode="c"), [0.0, 0.0, 1.0]),
    ],
)
def test_probabilities_after_the_dial(setting, expected):
    assert setting.shifted([0.2, 0.3, 0.5], ("a", "b", "c")) == pytest.approx(expected, abs=1e-12)


def test_probabilities_at_their_ends():
    assert Setting(bias=3.0).shifted([0.0, 1.0], ("fast", "slow")) == [0.0, 1.0]
    assert Setting(control="share", share=0.3).shifted([1.0, 0.0], ("fast", "slow")) == [0.3, 0.7]


@pytest.mark.parametrize("setting", [short(bias=-2.0), short(control="share", share=0.3)])
def test_the_mode_is_drawn_with_what_the_bars_say(served, setting):
    (expected, _) = setting.shifted(own_probs(served, PROMPT), served.names)
    rows, arguments = 2000, setting.arguments() | {"max_new_tokens": 1, "seed": 1}
    inputs = {name: tensor.repeat(rows, 1) for name, tensor in served.inputs(PROMPT, 1).items()}
    out = served.model.generate(**inputs, **arguments, return_dict_in_generate=True)
    band = 4 * math.sqrt(expected * (1 - expected) / rows)
    assert (out.modes == 0).double().mean().item() == pytest.approx(expected, abs=band)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"control": "both"}, "control must be one of bias, share, mode; got 'both'"),
        ({"bias": math.nan}, "bias must be a finite number of logit units; got nan"),
        ({"bias": "2"}, "bias must be a number; got '2'"),
        ({"share": 1.0}, r"the exact share must be inside \(0, 1\), or force a mode instead; got 1.0"),
        ({"thinking_budget": -1}, "the thinking budget must be a whole number from 0 to 4096; got -1"),
        ({"max_new_tokens": 0}, "the most new tokens must be a whole number from 1 to 4096; got 0"),
        ({"max_new_tokens": 1.5}, "the most new tokens must be a whole number from 1 to 4096; got 1.5"),
        ({"seed": None}, "the seed must be a whole number from 0"),
    ],
)
def test_settings_that_cannot_be(fields, text):
    with pytest.raises(ValueError, match=text):
        Setting(**fields)


def test_whole():
    assert [whole(each) for each in (3.0, 3.5, None, "x")] == [3, 3.5, None, "x"]
    assert isinstance(whole(3.0), int)


# --- thought


@pytest.mark.parametrize(
    ("ids", "inside", "thought", "answer"),
    [
        ([9, 1, 2, 8, 3], False, [1, 2], [3]),
        ([9, 1, 2], False, [1, 2], []),
        ([1, 8, 2], True, [1], [2]),
        ([1, 8, 2], False, [], [1, 8, 2]),
        ([4, 9, 1, 8, 5, 9, 2, 8, 6], False, [1, 2], [4, 5, 6]),
        ([], True, [], []),
    ],
)
def test_a_thought_is_split_from_the_answer(ids, inside, thought, answer):
    assert split(ids, Tags((9,), (8,)), inside) == (thought, answer)


def test_tags_of_several_tokens():
    tags = Tags((9, 7), (8, 7))
    assert split([9, 7, 1, 8, 2, 8, 7, 3], tags) == ([1, 8, 2], [3])
    assert split([1, 2], None) == ([], [1, 2])
    assert is_open([5, 9, 7], tags) and not is_open([9, 7, 8, 7], tags) and not is_open([5], None)


def test_tags_come_from_the_modes_first(served):
    assert served.tags == Tags((THINK,), (CLOSE,))
    modes = ak.Modes(fast=26, slow=27)
    modes.spans = {"think": {"open": [27], "close": 5}}
    assert thought_tags(modes, served.tokenizer) == Tags((27,), (5,))
    modes.spans = {"think": {"open": {"text": "x"}, "close": 5}}
    assert thought_tags(modes, served.tokenizer) is None


# --- replies


def test_a_reply_is_the_text_of_generate(served):
    reply = last(served, short(control="mode", mode="slow"))
    assert (reply.thought, reply.text, reply.mode, reply.tokens) == ("2 4 7 8", "8", "slow", 8)
    assert reply.done and not reply.stopped and reply.thought_tokens == 4
    assert sum(reply.probs) == pytest.approx(1) and reply.probs == pytest.approx(own_probs(served, PROMPT), abs=1e-6)
    fast = last(served, short(control="mode", mode="fast"))
    assert (fast.thought, fast.text, fast.mode, fast.tokens) == ("", "8", "fast", 3)  # without its tag


def test_budget_and_program_act_and_are_told(served):
    capped = last(served, short(control="mode", mode="slow", thinking_budget=2))
    assert capped.thought == "2 4" and "think 2 tokens, closed by rule" in capped.note
    longer = short(control="mode", mode="slow", program="min_thinking", program_settings="tokens=6")
    assert "fired: 6 x rule 0" in last(served, longer).note  # the thought's own end, banned six times


def test_only_offered_programs_can_be_named(served, tmp_path):
    path = tmp_path / "program.json"
    path.write_text(json.dumps({"rules": []}))
    for name in (str(path), str(tmp_path), "../x.json", "cgrs"):
        with pytest.raises(ValueError, match=r"no program .* is offered; there are: budget"):
            last(served, short(program=name))
    assert set(served.programs()) <= set(PROGRAMS) and "budget" in served.programs()
    with pytest.raises(ValueError, match="must be NAME=VALUE"):
        last(served, short(program="budget", program_settings="tokens"))


class Slow(torch.nn.Module):
    """Stands before the model's head: counts the forwards, and lets the reader act between them."""

    def __init__(self, head, between):
        super().__init__()
        self.head, self.forwards, self.between = head, 0, between

    def forward(self, hidden):
        self.forwards += 1
        self.between(self.forwards)
        return self.head(hidden)


@pytest.fixture
def slowed(monkeypatch):
    """A model of its own whose forwards call what the test wants."""
    served = serve_default()
    slow = Slow(served.model.lm_head, lambda forwards: None)
    served.model.lm_head = slow
    return served, slow


def test_stop_ends_the_computation_at_the_next_token(slowed):
    served, slow = slowed
    stop = threading.Event()
    slow.between = lambda forwards: stop.set() if forwards == 3 else None
    reply = last(served, short(control="mode", mode="slow"), stop=stop)
    assert (reply.stopped, reply.done, reply.tokens, slow.forwards) == (True, True, 3, 3)
    assert last(served, short(control="mode", mode="slow")).tokens == 8  # nothing of it is left


def test_a_reader_who_leaves_ends_the_computation(slowed, monkeypatch):
    served, slow = slowed
    monkeypatch.setattr("adapt_recipes.dial.reply.REFRESH_S", 0.0)
    go_on = threading.Event()
    slow.between = lambda forwards: go_on.wait(20) if forwards > 2 else None
    stop = threading.Event()
    steps = stream(served, PROMPT, short(control="mode", mode="slow"), stop)
    assert not next(steps).done
    threading.Timer(0.2, go_on.set).start()
    steps.close()
    assert slow.forwards < 8 and not served.lock.locked()
    assert not stop.is_set()  # the user's next answer is not stopped by it


def test_an_error_in_generate_reaches_the_reader_and_frees_the_model(slowed):
    served, slow = slowed

    def fail(forwards):
        raise RuntimeError("boom")

    slow.between = fail
    with pytest.raises(RuntimeError, match="boom"):
        last(served, short())
    slow.between = lambda forwards: None
    assert last(served, short()).done


def test_twenty_users_get_their_own_answers(served):
    prompts = [problem.prompt for problem in ar.problems(20, seed=4)]
    setting = short(control="mode", mode="slow")
    alone = [last(served, setting, prompt) for prompt in prompts]
    with ThreadPoolExecutor(20) as users:
        together = list(users.map(lambda prompt: last(served, setting, prompt), prompts))
    assert [(r.thought, r.text, r.tokens) for r in together] == [(r.thought, r.text, r.tokens) for r in alone]
    assert len({reply.thought for reply in alone}) > 10


@pytest.mark.parametrize(
    ("prompt", "new", "text"),
    [
        ("", 16, "the prompt is empty"),
        (" \n", 16, "the prompt is empty"),
        (None, 16, "the prompt is empty"),
        ("1 " * 5000, 16, r"the prompt has 5001 tokens and asks for up to 16 new ones, but .* holds 64 in all"),
        (PROMPT, 60, "the prompt has 11 tokens and asks for up to 60 new ones"),
        ("1 " * MAX_PROMPT_CHARACTERS, 16, "the prompt has 40000 characters; at most 20000 are taken"),
        ("what is love ?", 16, "does not know every word of 'what is love"),
    ],
)
def test_prompts_that_cannot_be_asked(served, prompt, new, text):
    with pytest.raises(ValueError, match=text):
        last(served, short(max_new_tokens=new), prompt)


# --- models


def test_a_folder_without_modes_is_asked_for_them(without_modes):
    served = serve_folder(without_modes)
    assert served.modes is None and served.names == ()
    for refused in (
        lambda: last(served, short()),
        lambda: own_probs(served, PROMPT),
        lambda: next(measure(served, None)),
    ):
        with pytest.raises(ValueError, match="modes are not known yet"):
            refused()
    with pytest.raises(ValueError, match="give the text that opens a fast answer"):
        served.name_openings("", "<think>")
    with pytest.raises(ValueError, match="<nothing>"):
        served.name_openings("<nothing>", "<think>")
    served.name_openings("<answer>", "<think>")
    assert last(served, short(control="mode", mode="slow")).thought == "2 4 7 8"
    served.name_openings("<think>", "<answer>")  # again, the other way round
    assert last(served, short(control="mode", mode="slow")).thought == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("x", True, None, None), "give --model or --smollm2, not both"),
        ((None, False, "<a>", None), "--fast and --slow belong to --model"),
    ],
)
def test_which_model(arguments, text):
    with pytest.raises(ValueError, match=text):
        choose(*arguments)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        choose(tmp_path / "absent", False, None, None)


# --- frontier


def test_the_frontier_of_the_shipped_checkpoint(served, monkeypatch):
    monkeypatch.setattr("adapt_recipes.dial.points.PROBLEMS", 80)
    *_, (done, total, points) = measure(served, threading.Event())
    assert done == total and len(points) == 13
    ordered = sorted(points, key=lambda point: point.bias)
    assert all(a.tokens > b.tokens and a.p_fast < b.p_fast for a, b in zip(ordered, ordered[1:], strict=False))
    assert ordered[0].accuracy > 0.9 > ordered[-1].accuracy
    assert list(measure(served, threading.Event())) == [(1, 1, points)]  # measured once


def test_the_frontier_of_another_model_has_no_accuracy(without_modes):
    served = serve_folder(without_modes, "<answer>", "<think>")
    served.examples = [problem.prompt for problem in ar.problems(2, 8, seed=1)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("adapt_recipes.dial.points.TOKEN_CAP", 16)
        steps = list(measure(served, threading.Event()))
        assert [step[:2] for step in steps] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
        assert {point.accuracy for point in steps[-1][2]} == {None}
        served.points = ()
        stop = threading.Event()
        stop.set()
        assert list(measure(served, stop)) == [] and not served.points
