"""A transformers without a name we need: `patch` names it, before anything changes."""

import sys

import pytest
import torch
import transformers
from parity import MODES
from tiny_models import build
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation import logits_process, utils

import adapt_kernels as ak
from adapt_kernels.hf.compat import check_names, loop_is_known


def without(owner, name):
    return lambda monkeypatch: monkeypatch.delattr(owner, name)


def replaced(owner, name, value):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def no_length(self, key_states, value_states):
    self.keys, self.values, self.is_initialized = key_states, value_states, True


class WithoutField(logits_process.TopPLogitsWarper):
    def __init__(self, *args):
        super().__init__(*args)
        del self.min_tokens_to_keep


CASES = {
    r"GenerationMixin\._prefill": without(GenerationMixin, "_prefill"),
    r"GenerationMixin\._optimize_model_for_decode": without(GenerationMixin, "_optimize_model_for_decode"),
    r"GenerationMixin\._prepare_generated_length": without(GenerationMixin, "_prepare_generated_length"),
    r"generation\.utils\.ALL_CACHE_NAMES": without(utils, "ALL_CACHE_NAMES"),
    r"PreTrainedModel\._is_stateful": without(PreTrainedModel, "_is_stateful"),
    r"DynamicLayer\.device": replaced(DynamicLayer, "lazy_initialization", no_length),
    r"GenerationConfig\._pad_token_tensor": replaced(GenerationMixin, "_prepare_special_tokens", lambda self: None),
    r"GenerationMixin\._prefill\.is_first_iteration": replaced(GenerationMixin, "_prefill", lambda self, ids: None),
    r"TopPLogitsWarper\.min_tokens_to_keep": replaced(logits_process, "TopPLogitsWarper", WithoutField),
    r".*MinPLogitsWarper": without(logits_process, "MinPLogitsWarper"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_missing_name_is_an_error_at_patch(name, monkeypatch):
    model = build("llama")
    original = type(model)
    with monkeypatch.context() as changed:
        CASES[name](changed)
        with pytest.raises(RuntimeError, match=rf"transformers {transformers.__version__}.*{name}.*install") as error:
            ak.patch(model, MODES)
    assert "transformers>=5.17,<5.25" in str(error.value)
    assert type(model) is original
    with pytest.raises(ValueError, match="not patched"):
        ak.last_stats(model)
    ak.unpatch(ak.patch(model, MODES))


def test_nothing_is_missing_here():
    assert check_names() is None
    with torch.device("meta"):
        check_names()


def test_a_name_that_is_imported_is_reported_with_the_release(monkeypatch):
    """Files of ours are imported at the first use of `ak.patch`."""
    for module in [name for name in sys.modules if name.startswith("adapt_kernels.hf")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(vars(ak), "patch", raising=False)
    monkeypatch.delattr(transformers.cache_utils, "DynamicLayer")
    installed = transformers.__version__
    with pytest.raises(ImportError, match=rf"adapt_kernels\.patch cannot use transformers {installed} .*DynamicLayer"):
        ak.patch(build("llama"), MODES)


def test_a_loop_whose_source_cannot_be_read_is_unknown():
    made = {}
    exec("def loop(self): pass", made)
    assert loop_is_known(GenerationMixin._sample)
    for loop in (made["loop"], len, object()):
        assert not loop_is_known(loop)
