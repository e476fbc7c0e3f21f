"""Many clients at once against an OpenAI-compatible server: latencies, tokens, modes and errors of mixed settings."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Answer:
    """One request: which setting, how it ended (an HTTP status, or 0 with the reason in `error`), seconds, tokens."""

    setting: int
    status: int
    seconds: float
    tokens: int
    mode: str | None
    error: str | None


@dataclass(frozen=True)
class Load:
    """What is asked: prompts and settings in turn. modes: {name: text that its replies begin with}."""

    url: str
    model: str
    prompts: Sequence[str]
    settings: Sequence[Mapping[str, Any]]
    modes: Mapping[str, str]
    max_tokens: int = 64
    temperature: float = 1.0
    timeout: float = 600.0


def run(
    load: Load, requests: int, clients: int, advance: Callable[[int], None] | None = None
) -> tuple[list[Answer], float]:
    """(the answers in order, seconds in all) of so many requests by so many clients at once."""
    local, begun = threading.local(), time.perf_counter()

    def ask(number: int) -> Answer:
        try:
            return _ask(load, number, local)
        finally:
            if advance is not None:
                advance(1)

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(requests)))
    return answers, time.perf_counter() - begun


def _ask(load: Load, number: int, local) -> Answer:
    index = number % len(load.settings)
    body = {
        "model": load.model, "prompt": load.prompts[number % len(load.prompts)], "max_tokens": load.max_tokens,
        "temperature": load.temperature, "skip_special_tokens": False, **load.settings[index],
    }  # fmt: skip
    begun = time.perf_counter()
    try:
        status, content = _post(load, body, local)
    except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
        local.connection = None
        return Answer(index, 0, time.perf_counter() - begun, 0, None, f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - begun
    if status != 200:
        message = content.get("error", content) if isinstance(content, dict) else content
        text = message.get("message", message) if isinstance(message, dict) else message
        return Answer(index, status, seconds, 0, None, str(text))
    text = content["choices"][0]["text"].lstrip()
    mode = next((name for name, opening in load.modes.items() if text.startswith(opening)), None)
    return Answer(index, status, seconds, content["usage"]["completion_tokens"], mode, None)


def _post(load: Load, body: dict[str, Any], local) -> tuple[int, Any]:
    place = urlsplit(load.url)
    if getattr(local, "connection", None) is None:
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        local.connection = kind(place.hostname or "127.0.0.1", place.port, timeout=load.timeout)
    path = place.path.rstrip("/") + "/v1/completions"
    local.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = local.connection.getresponse()
    return response.status, json.loads(response.read())


def summary(load: Load, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Totals, and per setting: requests, modes, tokens, latency percentiles in seconds, errors by status."""
    rows = []
    for index, setting in enumerate(load.settings):
        own = [each for each in answers if each.setting == index]
        good = [each for each in own if each.status == 200]
        counted = {name: sum(each.mode == name for each in good) for name in load.modes}
        rows.append(
            {
                "setting": dict(setting),
                "requests": len(own),
                "share": {name: count / len(good) if good else None for name, count in counted.items()},
                "tokens_mean": sum(each.tokens for each in good) / len(good) if good else None,
                "latency": percentiles([each.seconds for each in good]),
                "errors": _errors(own),
            }
        )
    tokens = sum(each.tokens for each in answers)
    return {
        "url": load.url, "model": load.model, "requests": len(answers), "seconds": seconds, "tokens": tokens,
        "tokens_per_second": tokens / seconds, "settings": rows, "answers": [asdict(each) for each in answers],
    }  # fmt: skip


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """{"p50": ...} by the nearest rank; {} of nothing."""
    ordered = sorted(values)
    return {f"p{p}": ordered[max(0, -(-p * len(ordered) // 100) - 1)] for p in PERCENTILES} if ordered else {}


def _errors(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], int] = {}
    for each in answers:
        if each.error is not None:
            found[each.status, each.error] = found.get((each.status, each.error), 0) + 1
    return [{"status": status, "error": error, "count": count} for (status, error), count in found.items()]


def save_plot(result: Mapping[str, Any], path: Path) -> None:
    """The latencies of each setting as a curve: the share of requests answered within so many seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, row in enumerate(result["settings"]):
        own = [each for each in result["answers"] if each["setting"] == index and each["status"] == 200]
        seconds = sorted(each["seconds"] for each in own)
        if seconds:
            share = [(n + 1) / len(seconds) for n in range(len(seconds))]
            axes.step(seconds, share, where="post", label=json.dumps(row["setting"].get("vllm_xargs", row["setting"])))
    axes.set(xlabel="seconds to the whole answer", ylabel="share of requests", ylim=(0, 1), title=result["model"])
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)
