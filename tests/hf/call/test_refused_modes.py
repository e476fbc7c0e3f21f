"""A grammar, which goes on from what it allowed, refuses a token that a mode forces: an error that says what to do."""

import pytest
import torch
from recorders import RowLengths
from tiny_models import FAST, SLOW, prompts, shared
from transformers import LogitsProcessor

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
LONG = ak.Modes(fast=(7, FAST, 9), slow=(7, SLOW))
WIDTH = 6
REMEDY = r"let it allow the modes' tokens, or begin after them, or leave out mode, mode_bias and fast_prob"


class Grammar(LogitsProcessor):
    """Allows a list of ids at each step, and breaks down when it is given another."""

    def __init__(self, *allowed):
        self._allowed = allowed

    def __call__(self, input_ids, scores):
        for step, token in enumerate(input_ids[:, WIDTH:].T):
            assert set(token.tolist()) <= set(self._allowed[step]), "given a token that it refused"
        allowed = self._allowed[min(input_ids.shape[1] - WIDTH, len(self._allowed) - 1)]
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed] = scores[:, allowed]
        return masked


def generate(modes=MODES, rows=2, **arguments):
    arguments = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, **arguments}
    with ak.patched(shared("llama"), modes) as model:
        return model.generate(prompts(rows, WIDTH), return_dict_in_generate=True, **arguments)


ANSWER = list(range(20, 40))


@pytest.mark.parametrize(
    ("modes", "arguments", "allowed", "what"),
    [
        (MODES, {"mode": "slow"}, [ANSWER], f"row 0: mode 'slow' must be given token {SLOW}, which Grammar refuses"),
        (MODES, {"mode": ["fast", "slow"]}, [[FAST], ANSWER], f"row 1: mode 'slow' must be given token {SLOW}"),
        (MODES, {"mode": "balanced", "num_return_sequences": 2, "do_sample": True}, [[SLOW]], "row 0: mode 'fast'"),
        (MODES, {"mode": "slow", "rng": "hf", "do_sample": True}, [ANSWER], "row 0: mode 'slow'"),
        (MODES, {"fast_prob": 0.5}, [[SLOW]], f"row 0: mode 'fast' must be given token {FAST}"),
        (LONG, {"mode": "slow"}, [ANSWER], "row 0: mode 'slow' must be given token 7"),
        (LONG, {"mode": "auto"}, [ANSWER], "row 0: the modes must be given token 7"),
        (LONG, {"mode_bias": 30.0}, [[7], [FAST], ANSWER], "row 0: mode 'fast' must be given token 9"),
    ],
)
def test_the_error_names_row_mode_and_remedy(modes, arguments, allowed, what):
    with pytest.raises(ValueError, match=rf"{what}.*{REMEDY}"):
        generate(modes, logits_processor=[Grammar(*allowed)], **arguments)


def test_a_function_of_allowed_tokens_is_a_grammar_too():
    refused = "row 0: mode 'slow' must be given token 6, which PrefixConstrainedLogitsProcessor refuses"
    with pytest.raises(ValueError, match=refused):
        generate(mode="slow", prefix_allowed_tokens_fn=lambda batch, ids: ANSWER)


@pytest.mark.parametrize("arguments", [{"mode": "slow"}, {"mode": "auto"}, {"mode_bias": -30.0}])
def test_a_grammar_that_allows_the_modes_goes_on(arguments):
    out = generate(logits_processor=[Grammar([FAST, SLOW], ANSWER, ANSWER, ANSWER)], **arguments)
    assert set(out.sequences[:, WIDTH].tolist()) <= {FAST, SLOW} and set(
        out.sequences[:, WIDTH + 1 :].flatten().tolist()
    ) <= set(ANSWER)


def test_every_mode_refused_without_one_named():
    with pytest.raises(ValueError, match="row 0: every mode token has logit -inf"):
        generate(mode="auto", logits_processor=[Grammar(ANSWER)])


@pytest.mark.parametrize("rng", [None, "hf"])
@pytest.mark.parametrize("sampled", [False, True])
def test_every_other_token_refused_where_that_is_the_mode(rng, sampled):
    other = ak.Modes(fast=FAST, slow=None)
    grammar = {"logits_processor": [Grammar([FAST], ANSWER)], "rng": rng, "do_sample": sampled}
    with pytest.raises(ValueError, match="row 1: every token of mode 'slow' has logit -inf.*name another mode"):
        generate(other, mode=["fast", "slow"], **grammar)
    assert (generate(other, mode="fast", max_new_tokens=1, **grammar).sequences[:, WIDTH] == FAST).all()


@pytest.mark.parametrize(
    "ban", [{"suppress_tokens": [SLOW]}, {"bad_words_ids": [[SLOW]]}, {"begin_suppress_tokens": [SLOW]}]
)
@pytest.mark.parametrize(
    "grammar", [[], [Grammar([FAST, SLOW], ANSWER, ANSWER, ANSWER)]], ids=["alone", "with grammar"]
)
def test_a_plain_ban_does_not_hold_against_a_forced_mode(ban, grammar):
    out = generate(mode="slow", logits_processor=grammar, **ban)
    assert (out.sequences[:, WIDTH] == SLOW).all()


def test_a_closing_is_no_logit():
    # Only the tokens that open a mode can be left out; a cap must hold.
    modes = ak.Modes(fast=FAST, slow=ak.Mode(SLOW, max_new_tokens=2, closing=(8, 9)))

    class Bans(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([8, 9]), -torch.inf)

    out = generate(modes, mode="slow", logits_processor=[Bans()])
    assert (out.sequences[:, WIDTH + 2 :] == torch.tensor([8, 9])).all()


def test_rows_that_have_ended_are_not_asked():
    modes = ak.Modes(fast=(7, FAST), slow=(7, SLOW, 9))

    class RefusesRow0(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            if input_ids.shape[1] > WIDTH:
                scores[0, [FAST, SLOW, 9]] = -torch.inf
            return scores

    ends = {"stopping_criteria": [RowLengths(WIDTH, [1, 4])], "eos_token_id": 1}
    out = generate(modes, mode="slow", logits_processor=[RefusesRow0()], **ends)
    assert out.modes.tolist() == [-1, 1]
