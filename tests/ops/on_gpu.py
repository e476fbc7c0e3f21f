"""Runs an op on a GPU for tests that hold tensors on the CPU: inputs go there, results and gradients come back."""

import torch

# For the tests of the credit ops: backend "native" on CUDA tensors.
CUDA = "cuda"


def moved(op, name, backend, device="cuda"):
    """`op`, except that a call with backend=`name` runs by `backend` with every tensor on `device`."""

    def there(value):
        return value.to(device) if torch.is_tensor(value) else value

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
