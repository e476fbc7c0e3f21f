"""Every preset builds, says what it lacks, and does on scripted rows what its method does."""

import inspect

import pytest
from scripted import play
from toy_tokenizer import TRACE_TOKENIZER, ToyTokenizer

from adapt_kernels.program.presets import PRESETS
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Span

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>/[]*.: \n\\-!'_,"]
WORDS = ["wait", "Wait", " but", "hmm", "Alternatively", "alternative", "\n\n", ".\n\n", "Easy", "Hard", "answer", ". "]
TAGS = ["<think>", "</think>", "<tool_call>", "<eos>"]
PIECED = ToyTokenizer(LETTERS + WORDS + TAGS, added=TAGS)
PIECED.eos_token_id = len(PIECED) - 1
WHOLE = [
    "<ANSWER>",
    "<COT>",
    "<CODE>",
    "<LONG_COT>",
    "<EASY>",
    "<answer>",
    "<perception>",
    "</perception>",
    "<reasoning>",
]
WHOLE += ["<EXPLORATION>", "</EXPLORATION>", "<EXECUTION>", "</EXECUTION>"]
TAGGED = ToyTokenizer(PIECED.pieces + WHOLE, added=TAGS + WHOLE)
NEEDED = {
    "budget": {"tokens": 64},
    "qwen3": {"tokens": 64},
    "min_thinking": {"tokens": 3},
    "cgrs": {"probe_tokens": 20},
    "stop_bias": {"by": 2.0},
    "ds4": {"tokens": 64},
    "deepconf": {"threshold": 17.0},
    "diffadapt": {"tokens": 100},
    "adacot": {"skip": "</think>"},
    "autol2s": {"trigger": "short"},
}


@pytest.mark.parametrize(
    ("name", "tokenizer"), [(name, TAGGED) for name in PRESETS] + [(name, PIECED) for name in PRESETS if name != "arm"]
)
def test_every_preset_builds_and_goes_round(name, tokenizer):
    program = Program.preset(name, tokenizer, **NEEDED.get(name, {}))
    assert Program.from_dict(program.to_dict(), tokenizer) == program
    program.check_vocabulary(len(tokenizer))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source_and_what_it_needs(name):
    assert len(inspect.getdoc(PRESETS[name])) > 40
    needed = [p.name for p in inspect.signature(PRESETS[name]).parameters.values() if p.default is p.empty]
    assert needed[1:] == list(NEEDED.get(name, {}))


def test_formats_that_no_single_token_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"rules\[0\] \(gate\): modes 'cot' .* and a third one differs there"):
        Program.preset("arm", PIECED)


def test_unknown_presets_and_settings_are_refused():
    with pytest.raises(ValueError, match="unknown preset 'budgets'; there are adacot, adactrl, "):
        Program.preset("budgets", PIECED)
    with pytest.raises(
        ValueError, match=r"preset 'budget': missing a required argument: 'tokens'; its settings are \(tokens, soft=0.1"
    ):
        Program.preset("budget", PIECED)
    with pytest.raises(ValueError, match="preset 'nowait': got an unexpected keyword argument 'word'"):
        Program.preset("nowait", PIECED, word="wait")
    with pytest.raises(ValueError, match="preset 'deer': kind must be 'r1' or 'qwen3'; got 'r2'"):
        Program.preset("deer", PIECED, kind="r2")
    with pytest.raises(ValueError, match="preset 'mirostat': version must be 1 or 2; got 3"):
        Program.preset("mirostat", PIECED, version=3)
    with pytest.raises(ValueError, match=r"needs a closing tag that is one token; got \{'text': '</think>'\}"):
        Program.preset("thinkbrake", ToyTokenizer(LETTERS))


def trace(name, wishes, settings=None, **given):
    program = Program.preset(name, TRACE_TOKENIZER, **(settings or {}))
    return play(program, wishes, **given).shown


def test_budgets():
    exact = {"tokens": 3, "soft": 0, "closing": "\n</think>", "eos_ids": 6}
    assert trace("budget", "8 9 8 . . 6>10 6>10 6", exact) == "8 9 8 [3] [2] 10~ 10~ 6"
    assert trace("budget", "8 6 . 6>10 6>9 6", exact) == "8 3* [2] 10~ 9~ 6"
    soft = {"tokens": 4, "soft": 0.5, "closing": "\n</think>", "eos_ids": 6}
    assert trace("budget", "8 9 8 9 8 4 . 10", soft) == "8 9 8 9 8 4 [2] 10~"
    late = {**exact, "tokens": 99, "answer_tokens": 6}
    assert trace("budget", "8 8 8 . . 10", late, max_new=8) == "8 8 8 [3] [2] 10~"
    assert trace("qwen3", "8 9 . . 10", {"tokens": 2, "closing": "\n</think>"}) == "8 9 [3] [2] 10"
    assert trace("min_thinking", "2>8 6>9 2 10 6", {"tokens": 2, "eos_ids": 6}) == "8~ 9~ 2 10 6"
    assert trace("s1", "8 2 9 6 8 2 10", {"times": 2, "eos_ids": 6}) == "8 5* 9 5* 8 2 10"
    assert trace("s1", "8 2 9 . . 10", {"tokens": 3, "closing": "\n</think>"}) == "8 5* 9 [3] [2] 10"


