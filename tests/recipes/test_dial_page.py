"""The page of `adapt dial` as a client without a browser sees it."""

import http.client
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import torch
from dial_server import serving
from typer.testing import CliRunner

import adapt_recipes as ar
from adapt_recipes import extras
from adapt_recipes.commands import app
from adapt_recipes.dial.serve import announce, is_loopback, launch
from adapt_recipes.dial.served import serve_default
from adapt_recipes.dial.session import FAILED
from adapt_recipes.terminal import console

pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[dial]'")

DIAL = ["mode", 0, 0.5, "slow", "", "", ""]
FIELDS = [16, 7, False]
QUESTION = "1 +1 +2 +3 +1 . . . . ?"


@pytest.fixture(scope="module")
def served():
    return serve_default()


@pytest.fixture(scope="module")
def url(served):
    with serving(served) as address:
        yield address


@pytest.fixture
def client(url):
    from gradio_client import Client

    return Client(url, verbose=False)


def get(url, path, method="GET", body=None, headers=()):
    """Status and text of one request whose path nobody normalises."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, path, body=body, headers=dict(headers))
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8", "replace")


def asked(client, prompt, dial=DIAL, fields=FIELDS, slow=False):
    """The last update of message, answer, thought, cost and bars."""
    return client.predict(prompt, slow, *dial, *fields, api_name="/ask")


def own_fast(served, prompt):
    """P(fast) after one plain forward, no generation."""
    with torch.no_grad():
        logits = served.model(**served.inputs(prompt, 1)).logits[0, -1]
    return logits[[served.modes[name].ids[0] for name in served.names]].softmax(0)[0].item()


def test_an_answer_with_its_cost(client, served):
    said, text, thought, cost, bars = asked(client, QUESTION)
    assert (said, text, thought) == ("", "8", "2 4 7 8")
    assert "mode slow: 8 tokens" in cost and 'data-dialled="0.0000"' in bars
    assert float(re.search(r'data-own="([\d.]+)"', bars)[1]) == pytest.approx(own_fast(served, QUESTION), abs=1e-3)
    cost = asked(client, QUESTION, ["mode", 0, 0.5, "fast", "", "", ""], slow=True)[3]
    assert "mode fast: 3 tokens" in cost and "forced slow: 8 tokens" in cost


def test_twenty_users_at_once(url, served):
    from gradio_client import Client

    prompts = [problem.prompt for problem in ar.problems(20, seed=4)]
    answers = {problem.prompt: problem.answer for problem in ar.problems(20, seed=4)}

    def user(prompt):
        return asked(Client(url, verbose=False), prompt)

    with ThreadPoolExecutor(20) as users:
        shown = list(users.map(user, prompts))
    right = [str(each[1]) == answers[prompt] for prompt, each in zip(prompts, shown, strict=True)]
    assert sum(right) >= 19  # the model itself errs now and then, users' answers never change places


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "1 " * 5000}, "the prompt has 5001 tokens"),
        ({"dial": [*DIAL[:4], "-3", "", ""]}, "the thinking budget must be a whole number of tokens"),
        (
            {"dial": [*DIAL[:5], "budget", "tokens=x"]},
            "program &#x27;budget&#x27; with the settings &#x27;tokens=x&#x27;",
        ),
        ({"fields": [0, 7, False]}, "the most new tokens must be a whole number from 1"),
    ],
)
def test_bad_input_is_a_message(client, change, text):
    said = asked(client, **{"prompt": "1 +1 . . . . . . . ?", **change})[0]
    assert 'class="dial-error"' in said and text in said and "Traceback" not in said


def test_a_failure_shows_no_traceback(client, served, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("secret path /etc")

    monkeypatch.setattr(served.model, "generate", fail)
    said = asked(client, "1 +1 . . . . . . . ?")[0]
    assert FAILED.split(";")[0] in said and "secret" not in said
    assert "secret path" in caplog.text


def test_compare_runs_both(client):
    fast = ["mode", 0, 0.5, "fast", "", "", ""]
    shown = client.predict(QUESTION, *DIAL, *fast, *FIELDS, api_name="/compare")
    assert "mode fast: 3 tokens" in shown[6]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={secret}",
        "/gradio_api/file=../../../../etc/passwd",
        "/file=/etc/passwd",
        "/static/../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/gradio_api/file=setup.py",
        "/gradio_api/proxy=http://127.0.0.1/",
    ],
)
def test_no_file_outside_its_own(url, path, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("root:secret")
    status, text = get(url, path.format(secret=secret))
    assert status >= 400 and "root:" not in text and "Traceback" not in text


def test_no_upload(url):
    body = (
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n'
        "Content-Type: text/plain\r\n\r\nmore than a byte\r\n--x--\r\n"
    )
    headers = [("Content-Type", "multipart/form-data; boundary=x")]
    status, text = get(url, "/gradio_api/upload", "POST", body, headers)
    assert status >= 400 and "Traceback" not in text


def test_the_page_names_nobody_else(url):
    """Fonts and scripts of its own; the one script of Gradio's that comes from elsewhere is not needed."""
    _, text = get(url, "/")
    assert "fonts.googleapis.com" not in text and "analytics" not in re.findall(r"https?://[^\"' ]+", text)


def test_loopback_only(url):
    port = urlsplit(url).port
    assert urlsplit(url).hostname == "127.0.0.1"
    own = next(iter(socket.gethostbyname_ex(socket.gethostname())[2]), "127.0.0.1")
    if not own.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((own, port), timeout=2).close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_other_hosts_are_warned_of(served, host, loopback):
    assert is_loopback(host) is loopback
    with console.capture() as said:
        announce(served, host, 7860, console)
    assert ("Anybody who reaches this machine" in said.get()) is not loopback


def test_a_taken_port_is_said_plainly(served, url):
    with pytest.raises(OSError, match=str(urlsplit(url).port)):
        launch(served, port=urlsplit(url).port, block=False)


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["dial"])
    assert done.exit_code == 2
    assert "the page needs gradio: pip install 'adapt-kernels[dial]'" in done.output


def test_wrong_models_are_said_plainly(tmp_path):
    for arguments, text in (
        (["--model", "absent"], "model folder absent does not exist"),
        (["--smollm2", "--model", str(tmp_path)], "give --model or --smollm2, not both"),
    ):
        done = CliRunner().invoke(app, ["dial", *arguments])
        assert done.exit_code == 2 and text in done.output
