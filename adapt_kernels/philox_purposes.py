"""What the random stream of `philox_reference` is drawn for, and the seeds of a call's rows: plain integers."""

GROUP_SIZE = 128
PURPOSE_GROUP = 0
PURPOSE_TOKEN = 1
PURPOSE_RULE = 2
PURPOSE_PATH = 3
PURPOSE_KEEP = 4


def row_seed(seed: int, row: int) -> int:
    """The seed of row ``row`` under one call seed: ``row_seed(s, 0) == s``, other rows a 64-bit mix (signed int64)."""
    if row == 0:
        return seed
    mixed = _mix64((_mix64(seed % 2**64) + row * 0x9E3779B97F4A7C15) % 2**64)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def _mix64(z: int) -> int:
    # The finaliser of splitmix64: a bijection on 64 bits, so two rows of a call never share a seed.
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)
