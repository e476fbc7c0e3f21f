"""The Triton backend of mode_sample against the reference, in the interpreter: run by test_mode_sample_triton.py.

TRITON_INTERPRET=1 must be set before anything imports triton, so these tests have a process of their own.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from adapt_kernels import philox_reference
from adapt_kernels.ops.mode_sample import reference, triton_draw, triton_kernel, triton_random
from adapt_kernels.ops.mode_sample.arguments import check_values, prepare

INF, NAN = float("inf"), float("nan")
# The interpreter pays per operation, not per element: large blocks, few programs.
CONFIG = triton_kernel.Config(statistics_groups=256, draw_groups=64, capacity=8192, segment=16384)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def poisoned_workspace():
    """torch.empty returns NaN or the largest integer, so that nothing unwritten can pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def sample(logits, config=CONFIG, *, modes=None, mode_bias=None, seeds=5, only_modes=True, **arguments):
    defaults = {
        "at_mode": False,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "step": 0,
        "fast_prob": NAN,
        "forced_tokens": -1,
    }
    rows = check_values(prepare(logits, modes, mode_bias, seeds, only_modes, **(defaults | arguments)))
    return triton_kernel.mode_sample(rows, config), reference.mode_sample(rows)


def check(logits, config=CONFIG, **arguments):
    got, want = sample(logits, config, **arguments)
    for name in ("tokens", "modes", "kept", "flags"):
        assert getattr(got, name).tolist() == getattr(want, name).tolist(), name
        assert getattr(got, name).dtype == getattr(want, name).dtype, name
    for name in ("logprobs", "raw_logprobs", "tempered_logprobs", "mode_probs"):
        assert torch.allclose(getattr(got, name), getattr(want, name), rtol=0, atol=2e-6), name
    return got


