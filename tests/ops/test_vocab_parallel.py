"""token_logprobs and policy_loss with the vocabulary split over two gloo processes: equal to one process's results."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adapt_kernels as ak

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
import torch, torch.distributed as dist
from test_vocab_parallel import compare
rank, store, backend = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
compare(rank, backend)
dist.barrier()
print("equal")
dist.destroy_process_group()
"""
SPLIT = 130  # of 301: shards differ in size


def rows():
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(3, 8, 301, generator=generator)
    logits[0, 0, :SPLIT] = -math.inf  # one whole shard
    logits[0, 1, SPLIT:] = -math.inf
    logits[0, 2] += 200
    ids = torch.randint(0, 301, (3, 8), generator=generator)
    ids[0, 0], ids[0, 1] = 200, 5
    mask = torch.rand(3, 8, generator=generator) < 0.8
    mask[0, :3] = True
    logits[~mask] = math.nan
    ids[~mask] = -100
    temperature = 0.5 + torch.rand(3, 8, generator=generator)
    return logits, ids, mask, temperature


def compare(rank, backend):
    logits, ids, mask, temperature = rows()
    columns = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    group = torch.distributed.group.WORLD
    old = ak.token_logprobs(logits, ids, mask, temperature, backend="reference")[0] - 0.1
    settings = {"kinds": torch.arange(24).view(3, 8) % 4, "weights": 0.2, "entropy_coef": 0.1}
    results = []
    for x, keywords in ((logits[..., columns], {"process_group": group}), (logits, {})):
        leaf = x.clone().requires_grad_()
        logprobs, entropy = ak.token_logprobs(leaf, ids, mask, temperature, entropy=True, backend=backend, **keywords)
        (logprobs.sum() + 0.3 * entropy.sum()).backward()
        grad, leaf.grad = leaf.grad, None
        out = ak.policy_loss(
            leaf, ids, old, 1.0, mask, temperature=temperature, backend=backend, **settings, **keywords
        )
        out.loss.backward()
        results.append((logprobs, entropy, *out, grad, leaf.grad))
    sharded, whole = results
    whole = (*whole[:-2], *(grad[..., columns] for grad in whole[-2:]))
    for got, value in zip(sharded, whole, strict=True):
        assert got.dtype == value.dtype
        torch.testing.assert_close(got, value, rtol=2e-6, atol=2e-6)
    assert not sharded[-1][~mask].any()
    spoiled = logits.clone()
    spoiled[0, 3, 299] = math.nan
    mask[0, 3], ids[0, 3] = True, 3
    found, _ = ak.token_logprobs(spoiled[..., columns], ids, mask, backend=backend, process_group=group)
    assert found.isnan().sum() == 1 and found[0, 3].isnan(), "a NaN in one shard is everyone's"


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_two_processes_equal_one(backend, tmp_path):
    if reason := ak.backends()[backend]:
        pytest.skip(reason)
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    # The ranks meet in a file: a port found free here may be taken before they bind it.
    environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    outputs = [tmp_path / f"rank{rank}.txt" for rank in range(2)]
    workers = []
    for rank, path in enumerate(outputs):
        command = [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), backend]
        with path.open("w") as output:
            workers.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [worker.wait(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    told = "\n".join(f"rank {rank}: {path.read_text()[-2000:]}" for rank, path in enumerate(outputs))
    assert codes == [0, 0] and told.count("equal") == 2, told
