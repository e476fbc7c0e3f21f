"""The tokenizers of the trained tasks: one token per word, loadable with `AutoTokenizer`."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from adapt_recipes.tasks.problem import EOS_TOKEN, FAST_TOKEN, PAD_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN
from adapt_recipes.tasks.running_sum import FILLER, QUESTION

BOS_TOKEN = "<bos>"
UNK_TOKEN = "<unk>"
SPECIAL_TOKENS = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN)
MODE_TOKENS = (FAST_TOKEN, SLOW_TOKEN, SLOW_END_TOKEN)
DIGITS = tuple(str(digit) for digit in range(10))
OPERANDS = tuple(f"+{digit}" for digit in range(10))
VOCABULARY = (*SPECIAL_TOKENS, *DIGITS, *OPERANDS, FILLER, QUESTION, *MODE_TOKENS)


def token_id(token: str) -> int:
    """The id of a word of the running-sum task: its place in `VOCABULARY`, whose special tokens open every other."""
    return VOCABULARY.index(token)


def build_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> PreTrainedTokenizerFast:
    """Build the tokenizer whose ids are the places in `vocabulary`, which begins with `SPECIAL_TOKENS`.

    It adds BOS itself, pads on the left and returns ids and mask only.
    """
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK_TOKEN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, token_id(BOS_TOKEN))]
    )
    # Found even without a space before it ("?<think>"); not special, so skip_special_tokens keeps the mode readable.
    words.add_tokens([AddedToken(token, normalized=False, special=False) for token in MODE_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        clean_up_tokenization_spaces=False,  # would glue "." and "?" to the word before
    )
