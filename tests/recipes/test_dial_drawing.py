"""What the page of `adapt dial` shows, and who stops what runs on it, without Gradio or a browser."""

from adapt_recipes.dial import drawing
from adapt_recipes.dial.points import Point
from adapt_recipes.dial.reply import Reply
from adapt_recipes.dial.session import FAILED, Runs, guarded


def test_what_is_drawn_is_escaped():
    assert "<b>" not in drawing.message("<b>") + drawing.cost(Reply(mode="<b>", note="<b>"))
    assert "<b>" not in drawing.bars(["<b>"], [0.5], [0.5])
    assert drawing.message("") == ""


def test_bars_carry_both_probabilities():
    html = drawing.bars(("fast", "slow"), (0.25, 0.75), (0.5, 0.5))
    assert 'data-own="0.2500"' in html and 'data-dialled="0.5000"' in html and "width:75.0%" in html


def test_cost_against_forced_slow():
    quick, slow = Reply(tokens=1, seconds=0.5, mode="fast", done=True), Reply(tokens=8, seconds=2, done=True)
    html = drawing.cost(quick, slow)
    assert "mode fast: 1 token, 0.50 s" in html and "forced slow: 8 tokens, 2.00 s; 12% of its tokens" in html


def test_every_point_is_a_button_with_its_bias():
    points = [Point(-1.0, 0.2, 8.0, 0.9), Point(0.0, 0.5, 6.0, 0.8), Point(2.5, 0.9, 3.0, 0.6)]
    svg = drawing.frontier_svg(points, chosen=2.5)
    assert [f'data-bias="{bias}"' in svg for bias in ("-1", "0", "2.5")] == [True] * 3
    assert svg.count('role="button"') == 3 and svg.count("dial-chosen") == 1
    assert "nan" not in drawing.frontier_svg([Point(0.0, 0.5, 6.0, None)] * 2)
    assert "Not measured yet" in drawing.frontier_svg([])


def test_a_new_question_a_stop_and_leaving_end_what_runs():
    runs = Runs()
    first = runs.stop_of("me")
    runs.begin("me")
    second = runs.stop_of("me")
    assert first.is_set() and not second.is_set() and not runs.stop_of("you").is_set()
    runs.stop("me")
    assert second.is_set() and runs.stop_of("me") is second
    runs.leave("you")
    runs.stop("nobody")


def test_errors_are_told_in_words_and_logged_otherwise(caplog):
    def steps(error):
        yield "first"
        raise error

    assert list(guarded(steps(ValueError("too long")), str.upper)) == ["first", "TOO LONG"]
    assert list(guarded(steps(KeyError("secret")), str)) == ["first", FAILED]
    assert "secret" in caplog.text and "secret" not in FAILED
