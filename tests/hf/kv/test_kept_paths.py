"""`kv_keep` beside `paths` and probes: rows leave, rows drop KV, and none changes what the others leave alone."""

import pytest
import torch
from tiny_models import FAST, PAD, SLOW, build, left_padded, prompts

import adapt_kernels as ak
from adapt_kernels.program.run import ProgramRun

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


@pytest.mark.parametrize("keep", ["key_norm", "snap"])
@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_probes_leave_no_trace_in_what_is_held(layout, keep):
    """A probe's tokens are fed behind the held positions and taken back: evictions and tokens are as without it."""
    rules = [
        {"probe": [5, 9], "max": 3, "measure": "mean_prob", "into": f"sure{at}", "when": {"at": at}} for at in (3, 17)
    ]
    inputs = left_padded(prompts(2, WIDTH), [8, 5])
    call = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": None, "pad_token_id": PAD, "seed": 4}
    call |= {"num_return_sequences": 2, "kv_layout": layout, "kv_keep": ak.KeepKV(8, 0.5, 3, keep)}
    call |= {"return_dict_in_generate": True}
    with ak.patched(build("llama"), MODES) as model:
        plain = model.generate(**inputs, **call)
        asked = model.generate(**inputs, **call, program=ak.Program.from_dict({"rules": rules}))
    assert asked.stats.probe_tokens > 0 and asked.stats.kv_evictions == plain.stats.kv_evictions >= 3
    assert asked.stats.kv_held_peak == plain.stats.kv_held_peak == 9
    assert torch.equal(asked.sequences, plain.sequences)


def test_a_probe_is_answered_from_what_is_held(monkeypatch):
    """After an eviction the measure is that of the held positions, not of the whole row's."""
    found, fill = [], ProgramRun.fill

    def spy(self, values, where=None):
        found.append({name: value.tolist() for name, value in values.items()})
        fill(self, values, where)

    monkeypatch.setattr(ProgramRun, "fill", spy)
    rules = ak.Program.from_dict(
        {"rules": [{"probe": [5, 9], "max": 3, "measure": "mean_prob", "into": "sure", "when": {"at": 20}}]}
    )
    inputs = left_padded(prompts(2, WIDTH), [8, 5])
    call = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD, "program": rules}
    with ak.patched(build("llama"), MODES) as model:
        for settings in ({}, {"kv_keep": ak.KeepKV(20, 1.0, 3)}, {"kv_keep": ak.KeepKV(8, 0.5, 3)}):
            model.generate(**inputs, **call, **settings)
    full, everything, kept = found
    assert full == everything and full["sure"] != kept["sure"]