def test_words_that_are_banned_or_made_unlikely():
    assert trace("nowait", "5>8 2 5>9") == "8~ 2~ 9~"
    assert trace("nowait", "5>8 2 5", {"think": Span(1, 2)}) == "8~ 2~ 5"
    tip = {"words": ["wait"], "tokens": 2, "penalty": 3}
    assert trace("tip", "5>8 5>8 5>8 5>9 2", tip) == "8~ 8~ 5 9~ 2~"
    cgrs = {"probe_tokens": 4, "words": ["wait"], "text": [8]}
    sure = {"probed": {2: 1.0}}
    assert trace("cgrs", "5 4 5>9 5>9 2 5", cgrs, **sure) == "5 4 9~ 9~ 2~ 5"
    assert trace("stop_bias", "8>2 2 9", {"by": 1.5}) == "2~ 2 9"


def test_thoughts_that_are_cut_where_they_are_sure():
    deer = {"closing": "\n</think>", "tokens": 9}
    deer_program = Program.preset(
        "deer", ToyTokenizer([*TRACE_TOKENIZER.pieces, *"*FinalAswr \\boxed}"], TRACE_TOKENIZER.added), **deer
    )
    assert deer_program.rule_tokens[1].sequence == (3, 2)
    brake = {"closing": "\n</think>"}
    signals = {"registers": {0: {"margin:2": 3.0}, 1: {"margin:2": 0.5}}}
    assert trace("thinkbrake", "8 . . 10", brake, **signals) == "8 [3] [2] 10"
    ds4 = {"tokens": 1, "closing": "\n</think>"}
    ranks = {"registers": {0: {"rank:2": 1}, 1: {"rank:2": 9}, 2: {"rank:2": 3}}}
    assert trace("ds4", "8 8>2 8>2 10", ds4, **ranks) == "8 8 2~ 10"
    alpha = {"p": 1.0, "slow_tokens": 3}
    assert trace("alphaone", "4 8>5 8 5 10", alpha) == "4 5~ 8 2* 10"
    assert trace("mind", "8 2 9 1 8", {"turns": 1}) == "8 2 9 1"
    conf = {"registers": {0: {"conf:20": 9.0}, 1: {"conf:20": 1.0}}}
    assert trace("deepconf", "8 8 8", {"threshold": 2.0, "window": 1}, **conf) == "8"


def test_formats_that_are_chosen():
    decided = {"skip": "</think>", "bias": 1.5}
    assert trace("adacot", "1 8>2 9", decided, prompt=(9,)) == "1 2 9"
    assert trace("adacot", "8>2 9", {"skip": "</think>", "bias": 0.5}, prompt=(1, 3)) == "8 9"
    assert trace("autol2s", "13 . . 8", {"trigger": [9, 10], "easy": "thirteen"}, prompt=(8,)) == "13 [9] [10] 8"
    assert trace("thoughtmani", "8 9") == "8 9"


def played(program, tokenizer, wishes):
    """What comes of wishes, each a piece, at the gates and between them."""
    ids = [tokenizer.pieces.index(piece) for piece in wishes]
    import torch

    from adapt_kernels.program.run import ProgramRun

    run, tokens, seen = (
        ProgramRun([program], vocab_size=len(tokenizer), max_new_tokens=99, seeds=torch.arange(1)),
        None,
        [],
    )
    run.begin([[0]])
    for token in ids:
        if tokens is not None:
            run.advance(tokens)
        decision = run.decide()
        drawn = torch.where(decision.forced >= 0, decision.forced, torch.tensor([token]))
        tokens = run.settle(decision, drawn)[0]
        mark = "gate " if decision.gate[0] >= 0 else "forced " if decision.forced[0] >= 0 else ""
        seen.append(mark + tokenizer.pieces[int(tokens[0])])
    return seen, run


def test_avr_decides_twice():
    seen, run = played(
        Program.preset("avr", TAGGED), TAGGED, ["<perception>", "a", "</perception>", "\n", "<reasoning>", "b"]
    )
    assert seen == ["gate <perception>", "a", "</perception>", "\n", "gate <reasoning>", "b"]
    assert (run.modes(0).tolist(), run.modes(1).tolist()) == ([1], [1])
    wishes = ["a", "p", "e", "r", "c", "e", "p", "t", "i", "o", "n", ">", "a", *"</perception>\n", "<", "answer", ">"]
    seen, run = played(Program.preset("avr", PIECED), PIECED, wishes)
    assert seen[:3] == ["forced <", "gate p", "forced e"] and seen[-2:] == ["gate answer", ">"]
    assert (run.modes(0).tolist(), run.modes(1).tolist()) == ([1], [0])


def test_adactrl_leaves_the_bracket_to_the_model():
    seen, run = played(Program.preset("adactrl", PIECED), PIECED, ["a", "Hard", "]"])
    assert seen == ["forced [", "gate Hard", "]"] and run.modes(0).tolist() == [1]
