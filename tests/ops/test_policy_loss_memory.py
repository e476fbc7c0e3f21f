"""Where policy_loss's gradient goes: the caller's memory, zeroed pages, nothing else as wide; always the same bits."""

import pytest
import torch
from policy_loss_rows import DTYPES, rows_of
from torch.utils._python_dispatch import TorchDispatchMode

import adapt_kernels as ak


def test_small_gradients_survive_float16_with_a_scale(native):
    logits = torch.zeros(1, 60000, dtype=torch.float16, requires_grad=True)
    arguments = (logits, torch.tensor([0]), -11.0, 1.0)
    scaled = ak.policy_loss(*arguments, weights=1e-4, grad_scale=65536.0, backend=native).loss * 65536.0
    scaled.backward()
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_into_given_memory(native, dtype):
    logits, ids, old = rows_of(12, 1001, 9, dtype)
    mask = torch.arange(12) % 3 != 0
    leaf = logits.clone().requires_grad_()
    plain = ak.policy_loss(leaf, ids, old, 1.0, mask, backend=native)
    plain.loss.backward()
    wider = torch.full((12, 1010), 7.0, dtype=dtype)
    target = wider[:, 4:1005]
    other = logits.clone().requires_grad_()
    out = ak.policy_loss(other, ids, old, 1.0, mask, grad_out=target, backend=native)
    out.loss.backward()
    assert torch.equal(target, leaf.grad) and torch.equal(other.grad, leaf.grad)
    assert (wider[:, :4] == 7).all() and (wider[:, 1005:] == 7).all(), "nothing beside the rows is written"
    source = logits.clone().requires_grad_()
    inplace = source * 1
    out = ak.policy_loss(inplace, ids, old, 1.0, mask, grad_out=inplace, backend=native)
    for a, b in zip(out, plain, strict=True):
        assert torch.equal(a, b)
    out.loss.backward()
    assert torch.equal(source.grad, leaf.grad) and torch.equal(inplace.detach(), leaf.grad)


def test_a_buffer_that_is_written_again_is_noticed(native):
    logits, ids, old = rows_of(3, 40, 10)
    leaf, buffer = logits.clone().requires_grad_(), torch.empty(3, 40)
    first = ak.policy_loss(leaf, ids, old, 1.0, grad_out=buffer, backend=native)
    ak.policy_loss(leaf, ids, old, -1.0, grad_out=buffer, backend=native)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.loss.backward()


def test_large_gradients_come_in_zeroed_pages(native):
    """Past 4 MB the gradient is memory of the system's: rows without a gradient are left as they came, zero."""
    logits, ids, old = rows_of(22, 60001, 11)
    mask = torch.arange(22) % 2 == 0
    leaf = logits.clone().requires_grad_()
    ak.policy_loss(leaf, ids, old, 1.0, mask, backend=native).loss.backward()
    assert not leaf.grad[~mask].any()
    dense = logits.clone().requires_grad_()
    filled = torch.full_like(logits, 5)
    ak.policy_loss(dense, ids, old, 1.0, mask, grad_out=filled, backend=native).loss.backward()
    assert torch.equal(filled, leaf.grad)


def test_the_same_bits_twice_on_any_number_of_threads_and_as_token_logprobs(native):
    logits, ids, old = rows_of(22, 5003, 12)
    outs = []
    for threads in (1, 1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        leaf = logits.clone().requires_grad_()
        out = ak.policy_loss(leaf, ids, old, 1.0, entropy_coef=0.1, backend=native)
        out.loss.backward()
        torch.set_num_threads(before)
        outs.append((*out, leaf.grad))
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other, strict=True))
    logprobs, entropy = ak.token_logprobs(logits, ids, entropy=True, backend=native)
    assert torch.equal(outs[0][1], logprobs) and torch.equal(outs[0][2], entropy)
    leaf = logits[5:6].clone().requires_grad_()
    ak.policy_loss(leaf, ids[5:6], old[5:6], 1.0, entropy_coef=0.1, backend=native).loss.backward()
    assert torch.equal(leaf.grad[0], outs[0][-1][5])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_as_wide_as_the_vocabulary_is_made_but_the_gradient(native, dtype):
    """No float32 copy of 16-bit logits, no mask, no buffer: the largest tensors are those the caller sees."""
    logits, ids, old = rows_of(64, 6007, 17, dtype)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() != logits.data_ptr():
                    sizes.append(tensor.untyped_storage().nbytes())
            return out

    leaf = logits.detach().requires_grad_()
    with Watch():
        ak.token_logprobs(logits, ids, entropy=True, backend=native)
        before_gradient = max(sizes)
        ak.policy_loss(leaf, ids, old, 1.0, backend=native).loss.backward()
    assert before_gradient <= 64 * 3 * 8
    wide = [size for size in sizes if size > 64 * 3 * 8]
    assert wide and set(wide) == {logits.numel() * logits.element_size()}
