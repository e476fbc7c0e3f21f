"""The bytes behind each token id of a tokenizer, whatever its alphabet; no transformers."""

import json
import re

from adapt_kernels.mode_tokens import is_unknown

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_HARMLESS = {"Fuse", "Strip", "ByteFallback", "Metaspace", "Replace", "ByteLevel"}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte (openai/gpt-2, encoder.py): character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


class Vocabulary:
    """Token ids of a Hugging Face tokenizer as bytes, and texts as token ids.

    tokenizer: any object with `get_vocab`, `convert_ids_to_tokens` and `encode(text, add_special_tokens=False)`; the
    alphabet is told by its decoder where it has one (`backend_tokenizer.decoder`), else by its pieces. Raises TypeError
    for anything else, and ValueError for a decoder whose bytes cannot be told.
    """

    def __init__(self, tokenizer):
        wanted = ("get_vocab", "convert_ids_to_tokens", "encode")
        missing = [name for name in wanted if not callable(getattr(tokenizer, name, None))]
        if missing:
            raise TypeError(
                f"tokenizer must be a Hugging Face tokenizer; {type(tokenizer).__name__} has no {missing[0]}"
            )
        self.tokenizer = tokenizer
        pieces = tokenizer.get_vocab()
        added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
        spell = _speller(tokenizer, [piece for piece in pieces if piece not in added])
        self.bytes: dict[int, bytes] = {token_id: spell(piece) for piece, token_id in pieces.items()}
        self.bytes.update((token_id, text.encode()) for text, token_id in added.items())

    def single_id(self, text: str, label: str) -> int:
        """The one id that is this text. Raises ValueError that shows the pieces where it is several, or unknown."""
        ids = self.encode(text, label)
        if len(ids) == 1:
            return ids[0]
        pieces = [str(piece) for piece in self.tokenizer.convert_ids_to_tokens(list(ids))]
        raise ValueError(
            f"{label}: {text!r} is not one token of this tokenizer but {pieces} (ids {list(ids)}), and an id is needed"
            f' here. Write {{"text": {text!r}}} for its bytes however they are tokenised, {{"seq": [[...]]}} for'
            " exactly these ids, or add it to the tokenizer with add_special_tokens"
        )

    def encode(self, text: str, label: str) -> tuple[int, ...]:
        """The ids of a text, without special tokens around it. Raises ValueError where it is empty or unknown."""
        if not isinstance(text, str) or not text:
            raise ValueError(f"{label}: a text must not be empty; got {text!r}")
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if not ids or any(is_unknown(self.tokenizer, token_id, text) for token_id in ids):
            raise ValueError(f"{label}: this tokenizer has no tokens for {text!r}; it gives {list(ids)}")
        return ids


def _speller(tokenizer, pieces: list[str]):
    """A function from a piece to its bytes."""
    types, replaced = _decoder_of(tokenizer)
    if types is None:
        types = {"ByteLevel"} if any(mark in piece for piece in pieces for mark in "\u0120\u010a") else set()
        replaced = {"\u2581": " "}
    unknown = sorted(types - _HARMLESS)
    if unknown:
        raise ValueError(
            f"the bytes of tokens cannot be told from a decoder of type {unknown[0]!r}: write the program's patterns as"
            " ids and leave the tokenizer out"
        )
    if "ByteLevel" in types:
        return _byte_level
    return lambda piece: _literal(piece, replaced)


def _decoder_of(tokenizer) -> tuple[set[str] | None, dict[str, str]]:
    """The types of a decoder's parts (None: there is no decoder), and what it replaces."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None, {}
    spec = json.loads(decoder.__getstate__())
    parts = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    replaced = {}
    for part in parts:
        if part["type"] == "Replace" and "String" in part["pattern"]:
            replaced[part["pattern"]["String"]] = part["content"]
        elif part["type"] == "Replace":
            return {"Replace by a pattern"}, {}
        elif part["type"] == "Metaspace":
            replaced[part["replacement"]] = " "
    return {part["type"] for part in parts}, replaced


def _byte_level(piece: str) -> bytes:
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return piece.encode()


def _literal(piece: str, replaced: dict[str, str]) -> bytes:
    if byte := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    for old, new in replaced.items():
        piece = piece.replace(old, new)
    return piece.encode(errors="surrogatepass")
