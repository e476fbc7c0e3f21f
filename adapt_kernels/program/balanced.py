"""The balanced split of a prompt's samples over the modes."""


def balanced(num_modes: int, samples: int) -> list[int]:
    """The mode of each sample: evenly, first mode first, odd ones to the first modes."""
    share, extra = divmod(samples, num_modes)
    return [mode for mode in range(num_modes) for _ in range(share + (mode < extra))]