def nasty_rows(vocab_size, dtype):
    """Eight rows: equal, all -inf, one finite, first half -inf, one NaN, all NaN, one +inf, two +inf."""
    x = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    x[0], x[1], x[2], x[5] = 1.5, -INF, -INF, NAN
    x[2, vocab_size // 2] = -7
    x[3, : vocab_size // 2] = -INF
    x[4, 0], x[6, -1], x[7, 0], x[7, vocab_size // 3] = NAN, INF, INF, INF
    return x.to(dtype)


def spread_rows(vocab_size, dtype):
    """Eight rows: ties in steps of 1/4, far apart, offset, peaked, two levels, signed zeros, flat, one-hot."""
    x = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    x[0] = (x[0] * 4).round() / 4
    x[1] *= 3000
    x[2] = x[2].mul(0.5) + 30000
    x[3] = -2 * torch.arange(1, vocab_size + 1).log()
    x[4] = (x[4] > 1).float() * 8
    x[5] = torch.where(x[5] > 0, 0.0, -0.0)
    x[7] = -20
    x[7, vocab_size // 2] = 0
    return x.to(dtype)


def mixed_filters(vocab_size):
    """All filters at once, other values in each of eight rows; 0 and inf among the temperatures."""
    tensor = torch.tensor
    return {
        "top_k": tensor([1, 2, 3, 2**30, max(vocab_size - 1, 1), vocab_size, 0, 50]),
        "top_p": tensor([0.5, 0.9, 0, 0.3, 0.99, 1, 1e-9, 1 - 1e-7], dtype=torch.float64),
        "min_p": tensor([0, 0.1, 0.05, 1, 0, 1e-6, 0.5, 0], dtype=torch.float64),
        "temperature": tensor([1, 0.7, 0, 1e-3, 1e4, INF, 1, 2], dtype=torch.float64),
        "step": torch.arange(8),
        "seeds": torch.arange(8) * 2**61 - 3,
    }


QUICK = [(1, "fp32"), (31, "bf16"), (129, "fp16"), (1000, "fp32"), (32001, "bf16")]
FULL = [(v, d) for v in (1, 2, 31, 127, 128, 129, 1000, 32001) for d in DTYPES if (v, d) not in QUICK]
SIZES = [pytest.param(*c, id=f"V{c[0]}-{c[1]}") for c in QUICK]
SIZES += [pytest.param(*c, id=f"V{c[0]}-{c[1]}", marks=pytest.mark.full) for c in FULL]


@pytest.mark.parametrize(("vocab_size", "dtype"), SIZES)
class TestFilters:
    def test_nasty_values(self, vocab_size, dtype):
        check(nasty_rows(vocab_size, DTYPES[dtype]), **mixed_filters(vocab_size))

    def test_spread_values(self, vocab_size, dtype):
        if vocab_size < 100:
            pytest.skip("the nasty rows cover what a small vocabulary can show")
        x = spread_rows(vocab_size, DTYPES[dtype])
        rolled = {name: value.roll(3) for name, value in mixed_filters(vocab_size).items()}
        check(x, **rolled)

    @pytest.mark.full
    def test_every_shift_of_the_filters(self, vocab_size, dtype):
        for shift in range(8):
            rolled = {name: value.roll(shift) for name, value in mixed_filters(vocab_size).items()}
            check(spread_rows(vocab_size, DTYPES[dtype]), **rolled)


NUMBERS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.02},
    "all": {"top_k": 50, "top_p": 0.95, "min_p": 0.01, "temperature": 1.3},
    "greedy": {"temperature": 0},
    "filters-off": {"top_k": 10**6, "top_p": 1.0},
    "tiny-temperature": {"temperature": 1e-320},
    "seed": {"seeds": 2**64 - 5, "step": 2**31 + 7},
}


class TestNumbers:
    @pytest.mark.parametrize("case", NUMBERS)
    def test_scalar_arguments(self, case):
        x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(3)) * 2
        check(x.bfloat16(), **NUMBERS[case])

    @pytest.mark.parametrize("case", ["plain", "top_k", "top_p"])
    def test_flat_rows_of_a_large_vocabulary(self, case):
        x = torch.randn(1, 151936, generator=torch.Generator().manual_seed(4))
        got = check(x, **NUMBERS[case])
        assert case != "top_p" or got.kept.item() > 50000

    def test_device_scalars_and_one_element_per_row(self):
        x = torch.randn(3, 200, generator=torch.Generator().manual_seed(5))
        column = torch.tensor([[9, 0], [3, 0], [0, 0]])[:, 0]  # stride 2
        check(x, top_k=column, step=torch.tensor(4).expand(3), temperature=torch.tensor(0.5).expand(3))

    def test_candidates_beyond_the_buffer(self):
        x = torch.randn(1, 5000, generator=torch.Generator().manual_seed(6))
        small = triton_kernel.Config(statistics_groups=16, draw_groups=16, capacity=512, pivots=16)
        check(x, small, top_p=0.97)
        check(x, small, top_k=1200, top_p=0.9, modes=(7, None), mode_bias=0.5, at_mode=True, only_modes=False)

    def test_mass_exactly_at_p(self):
        x = torch.full((3, 300), -INF)
        x[:, [3, 150]] = 0.0
        x[1, 299], x[2, 299] = 0.0, -1.0
        check(x, top_p=torch.tensor([0.5, 1 / 3, 0.73105857863], dtype=torch.float64))


FLAT = {
    "normal": lambda x: x,
    "wide-normal": lambda x: 3 * x,
    "zipf": lambda x: -x.argsort(1).float().add(1).log(),
    "zipf-in-order": lambda x: -torch.arange(1, x.shape[1] + 1).float().log().expand(x.shape),
}


class TestLargeNucleus:
    """Stage C, on vocabularies small enough for the interpreter."""

    config = triton_kernel.Config(
        statistics_groups=64, draw_groups=64, capacity=2048, few_groups=16, segment=4096, points=16
    )

    @pytest.fixture
    def brackets(self, monkeypatch):
        """Whether the bracket of each row held the threshold."""
        found = []
        search = triton_draw.nucleus_threshold

        def spy(*arguments):
            result = search(*arguments)
            found.append(bool(result[0].handle.data[0]))
            return result

        monkeypatch.setattr(triton_draw, "nucleus_threshold", spy)
        return found

    @pytest.mark.parametrize("shape", FLAT)
    def test_bracket_holds_the_threshold(self, brackets, shape):
        x = FLAT[shape](torch.randn(2, 32001, generator=torch.Generator().manual_seed(20)))
        dtype = torch.bfloat16 if shape == "wide-normal" else torch.float32
        check(x.to(dtype), self.config, top_p=torch.tensor([0.6, 0.95]), temperature=0.9)
        # Neighbours of a sorted row are alike: whole groups are a poor sample, and the slow search has to finish.
        assert brackets == [True, True] or shape == "zipf-in-order"

    def test_bracket_with_listed_tokens(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(21)).half()
        bias = torch.tensor([[6.0, 0.1, -0.5], [0.0, 0.0, 0.0]])
        gate = torch.tensor([True, False])
        check(x, self.config, modes=(3, None, 7777), at_mode=gate, mode_bias=bias, only_modes=False, top_p=0.9)
        assert brackets == [True, True]

    def test_a_bracket_that_overflows_only_costs_time(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(22))
        x[1] = x[1].round()
        check(x, triton_kernel.Config(**(vars(self.config) | {"segment": 16})), top_p=0.9)
        assert brackets == [False, False]

    def test_small_nuclei_skip_it(self, brackets):
        x = torch.randn(2, 20000, generator=torch.Generator().manual_seed(23)) * 20
        x[1] = -float("inf")
        check(x, self.config, top_p=0.9, min_p=torch.tensor([0.0, 0.1]))
        assert brackets == []


BIASES = torch.tensor([0.0, 1, INF, 2, -INF, 1, -INF, 0])
MODES = {"listed": (3, 30), "other-last": (3, None), "other-first": (None, 3), "three": (0, None, 7)}


class TestModes:
    @pytest.mark.parametrize(
        "layout", ["listed", pytest.param("other-last", marks=pytest.mark.full), "other-first", "three"]
    )
    @pytest.mark.parametrize("how", ["bias", "open", "fast"])
    def test_nasty_values(self, layout, how):
        extra = {
            "bias": {"mode_bias": BIASES},
            "open": {"mode_bias": BIASES, "only_modes": False},
            "fast": {"fast_prob": torch.tensor([0.25, 0.9, 1e-6, NAN, 0.5, 0.5, 0.5, 0.5])},
        }[how]
        at_mode = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
        x = nasty_rows(31, torch.bfloat16)
        check(x, modes=MODES[layout], at_mode=at_mode, **mixed_filters(31), **extra)

    @pytest.mark.parametrize("how", [{"mode_bias": -1.5}, {"fast_prob": 0.3}, {"only_modes": False, "top_p": 0.8}])
    def test_ids_in_the_first_and_the_last_partial_group(self, how):
        x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(8)).half()
        check(x, modes=(999, 127), at_mode=True, temperature=0.5, **how)

    def test_bias_of_each_mode(self):
        x = torch.randn(2, 300, generator=torch.Generator().manual_seed(9))
        bias = torch.tensor([[1.0, -1e9, 0.3], [1e9, 0.1, -INF]])
        check(x, modes=(5, None, 290), at_mode=True, mode_bias=bias)
        check(x[:, :200], modes=(5, None, 190), at_mode=True, mode_bias=bias / 1e9, only_modes=False, top_k=9)

    @pytest.mark.parametrize("modes", [(0, None), (None, 0), (1, None)])
    def test_any_other_token_is_one_or_none(self, modes):
        for vocab_size in (2, 3):
            x = torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
            check(x, modes=modes, at_mode=True, fast_prob=0.5)

    def test_forced_tokens(self):
        x = torch.randn(5, 300, generator=torch.Generator().manual_seed(10))
        x[4] = -INF
        forced = torch.tensor([0, 299, -1, 150, 7])
        check(x, forced_tokens=forced, top_k=20)
        check(x, forced_tokens=forced, temperature=0)
        check(x, forced_tokens=x.argmax(1), temperature=0)
        check(x, forced_tokens=forced, modes=(0, 7), at_mode=True, mode_bias=1.0)


