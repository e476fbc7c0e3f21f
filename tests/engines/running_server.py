"""vLLM's HTTP server of a model, as `adapt serve` starts it, for as long as a test asks it."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress

from adapt_recipes.serving.launch import prepare

SMALL = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32", "--gpu-memory-utilization", "0.3"]


@contextmanager
def running(model, folder, *more: str):
    """Yields the server's address on the loopback interface."""
    port = _free_port()
    arguments = ["--port", str(port), "--host", "127.0.0.1", *SMALL, *more]
    launch = prepare(model, "vllm", (), None, None, arguments, folder)
    environment = {**os.environ, **launch.environment, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(launch.command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _ready(process, f"http://127.0.0.1:{port}", folder / "log")
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:  # its engines are processes of their own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _ready(process, url: str, log) -> str:
    end = time.monotonic() + 500
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text("utf-8")[-3000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return url
        except OSError:
            time.sleep(2)
    raise AssertionError(f"no server after 500 s: {log.read_text('utf-8')[-3000:]}")
