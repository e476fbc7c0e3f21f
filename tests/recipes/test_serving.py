"""Models for serving engines: heads re-laid, servers launched, and many clients at once."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from typer.testing import CliRunner

import adapt_recipes as ar
from adapt_kernels import Modes, Program
from adapt_recipes.commands import app
from adapt_recipes.serving import launch
from adapt_recipes.serving.export import export_for_vllm, head_size
from adapt_recipes.serving.load import percentiles

CHECKPOINT = ar.checkpoint_path("sft")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_re_laid_heads_give_the_same_logits(tmp_path):
    from transformers import AutoModelForCausalLM

    assert "heads of 16 dims re-laid as heads of 32" in export_for_vllm(CHECKPOINT, tmp_path / "out")
    assert head_size(tmp_path / "out") == 32
    one, two = (AutoModelForCausalLM.from_pretrained(path).double() for path in (CHECKPOINT, tmp_path / "out"))
    ids = torch.randint(4, 29, (16, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Queries times sqrt(2) are rounded to float32 in the file.
        torch.testing.assert_close(one(ids).logits, two(ids).logits, atol=1e-4, rtol=0)
    assert Modes.from_pretrained(tmp_path / "out") == Modes.from_pretrained(CHECKPOINT)


def test_a_size_that_the_engine_knows_is_left_alone(tmp_path):
    export_for_vllm(CHECKPOINT, tmp_path / "once")
    assert "the weights are as they were" in export_for_vllm(tmp_path / "once", tmp_path / "twice")
    with pytest.raises(ValueError, match="is not empty"):
        export_for_vllm(CHECKPOINT, tmp_path / "once")


CHANGES = [{"model_type": "qwen3"}, {"head_dim": 17}, {"rope_parameters": {"rope_type": "yarn"}}]


@pytest.mark.parametrize("change", CHANGES)
def test_heads_that_cannot_be_re_laid_are_refused(tmp_path, change):
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    result = invoke("export", folder, tmp_path / "out")
    assert result.exit_code == 2 and "cannot re-lay heads" in result.output


def test_serve_says_what_is_active_and_hands_the_rest_to_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    monkeypatch.setattr(launch, "on_cpu", lambda: True)
    Program.from_dict({"rules": [{"bias": 3, "by": "ban"}]}).save_pretrained(tmp_path / "ban")
    program = f"ban={tmp_path / 'ban'}"
    made = launch.prepare(CHECKPOINT, "vllm", [program], None, None, ["--port", "9"], tmp_path)
    assert made.command[1:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert made.command[-2:] == ["--port", "9"] and head_size(made.command[4] and tmp_path / "model") == 32
    assert Modes.from_pretrained(made.environment["ADAPT_KERNELS_MODES"]).names == ("fast", "slow")
    assert made.environment["ADAPT_KERNELS_PROGRAMS"] == program
    assert made.active[:2] == ["modes: fast, slow (mode, mode_bias, fast_prob)", "programs: ban"]


SERVE = [
    (("--engine", "hf"), "gives every request the generation settings of the first one"),
    (("--engine", "sglang"), "--engine must be vllm or hf; got 'sglang'"),
    ((), "--engine vllm needs vLLM beside this package"),
]


@pytest.mark.parametrize(("more", "text"), SERVE)
def test_serve_refuses_with_the_reason(monkeypatch, more, text):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    result = invoke("serve", "--model", CHECKPOINT, *more)
    assert result.exit_code == 2 and text in result.output


class Server(BaseHTTPRequestHandler):
    """Fast where it is told so; a setting "bad" is a 400."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bad = "bad" in body.get("vllm_xargs", {})
        text = "<answer> 3" if body.get("vllm_xargs", {}).get("mode") == "fast" else " <think> 1 </think> 3"
        content = {"choices": [{"text": text}], "usage": {"completion_tokens": 4}}
        answer = json.dumps({"error": {"message": "bad: unknown"}} if bad else content).encode()
        self.send_response(400 if bad else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_load_counts_modes_tokens_and_errors_of_each_setting(tmp_path, url):
    settings = [{"vllm_xargs": {"mode": "fast"}}, {"vllm_xargs": {"bad": 1}}, {}]
    given = [part for each in settings for part in ("--setting", json.dumps(each))]
    result = invoke("load", url, "--model", "m", "--out", tmp_path, "--requests", 30, "--clients", 8, *given)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "load.json").read_text("utf-8"))
    fast, bad, slow = found["settings"]
    assert [row["requests"] for row in found["settings"]] == [10, 10, 10]
    assert fast["share"] == {"fast": 1.0, "slow": 0.0} and slow["share"] == {"fast": 0.0, "slow": 1.0}
    assert bad["errors"] == [{"status": 400, "error": "bad: unknown", "count": 10}] and bad["latency"] == {}
    assert found["tokens"] == 80 and set(fast["latency"]) == {"p50", "p90", "p99"} and len(found["answers"]) == 30
    assert (tmp_path / "load.png").stat().st_size > 5000
    assert "10 x 400: bad: unknown" in result.output


def test_load_without_a_server_says_so(tmp_path):
    result = invoke("load", "http://127.0.0.1:1", "--model", "m", "--out", tmp_path, "--requests", 2)
    assert result.exit_code == 1 and "ConnectionRefusedError" in result.output
    for text, reason in (("3", "must be a JSON object"), ("{", "must be a JSON object")):
        result = invoke("load", "http://127.0.0.1:1", "--model", "m", "--setting", text)
        assert result.exit_code == 2 and reason in result.output


def test_percentiles_are_of_the_nearest_rank():
    assert percentiles(list(range(1, 101))) == {"p50": 50, "p90": 90, "p99": 99} and percentiles([]) == {}
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0}
