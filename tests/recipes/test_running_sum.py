import subprocess
import sys
from collections import Counter

import pytest

import adapt_recipes as ar
from adapt_recipes.tasks.running_sum import make_problem


def test_known_problem():
    problem = make_problem(3, [4, 9])
    assert problem == ar.Problem("3 +4 +9 . . . . . . ?", "6", 2)


def test_the_stream_of_a_seed_is_frozen():
    assert [(p.prompt, p.answer) for p in ar.problems(2, seed=0)] == [
        ("3 +9 +7 . . . . . . ?", "9"),
        ("1 +2 +8 +0 +8 +3 . . . ?", "2"),
    ]
    assert ar.problems(1, difficulty=8, seed=5) == ar.problems(3, difficulty=8, seed=5)[:1]


def test_answers_are_the_sum_modulo_ten():
    for problem in ar.problems(500, seed=3):
        digits = [int(word) for word in problem.prompt.split() if word not in (".", "?")]
        assert problem.answer == str(sum(digits) % 10)
        assert problem.difficulty == len(digits) - 1
        assert len(problem.prompt.split()) == 10


def test_difficulty_is_uniform_or_as_asked():
    counts = Counter(p.difficulty for p in ar.problems(8000, seed=1))
    assert sorted(counts) == list(range(1, 9))
    assert all(abs(count - 1000) < 5 * 30 for count in counts.values())  # five standard deviations
    assert {p.difficulty for p in ar.problems(50, difficulty=4)} == {4}


def test_seeds_differ_and_repeat():
    assert ar.problems(20, seed=1) == ar.problems(20, seed=1)
    assert ar.problems(20, seed=1) != ar.problems(20, seed=2)
    assert ar.problems(0) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": -1}, "n must be an integer of at least 0, got -1"),
        ({"n": 2.0}, "n must be an integer of at least 0, got 2.0"),
        ({"n": 1, "difficulty": 0}, r"difficulty must be an integer from 1 to 8 or None \(uniform\), got 0"),
        ({"n": 1, "difficulty": 9}, "difficulty must be an integer from 1 to 8"),
        ({"n": 1, "difficulty": True}, "difficulty must be .* got True"),
        ({"n": 1, "seed": "x"}, "seed must be an integer, got 'x'"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        ar.problems(**arguments)


RIGHT = [
    "<answer> 6",
    "<answer> 6 <eos>",
    "<answer> 6 <eos> <pad> <pad>",
    "<think> 7 6 </think> 6 <eos>",
    "<think> 7 6 </think> 6",
    "  <answer>  6\n",
    "6 <eos>",  # the prompt ended in the mode token
    "7 6 </think> 6",
    "<think> 1 1 1 </think> 6",  # the trace is not judged
    "<think> </think> 6",
    "<answer>6<eos><pad>",
    "<think>7 6</think>6<eos>",
]
WRONG = [
    "",
    "   ",
    "<eos>",
    "<pad> <pad>",
    "<answer>",
    "<answer> <eos>",
    "<answer> 7",
    "<answer> 6 6",
    "<answer> 6 <eos> 6",
    "<answer> 6 +1",
    "<answer> 06",
    "<answer> <answer> 6",
    "<think> 7 6",  # truncated
    "<think> 6",
    "<think>",
    "<think> 7 6 </think>",
    "<think> 7 6 </think> <eos>",
    "<think> 7 6 </think> 7",
    "<think> 7 6 </think> 6 6",
    "<think> 7 6 </think> 6 </think> 6",
    "<think> 7 <think> 6 </think> 6",
    "<answer> 6 </think> 6",
    "<think> 7 </think> <answer> 6",
    "</think>",
    "\x00 ?? <unk> é 六",
]


@pytest.mark.parametrize("completion", RIGHT)
def test_right(completion):
    assert ar.grade(make_problem(3, [4, 9]), completion) is True


@pytest.mark.parametrize("completion", WRONG)
def test_wrong(completion):
    assert ar.grade(make_problem(3, [4, 9]), completion) is False


def test_checkpoint_path():
    assert (ar.checkpoint_path("sft") / "config.json").is_file()
    with pytest.raises(ValueError, match="no shipped checkpoint is named 'gpt'; there is: sft, rl, paths, keep"):
        ar.checkpoint_path("gpt")
    with pytest.raises(ValueError, match="no shipped checkpoint"):
        ar.checkpoint_path("../checkpoints/sft")


def test_import_is_light():
    script = "import sys, adapt_recipes; print(*{'torch', 'transformers', 'typer', 'rich', 'matplotlib', 'numpy'}"
    done = subprocess.run(
        [sys.executable, "-c", script + " & set(sys.modules))"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "" and done.stderr == ""
