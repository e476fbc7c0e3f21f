"""A base model of SmolLM2's kind at a size of kilobytes: bytes as tokens, and its chat marks."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_base(folder: Path, seed: int = 0) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: i for i, letter in enumerate((*MARKS, *letters))}, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bytewise.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token=MARKS[1], eos_token=MARKS[2], pad_token=MARKS[2], unk_token=MARKS[0]
    )
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2, eos_token_id=2, pad_token_id=2,
        bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "norm" in name:  # all ones otherwise, in every model
                    value += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
