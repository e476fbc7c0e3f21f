"""Run by test_segment_attention_triton.py in a process under TRITON_INTERPRET=1: within 1e-5 of float64."""

import pytest
import torch
from segment_attention_cases import build, cases

from adapt_kernels.ops.segment_attention import Segment, segment_attention
from adapt_kernels.ops.segment_attention.triton_kernel import Config, split_of
from adapt_kernels.ops.segment_attention.triton_kernel import segment_attention as launch


def both(query, segments, arguments):
    exact = segment_attention(
        query.double(), [Segment(s[0].double(), s[1].double(), s[2]) for s in segments], **arguments
    )
    return segment_attention(query, segments, **arguments, backend="triton"), exact


def marked():
    for number, case in enumerate(cases()):
        yield pytest.param(case, marks=() if number % 383 == 5 else pytest.mark.full, id=str(number))


@pytest.mark.parametrize("case", list(marked()))
def test_within_1e_5_of_float64(case):
    query, segments, arguments = build(**case, dtype=torch.float32)
    ours, exact = both(query, segments, arguments)
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "value_size", "strided"), [(16, 24, True), (20, 5, False), (200, 300, True)])
def test_sizes_and_strides(size, value_size, strided):
    case = {"lengths": (33, 2), "samples": 2, "padded": True, "sinks": True, "strided": strided}
    query, segments, arguments = build(**case, size=size, value_size=value_size, dtype=torch.float32)
    ours, exact = both(query, segments, arguments)
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_heads_that_are_too_wide_are_refused():
    query, segments, arguments = build(size=513, dtype=torch.float32)
    with pytest.raises(ValueError, match="heads must be at most 512 wide here; got 513 and 513"):
        segment_attention(query, segments, **arguments, backend="triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    query, segments, arguments = build(lengths=(70, 6), samples=2, padded=True, dtype=dtype)
    ours, exact = both(query, segments, arguments)
    assert ours.dtype == dtype
    # One unit in the last place: the interpreter truncates where the GPU rounds.
    torch.testing.assert_close(ours.double(), exact, atol=2 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize(("least", "splits"), [(48, (3, 1, 1)), (16, (4, 1, 2))])
def test_split_positions_and_tiles(least, splits):
    """More queries per prompt than a tile holds, more positions than a split, splits that see nothing."""
    case = {"lengths": (100, 5, 20), "samples": 8, "heads": 3, "kv_heads": 1, "padded": True, "window": 60}
    query, segments, arguments = build(**case, prompts=1, sinks=True, dtype=torch.float32)
    _, exact = both(query, segments, arguments)
    config = Config(queries=16, positions=16, split_positions=least)
    assert splits == tuple(-(-length // split_of(length, config)) for length in case["lengths"])
    ours = launch(query, segments, 8**-0.5, arguments["starts"], 60, None, arguments["sinks"], config)
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("length", "split"), [(0, 128), (1, 128), (4096, 128), (4097, 256), (16384, 256), (16385, 512), (131072, 1024)]
)
def test_a_split_doubles_with_four_times_the_length(length, split):
    assert split_of(length) == split


def test_a_row_does_not_depend_on_the_others():
    query, segments, arguments = build(lengths=(40, 6), samples=2, prompts=2, padded=True, dtype=torch.float32)
    whole = segment_attention(query, segments, **arguments, backend="triton")
    prompt, own = segments
    for row in range(len(query)):
        alone = [
            Segment(
                prompt.keys[[int(prompt.groups.group_of_row[row])]],
                prompt.values[[int(prompt.groups.group_of_row[row])]],
            ),
            Segment(own.keys[[row]], own.values[[row]]),
        ]
        single = segment_attention(
            query[[row]], alone, **{**arguments, "starts": arguments["starts"][[row]]}, backend="triton"
        )
        torch.testing.assert_close(single[0], whole[row], atol=1e-6, rtol=0)


def test_large_scores_do_not_overflow():
    query, segments, arguments = build(lengths=(20, 3), samples=2, sinks=True, dtype=torch.float32)
    ours, exact = both(query * 1e3, segments, arguments)
    torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=1e-4)
