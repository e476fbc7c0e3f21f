"""From a mode's text to its token ids, with errors that show what the tokenizer did."""

import re

# One tag: <think>, </think>, <|im_start|>, [THINK].
TAG = re.compile(r"<[^<>\s]+>|\[[A-Za-z_/][^\[\]\s]*\]")

# In no vocabulary: a model that makes one token of it has made its unknown token.
_NONCHARACTER = "\U0010ffff"

_EMPTY = {
    "ids": "for 'any other token' pass None",
    "closing": "to end rows at max_new_tokens pass None",
    "close": "for the last tag of the closing pass None",
    "breaks": "for none pass ()",
}
_CLOSES = "A tag or a single word that closes a mode must be one token (other ids: pass them as a tuple)."
_WHY = {
    "ids": "One token must select the mode.",
    "closing": _CLOSES,
    "close": _CLOSES,
    "breaks": "What breaks a mode off must be one token (several: pass their ids as a tuple).",
}


def mode_ids(tokenizer, name: str, text: str, field: str = "ids") -> tuple[int, ...]:
    """Token ids of the text that opens mode `name`, or ends it. Raises ValueError for a missing or split token.

    field: the field of `Mode` that the text is for.
    """
    if not text:
        raise ValueError(f"mode {name!r} has an empty text as {field}; {_EMPTY[field]}")
    tags = [text] if field == "breaks" else TAG.findall(text)
    # One word, even after a space, must be one token; several words or tags are a multi-token mode.
    whole = [] if tags or re.search(r"\s", text.strip()) else [text]
    for unit in tags or whole:
        ids = tokenizer.encode(unit, add_special_tokens=False)
        if len(ids) != 1 or is_unknown(tokenizer, ids[0], unit):
            raise ValueError(_split_message(tokenizer, name, unit, ids, field))
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ids or any(is_unknown(tokenizer, i, text) for i in ids):
        raise ValueError(_split_message(tokenizer, name, text, ids, field))
    return ids


def is_unknown(tokenizer, token_id: int, text: str) -> bool:
    """Whether the id stands for what the vocabulary lacks, and not for `text` itself."""
    return token_id in _unknown_ids(tokenizer) and text != tokenizer.convert_ids_to_tokens([token_id])[0]


def _unknown_ids(tokenizer) -> set[int]:
    """Ids of what the vocabulary lacks: the declared one, and the one that the inner model maps to, declared or not."""
    declared = getattr(tokenizer, "unk_token_id", None)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    try:
        pieces = [] if model is None else model.tokenize(_NONCHARACTER)
    except Exception:  # what `tokenizers` raises where a model has no unknown token
        pieces = []
    inner = {piece.id for piece in pieces} if len(pieces) == 1 else set()
    return inner if declared is None else inner | {declared}


def _split_message(tokenizer, name: str, unit: str, ids, field: str) -> str:
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids))]
    return (
        f"mode {name!r}: {unit!r} is not one token of this tokenizer; it is tokenised as {pieces} (ids {list(ids)}).\n"
        f"{_WHY[field]} Add it, give the model a row for it, and train it to use it:\n"
        f'    tokenizer.add_special_tokens({{"additional_special_tokens": [{unit!r}]}})\n'
        "    model.resize_token_embeddings(len(tokenizer))\n"
        "or name a text that is one token already."
    )
