"""Which rows of a call share a prompt: those that `num_return_sequences` repeats, and equal rows that come as such."""

import torch

# Model inputs with one row per batch row, in Hugging Face's layout.
ROW_INPUTS = ("attention_mask", "position_ids", "token_type_ids", "inputs_embeds")


def prompt_of_row(tensors, samples: int = 1) -> torch.Tensor:
    """[rows] int64 on the CPU: the index of each row's prompt, numbered in order of first appearance.

    tensors: one or more [rows, ...] tensors that make up a row's prompt (ids, mask, embeddings); rows that agree in all
        of them to the last bit share a prompt. samples: runs of so many rows are known to be equal.

    Host syncs: reads the tensors, unless they hold a single run.
    """
    runs = len(tensors[0]) // samples
    if runs <= 1:
        return torch.zeros(runs * samples, dtype=torch.int64)
    keys = [b"".join(parts) for parts in zip(*(_row_bytes(t[::samples]) for t in tensors), strict=True)]
    numbers: dict[bytes, int] = {}
    found = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return found.repeat_interleave(samples)


def prompts_of(input_ids, model_kwargs: dict, samples: int) -> torch.Tensor:
    """The same for a call's inputs. Host syncs: reads them."""
    given = [model_kwargs[name] for name in ROW_INPUTS if model_kwargs.get(name) is not None]
    return prompt_of_row([*given, input_ids], samples)


def first_rows(prompts: torch.Tensor) -> torch.Tensor:
    """[P] int64: the first row of each prompt."""
    count = int(prompts.max()) + 1 if len(prompts) else 0
    rows = torch.arange(len(prompts)).flip(0)
    return torch.empty(count, dtype=torch.int64).scatter_(0, prompts.flip(0), rows)


def select_rows(model_kwargs: dict, index) -> dict:
    """The same model inputs for the rows in `index` (int64, repeats allowed)."""
    chosen = {n: model_kwargs[n] for n in ROW_INPUTS if model_kwargs.get(n) is not None}
    return {**model_kwargs, **{name: tensor[index.to(tensor.device)] for name, tensor in chosen.items()}}


def _row_bytes(tensor) -> list[bytes]:
    rows = tensor.detach().contiguous().view(torch.uint8).cpu().numpy() if tensor[0].numel() else [[]] * len(tensor)
    return [bytes(row) for row in rows]
