"""The task families beside the running sum: reasoning-gym's chain_sum, and free-form mathematics."""

import json
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import reasoning_gym

import adapt_recipes as ar
from adapt_recipes.evaluation.generate import encode
from adapt_recipes.tasks import chain_sum, free_form
from adapt_recipes.tasks.tokenizer import build_tokenizer
from adapt_recipes.training.sft_config import Phase
from adapt_recipes.training.sft_tasks import sft_task

PHASE = Phase(steps=1, learning_rate=1e-3, fast_rows=40, slow_rows=40, fast_decay=0.5, fast_answer_weight=2.0)


def test_chain_sum_problems_are_reasoning_gyms():
    for problem in ar.problems(200, seed=3, family="chain_sum"):
        expression = problem.prompt.removeprefix("State the final answer to the following arithmetic problem: ")
        terms = expression.removesuffix(" =")
        assert expression != problem.prompt and terms != expression
        assert eval(terms, {"__builtins__": {}}) == int(problem.answer)
        assert problem.difficulty == len(terms.split()) // 2 + 1
        assert problem.family == "chain_sum"


def test_chain_sum_streams():
    drawn = ar.problems(3000, seed=1, family="chain_sum")
    counts = Counter(problem.difficulty for problem in drawn)
    assert sorted(counts) == [2, 3, 4, 5, 6]
    assert all(abs(count - 600) < 5 * 22 for count in counts.values())  # five standard deviations
    assert drawn[:7] == ar.problems(7, seed=1, family="chain_sum")
    assert drawn[1:8] != ar.problems(7, seed=2, family="chain_sum")  # reasoning-gym's own neighbouring seeds would be
    assert {p.difficulty for p in ar.problems(20, difficulty=6, family="chain_sum")} == {6}
    assert ar.problems(0, family="chain_sum") == []
    with pytest.raises(ValueError, match=r"difficulty must be an integer from 2 to 6 or None \(uniform\), got 7"):
        ar.problems(1, difficulty=7, family="chain_sum")


ANSWERS = ["{}", "{}.0", "+{}", "0{}", "{} {}", "is {}", "", "1{}", "{},0", "x", "- {}", "{}e0"]


@pytest.mark.parametrize("form", ANSWERS)
def test_chain_sum_grader_is_reasoning_gyms_scorer_at_full_marks(form):
    scorer = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)
    for problem in ar.problems(20, seed=4, family="chain_sum"):
        answer = form.format(problem.answer, problem.answer)
        full = scorer.score_answer(" ".join(answer.split()), {"answer": problem.answer}) == 1.0
        for completion in (f"<answer> {answer}", f"<think> 1 + 2 </think> {answer} <eos>"):
            assert ar.grade(problem, completion) is full


@pytest.mark.parametrize("completion", ["<think> {}", "<think> 1 </think>", "<answer> <answer> {}", "</think>", ""])
def test_malformed_completions_are_wrong(completion):
    problem = ar.problems(1, seed=5, family="chain_sum")[0]
    assert ar.grade(problem, completion.format(problem.answer)) is False


def test_traces_are_right_and_deterministic():
    problem = ar.Problem("State the final answer to the following arithmetic problem: 4 - 3 + 8 =", "9", 3, "chain_sum")
    assert chain_sum.response(problem, slow=False) == "<answer> 9"
    assert chain_sum.response(problem, slow=True) == "<think> 4 - 1 + 9 </think> 9"
    for problem in ar.problems(200, seed=6, family="chain_sum"):
        totals = chain_sum.running_totals(problem.prompt).split()
        assert totals[-1] == problem.answer and len(totals) == 2 * problem.difficulty - 1
        assert ar.grade(problem, chain_sum.response(problem, slow=True))
        assert ar.grade(problem, chain_sum.response(problem, slow=False))


