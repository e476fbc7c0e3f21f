"""Tokenizers without a library: pieces and how they are spelt, longest match first."""


class ToyTokenizer:
    """pieces: text of each id, in order of ids; added: those of them that are added tokens."""

    unk_token_id = None

    def __init__(self, pieces, added=()):
        self.pieces, self.added = list(pieces), set(added)

    def get_vocab(self):
        return {piece: token for token, piece in enumerate(self.pieces)}

    def get_added_vocab(self):
        return {piece: token for piece, token in self.get_vocab().items() if piece in self.added}

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[token] for token in ids]

    def encode(self, text, add_special_tokens=False):
        ids = []
        while text:
            fits = [piece for piece in self.pieces if piece and text.startswith(piece)]
            if not fits:
                return []
            best = max(fits, key=len)
            ids.append(self.pieces.index(best))
            text = text[len(best) :]
        return ids

    def __len__(self):
        return len(self.pieces)


# The ids of the golden traces: 3 is "\n", 4 is ".\n\n", 8 to 10 are words.
TRACE_PIECES = [
    "<pad>", "<think>", "</think>", "\n", ".\n\n", "Wait", "<eos>", "<tool_call>", "eight", "nine", "ten",
    "</tool_call>", "twelve", "thirteen", "fourteen", "fifteen",
]  # fmt: skip
TRACE_TOKENIZER = ToyTokenizer(TRACE_PIECES, added=("<think>", "</think>", "<eos>", "<tool_call>", "</tool_call>"))
