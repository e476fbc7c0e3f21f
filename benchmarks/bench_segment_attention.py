"""segment_attention of one decode step: prompts shared by samples, and each row's own positions.

A case is `prompts x samples - prompt length - own positions`; 8 query heads, 2 KV heads of 64, float32. Peers attend
to KV in which every row holds its prompt: PyTorch's attention with grouped heads, as transformers calls it without
padding, and with a mask and repeated KV heads, as it does with padding. `one_read` sums the bytes that ours reads.
"""

import pytest
import torch

from adapt_kernels.ops.segment_attention import Segment, group_rows, segment_attention

HEADS, KV_HEADS, SIZE = 8, 2, 64
CASES = {
    "4x16-512-64": (4, 16, 512, 64),
    "4x16-2048-64": (4, 16, 2048, 64),
    "8x8-2048-512": (8, 8, 2048, 512),
    "16x1-512-64": (16, 1, 512, 64),
}
KERNELS = ("adapt_kernels", "adapt_kernels_padded", "sdpa", "sdpa_padded", "one_read")


def inputs(prompts, samples, length, own):
    torch.manual_seed(0)
    rows = prompts * samples
    groups = group_rows(torch.arange(prompts).repeat_interleave(samples), prompts)
    prompt = Segment(*torch.randn(2, prompts, KV_HEADS, length, SIZE), groups)
    late = Segment(*torch.randn(2, rows, KV_HEADS, own, SIZE))
    return torch.randn(rows, HEADS, SIZE), prompt, late


def calls(query, prompt, late):
    """The call of every kernel, by name; copies are made here."""
    rows, owner = len(query), prompt.groups.group_of_row
    keys, values = (torch.cat([p[owner], t], 2) for p, t in ((prompt.keys, late.keys), (prompt.values, late.values)))
    starts = torch.full((rows,), 7)
    mask = (torch.arange(keys.shape[2]) >= 7).expand(rows, 1, 1, -1)
    attend, share = torch.nn.functional.scaled_dot_product_attention, HEADS // KV_HEADS

    def repeated(tensor):
        expanded = tensor[:, :, None].expand(-1, -1, share, -1, -1)
        return expanded.reshape(rows, HEADS, *tensor.shape[2:])

    return {
        "adapt_kernels": lambda: segment_attention(query, (prompt, late)),
        "adapt_kernels_padded": lambda: segment_attention(query, (prompt, late), starts=starts),
        "sdpa": lambda: attend(query[:, :, None], keys, values, enable_gqa=True)[:, :, 0],
        "sdpa_padded": lambda: attend(query[:, :, None], repeated(keys), repeated(values), attn_mask=mask)[:, :, 0],
        "one_read": lambda: [tensor.sum() for segment in (prompt, late) for tensor in segment[:2]],
    }


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_segment_attention(measure, case, kernel):
    by_name = calls(*inputs(*CASES[case]))
    if kernel.startswith("adapt_kernels"):
        torch.testing.assert_close(by_name[kernel](), by_name[kernel.replace("adapt_kernels", "sdpa")]())
    measure(by_name[kernel])
