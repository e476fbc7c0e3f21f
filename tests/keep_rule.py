"""The rule of `ak.kept_positions`, written independently for one row."""

import math


def plain(scores, window: int, keep: int, protected) -> list[int]:
    """Protected, then the window, newest first, then by score, older first, NaN last; ascending."""
    length = len(scores)
    first = [i for i in range(length) if protected[i]]
    second = [i for i in range(length - 1, length - window - 1, -1) if not protected[i]]
    rest = [i for i in range(length - window) if not protected[i]]
    rest.sort(key=lambda i: (math.isnan(scores[i]), 0.0 if math.isnan(scores[i]) else -scores[i], i))
    return sorted([*first, *second, *rest][: keep + window])
