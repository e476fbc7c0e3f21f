"""The cases that `make gpu` times: each kernel against the bytes it must move, and against its peers.

A case is (name, peer, bytes, make): `bytes` is what the operation cannot do without, `make()` gives the call. A peer
that cannot run raises NotHere or pytest's skip, and its reason is kept.
"""

from collections.abc import Iterator
from functools import partial

import bench_mode_sample as sampling
import torch
from credit_inputs import plain_score, ppo, trl_functions
from credit_peers import LOSSES, SCORES
from gpu_checks import attention_problem
from gpu_device import Device

import adapt_kernels as ak
from adapt_kernels.ops.segment_attention import segment_attention

FILTERS = {"none": {}, "p90": {"top_p": 0.9}, "k50p90": {"top_k": 50, "top_p": 0.9}, "mode": sampling.FILTERS["mode"]}
SAMPLERS = (sampling.adapt_kernels, sampling.flashinfer, sampling.huggingface)


def cases(device: Device) -> Iterator[tuple]:
    """All of them, the most telling first."""
    yield from policy_loss(device)
    yield from token_logprobs(device)
    yield from attention(device)
    yield from linear_policy_loss(device)
    yield from mode_sample(device)


def mode_sample(device: Device) -> Iterator[tuple]:
    """Bfloat16 rows by number, filters and kind; one read of the rows is the floor."""
    vocab_size = device.pick(151936, 700)
    for rows in device.pick((8, 512, 64, 1), (2,)):
        for kind in ("randn", "peaked"):
            for name, filters in FILTERS.items():
                logits = partial(_logits, kind, rows, vocab_size, device)
                for peer in SAMPLERS:
                    case = f"mode_sample[{kind}-rows{rows}-{name}]"
                    yield case, peer.__name__, 2 * rows * vocab_size, _later(peer, logits, filters)
            yield (
                f"mode_sample[{kind}-rows{rows}-none]",
                "one_read",
                2 * rows * vocab_size,
                _later(sampling.one_read, partial(_logits, kind, rows, vocab_size, device), {}),
            )


def token_logprobs(device: Device) -> Iterator[tuple]:
    """Log-prob and entropy of bfloat16 rows: one read."""
    rows = Credit(device)
    name, size = f"token_logprobs[rows{rows.count}]", rows.bytes
    yield name, "adapt_kernels", size, rows.ours_score
    for density in (0.5, 0.1):
        yield f"{name[:-1]}-live{density}]", "adapt_kernels", int(size * density), partial(rows.ours_score, density)
    for peer, make in SCORES.items():
        yield name, peer, size, partial(rows.peer, make)
    yield name, "plain", size, rows.plain_score
    yield name, "trl", size, rows.trl_score


def policy_loss(device: Device) -> Iterator[tuple]:
    """Loss and gradient of bfloat16 rows: one read and one write."""
    rows = Credit(device)
    name, size = f"policy_loss[rows{rows.count}]", 2 * rows.bytes
    yield name, "adapt_kernels", size, rows.ours
    yield name, "adapt_kernels_in_place", size, partial(rows.ours, in_place=True)
    for density in (0.5, 0.1):
        # A masked row is not read; its zeros are written.
        moved = int(rows.bytes * (1 + density))
        yield f"{name[:-1]}-live{density}]", "adapt_kernels", moved, partial(rows.ours, density)
    for peer, make in LOSSES.items():
        yield name, peer, size, partial(rows.peer, make)
    yield name, "trl", size, rows.trl


def attention(device: Device) -> Iterator[tuple]:
    """4 prompts of 2048 with 16 samples each: the KV of prompts and samples is read once."""
    query, segments = attention_problem(device, torch.bfloat16, device.pick(2048, 70))
    size = sum(tensor.nbytes for segment in segments for tensor in segment[:2])
    name = "segment_attention[4x16-prompt2048]"
    yield name, "adapt_kernels", size, lambda: partial(segment_attention, query, segments, backend="triton")
    yield name, "scaled_dot_product_attention", size, partial(_dense_attention, query, segments)


