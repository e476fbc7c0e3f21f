"""The Triton backend of mode_sample against the reference, in the interpreter: run by test_mode_sample_triton.py.

TRITON_INTERPRET=1 must be set before anything imports triton, so these tests have a process of their own.
"""

import pytest
import torch
from triton_mode_sample_check import DTYPES, INF, NAN, check, mixed_filters, nasty_rows, sample, spread_rows

from adapt_kernels.ops.mode_sample import triton_kernel

pytestmark = pytest.mark.usefixtures("poisoned_workspace")

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


class TestRead:
    """Without top-p over the whole row, stage A is the fast read: where it must take care, and where it must not."""

    @pytest.mark.parametrize(
        ("rows", "vocab_size", "dtype"),
        [
            (nasty_rows, 129, "bf16"),
            (nasty_rows, 1000, "fp16"),
            (spread_rows, 1280, "fp32"),
            (spread_rows, 1001, "bf16"),
        ],
    )
    def test_values_and_temperatures(self, rows, vocab_size, dtype):
        settings = mixed_filters(vocab_size) | {"top_p": 1.0, "top_k": 0}
        check(rows(vocab_size, DTYPES[dtype]), **settings)

    @pytest.mark.parametrize("temperature", [1e-5, 1e-39, INF])
    def test_a_peak_that_overflows_when_tempered(self, temperature):
        x = torch.randn(4, 640, generator=torch.Generator().manual_seed(1))
        x[1], x[2] = x[1] * 1e4 - 3e4, x[2].abs() * 1e30
        x[3, 130:500] = -INF
        check(x.bfloat16(), temperature=temperature)

    def test_a_peak_whose_rounding_overflows(self):
        """peak / T lies 127 below a float32 and its neighbours 512 apart: every exponential is 2**127."""
        check(torch.full((1, 256), 29770.263671875), temperature=1e-5)

    @pytest.mark.parametrize("modes", [(129, None, 999), (None, 129)], ids=str)
    def test_tokens_left_out_and_the_cut_last_group(self, modes):
        x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(2)).bfloat16()
        check(x, modes=modes, at_mode=True, mode_bias=torch.tensor([INF, 0.5, -INF]))

    def test_bits_do_not_depend_on_the_number_of_rows(self):
        x = spread_rows(1500, torch.bfloat16)[:3]
        config = triton_kernel.Config(few_rows=2, few_rows_read_groups=2, read_groups=8)
        together, _ = sample(x, config, seeds=torch.arange(3), temperature=0.8)
        alone, _ = sample(x[2:], config, seeds=torch.tensor([2]), temperature=0.8)
        assert all(torch.equal(a[0], b[2]) for a, b in zip(alone, together, strict=True))


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
    "seed-upper-half": {"seeds": 5 * 2**60 + 3},
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
        small = triton_kernel.Config(draw_groups=16, capacity=512)
        check(x, small, top_p=0.97)
        check(x, small, top_k=1200, top_p=0.9, modes=(7, None), mode_bias=0.5, at_mode=True, only_modes=False)

    def test_mass_exactly_at_p(self):
        x = torch.full((3, 300), -INF)
        x[:, [3, 150]] = 0.0
        x[1, 299], x[2, 299] = 0.0, -1.0
        check(x, top_p=torch.tensor([0.5, 1 / 3, 0.73105857863], dtype=torch.float64))

    def test_a_cut_closer_than_float32_sums(self):
        """p lies a billionth on either side of what the row's largest tokens hold."""
        x = torch.randn(1, 1000, generator=torch.Generator().manual_seed(7))
        masses = x.double().softmax(1).sort(descending=True).values.cumsum(1)[0, 20:260:60]
        p = (masses[:, None] * torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=torch.float64)).flatten()
        check(x.expand(len(p), -1), top_p=p)

    def test_greedy_ties_of_far_groups_go_to_the_lowest_id(self):
        x = torch.zeros(1, 40000)
        x[0, 640:768] = 2.9
        x[0, [5, 39000]] = 3.0
        assert check(x, temperature=0).tokens.item() == 5
        assert check(x, temperature=0, forced_tokens=39000).logprobs.item() == -INF


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

    @pytest.mark.parametrize(
        "how",
        [
            {"mode_bias": -1.5},
            {"fast_prob": 0.3},
            {"only_modes": False, "top_p": 0.8},
            {"only_modes": False, "mode_bias": 9.0, "top_k": 3},
            {"min_p": 0.9, "top_k": 1, "forced_tokens": 127},
            {"min_p": 0.9, "top_k": 1, "forced_tokens": 999},
        ],
    )
    def test_ids_in_the_first_and_the_last_partial_group(self, how):
        x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(8)).half()
        check(x, modes=(999, 127), at_mode=True, temperature=0.5, **how)

    def test_bias_of_each_mode(self):
        x = torch.randn(2, 300, generator=torch.Generator().manual_seed(9))
        bias = torch.tensor([[1.0, -1e9, 0.3], [1e9, 0.1, -INF]])
        check(x, modes=(5, None, 290), at_mode=True, mode_bias=bias)
        check(x, modes=(5, None, 290), at_mode=torch.tensor([False, True]), mode_bias=bias)
        check(x[:, :200], modes=(5, None, 190), at_mode=True, mode_bias=bias / 1e9, only_modes=False, top_k=9)

    @pytest.mark.parametrize("modes", [(0, None), (None, 0), (1, None)])
    def test_any_other_token_is_one_or_none(self, modes):
        for vocab_size in (2, 3):
            x = torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
            check(x, modes=modes, at_mode=True, fast_prob=0.5)

    def test_rows_without_a_finite_mode_take_the_lowest_id(self):
        x = torch.randn(2, 300, generator=torch.Generator().manual_seed(15))
        x[:, [290, 3]] = -INF
        assert check(x, modes=(290, 3), at_mode=torch.tensor([True, False])).tokens[0] == 3

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

    def test_bits_do_not_depend_on_where_a_row_begins(self):
        """Eight rows of odd length begin at every offset within 16 bytes, between neighbours that are NaN."""
        rows = torch.randn(8, 389, generator=torch.Generator().manual_seed(14)).bfloat16()
        odd = torch.full((8, 393), NAN, dtype=rows.dtype)[:, 2:391]
        odd.copy_(rows)
        aligned = torch.zeros(8, 400, dtype=rows.dtype)[:, :389]
        aligned.copy_(rows)
        assert {row.data_ptr() % 16 for row in odd} == set(range(0, 16, 2))
        got, want = sample(odd, temperature=0.8)
        same, _ = sample(aligned, temperature=0.8)
        assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))
        assert torch.equal(got.tokens, want.tokens)

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


