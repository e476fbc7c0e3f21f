"""Nothing that is not finite reaches the optimiser: rewards, advantages, log-probs, losses and gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor
from trl.trainer.utils import is_async_callable

_SHOWN = 8


@contextmanager
def checked_rewards(trainer) -> Iterator[None]:
    """Inside, NaN of a reward function is inf: TRL writes None, for a row that is not scored, as NaN too."""
    functions = trainer.reward_funcs
    trainer.reward_funcs = [_with_nan_marked(function) for function in functions]
    try:
        yield
    finally:
        trainer.reward_funcs = functions


def _with_nan_marked(function: Callable) -> Callable:
    def marked(rewards):
        return [torch.inf if r is not None and r != r else r for r in rewards]

    if isinstance(function, torch.nn.Module):
        return function
    if is_async_callable(function):

        async def awaited(*args, **kwargs):
            return marked(await function(*args, **kwargs))

        return awaited

    def scored(*args, **kwargs):
        return marked(function(*args, **kwargs))

    return scored


def check_rewards(rewards: torch.Tensor, trainer) -> None:
    """Raises ValueError naming the rows and the function of a reward of inf or NaN; rewards [N, F] of all ranks."""
    for function, name, given in zip(trainer.reward_funcs, trainer.reward_func_names, rewards.T, strict=True):
        # A model leaves no row out.
        bad = ~given.isfinite() if isinstance(function, torch.nn.Module) else given.isinf()
        if bad.any():
            raise ValueError(
                f"reward function {name!r} gave inf or NaN for rows {rows_of(bad)} of the batch: rewards must be"
                " finite; return None for a row that is not scored"
            )


def check_finite(values: torch.Tensor, what: str) -> None:
    """Raises ValueError naming the rows for which one of the values [M, N], of all ranks, is not finite."""
    bad = ~values.isfinite().all(0)
    if bad.any():
        raise ValueError(
            f"{what} is not finite for rows {rows_of(bad)} of the batch: look at the sizes of the rewards, at"
            " reward_weights and at the scheme's settings"
        )


def not_finite(batch: dict, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """How many of a rollout's log-probs [B, T] are not finite where the mask is true, by whose they are."""
    owners = {"old_logprobs": "log-probs of the policy", "ref_per_token_logps": "log-probs of the reference model"}
    return {owner: (mask & ~batch[name].isfinite()).sum() for name, owner in owners.items() if name in batch}


def check_counts(counts: torch.Tensor, whats: Sequence[str], policy: str, step: int) -> None:
    """Raises RuntimeError if any of these counts of values that are not finite, summed over ranks, is above 0."""
    for what, count in zip(whats, counts.tolist(), strict=True):
        if count:
            raise RuntimeError(
                f"policy {policy!r} at step {step}: {int(count)} values of {what} are not finite, so nothing more is"
                " trained; the weights are those of the last step. Look at learning_rate, max_grad_norm, the dtype and"
                " the logits of the model"
            )


@contextmanager
def named(policy: str, step: int) -> Iterator[None]:
    """Inside, a rollout that cannot go on says whose it is."""
    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # out of memory, which callers look for
            raise
        raise RuntimeError(f"policy {policy!r} at step {step}: {error}") from error


def check_gradients(model: torch.nn.Module, policy: str, step: int) -> None:
    """Raises RuntimeError naming a parameter whose gradient is not finite. One read of the gradients and one sync."""
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not named:
        return
    largest = _largest([gradient for _, gradient in named])
    if largest.isfinite():
        return
    name = next((name for name, gradient in named if not _largest([gradient]).isfinite()), "?")
    raise RuntimeError(
        f"policy {policy!r} at step {step}: the gradient of {name} is not finite, so the optimiser does not step. Look"
        " at max_grad_norm, at the dtype and at what is masked in the model"
    )


def rows_of(bad: torch.Tensor) -> str:
    rows = bad.nonzero()[:, 0].tolist()
    return str(rows) if len(rows) <= _SHOWN else f"{rows[:_SHOWN]} and {len(rows) - _SHOWN} more"


def _largest(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The largest magnitude: the only norm that no finite gradient overflows."""
    found = torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
    return found.full_tensor() if isinstance(found, DTensor) else found
