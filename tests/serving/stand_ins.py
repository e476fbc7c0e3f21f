"""Stand-ins for the few names of vLLM that the adapter touches."""

from enum import Enum, auto
from types import ModuleType

OLDER = "vllm.v1.sample.logits_processor.interface"
NEWER = "vllm.v1.worker.gpu.sample.logits_processor.interface"


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


def stand_in(name: str, **names) -> dict[str, ModuleType]:
    """A module of that dotted name, and the packages above it."""
    parts, found = name.split("."), {}
    for length in range(1, len(parts) + 1):
        found[".".join(parts[:length])] = ModuleType(".".join(parts[:length]))
    found[name].__dict__.update(names)
    return found
