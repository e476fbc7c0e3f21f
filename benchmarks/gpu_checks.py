"""What `make gpu` proves before it measures: each check returns one line of what it found, or fails an assertion."""

import numpy as np
import torch
from gpu_device import Device, NotRun

import adapt_kernels as ak
from adapt_kernels import philox, philox_reference
from adapt_kernels.hf.compat import CACHE
from adapt_kernels.ops.segment_attention import Segment, group_rows, segment_attention

SAMPLING = {"temperature": 0.9, "top_k": 60, "top_p": 0.95, "min_p": 0.001}


def random_bits(device: Device) -> str:
    """The stream's words by torch on the device and by the Triton kernel, against NumPy's."""
    rng = np.random.default_rng(11)
    count = device.pick(1 << 16, 1 << 10)
    seed, item = rng.integers(-(2**63), 2**63 - 1, (2, count))
    step = rng.integers(0, 2**32, count)
    wanted = philox_reference.random_bits(seed, step, philox_reference.PURPOSE_TOKEN, item)
    there = (torch.from_numpy(x).to(device.name) for x in (seed, step))
    words = philox.random_words(*there, philox_reference.PURPOSE_TOKEN, torch.from_numpy(item).to(device.name))
    assert (_bits(*words) == wanted).all(), "torch's bits differ from NumPy's"
    columns = torch.arange(4096, device=device.name)
    for seed, step in ((0, 0), (5, 3), (-3, 2**31), (2**62 + 12345, 2**32 - 1)):
        wanted = philox_reference.random_bits(seed, step, philox_reference.PURPOSE_TOKEN, np.arange(4096))
        assert (_bits(*_triton_words(seed, step, columns)) == wanted).all(), f"Triton's bits differ, seed {seed}"
    return f"{count} words by torch, {4 * 4096} by Triton"