class TestLayout:
    def test_strides_and_offsets(self):
        x = torch.randn(4 * 700 + 3, generator=torch.Generator().manual_seed(11))
        for dtype in DTYPES.values():
            check(x.to(dtype)[3:].as_strided((2, 301), (700, 1)), top_p=0.8)
        check(x[1:301].expand(2, 300), step=torch.arange(2))
        cube = x[: 2 * 3 * 300].view(3, 2, 300).transpose(0, 1)
        check(cube, top_k=torch.tensor([3, 40]), step=torch.arange(6).view(2, 3))

    def test_offsets_past_2_31(self):
        stride = 2**30
        torch.use_deterministic_algorithms(False)  # it would write the 4 GB that only exist as addresses
        storage = torch.empty(2 * stride + 200, dtype=torch.bfloat16)
        rows = storage.as_strided((3, 200), (stride, 1))
        rows.copy_(torch.randn(3, 200, generator=torch.Generator().manual_seed(12)))
        got, _ = sample(rows, top_p=0.9)
        _, want = sample(rows.clone(), top_p=0.9)
        assert torch.equal(got.tokens, want.tokens) and torch.equal(got.kept, want.kept)

    def test_a_row_is_the_same_in_any_slot(self):
        x = torch.randn(1, 1000, generator=torch.Generator().manual_seed(13)).bfloat16()
        batch = torch.cat([torch.randn(3, 1000).bfloat16(), x])
        alone, _ = sample(x, top_p=0.9, temperature=0.8, seeds=torch.tensor([77]), step=9)
        among, _ = sample(batch, top_p=0.9, temperature=0.8, seeds=torch.tensor([1, 2, 3, 77]), step=9)
        for one, many in zip(alone, among, strict=True):
            assert torch.equal(one[0], many[3])

    def test_no_rows_and_float64(self):
        got, want = sample(torch.empty(0, 50), modes=(1, 2), at_mode=True)
        assert [tuple(field.shape) for field in got] == [tuple(field.shape) for field in want]
        with pytest.raises(ValueError, match="reference"):
            sample(torch.zeros(1, 5, dtype=torch.float64))


