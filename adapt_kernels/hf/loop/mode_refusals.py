"""What users are told where a mode cannot be entered."""

from adapt_kernels.modes import Modes


def no_mode_left(modes: Modes, row: int, named: int) -> str:
    """named: index of the row's mode, -1 = the model chooses; only a mode of any other token has no token to force."""
    what = "mode token" if named < 0 else f"token of mode {modes.names[named]!r}"
    return (
        f"row {row}: every {what} has logit -inf, so no mode can be drawn; a logits processor"
        " (suppress_tokens, bad_words_ids, a grammar ...) bans them. Allow them, or name"
        f" {'the mode' if named < 0 else 'another mode'}: mode='...'"
    )


def refusal_of_token(modes: Modes, row: int, mode: int, token: int, processors) -> str:
    """mode: -1 = any. processors: those that remember the row and refuse the token they would have to go on from."""
    names = ", ".join(type(processor).__name__ for processor in processors)
    return (
        f"row {row}: {'the modes' if mode < 0 else f'mode {modes.names[mode]!r}'} must be given token"
        f" {token}, which {names} refuses (logit -inf) and would have to go on from: let it allow"
        " the modes' tokens, or begin after them, or leave out mode, mode_bias and fast_prob"
    )
