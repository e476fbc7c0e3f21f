"""Greedy parity means nothing on a model that repeats one token: the tiny models must vary."""

import pytest
from tiny_models import DECODER_ONLY, DEFAULT_RUN, left_padded, prompts, shared


@pytest.mark.parametrize("architecture", DECODER_ONLY)
def test_greedy_output_varies(architecture):
    inputs = left_padded(prompts(4, 8), [8, 3, 8, 5])
    sequences = shared(architecture).generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert min(len(set(row)) for row in sequences[:, 8:].tolist()) >= 7


def test_default_run_is_wide_enough():
    assert set(DEFAULT_RUN) < set(DECODER_ONLY)
    assert len(DEFAULT_RUN) >= 12
