"""vLLM's HTTP server as `adapt serve` starts it, asked by many at once: all valid requests right, all others a 400."""

import http.client
import json
import time
import urllib.request

import pytest
from asked import CLOSE, prompts
from running_server import running

from adapt_recipes.serving.load import Load, run

FAST = {"vllm_xargs": {"mode": "fast"}}
SLOW = {"vllm_xargs": {"mode": "slow"}}
CUT = {"vllm_xargs": {"mode": "slow", "thinking_budget": 1}}
PLAIN: dict = {}
GOOD = [FAST, SLOW, CUT, PLAIN, {"vllm_xargs": {"fast_prob": 0.5}, "n": 1}]
BAD = [
    ({"vllm_xargs": {"mode": "fst"}}, "mode: must be 'auto' or one of"),
    ({"vllm_xargs": {"fastprob": 0.5}}, "fastprob: unknown setting, did you mean fast_prob"),
    ({"vllm_xargs": {"fast_prob": 2.0}}, "fast_prob: must be a number inside"),
    ({"vllm_xargs": {"thinking_budget": -3}}, "thinking_budget: must be a whole number"),
    ({"vllm_xargs": {"mode": "fast", "mode_bias": 1.0}}, "mode: 'fast' already decides"),
    ({"fast_prob": 0.5}, "fast_prob: goes into"),
    ({**FAST, "structured_outputs": {"choice": ["1", "2"]}}, "mode: a grammar"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, model's name) of a running server."""
    import adapt_recipes as ar

    with running(ar.checkpoint_path("sft"), tmp_path_factory.mktemp("server")) as url:
        yield url, str(ar.checkpoint_path("sft"))


def _abandon(url: str, model: str) -> None:
    """A client that asks for much and leaves."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    body = {"model": model, "prompt": prompts(1)[0], "max_tokens": 40, "ignore_eos": True, **SLOW}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    connection.close()


def _in_flight(url: str) -> float:
    text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(names))


def test_200_at_once(server):
    url, model = server
    settings = [*GOOD, *(body for body, _ in BAD)]
    asked = Load(url, model, prompts(20), settings, {"fast": "<answer>", "slow": "<think>"}, 24, 0.0)
    for _ in range(10):
        _abandon(url, model)
    answers, seconds = run(asked, 240, 40)
    print(f"240 requests in {seconds:.1f} s")
    for _ in range(10):
        _abandon(url, model)
    by_setting = [[each for each in answers if each.setting == n] for n in range(len(settings))]
    for own, (_, text) in zip(by_setting[len(GOOD) :], BAD, strict=True):
        assert {each.status for each in own} == {400} and all(each.error.startswith(text) for each in own), own[0]
    fast, slow, cut, plain, half = by_setting[: len(GOOD)]
    assert all(each.status == 200 for own in by_setting[: len(GOOD)] for each in own)
    assert {each.mode for each in fast} == {"fast"} and {each.mode for each in slow + cut} == {"slow"}
    assert {each.mode for each in half} == {"fast", "slow"}
    assert max(each.tokens for each in cut) <= 5 < max(each.tokens for each in slow)
    # Nobody's settings are left in a slot: alone, those without any say the same.
    alone, _ = run(Load(url, model, asked.prompts, [{}] * len(settings), asked.modes, 24, 0.0), 240, 4)
    assert [(each.mode, each.tokens) for each in plain] == [(e.mode, e.tokens) for e in alone[3 :: len(settings)]]
    end = time.monotonic() + 60
    while _in_flight(url) and time.monotonic() < end:
        time.sleep(1)
    assert _in_flight(url) == 0


def test_a_chat_or_completion_has_its_program_by_json(server):
    url, model = server
    program = {
        "spans": {"think": {"open": 27, "close": CLOSE, "stops": "end"}},
        "rules": [{"force": [24, CLOSE], "when": {"in": "think", "count": [1, None]}}],
    }
    body = {"vllm_xargs": {"mode": "slow", "program": json.dumps(program)}}
    [answer], _ = run(Load(url, model, prompts(1), [body], {"slow": "<think>"}, 24, 0.0), 1, 1)
    assert answer.status == 200 and answer.mode == "slow"
