"""A sampled step of a patched model is the head's product and one op over the vocabulary, nothing else."""

import pytest
import torch
from tiny_models import FAST, SLOW, VOCAB, prompts, shared
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adapt_kernels as ak

ROWS, NEW_TOKENS = 3, 5
MODES = ak.Modes(fast=FAST, slow=SLOW)


class Vocabulary(TorchDispatchMode):
    """Names of the ops, views apart, that read or write an activation with one entry per token of the vocabulary."""

    def __init__(self, weights):
        super().__init__()
        self._weights, self.names = {w.data_ptr() for w in weights}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if torch.is_tensor(t)]
        wide = [t for t in tensors if t.ndim > 1 and t.shape[-1] == VOCAB and t.data_ptr() not in self._weights]
        if wide and not func.is_view and func.name() != "aten::_unsafe_view":
            self.names.append(func.name())
        return out


def vocabulary_ops(**arguments):
    model = shared("llama")
    with ak.patched(model, MODES), Vocabulary(model.parameters()) as seen:
        arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "eos_token_id": None, "seed": 1, **arguments}
        model.generate(prompts(ROWS, 6), **arguments)
    return seen.names


FILTERS = {"temperature": 0.7, "top_k": 20, "top_p": 0.95, "min_p": 0.01}


@pytest.mark.parametrize(
    "arguments", [{}, FILTERS, {"use_cache": False, **FILTERS}], ids=["plain", "filters", "no-cache"]
)
def test_every_free_step_is_one_op_over_the_vocabulary(arguments):
    names = vocabulary_ops(**arguments)
    assert names.count("adapt_kernels::mode_sample") == NEW_TOKENS
    # The first step also hands each prompt's logits to its rows.
    later = names[names.index("adapt_kernels::mode_sample") + 1 :]
    assert later == ["aten::mm", "adapt_kernels::mode_sample"] * (NEW_TOKENS - 1)


def test_other_work_on_the_logits_would_be_seen():
    assert len(vocabulary_ops(repetition_penalty=1.3)) > len(vocabulary_ops())