@triton.jit
def stream_kernel(seed: tl.int64, step: tl.int64, high, low, seeds, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = triton_random.random_words(seed.to(tl.int64), step.to(tl.int64), triton_random.PURPOSE_TOKEN, i * 7)
    tl.store(high + i, a.to(tl.int64))
    tl.store(low + i, b.to(tl.int64))
    tl.store(seeds + i, triton_random.row_seed(seed.to(tl.int64), i.to(tl.int64)))


@triton.jit
def noise_kernel(high, low, noise, N: tl.constexpr):
    i = tl.arange(0, N)
    words = triton_random.gumbel_from_words(tl.load(high + i).to(tl.uint32), tl.load(low + i).to(tl.uint32))
    tl.store(noise + i, words)


class TestRandomStream:
    @pytest.mark.parametrize(("seed", "step"), [(0, 0), (5, 3), (-3, 2**31), (2**62 + 12345, 2**32 - 1)])
    def test_words_and_row_seeds_equal_numpy(self, seed, step):
        n = 256
        high, low, seeds = torch.empty(3, n, dtype=torch.int64)
        stream_kernel[(1,)](seed, step, high, low, seeds, n)
        bits = philox_reference.random_bits(seed, step, philox_reference.PURPOSE_TOKEN, np.arange(n) * 7)
        assert ((high.numpy().astype(np.uint64) << np.uint64(32)) | low.numpy().astype(np.uint64) == bits).all()
        assert seeds.tolist() == [philox_reference.row_seed(seed, i) for i in range(n)]

    def test_noise_of_extreme_words(self):
        words = [
            0,
            1,
            2**64 - 1,
            2**64 - 2,
            2**63,
            *(2**k for k in range(1, 64)),
            *(2**64 - 2**k for k in range(1, 60)),
        ]
        bits = np.array((words * 2)[:256] + [3] * max(0, 256 - 2 * len(words)), dtype=np.uint64)
        high = torch.from_numpy((bits >> np.uint64(32)).astype(np.int64))
        low = torch.from_numpy((bits & np.uint64(0xFFFFFFFF)).astype(np.int64))
        noise = torch.empty(256, dtype=torch.float64)
        noise_kernel[(1,)](high, low, noise, 256)
        assert np.isfinite(noise.numpy()).all()
        assert np.abs(noise.numpy() - philox_reference.gumbel_from_bits(bits)).max() < 1e-9
