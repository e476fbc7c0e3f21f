"""Two tensor-parallel ranks draw the same modes; two engines, Ray actors or replicas of a server draw their own."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from running_server import running

# Each engine in a process of its own: what it draws, and what its ranks drew, as JSON on a line.
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

def watch(worker):
    from adapt_kernels.serving import writing
    own, writing.DRAWN = writing._draw, []
    def drawn(*arguments):
        tokens = own(*arguments)
        writing.DRAWN.extend(tokens.tolist())
        return tokens
    writing._draw = drawn

def seen(worker):
    from adapt_kernels.serving import writing
    return writing.DRAWN

if __name__ == "__main__":
    model, ranks = sys.argv[1], int(sys.argv[2])
    llm = LLM(model, dtype="float32", enforce_eager=True, gpu_memory_utilization=0.2, max_model_len=64, max_num_seqs=16,
              tensor_parallel_size=ranks)
    llm.collective_rpc(watch)
    asked = [SamplingParams(extra_args={"fast_prob": 0.5}, max_tokens=1, temperature=0.7)] * 64
    outs = llm.generate(["1 +2 +3 . . . . . . . ?"] * 64, asked, use_tqdm=False)
    print(json.dumps([[out.outputs[0].token_ids[0] for out in outs], llm.collective_rpc(seen)]))
"""


def _run(tmp_path, model, ranks: int):
    script = tmp_path / "engine.py"
    script.write_text(SCRIPT)
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    done = subprocess.run(
        [sys.executable, str(script), model, str(ranks)], env={**os.environ, **own}, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Workers that end say so on the same stream.
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))


def test_two_tensor_parallel_ranks_draw_the_same(tmp_path, shipped):
    drawn, by_rank = _run(tmp_path, shipped, 2)
    assert len(by_rank) == 2 and by_rank[0] == by_rank[1] and len(by_rank[0]) >= 64
    assert set(drawn) == {26, 27}


def test_two_engines_draw_different_modes(tmp_path, shipped):
    """vLLM seeds torch alike in both."""
    one, two = (_run(tmp_path, shipped, 1)[0] for _ in range(2))
    assert one != two and set(one) == set(two) == {26, 27}


@pytest.fixture
def actors():
    """Ray on this machine, its workers with this process's environment."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_two_ray_actors_draw_different_modes(actors, shipped):
    @actors.remote(num_cpus=1)
    class Engine:
        def __init__(self, model: str):
            from vllm import LLM

            small = {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.2}
            self.llm = LLM(model, max_model_len=64, max_num_seqs=16, **small)

        def draw(self, count: int) -> list[int]:
            from vllm import SamplingParams

            asked = SamplingParams(extra_args={"fast_prob": 0.5}, max_tokens=1, temperature=0.7)
            outs = self.llm.generate(["1 +2 +3 . . . . . . . ?"] * count, asked, use_tqdm=False)
            return [out.outputs[0].token_ids[0] for out in outs]

    engines = [Engine.remote(shipped) for _ in range(2)]
    one, two = actors.get([engine.draw.remote(64) for engine in engines], timeout=500)
    assert one != two and set(one) == set(two) == {26, 27}


def test_two_replicas_of_a_server_draw_different_modes(tmp_path, shipped):
    """--data-parallel-size 2: a header says which replica answers."""

    def drawn(url: str, replica: int) -> str:
        body = {"model": shipped, "prompt": "1 +2 +3 . . . . . . . ?", "max_tokens": 1, "temperature": 0.7}
        body |= {"vllm_xargs": {"fast_prob": 0.5}, "skip_special_tokens": False}
        headers = {"Content-Type": "application/json", "X-data-parallel-rank": str(replica)}
        asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        return json.load(urllib.request.urlopen(asked, timeout=60))["choices"][0]["text"].strip()

    with running(Path(shipped), tmp_path, "--data-parallel-size", "2") as url:
        one, two = ([drawn(url, replica) for _ in range(32)] for replica in (0, 1))
    assert one != two and set(one) == set(two) == {"<answer>", "<think>"}
