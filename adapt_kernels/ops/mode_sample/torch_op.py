"""torch.ops.adapt_kernels.mode_sample: the op that eager code, torch.compile and dispatch modes see."""

import torch

from adapt_kernels.dispatch import choose
from adapt_kernels.library import register
from adapt_kernels.ops.mode_sample.arguments import ROW_ARGUMENTS, Rows, check_values
from adapt_kernels.ops.mode_sample.result import ModeSample

# A row argument is two of the op: a number for all rows, and a tensor of one per row that replaces it.
_KINDS = {torch.bool: "bool", torch.float64: "float", torch.int64: "int"}
_IN_SCHEMA = {name: _KINDS[dtype] + "?" * (name == "seeds") for name, dtype in ROW_ARGUMENTS.items()}
_SCHEMA = (
    "mode_sample(Tensor logits, int[] mode_ids, Tensor? bias, bool only_modes, str backend, "
    + ", ".join(f"{kind} {name}, Tensor? {name}_rows" for name, kind in _IN_SCHEMA.items())
    + ", Tensor? token_classes=None, Tensor? class_scale=None, Tensor? class_bias=None"
    ") -> (Tensor tokens, Tensor modes, Tensor logprobs, Tensor raw_logprobs, Tensor tempered_logprobs, "
    "Tensor mode_probs, Tensor kept, Tensor flags)"
)


def call(rows: Rows, backend: str) -> ModeSample:
    """Run the registered op on `prepare`d rows."""
    mode_ids = [-1 if token_id is None else token_id for token_id in rows.mode_ids]
    pairs: list = []
    for name in ROW_ARGUMENTS:
        value = getattr(rows, name)
        if isinstance(value, torch.Tensor):
            pairs += (_PLACEHOLDERS[name], value)
        else:
            pairs += (value, None)
    edits = () if rows.token_classes is None else (rows.token_classes, rows.class_scale, rows.class_bias)
    return ModeSample(*OP(rows.logits, mode_ids, rows.bias, rows.only_modes, backend, *pairs, *edits))


def _run(logits, mode_ids, bias, only_modes, backend, *given):
    pairs, edits = given[: 2 * len(ROW_ARGUMENTS)], given[2 * len(ROW_ARGUMENTS) :]
    values = {
        name: number if tensor is None else tensor
        for name, number, tensor in zip(ROW_ARGUMENTS, pairs[::2], pairs[1::2], strict=True)
    }
    mode_ids = tuple(None if token_id < 0 else token_id for token_id in mode_ids)
    chosen = choose("mode_sample", backend, logits)
    rows = Rows(logits=logits, mode_ids=mode_ids, bias=bias, only_modes=only_modes, **values)
    if edits and edits[0] is not None:
        rows = rows._replace(**dict(zip(("token_classes", "class_scale", "class_bias"), edits, strict=True)))
    return tuple(chosen.mode_sample(check_values(rows)))


def _fake(logits, mode_ids, *_):
    count = logits.shape[0] * logits.shape[1]
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32

    def empty(dtype, *more):
        return logits.new_empty((count, *more), dtype=dtype)

    return (
        empty(torch.int64),
        empty(torch.int8),
        empty(real),
        empty(real),
        empty(real),
        empty(real, len(mode_ids)),
        empty(torch.int32),
        empty(torch.int32),
    )


_PLACEHOLDERS = {name: {"bool": False, "float": 0.0, "int": 0, "int?": None}[kind] for name, kind in _IN_SCHEMA.items()}
# Without seeds the op draws one from torch's generator, so two calls are never one.
OP = register(_SCHEMA, _run, _fake, tags=(torch.Tag.nondeterministic_seeded,))
