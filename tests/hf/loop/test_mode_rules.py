"""Modes as rules: what they read of a prompt, what they leave alone, and which modes cannot be made into rules."""

import pytest
import torch
from recorders import Wishes
from tiny_models import shared

import adapt_kernels as ak
from adapt_kernels.program import run as program_run
from adapt_kernels.prompt_tokens import PromptTokens

CLOSING = ak.Mode(1, max_new_tokens=3, closing=(9, 2), close=2)


def run(modes, prompt, wish, **arguments):
    """New tokens after `prompt` where the model would write `wish`."""
    ids, settings = torch.tensor([prompt]), {"do_sample": False, "eos_token_id": 6, "pad_token_id": 0}
    wishes = [Wishes(len(prompt), [wish])]
    with ak.patched(shared("llama"), modes) as model:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=wishes, max_new_tokens=len(wish), **settings,
            return_dict_in_generate=True, **arguments,
        )  # fmt: skip
    return out, out.sequences[0, len(prompt) :].tolist()


def told(modes, **known):
    modes.prompt_tokens = PromptTokens(**known)
    return modes


@pytest.mark.parametrize(
    ("modes", "arguments", "most"),
    [
        (ak.Modes(fast=90, slow=1), {"mode": "slow"}, 0),
        (ak.Modes(fast=90, slow=CLOSING), {"mode": "slow"}, 0),
        (ak.Modes(fast=90, slow=ak.Mode((1, 8), max_new_tokens=3, closing=(9, 7, 2))), {}, 2),
    ],
)
def test_a_long_prompt_is_not_read_token_by_token(monkeypatch, modes, arguments, most):
    reads, advance = [], program_run.advance

    def counted(*args, **kwargs):
        reads.append(kwargs)
        return advance(*args, **kwargs)

    monkeypatch.setattr(program_run, "advance", counted)
    run(modes, [30] * 200, [10] * 4, **arguments)
    assert sum(kwargs.get("generated") is False for kwargs in reads) == most


def test_the_opening_is_no_beginning_of_the_close():
    modes = ak.Modes(fast=90, slow=ak.Mode((1, 8), max_new_tokens=3, closing=(8, 2)))
    assert run(told(modes, white_space=(3,), tags=(1, 2)), [15, 1, 3, 8], [2, 9, 9, 9, 9, 9])[1] == [2, 9, 9, 8, 2, 9]


def test_a_prompts_end_is_no_beginning_of_the_close_of_a_mode_not_yet_chosen():
    modes = ak.Modes(fast=2, slow=ak.Mode(None, max_new_tokens=2, closing=(7, 8)))
    assert run(modes, [31, 7], [8, 1, 9, 9, 9])[1] == [8, 1, 7, 8, 9]


def test_ids_of_a_mode_end_turns_for_programs_all_the_same():
    program = ak.Program.from_dict(
        {"spans": {"s": {"open": 20, "close": 21}}, "rules": [{"force": [8, 9], "when": {"in": "s", "times": 1}}]}
    )
    modes = ak.Modes(fast=90, slow=ak.Mode(1, max_new_tokens=3, closing=2, breaks=(6,)))
    assert run(modes, [30, 20, 6, 31, 32], [10] * 4, program=program)[1] == [10] * 4
    out, new = run(modes, [30, 20, 31, 32], [10] * 4, program=program)
    assert new == [8, 9, 10, 10] and out.fired.tolist() == [[1]]


def test_rules_of_modes_are_not_reported():
    out, new = run(ak.Modes(fast=90, slow=CLOSING), [30], [10] * 7, mode="slow")
    assert new == [1, 10, 10, 9, 2, 10, 10]
    assert (out.fired, out.spans, out.never_armed, out.forced) == (None, None, None, None)


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (
            ak.Modes(fast=90, slow=ak.Mode(1, max_new_tokens=3, closing=(8, 9) * 128)),
            "mode 'slow': what opens or ends it is too long to be recognised .*more than 255 states.* is the tag",
        ),
        (
            ak.Modes(fast=90, slow=ak.Mode(1, max_new_tokens=3, closing=(8, 9) * 127, close=2, breaks=(5, 7))),
            "mode 'slow': what opens or ends it is too long",
        ),
        (
            told(ak.Modes(fast=90, slow=ak.Mode((7, 8), max_new_tokens=3, closing=2, breaks=7)), tags=(2,)),
            "mode 'slow' opens with its own break 7: leave that out",
        ),
    ],
)
def test_modes_whose_ends_cannot_be_told_are_refused(modes, message):
    with pytest.raises(ValueError, match=message):
        ak.patch(shared("llama"), modes)
    with pytest.raises(ValueError, match="not patched"):
        ak.last_stats(shared("llama"))


def test_a_long_closing_with_its_close_is_forced():
    closing = (8, 9) * 128 + (2,)
    modes = ak.Modes(fast=90, slow=ak.Mode(1, max_new_tokens=2, closing=closing, close=2))
    assert run(modes, [30], [1] + [10] * 260)[1] == [1, 10, *closing, 10, 10]
