"""Public complaints about thinking budgets and stop rules, each with the behaviour that answers it."""

import torch
from scripted import play
from toy_tokenizer import TRACE_TOKENIZER, ToyTokenizer

from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun

THINK = {"think": {"open": 1, "close": 2, "breaks": 7}}
SENTENCE = [9, 10, 3, 2]


def program(*rules, spans=THINK):
    return Program.from_dict({"spans": spans, "rules": list(rules)}, TRACE_TOKENIZER)


def budget(count, ids=SENTENCE, **beside):
    return {"force": list(ids), "when": {"in": "think", "count": [count, None]}, **beside}


def test_the_sentence_is_not_forced_into_an_answer_after_a_bare_tag():
    """vLLM #39697, PR #53572, PR #43210."""
    played = play(program(budget(4)), "8 9 8 2 10 10 10 10 10 6")
    assert played.shown == "8 9 8 2 10 10 10 10 10 6" and played.run.fired().tolist() == [[0]]
    assert play(program(budget(4)), "8 9 8 8 . . . . 10 6").shown == "8 9 8 8 [9] [10] [3] [2] 10 6"


def test_tool_calls_are_left_alone():
    """vLLM #44676, PR #44812: `<tool_call>` ends the thought, whether or not a tag does."""
    assert play(program(budget(2)), "8 7 9 9 9 9 11 10 6").shown == "8 7 9 9 9 9 11 10 6"
    assert play(program(budget(2)), "8 2 7 9 9 9 9 11 6").shown == "8 2 7 9 9 9 9 11 6"


def test_every_visit_is_capped_and_all_of_them_together():
    """vLLM PR #43757, #45974, llama.cpp PR #22323; ollama PR #17566."""
    visits = play(program(budget(2, [2])), "8 8 . 1 8 8 . 1 8 2 10 6")
    assert visits.shown == "8 8 [2] 1 8 8 [2] 1 8 2 10 6"
    total = play(program({"force": [2], "when": {"in": "think", "total": [3, None]}}), "8 2 1 8 2 1 8 . 1 . 10 6")
    assert total.shown == "8 2 1 8 2 1 8 [2] 1 [2] 10 6"


def test_a_half_written_end_is_not_restarted():
    """TensorRT-LLM #18616: `</` `</` `think>`; the text is seen through its pieces."""
    pieces = ToyTokenizer(
        ["<p>", "<think>", "</", "think", ">", ">\n", "a", "b", ".</", "\n", "<e>", "x", "y", "z", "w", "v"]
    )
    spans = {"think": {"open": "<think>", "close": {"text": "</think>"}}}
    rules = Program.from_dict({"spans": spans, "rules": [budget(3, ["</", "think", ">"])]}, pieces)
    assert play(rules, "6 7 2 3 4 6 6").shown == "6 7 2 3 4 6 6"
    assert play(rules, "6 7 8 3 5 6 6").shown == "6 7 8 3 5 6 6"
    assert play(rules, "6 7 6 . . . 6 6").shown == "6 7 6 [2] [3] [4] 6 6"
    # A half match that comes to nothing counts after all, and delays the budget by its length less one.
    late = play(rules, "6 7 2 3 6 . . . 6")
    assert late.shown == "6 7 2 3 6 [2] [3] [4] 6" and late.visits() == [("think", 0, 5, "rule")]


def test_the_generation_prompt_tells_open_from_closed():
    """SGLang PR #33146, vLLM PR #20859, llama.cpp #24181, PR #22488."""
    assert play(program(budget(1, [2])), "8 . 10", prompt=(1, 3)).shown == "8 [2] 10"
    assert play(program(budget(1, [2])), "8 . 10", prompt=(1, 4)).shown == "8 [2] 10"
    assert play(program(budget(1, [2])), "8 9 10", prompt=(1, 3, 2, 3)).shown == "8 9 10"
    assert play(program(budget(1, [2])), "8 . 10", prompt=(2, 9, 1)).shown == "8 [2] 10"
    assert play(program(budget(1, [2])), "8 9 10", prompt=()).shown == "8 9 10"


def test_every_origin_of_the_opening_is_budgeted_and_none_is_reported():
    """mlx-vlm #1911, #1819."""
    gate = {"gate": {"fast": 10, "slow": 1}, "when": {"at": 0}}
    assert play(program(gate, budget(1, [2])), "1>10 8 . 9", prompt=(9,)).shown == "1 8 [2] 9"
    assert play(program(budget(1, [2])), "9 1 8 . 9", prompt=(9,)).shown == "9 1 8 [2] 9"
    never = play(program(budget(1, [2])), "9 8 9", prompt=(9,))
    assert never.run.never_armed() == [["rules[0] (force)"]]
    assert play(program(budget(9, [2])), "9 8 9").run.never_armed() == [[]]