def tokens_everywhere(device: Device) -> str:
    """The same seeds give the same tokens: CPU and device, alone, in any slot. Float32 logits."""
    rows, vocab_size = device.pick((256, 151936), (3, 300))
    logits = 3 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(2))
    seeds = torch.arange(rows) * 12345 - 99
    cpu = ak.mode_sample(logits, seeds=seeds, backend="native", **SAMPLING)
    there, seeds_there = logits.to(device.name), seeds.to(device.name)
    found = ak.mode_sample(there, seeds=seeds_there, backend="triton", **SAMPLING)
    differing = int((found.tokens.cpu() != cpu.tokens).sum())
    # Two noised values within 1e-5 of each other may swap: one draw in a hundred thousand.
    assert differing <= 1, f"{differing} of {rows} tokens differ between the CPU and the device"
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3)).to(device.name)
    moved = ak.mode_sample(there[order], seeds=seeds_there[order], backend="triton", **SAMPLING)
    _same(moved, [field[order] for field in found], "in another order")
    for row in (0, rows // 2, rows - 1):
        part = slice(row, row + 1)
        alone = ak.mode_sample(there[part], seeds=seeds_there[part], backend="triton", **SAMPLING)
        _same(alone, [field[part] for field in found], "alone")
    return f"{rows - differing} of {rows} tokens equal the CPU's; bits equal in every slot"


def nuclei(device: Device) -> str:
    """Flat and steep rows, where top-p keeps a handful to most of the vocabulary: the CPU's kept sets and tokens."""
    shapes = {
        "normal": lambda x: x,
        "wide": lambda x: 3 * x,
        "flat": lambda x: 0.1 * x,
        "zipf": lambda x: -1.1 * torch.arange(1, x.shape[1] + 1).log().expand_as(x),
        "steps": lambda x: (2 * x).round() / 2,
    }
    differing = drawn = 0
    for vocab_size in device.pick((151936, 50257), (700,)):
        for shape, make in shapes.items():
            normal = torch.randn(device.pick(12, 2), vocab_size, generator=torch.Generator().manual_seed(vocab_size))
            for dtype in device.pick((torch.bfloat16, torch.float16, torch.float32), (torch.bfloat16,)):
                logits = make(normal).to(dtype)
                rows = torch.arange(len(logits))
                filters = {"top_p": torch.tensor([0.3, 0.6, 0.9, 0.95, 0.99, 0.999], dtype=torch.float64)[rows % 6]}
                filters["temperature"] = torch.tensor([1.0, 0.7], dtype=torch.float64)[rows // 6]
                cpu = ak.mode_sample(logits, seeds=rows, backend="native", **filters)
                there = {name: value.to(device.name) for name, value in filters.items()}
                found = ak.mode_sample(logits.to(device.name), seeds=rows.to(device.name), backend="triton", **there)
                assert torch.equal(found.kept.cpu(), cpu.kept), (
                    f"{shape}, {dtype}, V = {vocab_size}: keeps {found.kept.tolist()}, the CPU {cpu.kept.tolist()}"
                )
                differing += int((found.tokens.cpu() != cpu.tokens).sum())
                drawn += len(rows)
    assert differing <= 1, f"{differing} of {drawn} tokens differ between the CPU and the device"
    return f"{drawn} rows keep what the CPU keeps; {drawn - differing} tokens are the CPU's"


def credit_gradients(device: Device) -> str:
    """policy_loss and its gradient by the native kernel on the device, against the float64 reference on the CPU."""
    worst = {}
    for dtype, unit in ((torch.float32, 1e-5), (torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)):
        for vocab_size in (151936, 50257, 32001) if device.real else (1999,):
            error = _gradient_error(device, dtype, vocab_size)
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error / unit)
            assert error <= unit, f"{dtype}, V = {vocab_size}: gradient off by {error:.1e} of its largest entry"
    return ", ".join(f"{dtype}: {value:.2f} of the bound" for dtype, value in worst.items())


def segment_attention_values(device: Device) -> str:
    """Attention over a shared prompt and own segments by the Triton kernel, against the reference."""
    query, segments = attention_problem(device, torch.float32, device.pick(2048, 70))
    wanted = segment_attention(query.double(), [_double(s) for s in segments], backend="reference")
    found = segment_attention(query, segments, backend="triton")
    error = float((found - wanted).abs().max() / wanted.abs().max())
    # Float32 products may be rounded to 10 bits by the tensor cores.
    assert error < 5e-3, f"off by {error:.1e} of the largest entry"
    return f"off by {error:.1e} of the largest entry"


def nothing_waits(device: Device) -> str:
    """No op waits for the device: with torch's detection of syncs set to fail."""
    if not device.real:
        raise NotRun("no GPU to wait for")
    step, logits = decode_step(device), torch.randn(8, 151936, device=device.name)
    parts = {
        "mode_sample": lambda: ak.mode_sample(logits, seeds=step.seeds, step=step.step, backend="triton", **SAMPLING),
        "policy_loss and its gradient": _loss_step(device),
        "a decode step with its model": step,
    }
    for name, run in parts.items():
        run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            raise AssertionError(f"{name} waits: {error}") from None
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ", ".join(parts)


def graph_of_a_decode_step(device: Device) -> str:
    """A model's forward over a static cache and the sampler in one CUDA graph: the tokens of the eager steps."""
    step = decode_step(device)
    number = device.pick(12, 2)
    eager = [step().clone() for _ in range(number)]
    assert len({tuple(tokens.tolist()) for tokens in eager}) > 1
    step.restart()
    again = [step().clone() for _ in range(number)]
    assert all(torch.equal(a, b) for a, b in zip(eager, again, strict=True))
    if not device.real:
        raise NotRun("no GPU to capture on; the eager steps ran twice and are equal")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = step()
    step.restart()
    for at, wanted in enumerate(eager):
        graph.replay()
        assert torch.equal(tokens, wanted), f"replay {at} gives other tokens"
    return f"{number} replays"


class DecodeStep:
    """One token for every row: a small Qwen2 over a static cache, then mode_sample; all state on the device."""

    def __init__(self, device: Device, rows: int):
        from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

        torch.manual_seed(0)
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = Qwen2Config(vocab_size=device.pick(151936, 200), num_key_value_heads=2, **sizes)
        self.model = Qwen2ForCausalLM(config).eval().to(device.name)
        self.cache = StaticCache(config=config, max_cache_len=64)
        self.prompt = torch.arange(rows * 8, device=device.name).view(rows, 8) % 190
        self.tokens, self.position = self.prompt[:, -1].clone(), torch.zeros_like(self.prompt[:, :1])
        self.step = torch.zeros(rows, dtype=torch.int64, device=device.name)
        self.seeds = torch.arange(rows, device=device.name)
        self.sampling = device.pick(SAMPLING, {"temperature": 0.9})
        with torch.no_grad():
            self.model(input_ids=self.prompt[:, :-1], use_cache=True, **{CACHE: self.cache})
        self.restart()

    def restart(self) -> None:
        """Back to the prompt, in place."""
        before = self.prompt.shape[1] - 1
        for layer in self.cache.layers:
            # Where a cache keeps no length, it counts what is not zero.
            layer.keys[:, :, before:].zero_()
            layer.values[:, :, before:].zero_()
            if torch.is_tensor(getattr(layer, "cumulative_length", None)):
                layer.cumulative_length.fill_(before)
        self.tokens.copy_(self.prompt[:, -1])
        self.position.fill_(before)
        self.step.zero_()

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        out = self.model(
            input_ids=self.tokens[:, None], position_ids=self.position, use_cache=True, **{CACHE: self.cache}
        )
        drawn = {"seeds": self.seeds, "step": self.step, "backend": "triton"}
        sample = ak.mode_sample(out.logits[:, -1], **drawn, **self.sampling)
        self.tokens.copy_(sample.tokens)
        self.position += 1
        self.step += 1
        return self.tokens


def decode_step(device: Device) -> DecodeStep:
    """A warmed-up step, back at its prompt."""
    step = DecodeStep(device, device.pick(8, 2))
    step()
    step.restart()
    return step


def attention_problem(device: Device, dtype, prompt_length: int):
    """(query, segments): 4 prompts with 16 samples each, 12 heads on 2 KV heads; tiny in a dry run."""
    prompts, samples, own = device.pick((4, 16, 128), (2, 2, 5))
    generator = torch.Generator().manual_seed(5)
    rows, size = prompts * samples, device.pick(128, 16)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator).to(device.name, dtype)

    groups = group_rows(torch.arange(rows, device=device.name) // samples, prompts)
    shared = Segment(tensor(prompts, 2, prompt_length, size), tensor(prompts, 2, prompt_length, size), groups)
    return tensor(rows, 12, size), [shared, Segment(tensor(rows, 2, own, size), tensor(rows, 2, own, size))]


def credit_problem(rows: int, vocab_size: int, dtype, device: str):
    """(logits, ids, old log-probs, advantages, mask) on a device, with clipped, masked and zero rows."""
    generator = torch.Generator().manual_seed(rows)
    logits = (3 * torch.randn(rows, vocab_size, generator=generator)).to(dtype)
    ids = torch.randint(0, vocab_size, (rows,), generator=generator)
    old = torch.log_softmax(logits.double(), -1).gather(1, ids[:, None]).squeeze(1)
    old += torch.tensor([0.0, 0.1, -0.5, 2.0, -2.0])[torch.arange(rows) % 5]
    advantages = torch.tensor([1.0, -1.5, 0.0, 2.0])[torch.arange(rows) % 4]
    return [tensor.to(device) for tensor in (logits, ids, old, advantages, torch.arange(rows) % 6 != 5)]


def _gradient_error(device: Device, dtype, vocab_size: int) -> float:
    gradients = []
    for name, backend in ((device.name, "native"), ("cpu", "reference")):
        logits, *rows = credit_problem(device.pick(24, 7), vocab_size, dtype, name)
        leaf = logits.requires_grad_()
        out = ak.policy_loss(leaf, *rows, entropy_coef=0.05, backend=backend)
        (3 * out.loss).backward()
        assert torch.equal(ak.token_logprobs(logits, rows[0], rows[3], backend=backend)[0], out.logprobs)
        if backend == "native":
            _same([_gradient_in_place(logits, rows)], [leaf.grad], "with its gradient in place")
        gradients.append(leaf.grad.cpu().double())
    found, wanted = gradients
    return float((found - wanted).abs().max() / wanted.abs().max())


def _gradient_in_place(logits, rows):
    source = logits.detach().clone().requires_grad_()
    written_over = source * 1
    out = ak.policy_loss(written_over, *rows, entropy_coef=0.05, grad_out=written_over, backend="native")
    (3 * out.loss).backward()
    return source.grad


def _loss_step(device: Device):
    logits, *rows = credit_problem(16, 32000, torch.bfloat16, device.name)
    leaf = logits.requires_grad_()

    def run():
        ak.policy_loss(leaf, *rows[:3], backend="native").loss.backward()

    return run


def _bits(high, low):
    high, low = (words.cpu().numpy().astype(np.uint64) for words in (high, low))
    return (high << np.uint64(32)) | low


def _triton_words(seed, step, columns):
    from gpu_kernels import words_kernel

    high, low = torch.empty(2, len(columns), dtype=torch.int64, device=columns.device)
    words_kernel[(1,)](seed, step, high, low, len(columns))
    return high, low


def _double(segment):
    return Segment(segment.keys.double(), segment.values.double(), segment.groups)


def _same(found, wanted, where):
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), f"a row's bits differ {where}"


# With tiny sizes, under a tool that watches every access.
WATCHED = ("credit gradients", "segment attention", "tokens everywhere")
CHECKS = {
    "random bits": random_bits,
    "tokens everywhere": tokens_everywhere,
    "nuclei": nuclei,
    "credit gradients": credit_gradients,
    "segment attention": segment_attention_values,
    "nothing waits": nothing_waits,
    "graph of a decode step": graph_of_a_decode_step,
}
