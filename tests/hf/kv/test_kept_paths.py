"""`paths` and `kv_keep` in one call: rows leave and rows drop KV, and neither changes what the other leaves alone."""

import pytest
import torch
from tiny_models import FAST, PAD, SLOW, build, left_padded, prompts

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW, AT, SAMPLES = 8, 26, 14, 4


def looked_ahead(view):
    """A score that runs the model on the rows' KV and gives the positions back."""
    hidden = view.append(torch.full((len(view.prompt_of_row), 2, 32), 0.1))
    return hidden[:, -1].sum(-1)


@pytest.mark.parametrize("score", ["random", "logprob", looked_ahead])
@pytest.mark.parametrize("keep", ["key_norm", "snap"])
@pytest.mark.parametrize("layout", ["rows", "shared"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_rows_that_stay_have_the_tokens_of_the_call_without_paths(architecture, layout, keep, score):
    inputs = left_padded(prompts(2, WIDTH), [8, 5])
    call = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": None, "pad_token_id": PAD, "seed": 4}
    call |= {"num_return_sequences": SAMPLES, "kv_layout": layout, "kv_keep": ak.KeepKV(8, 0.5, 3, keep)}
    call |= {"return_dict_in_generate": True}
    with ak.patched(build(architecture), MODES) as model:
        whole = model.generate(**inputs, **call)
        pruned = model.generate(**inputs, **call, paths=ak.Paths(keep=2, at=AT, score=score))
    ends = torch.tensor([end == "pruned" for end in pruned.path_ends])
    assert ends.sum() == 4 and pruned.stats.kv_evictions == whole.stats.kv_evictions >= 3
    assert torch.equal(pruned.sequences[~ends], whole.sequences[~ends])
    assert torch.equal(pruned.sequences[ends, : WIDTH + AT], whole.sequences[ends, : WIDTH + AT])
