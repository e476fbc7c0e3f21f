"""A language model's head as the ops over hidden states see it: projection, bias, scale, softcap, in chunks of rows."""

from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

import torch

# Rows of logits that are alive at once take about this much memory, whatever N is: on a GPU some 2000 rows of 150,000
# bfloat16 logits, for every chunk adds a product to the weight's whole gradient in float32, which takes 2 ms there.
_CHUNK_BYTES, _CHUNK_BYTES_ON_CUDA = 128 << 20, 600 << 20
_FLOAT32_GEMM = ("cuda",)  # devices that multiply half-precision matrices into a float32 one
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LmHead(NamedTuple):
    """logits = cap(logit_scale * (hidden @ weight.T + bias)), cap(x) = softcap * tanh(x / softcap)."""

    weight: torch.Tensor  # [V, D]
    bias: torch.Tensor | None  # [V]
    softcap: float | None
    logit_scale: float

    def chunks(self, rows: torch.Tensor, chunk_rows: int | None) -> Iterator[torch.Tensor]:
        """`rows` in pieces whose logits fit the memory set aside for them."""
        widest = 4 if self.softcap else self.weight.element_size()
        most = _CHUNK_BYTES_ON_CUDA if self.weight.device.type == "cuda" else _CHUNK_BYTES
        fitting = max(1, most // (self.weight.shape[0] * widest))
        return iter(rows.split(chunk_rows or fitting))

    def divisor(self, temperature: float) -> float:
        """What `project`'s logits are still to be divided by: a scale without a softcap is a temperature."""
        return temperature if self.softcap else temperature / self.logit_scale

    def project(self, hidden: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [n, V] up to `divisor`, in the dtype of `hidden`; in float32 at least where a softcap bends them."""
        out = None if buffer is None else buffer[: len(hidden)]
        logits = torch.mm(hidden, self.weight.t(), out=out)
        if self.bias is not None:
            logits.add_(self.bias)
        if self.softcap:
            logits = logits if logits.dtype == torch.float64 else logits.float()
            logits = logits.mul_(self.logit_scale / self.softcap).tanh_().mul_(self.softcap)
        return logits

    def pull_back(self, gradient: torch.Tensor, logits: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Gradient of `project`'s logits to that of the plain product; `logits` are needed with a softcap."""
        if self.softcap:
            assert logits is not None
            slope = logits.div_(self.softcap).square_().neg_().add_(1).mul_(self.logit_scale)
            gradient = gradient.mul_(slope).to(dtype)
        return gradient


class HeadGradients:
    """Sums gradients of hidden states, weight and bias over chunks, in float32 at least."""

    def __init__(self, hidden: torch.Tensor, head: LmHead, wants: tuple[bool, bool, bool]):
        self.head = head
        self.hidden = torch.zeros_like(hidden) if wants[0] else None
        self.weight = self._zeros(head.weight) if wants[1] else None
        self.bias = self._zeros(head.bias) if wants[2] and head.bias is not None else None

    @staticmethod
    def _zeros(like: torch.Tensor) -> torch.Tensor:
        return torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

    def add(self, rows: torch.Tensor, hidden: torch.Tensor, gradient: torch.Tensor) -> None:
        """`gradient` [n, V] of the plain product of `hidden` [n, D], which are the rows `rows`."""
        if self.hidden is not None:
            self.hidden[rows] = (gradient @ self.head.weight).to(self.hidden.dtype)
        if self.weight is None:
            pass
        elif self.weight.dtype == gradient.dtype:
            self.weight.addmm_(gradient.t(), hidden)
        elif gradient.device.type in _FLOAT32_GEMM:
            # The sum stays in the GEMM's float32: no product is rounded, written and read again.
            torch.addmm(self.weight, gradient.t(), hidden, out_dtype=torch.float32, out=self.weight)
        else:
            self.weight += gradient.t() @ hidden
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def results(self) -> tuple[torch.Tensor | None, ...]:
        """Gradients of hidden states, weight and bias in their own dtypes."""
        weight = None if self.weight is None else self.weight.to(self.head.weight.dtype)
        if self.bias is None or self.head.bias is None:
            return self.hidden, weight, None
        return self.hidden, weight, self.bias.to(self.head.bias.dtype)


def check_head(hidden, weight, bias, softcap, logit_scale, chunk_rows) -> LmHead:
    """Checked `LmHead` for `hidden` [..., D]. Raises ValueError or TypeError naming the argument."""
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not torch.is_tensor(value) or value.dtype not in _DTYPES:
            kind = value.dtype if torch.is_tensor(value) else type(value).__name__
            raise TypeError(f"{name} must be a float32, bfloat16, float16 or float64 tensor; got {kind}")
    if hidden.ndim not in (2, 3):
        raise ValueError(f"hidden must be [N, D] or [B, T, D]; got shape {tuple(hidden.shape)}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise ValueError(f"weight must be [V, D] with D = {hidden.shape[-1]}; got shape {tuple(weight.shape)}")
    if bias is not None and (not torch.is_tensor(bias) or bias.shape != weight.shape[:1]):
        given = tuple(bias.shape) if torch.is_tensor(bias) else type(bias).__name__
        raise ValueError(f"bias must be [V] = ({weight.shape[0]},), or None; got {given}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and (value.dtype != hidden.dtype or value.device != hidden.device):
            raise ValueError(
                f"{name} must have hidden's dtype and device, {hidden.dtype} on {hidden.device}; "
                f"got {value.dtype} on {value.device}"
            )
    for name, value in (("softcap", softcap), ("logit_scale", logit_scale)):
        if name == "softcap" and value is None:
            continue
        if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
            raise ValueError(f"{name} must be a number above 0 and finite; got {value!r}")
    if chunk_rows is not None and (not isinstance(chunk_rows, int) or chunk_rows < 1):
        raise ValueError(f"chunk_rows must be an integer of at least 1, or None; got {chunk_rows!r}")
    return LmHead(weight, bias, None if softcap is None else float(softcap), float(logit_scale))
