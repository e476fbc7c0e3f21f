"""What token patterns mean, on a whole history of ids: plain Python."""


class Patterns:
    """T over a history of ids, by definition."""

    def __init__(self, pieces):
        self.pieces = [piece.encode() for piece in pieces]

    def parts(self, pattern):
        return [part for each in pattern for part in self.parts(each)] if isinstance(pattern, list) else [pattern]

    def bytes(self, ids):
        return b"".join(self.pieces[i] for i in ids)

    def ids(self, pattern):
        """Ids of a pattern that is a set of ids."""
        found = set()
        for part in self.parts(pattern):
            if isinstance(part, dict) and "word" in part:
                words = {word.encode().lower() for word in part["word"]}
                found |= {i for i, piece in enumerate(self.pieces) if piece.lstrip(b" \t").lower() in words}
            elif isinstance(part, dict) and "ends" in part:
                found |= {i for i, piece in enumerate(self.pieces) if piece.endswith(part["ends"].encode())}
            elif not isinstance(part, dict):
                found.add(self.pieces.index(part.encode()) if isinstance(part, str) else part)
        return found

    def match(self, pattern, history):
        """(completed by the last token, tokens of the longest match completed, tokens of the longest one begun)."""
        whole, begun = [0], [0]
        for part in self.parts(pattern):
            if isinstance(part, dict) and "seq" in part:
                lists = [
                    [self.pieces.index(t.encode()) if isinstance(t, str) else t for t in ids] for ids in part["seq"]
                ]
                whole += [len(ids) for ids in lists if history[-len(ids) :] == ids]
                begun += [n for ids in lists for n in range(1, len(ids)) if history[-n:] == ids[:n]]
            elif isinstance(part, dict) and "text" in part:
                whole.append(self._text(part["text"].encode(), history))
                begun.append(self._half_text(part["text"].encode(), history))
            elif history and history[-1] in self.ids(part):
                whole.append(1)
        return max(whole) > 0, max(whole), max(begun)

    def _text(self, text, history):
        seen, last = self.bytes(history), len(self.bytes(history[:-1]))
        starts = [i for i in range(len(seen)) if seen.startswith(text, i) and i + len(text) > last]
        return self._tokens_from(starts[0], history) if starts else 0

    def _half_text(self, text, history):
        seen = self.bytes(history)
        sizes = [n for n in range(1, len(text)) if seen.endswith(text[:n])]
        return self._tokens_from(len(seen) - max(sizes), history) if sizes else 0

    def _tokens_from(self, start, history):
        return sum(len(self.bytes(history[: n + 1])) > start for n in range(len(history)))