def test_batches_are_what_generate_sees():
    """The ids of a training prompt are those that the chat template makes of the problem's prompt."""
    task = sft_task("chain_sum")
    tokenizer = build_tokenizer(task.vocabulary)
    tokenizer.chat_template = task.chat_template
    ids, weights = task.draw_batch(PHASE, 1, 0)
    again, _ = task.draw_batch(PHASE, 1, 0)
    other, _ = task.draw_batch(PHASE, 1, 1)
    assert (ids == again).all() and (ids != other).any()
    assert tokenizer.unk_token_id not in ids
    for row, weight in zip(ids, weights, strict=True):
        words = tokenizer.decode(row, skip_special_tokens=True).split()
        cut = next(i for i, word in enumerate(words) if word in ("<answer>", "<think>"))
        question = " ".join(word for word in words[:cut] if word != ".")
        problem = ar.Problem(question, words[-1], 0, "chain_sum")
        assert ar.grade(problem, " ".join(words[cut:]))
        begin = np.flatnonzero(weight)[0]
        assert encode(tokenizer, [question])["input_ids"].tolist() == [row[:begin].tolist()]
        assert ((weight[begin:] > 0) == (row[begin:] != tokenizer.pad_token_id)).all()


RIGHT = ["1/2", "0.5", "The answer is $\\frac{1}{2}$.", "so \\boxed{\\frac{2}{4}}", "<think> 3/4? </think> 0.50"]
WRONG = ["", "2", "one half", "<think> 1/2 </think> 3/4", "\\boxed{0.51}"]


@pytest.mark.parametrize(("completions", "verdict"), [(RIGHT, True), (WRONG, False)])
def test_math_answers_are_compared_as_mathematics(completions, verdict):
    problem = ar.Problem("What is a half?", "1/2", 0, "math")
    assert [ar.grade(problem, completion) for completion in completions] == [verdict] * len(completions)


def test_math_grades_outside_the_main_thread():
    """math-verify's time limits are signals; without the main thread there are none."""
    found = []
    problem = ar.Problem("?", "x^2 + 2x + 1", 0, "math")
    thread = threading.Thread(target=lambda: found.append(ar.grade(problem, "$(x+1)^2$")))
    thread.start()
    thread.join()
    assert found == [True]


def test_math_problems_come_from_a_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(
        '{"prompt": "1/4 + 1/4 =", "answer": "1/2", "difficulty": 2}\n\n' + json.dumps({"prompt": "2 =", "answer": 2})
    )
    assert free_form.read_problems(path) == [
        ar.Problem("1/4 + 1/4 =", "1/2", 2, "math"), ar.Problem("2 =", "2", 0, "math"),
    ]  # fmt: skip
    for line in ('{"prompt": "x"}', "[1]", "{", '{"prompt": 3, "answer": "x"}'):
        path.write_text('{"prompt": "2 =", "answer": 2}\n' + line)
        with pytest.raises(ValueError, match=r"problems\.jsonl:2"):
            free_form.read_problems(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no problem"):
        free_form.read_problems(path)
    with pytest.raises(ValueError, match="has no generator: give a JSON Lines file"):
        ar.problems(1, family="math")


def test_unknown_family():
    with pytest.raises(ValueError, match="no task family is named 'chess'; there is: running_sum, chain_sum, math"):
        ar.problems(1, family="chess")
    with pytest.raises(ValueError, match="no task family is named 'chess'"):
        ar.grade(ar.Problem("1", "1", 1, "chess"), "1")


@pytest.mark.parametrize(("family", "package"), [("chain_sum", "reasoning-gym"), ("math", "math-verify")])
def test_missing_package_is_named(family, package):
    script = (
        f"import sys; sys.modules[{package.replace('-', '_')!r}] = None; import adapt_recipes as ar\n"
        f"try: ar.tasks.families.family_of({family!r}).require()\nexcept RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"the task family {family} needs {package}: pip install 'adapt-kernels[tasks]'"
