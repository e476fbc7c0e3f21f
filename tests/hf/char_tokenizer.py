"""A tokenizer over the tiny models' vocabulary: one character per id, and a few merges so that tokens extend others."""

from functools import cache

from tiny_models import VOCAB
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<eos>", "<bos>"]
_MERGES = [("a", "b"), ("ab", "c"), ("a", "d"), ("d", "e")]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&()*+,-./:;<=>?@[]^_{|}~"


@cache
def char_tokenizer() -> PreTrainedTokenizerFast:
    merged = [left + right for left, right in _MERGES]
    tokens = [*_SPECIAL, *_LETTERS[: VOCAB - len(_SPECIAL) - len(merged)], *merged]
    assert len(tokens) == len(set(tokens)) == VOCAB
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, _MERGES))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )
