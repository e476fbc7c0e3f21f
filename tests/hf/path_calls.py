"""Calls with and without `paths`, and what both must share."""

import torch
from recorders import RowLengths
from tiny_models import EOS, FAST, PAD, SLOW, left_padded, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW, SAMPLES = 8, 14, 4
PROGRAM = ak.Program.from_dict({"rules": [{"force": [9, 10], "when": {"at": [3, 4]}}]})
BASE = {"do_sample": True, "seed": 11, "max_new_tokens": NEW, "return_dict_in_generate": True}


def inputs(lengths=(8, 5)):
    return left_padded(prompts(len(lengths), WIDTH), list(lengths))


def generate(paths=None, lengths=(8, 5), architecture="llama", ends=None, modes=MODES, **more):
    """ends: per row how many new tokens it has, None = to the limit."""
    if ends is not None:
        more["stopping_criteria"] = [RowLengths(WIDTH, [NEW + 1 if n is None else n for n in ends])]
    settings = {"num_return_sequences": SAMPLES, "suppress_tokens": [EOS], "eos_token_id": EOS, **BASE, **more}
    given = inputs(lengths)
    if not settings["do_sample"]:
        # Equal rows in place of returned sequences, which Hugging Face refuses here.
        count = settings.pop("num_return_sequences")
        given = {name: tensor.repeat_interleave(count, 0) for name, tensor in given.items()}
    with ak.patched(shared(architecture), modes) as model:
        return model.generate(**given, **({} if paths is None else {"paths": paths}), **settings)


def new(out):
    return out.sequences[:, WIDTH:]


def check_against(whole, pruned):
    """What both share, row for row; returns the rows that were cut."""
    cut = [row for row, end in enumerate(pruned.path_ends) if end in ("pruned", "agreed", "below")]
    for row, length in enumerate(pruned.lengths.tolist()):
        shown, full = new(pruned)[row], new(whole)[row]
        if row in cut:
            assert torch.equal(shown[:length], full[:length]) and (shown[length:] == PAD).all(), row
        else:
            assert torch.equal(shown, full[: len(shown)]) and length == whole.lengths[row], row
    return cut


CASES = {
    "sampled": {},
    "one prompt": {"lengths": (8,)},
    "greedy, equal rows": {"do_sample": False, "seed": None},
    "modes": {"fast_prob": 0.5},
    "modes, balanced": {"mode": "balanced"},
    "program": {"program": PROGRAM, "top_k": 20},
    "shared prompts": {"kv_layout": "shared"},
    "never compacted": {"compact_at": 0.0},
    "rows end": {"ends": [3, None, None, None, None, 9, None, None]},
    "sample_only": {"output_logits": True},
    "their sampler": {"rng": "hf", "seed": None},
    "log-probs": {"return_logprobs": True, "temperature": 0.7},
}
