"""What one run of a step issues: two equal records are what a CUDA graph takes for granted."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_READS = frozenset(
    ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique", "_unique2", "unique_dim")
    + ("unique_consecutive", "repeat_interleave")
)
_BY_INDEX = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))


class StepRecord(TorchDispatchMode):
    """Run a step inside; `ops` then has each op's name, its settings, and the layout and place of its tensors: an
    address, or the number of the op in this run that made it.

    Raises RuntimeError at an op by which the host would read from the device, or write to it.
    """

    def __init__(self):
        super().__init__()
        self.ops: list[tuple] = []
        self._made: dict[int, int] = {}  # the latest maker, by address: of a living tensor it is the right one

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, (given, structure) = func.name(), tree_flatten((args, kwargs))
        if func.overloadpacket.__name__ == "lift_fresh":
            raise RuntimeError("a tensor is made of values of the host")
        if _reads(func.overloadpacket.__name__, given):
            raise RuntimeError(f"{name} reads from the device")
        places = {tensor.untyped_storage().data_ptr() for tensor in given if torch.is_tensor(tensor)}
        self.ops.append((name, str(structure), *map(self._entry, given)))
        outputs = func(*args, **kwargs)
        for tensor in tree_flatten(outputs)[0]:
            if torch.is_tensor(tensor) and (place := tensor.untyped_storage().data_ptr()) not in places:
                self._made[place] = len(self.ops) - 1
        return outputs

    def _entry(self, value):
        if not torch.is_tensor(value):
            return repr(value)
        place = value.untyped_storage().data_ptr()
        where = ("made", self._made[place]) if place in self._made else ("given", place)
        return (*where, value.dtype, value.shape, value.stride(), value.storage_offset())


def difference(first: StepRecord, second: StepRecord) -> str | None:
    """Where two records part, None where they are equal."""
    for index, (one, other) in enumerate(zip(first.ops, second.ops, strict=False)):
        if one != other:
            what = "runs on other tensors or settings" if one[0] == other[0] else f"is {other[0]} the next time"
            return f"op {index}, {one[0]}, {what}"
    if len(first.ops) != len(second.ops):
        return f"{len(first.ops)} ops, then {len(second.ops)}"
    return None


def _reads(name: str, given) -> bool:
    masks = (torch.bool, torch.uint8)
    by_mask = name in _BY_INDEX and any(torch.is_tensor(x) and x.dtype in masks for x in given[1:])
    return name in _READS or by_mask
