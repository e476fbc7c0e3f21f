"""One rollout through the patched `generate`: which row takes which mode, from which seed, and what came out."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.distributed.fsdp import FSDPModule
from trl.trainer.utils import pad

from adapt_kernels.modes import Modes
from adapt_kernels.philox import row_seed, row_seeds
from adapt_kernels.program.balanced import balanced
from adapt_kernels.program.votes import VOTERS


class Rollout(NamedTuple):
    """What a rollout's B rows are, beside their tokens."""

    modes: torch.Tensor  # [B] int64, index into the modes
    mode_probs: torch.Tensor  # [B, M] float32, the model's own
    mode_logprobs: torch.Tensor  # [B] float32, of the mode token over the whole vocabulary
    lengths: torch.Tensor  # [B] int64, new tokens, EOS included
    forced: torch.Tensor | None = None  # [B, T] bool, tokens that were written, not drawn; None: those that open a mode
    cut: torch.Tensor | None = None  # [B] bool, rows that paths ended; None: none

    @classmethod
    def of(cls, out) -> "Rollout":
        """Of what the patched `generate` returns."""
        cut = None
        if out.path_ends is not None:
            cut = torch.tensor([end not in VOTERS for end in out.path_ends], device=out.sequences.device)
        return cls(out.modes.long(), out.mode_probs, out.mode_logprobs, out.lengths, out.forced, cut)

    def segments(self, modes: Modes, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(mode token, response) as bool [B, width]; of what was forced, only the mode token is in one of them."""
        gate, position = len(modes.prefix), torch.arange(width, device=self.modes.device)
        inside = position < self.lengths[:, None]
        if self.cut is not None:
            inside = inside & ~self.cut[:, None]
        first = gate + 1 + self._suffix(modes)
        response = inside & (position >= first[:, None])
        if self.forced is not None:
            response[:, : self.forced.shape[1]] &= ~self.forced[:, :width]
        return inside & (position == gate), response

    def rows(self, modes: Modes, signals: dict[str, torch.Tensor] | None = None, answer_start=None) -> "RolloutRows":
        """What the schemes and the logs see of each row; answer_start [B]: in the completion, None = no answers."""
        answer_start = self.lengths if answer_start is None else answer_start
        at_mode, response = self.segments(modes, int(self.lengths.max()))
        drawn = at_mode | response
        before = torch.arange(drawn.shape[1], device=drawn.device) < answer_start[:, None]
        counts = drawn.sum(1).clamp(min=1), (drawn & before).sum(1)
        cut = torch.zeros_like(self.lengths, dtype=torch.bool) if self.cut is None else self.cut
        return RolloutRows(self.modes, self.mode_probs, self.lengths, *counts, cut, signals or {})

    def _suffix(self, modes: Modes) -> torch.Tensor:
        return torch.tensor([len(ids) for ids in modes.suffixes], device=self.modes.device)[self.modes]

    def ended(self, completion_ids, end_ids) -> torch.Tensor:
        """[B] bool: rows whose last token is one of `end_ids`; the others were cut."""
        last = completion_ids.gather(1, self.lengths[:, None] - 1)[:, 0]
        return torch.isin(last, torch.tensor(end_ids, device=last.device))


class RolloutRows(NamedTuple):
    """A rollout's rows without their tokens; of all ranks once it is gathered."""

    modes: torch.Tensor  # [N] int64
    mode_probs: torch.Tensor  # [N, M] float32
    lengths: torch.Tensor  # [N] int64, new tokens
    drawn: torch.Tensor  # [N] int64, new tokens that may carry credit: the mode token and what was drawn after it
    answer_start: torch.Tensor  # [N] int64, how many of these come before the answer
    cut: torch.Tensor  # [N] bool, rows that paths ended
    signals: dict[str, torch.Tensor]  # [N] float32 each, of the trainer and of the dataset


def left_padded(prompt_ids, pad_token_id: int, multiple: int | None, device) -> dict:
    """`generate`'s input_ids and attention_mask, [B, P] int64, from B lists of ids."""
    rows = [torch.tensor(ids) for ids in prompt_ids]
    width = {"padding_side": "left", "pad_to_multiple_of": multiple}
    padded = {
        "input_ids": pad(rows, padding_value=pad_token_id, **width),
        "attention_mask": pad([torch.ones_like(ids) for ids in rows], padding_value=0, **width),
    }
    return {name: tensor.to(device) for name, tensor in padded.items()}


def check_whole_groups(prompt_ids, num_generations: int) -> None:
    """Raises ValueError where `paths` could not tell this rank's groups: one prompt's rows, `num_generations` each."""
    if len(prompt_ids) % num_generations:
        raise ValueError(
            f"paths needs every group of {num_generations} rows on one rank, and this rank has {len(prompt_ids)} rows:"
            " let per_device_train_batch_size * steps_per_generation be a multiple of num_generations"
        )
    groups = [tuple(ids) for ids in prompt_ids[::num_generations]]
    twice = [index for index, ids in enumerate(groups) if ids in groups[:index]]
    if twice:
        raise ValueError(
            f"paths tells groups by their prompts, and group {twice[0]} of this rollout has the prompt of an earlier"
            " one: remove equal prompts from train_dataset"
        )


def row_arguments(args, modes: Modes, training: bool, index: int, first: int, prompt_ids, num_generations: int) -> dict:
    """`mode`, `seed` and `paths` of rows first ... of the whole batch, in rollout `index`; args: ADaPTConfig."""
    rows, paths = len(prompt_ids), args.paths if training else None
    if paths is not None:
        check_whole_groups(prompt_ids, num_generations)
    return {
        "mode": row_modes(training and args.rollout == "balanced", modes, first, rows, num_generations),
        "seed": rollout_seeds(args.seed, int(not training), index, first, rows),
        "paths": paths,
    }


def row_modes(forced: bool, modes: Modes, first_row: int, rows: int, num_generations: int) -> list[str]:
    """The `mode` argument of rows first_row ... of the whole batch, whose groups are `num_generations` rows each.

    Forced: a group's rows are split as mode="balanced" splits them, whatever rank they are on.
    """
    if not forced:
        return ["auto"] * rows
    of_group = balanced(len(modes), num_generations)
    return [modes.names[of_group[row % num_generations]] for row in range(first_row, first_row + rows)]


def rollout_seeds(seed: int, stream: int, index: int, first_row: int, rows: int) -> torch.Tensor:
    """int64 [rows]: seeds of rows first_row ... of rollout `index`; the same however many ranks share the rows."""
    base = row_seed(row_seed(seed, 1 + stream), 1 + index)
    return row_seeds(base, first_row + rows)[first_row:]


@contextmanager
def whole_parameters(model, reshard_after_forward: bool):
    """FSDP2: every parameter gathered once for the whole block, so that ranks may run unequal numbers of forwards.

    reshard_after_forward: what the wrapped modules do outside of the block.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(reshard_after_forward, recurse=False)
            module.reshard()
