"""Runs an op on a GPU for tests that hold tensors on the CPU: inputs go there, results and gradients come back."""

import torch

# For the tests of the credit ops: backend "native" on CUDA tensors.
CUDA = "cuda"


def placed(tensor: torch.Tensor, device) -> torch.Tensor:
    """A copy on the device with the tensor's strides, and its offset in a storage, so that alignment is kept.

    A tensor that wants a gradient gets one through the copy, which may then be contiguous.
    """
    if tensor.device.type == torch.device(device).type or tensor.requires_grad or device == "meta":
        return tensor.to(device)
    storage = tensor.untyped_storage().to(device=torch.device(device))
    there = torch.empty(0, dtype=tensor.dtype, device=device)
    return there.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def moved(op, name, backend, device="cuda"):
    """`op`, except that a call with backend=`name` runs by `backend` with every tensor on `device`."""

    def there(value):
        return placed(value, device) if torch.is_tensor(value) else value

    def back(value):
        return value.cpu() if torch.is_tensor(value) else value

    def call(*arguments, **named):
        if named.get("backend") != name:
            return op(*arguments, **named)
        named = {key: there(value) for key, value in named.items()} | {"backend": backend}
        result = op(*map(there, arguments), **named)
        fields = [back(field) for field in result]
        return type(result)(*fields) if hasattr(result, "_fields") else tuple(fields)

    return call
