"""`Paths` inside the decode loop: what rows have gone through, and the view that a score function gets of them."""

import threading

import torch

from adapt_kernels import dispatch
from adapt_kernels.hf.kv.side_forward import appended
from adapt_kernels.program.path_run import Moment, PathRun
from adapt_kernels.program.path_view import PathView


def path_steps(model, call, batch, selector, input_ids):
    """What the loop of a call tells its steps to; `NoPaths` without paths."""
    if call.paths is None:
        return NoPaths()
    width, device = input_ids.shape[1], input_ids.device
    return PathSteps(model, call.paths, batch, selector, width, device)


class NoPaths:
    """`PathSteps` of a call that lets every row live."""

    @property
    def reads_ends(self) -> bool:
        """Whether the host must know after every step which rows have ended."""
        return False

    def close(self) -> None:
        pass

    def observe(self, new_tokens: int, logits, tokens, batch, alive) -> None:
        pass

    def end(self, new_tokens: int, input_ids, ends, batch) -> bool:
        return False

    def cut(self, ends):
        return torch.zeros_like(ends.alive)

    def report(self, ends) -> dict:
        return {}

    def stats(self, ends, longest: int) -> dict:
        return {}


class PathSteps(NoPaths):
    """The paths of one call; after each step `observe`, then `end`.

    score_tokens: positions computed for scores.
    """

    def __init__(self, model, paths, batch, selector, prompt_length: int, device):
        reason = batch.plan.no_append
        if getattr(paths.score, "appends", False) and reason:
            raise ValueError(f"paths: {type(paths.score).__name__} cannot score the rows of this call: {reason}")
        self.run = PathRun(paths, batch.prompts, selector.seeds, device)
        self._model, self._selector, self._prompt_length = model, selector, prompt_length
        self.score_tokens = 0
        self._hidden: torch.Tensor | None = None
        self._hook, self._thread = None, threading.get_ident()
        head = model.get_output_embeddings() if paths.own_function else None
        if head is not None:
            self._hook = head.register_forward_pre_hook(self._keep_hidden)

    @property
    def reads_ends(self) -> bool:
        return self.run.reads_ends

    def _keep_hidden(self, module, inputs) -> None:
        ours = threading.get_ident() == self._thread  # another call may be running on the model
        if ours and inputs and torch.is_tensor(inputs[0]) and inputs[0].ndim == 3:
            self._hidden = inputs[0][:, -1]

    def close(self) -> None:
        """Leave nothing on the model."""
        if self._hook is not None:
            self._hook.remove()

    def observe(self, new_tokens: int, logits, tokens, batch, alive) -> None:
        """Take a step's logits [slots, V] and tokens [slots] of the rows `alive` [rows] bool."""
        confidences, logprobs = self.run.statistics(new_tokens, logits, tokens)
        self.run.observe(batch.slots.spread(confidences, 0.0), batch.slots.spread(logprobs, 0.0), alive)

    def end(self, new_tokens: int, input_ids, ends, batch) -> bool:
        """End rows of `ends` after a step. True if the host knows that some ended: they leave at once."""

        def view(rows):
            return self._view(rows, input_ids, ends, batch)

        ids = input_ids[:, self._prompt_length :]
        leaving = self.run.end(ends.alive, Moment(new_tokens, ends.new_tokens, self._selector.modes, ids, view))
        ends.leave(leaving)
        return leaving is not None and (not dispatch.host_waits(leaving.device) or new_tokens in self.run.paths.looks)

    def _view(self, rows, input_ids, ends, batch) -> PathView:
        hidden = None if self._hidden is None else batch.of_rows(self._hidden)[rows]

        def forward(embeds, adapter):
            return self._append(rows, input_ids, batch, embeds, adapter)

        prompts, ids = self.run.prompts.to(rows.device)[rows], input_ids[rows, self._prompt_length :]
        return PathView(rows, prompts, ids, ends.new_tokens[rows], *self.run.sums(rows), hidden, forward)

    def _append(self, rows, input_ids, batch, embeds, adapter) -> torch.Tensor:
        if batch.plan.no_append or self._hook is None:
            reason = batch.plan.no_append or "the model has no output embeddings to read hidden states from"
            raise ValueError(f"append cannot serve this call: {reason}")
        if batch.expand(self._selector.modes):
            self._selector.place(batch.slots)
        embeds = embeds.to(rows.device)
        given = embeds.new_zeros(len(input_ids), *embeds.shape[1:]).index_copy(0, rows, embeds)
        self.score_tokens += len(batch.slots.take(input_ids)) * (1 + embeds.shape[1])

        def hidden():
            if self._hidden is None:
                raise ValueError("append cannot serve this call: the model's output embeddings are not called")
            return self._hidden

        kept = self._hidden
        found = appended(self._model, batch, batch.slots.take(input_ids), batch.slots.take(given), hidden, adapter)
        self._hidden = kept
        return batch.of_rows(found)[rows]

    def cut(self, ends):
        """[rows] bool: which rows did not end by themselves or at a length."""
        return self.run.codes > 0

    def report(self, ends) -> dict:
        """`path_scores` and `path_ends` of the output."""
        return {"path_scores": self.run.scores, "path_ends": self.run.ends(ends.finished)}

    def stats(self, ends, longest: int) -> dict:
        """Of `GenerateStats`; longest: new tokens of the call's longest row."""
        saved = int((longest - ends.new_tokens)[self.cut(ends)].sum())
        return {"tokens_saved": saved, "score_tokens": self.score_tokens, "inactive": self.run.inactive()}
