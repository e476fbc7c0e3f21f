"""Byte-level tokenizers with the published shapes of chat templates, and a tiny model over their vocabulary."""

from functools import cache

from tiny_models import build
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TAGS = (
    *("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<think>", "</think>"),
    *(
        "<answer>",
        "<tool_call>",
        "</tool_call>",
        "<short>",
        "<ANSWER>",
        "<COT>",
        "<CODE>",
        "<LONG_COT>",
        "<perception>",
    ),
)
_MERGES = [("Ċ", "Ċ"), (".", "Ċ"), (".", "ĊĊ"), ("Ġ", "Ġ")]
_TURNS = "{%- for m in messages -%}"
# {{ tail }} is what the template itself writes at the beginning of the reply.
TEMPLATES = {
    "qwen": _TURNS
    + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' + (tail or '') }}{%- endif -%}",
    "deepseek": "<|bos|>"
    + _TURNS
    + "{{ '<|User|>' + m.content if m.role == 'user' else '<|Assistant|>' + m.content + '<|eos|>' }}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|Assistant|>' + (tail or '') }}{%- endif -%}",
    "llama": "<|bos|>"
    + _TURNS
    + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' + (tail or '') }}"
    + "{%- endif -%}",
    "mistral": "<|bos|>"
    + _TURNS
    + "{{ '[INST] ' + m.content + '[/INST]' if m.role == 'user' else m.content + '<|eos|>' }}{%- endfor -%}"
    + "{{ tail or '' }}",
}
# The end of a turn, where that is what `generate` stops at.
EOS = {"qwen": "<|im_end|>", "deepseek": "<|eos|>", "llama": "<|eot_id|>", "mistral": "<|eos|>"}


@cache
def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in _MERGES:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(tag, normalized=False, special=True) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        padding_side="left",
        chat_template=TEMPLATES.get(template),
        model_input_names=["input_ids", "attention_mask"],
    )


def chat(template: str, tail: str, question="2+2?", history=()) -> str:
    """The prompt of one question, after earlier turns."""
    messages = [*history, {"role": "user", "content": question}]
    tokenizer = chat_tokenizer(template)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, tail=tail)


@cache
def chat_model(template: str):
    """Shared: only for tests that leave it as they found it."""
    tokenizer = chat_tokenizer(template)
    pad, eos = tokenizer.convert_tokens_to_ids(["<|pad|>", EOS[template]])
    return build("llama", vocab_size=len(tokenizer), pad_token_id=pad, eos_token_id=eos, bos_token_id=None)