def linear_policy_loss(device: Device) -> Iterator[tuple]:
    """From hidden states: ours against the three products that no method does without."""
    rows, width, vocab_size = device.pick((8192, 4096, 151936), (6, 8, 90))
    name, size = f"linear_policy_loss[rows{rows}-D{width}]", 0
    yield name, "adapt_kernels", size, partial(_linear, device, rows, width, vocab_size, ours=True)
    yield name, "three_gemms", size, partial(_linear, device, rows, width, vocab_size, ours=False)


class Credit:
    """Rows of the credit ops, made when the first case asks for them."""

    def __init__(self, device: Device):
        self.device = device
        self.count, self.vocab_size = device.pick((8192, 151936), (6, 500))
        self.bytes = 2 * self.count * self.vocab_size

    def _rows(self, density=1.0):
        generator = torch.Generator(self.device.name).manual_seed(1)
        place = {"device": self.device.name, "generator": generator}
        logits = torch.randn(self.count, self.vocab_size, dtype=torch.bfloat16, **place)
        ids = torch.randint(0, self.vocab_size, (self.count,), **place)
        advantages = torch.randn(self.count, **place)
        mask = None if density == 1 else torch.rand(self.count, **place) < density
        old = ak.token_logprobs(logits, ids, backend="native")[0] + 0.05 * torch.randn(self.count, **place)
        return logits, ids, old, advantages, mask

    def ours_score(self, density=1.0):
        logits, ids, _, _, mask = self._rows(density)
        return lambda: ak.token_logprobs(logits, ids, mask, entropy=True, backend="native")

    def ours(self, density=1.0, in_place=False):
        logits, ids, old, advantages, mask = self._rows(density)
        weight = 1 / max(1, int(self.count * density))

        def run():
            leaf = logits.detach().requires_grad_()
            out = logits if in_place else None
            ak.policy_loss(
                leaf, ids, old, advantages, mask, weights=weight, grad_out=out, backend="native"
            ).loss.backward()

        return run

    def peer(self, make):
        logits, ids, old, advantages, _ = self._rows()
        return make(logits, ids, old, advantages)

    def plain_score(self):
        logits, ids, *_ = self._rows()
        parts = list(zip(logits.split(1024), ids.split(1024), strict=True))
        return lambda: [plain_score(x, index) for x, index in parts]

    def trl_score(self):
        logits, ids, *_ = self._rows()
        logprob, entropy = trl_functions()
        x, index = (tensor.unflatten(0, (self.device.pick(8, 2), -1)) for tensor in (logits, ids))
        return lambda: (logprob(x, index), entropy(x))

    def trl(self):
        logits, *rows, _ = self._rows()
        logprob, _ = trl_functions()
        x, index, *values = (tensor.unflatten(0, (self.device.pick(8, 2), -1)) for tensor in (logits, *rows))

        def run():
            leaf = x.detach().requires_grad_()
            ppo(logprob(leaf, index), *values).backward()
            return leaf.grad

        return run


def _logits(kind, rows, vocab_size, device: Device):
    return sampling.make_logits(kind, rows, vocab_size).to(device.name, torch.bfloat16)


def _later(peer, logits, filters):
    return lambda: peer(logits(), filters)


def _dense_attention(query, segments):
    prompt, own = segments
    spread = prompt.groups.group_of_row
    keys, values = (torch.cat([a[spread], b], 2) for a, b in zip(prompt[:2], own[:2], strict=True))
    run = torch.nn.functional.scaled_dot_product_attention
    return lambda: run(query.unsqueeze(2), keys, values, enable_gqa=True)


def _linear(device: Device, rows, width, vocab_size, ours):
    place = {"dtype": torch.bfloat16, "device": device.name}
    hidden, weight = torch.randn(rows, width, **place), 0.02 * torch.randn(vocab_size, width, **place)
    ids = torch.arange(rows, device=device.name) % vocab_size
    if not ours:
        logits = torch.empty(rows, vocab_size, **place)
        return lambda: (torch.mm(hidden, weight.t(), out=logits), logits @ weight, logits.t() @ hidden)

    def run():
        leaves = [tensor.detach().requires_grad_() for tensor in (hidden, weight)]
        ak.linear_policy_loss(*leaves, ids, -12.0, 1.0, weights=1 / rows, backend="native").loss.backward()

    return run