class TestClasses:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_edits_by_class(self, dtype):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(4, 300, generator=generator).to(DTYPES[dtype])
        logits[3, 7] = NAN
        edits = {
            "token_classes": torch.randint(0, 3, (290,), generator=generator).to(torch.uint8),
            "class_scale": torch.tensor([[1.0, 1.5, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
            "class_bias": torch.tensor([[0.0, 1.0, -INF], [0.0, 0.0, 0.0], [0.5, -2.0, 0.0], [0.0, -INF, -INF]]),
        }
        check(logits, class_edits=tuple(edits.values()), top_p=0.9)

    @pytest.mark.parametrize(("dtype", "stride"), [("bf16", 1024), ("fp16", 1024), ("fp32", 1024), ("bf16", 1001)])
    def test_edits_in_the_one_read(self, dtype, stride):
        """Straddling ends of the classed ids, idle rows, class 0, and what a product and a sum cannot say."""
        x = torch.randn(6, stride, generator=torch.Generator().manual_seed(2))[:, :1000]
        x[1, 100], x[1, 101], x[1, 102], x[1, 140], x[4, 7], x[5, 650] = NAN, INF, -INF, NAN, INF, -INF
        x[5, 300:310] = -INF
        classes = torch.zeros(933, dtype=torch.uint8)
        classes[torch.tensor([3, 100, 101, 102, 140, 300, 650, 931, 932])] = 1
        classes[[7, 640, 900]] = 2
        scale = torch.tensor([[1, 1, 1], [1, 0, -2], [1, 1, 1], [0.5, 1, 1], [1, 1, 0], [1, -1, 1.5]])
        bias = torch.tensor([[0, -INF, 3.1], [0, -INF, 0.3], [0, 0, 0], [0.7, -INF, 2], [0, INF, 0], [0, 1, -1]])
        check(x.to(DTYPES[dtype]), class_edits=(classes, scale, bias), temperature=0.7)
        check(x.to(DTYPES[dtype]), class_edits=(classes, scale, bias), top_k=9, modes=(3, None), at_mode=True)

    @pytest.mark.parametrize("count", [256, 300])
    def test_the_classed_ids_end_with_a_group_or_within_one(self, count):
        x = torch.randn(2, 1000, generator=torch.Generator().manual_seed(16))
        # In the second row only class 0 acts, also in tiles that hold no other.
        edits = torch.ones(count, dtype=torch.uint8), torch.tensor([[1, 1.5], [2, 1]]), torch.tensor([[0, 0.5], [1, 0]])
        check(x, class_edits=edits, temperature=0.7)
        check(x.bfloat16(), class_edits=edits)

    def test_idle_classes_leave_the_bits(self):
        x = spread_rows(1500, torch.bfloat16)
        edits = (torch.ones(1500, dtype=torch.uint8), torch.ones(8, 2), torch.zeros(8, 2))
        idle, _ = sample(x, class_edits=edits, temperature=0.8)
        none, _ = sample(x, temperature=0.8)
        assert all(torch.equal(a, b) for a, b in zip(idle, none, strict=True))
