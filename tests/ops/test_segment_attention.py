"""The reference of segment_attention against a loop over rows and heads in float64, and the checks."""

import math

import pytest
import torch
from segment_attention_cases import build, cases

import adapt_kernels as ak
from adapt_kernels.ops.segment_attention import RowGroups, Segment, group_rows, reference, segment_attention


def by_hand(query, segments, starts=None, window=None, softcap=None, sinks=None, scale=None):
    rows, heads, size = query.shape
    out = torch.empty(rows, heads, segments[0].values.shape[3], dtype=torch.float64)
    for row in range(rows):
        entry = [row if s.groups is None else int(s.groups.group_of_row[row]) for s in segments]
        keys = torch.cat([s.keys[e] for s, e in zip(segments, entry, strict=True)], 1)
        values = torch.cat([s.values[e] for s, e in zip(segments, entry, strict=True)], 1)
        for head in range(heads):
            kv_head = head * keys.shape[0] // heads
            total, weighted, count = 0.0, torch.zeros(values.shape[2], dtype=torch.float64), keys.shape[1]
            for position in range(count):
                if position < (0 if starts is None else starts[row]) or (window and position < count - window):
                    continue
                score = float(query[row, head] @ keys[kv_head, position]) * (scale or size**-0.5)
                weight = math.exp(softcap * math.tanh(score / softcap) if softcap else score)
                total, weighted = total + weight, weighted + weight * values[kv_head, position]
            out[row, head] = weighted / (total + (math.exp(sinks[head]) if sinks is not None else 0.0))
    return out


@pytest.mark.parametrize("case", [c for i, c in enumerate(cases()) if i % 29 == 0], ids=str)
def test_reference(case):
    query, segments, arguments = build(**case)
    actual = segment_attention(query, segments, **arguments)
    torch.testing.assert_close(actual, by_hand(query, segments, **arguments), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("case", [c for i, c in enumerate(cases()) if i % 97 == 3], ids=str)
def test_long_segments_are_read_in_pieces(case, monkeypatch):
    query, segments, arguments = build(**{**case, "lengths": (150, *case["lengths"])[:3]})
    whole = segment_attention(query, segments, **arguments)
    monkeypatch.setattr(reference, "_SCORES", 1)
    torch.testing.assert_close(segment_attention(query, segments, **arguments), whole, atol=1e-12, rtol=1e-12)


def test_equals_sdpa():
    query, segments, _ = build(lengths=(40,), heads=4, kv_heads=2, dtype=torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None], segments[0].keys, segments[0].values, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(segment_attention(query, segments, scale=0.3), expected[:, :, 0], atol=1e-6, rtol=0)


def test_half_precision_sums_in_float32():
    query, segments, arguments = build(lengths=(300, 20), samples=4, dtype=torch.bfloat16)
    exact = segment_attention(query.double(), [_double(s) for s in segments], **arguments)
    ours = segment_attention(query, segments, **arguments)
    # float32 sums may round a value that lies between two bfloat16 numbers to the other one.
    torch.testing.assert_close(ours.double(), exact, atol=1e-6, rtol=torch.finfo(torch.bfloat16).eps / 2 + 1e-6)


def _double(segment):
    return Segment(segment.keys.double(), segment.values.double(), segment.groups)


def test_groups():
    groups = group_rows(torch.tensor([2, 0, 2, 2, 0]), 4)
    assert groups.order.tolist() == [1, 4, 0, 2, 3] and groups.first.tolist() == [0, 2, 2, 5, 5]
    assert groups.largest == 3 and groups.seats.flatten()[groups.seat_of_row].tolist() == [0, 1, 2, 3, 4]


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"query": [1]}, TypeError, "query must be a tensor of float32, bfloat16, float16 or float64; got list"),
            ({"query": torch.ones(2, 4, 8).int()}, TypeError, "got torch.int32"),
            ({"query": torch.ones(2, 8)}, ValueError, r"query must be \[B, Hq, D\] with stride 1 last; got shape"),
            ({"query": torch.ones(2, 4, 16)[..., ::2]}, ValueError, "stride 1 last"),
            ({"query": torch.ones(2, 3, 8)}, ValueError, "3 query heads must be a multiple of its 2 KV heads"),
            ({"segments": []}, ValueError, "segments must be 1 to 3; got 0"),
            ({"keys": torch.ones(2, 2, 5, 4)}, ValueError, r"segments\[0\] must be keys \[G, Hkv, T, 8\]"),
            ({"keys": torch.ones(2, 2, 5, 8).double()}, ValueError, r"segments\[0\] must be torch.float32 on cpu; got"),
            ({"keys": torch.ones(2, 2, 8, 5).transpose(2, 3)}, ValueError, r"segments\[0\] must have stride 1 last"),
            ({"rows": 1}, ValueError, "without groups needs an entry per row: 2; it has 1"),
            ({"starts": torch.zeros(3, dtype=torch.int64)}, ValueError, r"starts must be \[2\] on cpu; got \(3,\) on"),
            ({"starts": torch.zeros(2)}, TypeError, "starts must be int64; got torch.float32"),
            ({"sinks": torch.zeros(2)}, ValueError, r"sinks must be \[4\] on cpu; got \(2,\) on cpu"),
            ({"window": 0}, ValueError, "window must be an integer >= 1 or None; got 0"),
            ({"softcap": -1.0}, ValueError, "softcap must be > 0 or None; got -1.0"),
            ({"length": 0}, ValueError, "must hold at least the newest position; they hold none"),
            ({"groups": group_rows(torch.tensor([0]), 2)}, ValueError, "must group 2 rows over 2 entries; it groups 1"),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
    )
    def test_bad(self, change, error, text):
        entries, length = change.pop("rows", 2), change.pop("length", 5)
        keys = change.pop("keys", torch.ones(entries, 2, length, 8))
        segment = Segment(keys, torch.ones(entries, 2, length, 8), change.pop("groups", None))
        arguments = {"query": torch.ones(2, 4, 8), "segments": [segment], **change}
        with pytest.raises(error, match=text):
            segment_attention(**arguments)

    def test_empty_batch(self):
        segment = Segment(torch.ones(0, 2, 3, 8), torch.ones(0, 2, 3, 8))
        assert segment_attention(torch.ones(0, 4, 8), [segment]).shape == (0, 4, 8)

    def test_backends(self):
        query, segments, _ = build(dtype=torch.float32)
        with pytest.raises(ValueError, match="segment_attention has no backend='native'"):
            segment_attention(query, segments, backend="native")
        if ak.backends()["triton"] is not None:
            with pytest.raises(RuntimeError, match="backend='triton' cannot run here"):
                segment_attention(query, segments, backend="triton")
        assert RowGroups._fields[:4] == ("group_of_row", "order", "first", "largest")