def test_a_budget_of_nothing_closes_at_once():
    """mlx-node PR #41; vLLM PR #20859."""
    assert play(program(budget(0)), ". . . . 10 6").shown == "[9] [10] [3] [2] 10 6"
    assert play(program(budget(0)), "1 . . . . 6", prompt=(9,)).shown == "1 [9] [10] [3] [2] 6"


def test_eos_neither_ends_the_thought_nor_comes_right_after_it():
    """SGLang #24839, vLLM #55420, SGLang PR #36193."""
    rules = program(
        {"force": [3, 2], "when": {"in": "think", "drawn": 6}},
        {"bias": 6, "by": "ban", "when": {"after": 2}, "hold": 2},
    )
    assert play(rules, "8 6 . 6>10 6>9 6").shown == "8 3* [2] 10~ 9~ 6"
    assert play(rules, "8 2 6>10 6>9 6").shown == "8 2 10~ 9~ 6"


def test_stop_strings_sleep_inside_a_span_that_holds_them():
    """vLLM #52393, lm-eval PR #3700, SGLang #40529; vLLM PR #21952 wants them."""
    for stops, expected in (("hold", [True, True, False, False]), ("end", [False] * 4)):
        rules = program(budget(9), spans={"think": {"open": 1, "close": 2, "stops": stops}})
        run = ProgramRun([rules, None], vocab_size=16, max_new_tokens=9, seeds=torch.arange(2))
        run.begin([[1], [1]])
        seen = [run.holds_stops().tolist()]
        for token in (8, 2, 9):
            run.advance(torch.tensor([token, token]))
            seen.append(run.holds_stops().tolist())
        assert seen == [[each, False] for each in expected]


def test_what_is_forced_is_chosen_and_not_made_likely():
    """OpenVINO PR #4139, llama.cpp #22717, #22537: no mask can take a forced id away."""
    rules = program({"bias": [2, 3], "by": "ban", "when": {}}, budget(1, [3, 2]))
    assert play(rules, "8 . . 10").shown == "8~ [3] [2] 10~"


def test_a_cut_waits_for_the_end_of_a_word():
    """ollama PR #17566."""
    soft = budget(2, [2], settle={"on": {"ends": "\n"}, "within": 3})
    assert play(program(soft), "8 9 8 4 . 10").shown == "8 9 8 4 [2] 10"
    assert play(program(soft), "8 9 8 8 8 . 10").shown == "8 9 8 8 8 [2] 10"
    assert play(program(soft), "8 4 . 10").shown == "8 4 [2] 10"


def test_an_edge_that_must_wait_is_not_lost():
    """`at` and `after` hold at one step; a half-written tag or a sentence may be in the way there."""
    pair = {"think": {"open": 1, "close": {"seq": [[2, 15]]}}}
    at = {"force": [9], "when": {"in": "think", "at": 2}}
    assert play(program(at, spans=pair), "8 2 8 . 8 6").shown == "8 2 8 [9] 8 6"
    assert play(program(at, spans=pair), "8 2 15 8 8 6").shown == "8 2 15 8 8 6"
    after = {"force": [9], "when": {"in": "think", "after": 10}, "settle": {"on": 3, "within": 4}}
    assert play(program(after), "8 10 8 3 . 8 6").shown == "8 10 8 3 [9] 8 6"
    assert play(program(after), "8 10 8 2 8 8 6").shown == "8 10 8 2 8 8 6"


def test_no_second_newline_after_a_line_that_has_one():
    """SGLang's processor takes only id 198 for a newline."""
    assert play(program(budget(2, [3, 2])), "8 4 . 10").shown == "8 4 [2] 10"
    assert play(program(budget(2, [3, 2])), "8 3 . 10").shown == "8 3 [2] 10"
    assert play(program(budget(2, [3, 2])), "8 9 . . 10").shown == "8 9 [3] [2] 10"
    # Only the beginning of the sequence, and only what is there.
    assert play(program(budget(2, [4, 3, 2])), "8 3 . . . 10").shown == "8 3 [4] [3] [2] 10"


def test_an_edge_that_was_lost_to_an_earlier_rule_is_over():
    rules = program({"force": [9], "when": {"after": 10}}, {"force": [8], "when": {"after": 10}})
    played = play(rules, "10 . 13 10 . 13")
    assert played.shown == "10 [9] 13 10 [9] 13" and played.run.fired().tolist() == [[2, 0]]
    # One that settles stays due, and has its turn.
    due = {"force": [8], "when": {"after": 10}, "settle": {"on": 3, "within": 0}}
    assert play(program({"force": [9], "when": {"after": 10}}, due), "10 . . 13").shown == "10 [9] [8] 13"
