"""The cache that plan "full" returns when rows have left: computed again, if anybody looks at it."""

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import DynamicCache

from adapt_kernels.hf.kv.segments import row_keys, row_states
from adapt_kernels.hf.row_hooks import row_hook_reason


class ModelState:
    """What a model's forward depends on beside its inputs: parameters, adapters, hooks, autocast."""

    def __init__(self, model):
        self._parameters, self._adapters, self._training = _versions(model), _adapters(model), model.training
        self._device = model.device.type
        self._autocast = torch.is_autocast_enabled(self._device), torch.get_autocast_dtype(self._device)

    def change(self, model) -> str | None:
        """What of the model is different now; or None. Changes by way of `detach()` or `.data` in place go unseen."""
        if self._adapters != _adapters(model):
            return "the model's active adapters changed"
        if self._parameters != _versions(model):
            return "the model's parameters changed"
        if self._training != model.training:
            return "the model changed between training and evaluation"
        return row_hook_reason(model)

    def autocast(self):
        """A context with the autocast that this was taken under."""
        enabled, dtype = self._autocast
        return torch.autocast(self._device, dtype=dtype, enabled=enabled)


def _rounding(tensor) -> float:
    """Relative rounding error of what computed a tensor."""
    device = tensor.device.type
    lower = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
    return max(torch.finfo(tensor.dtype).eps, torch.finfo(lower).eps)


def _versions(model) -> list[tuple]:
    tensors = [*model.parameters(), *model.buffers()]
    return [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _adapters(model) -> list[tuple]:
    """Of every PEFT layer: what is active, merged, switched off, and how it is scaled."""
    names = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
    layers = [module for module in model.modules() if "_disable_adapters" in vars(module)]
    return [tuple(str(vars(layer).get(name)) for name in names) for layer in layers]


class Witness(NamedTuple):
    """What one row that stayed to the end holds, in the last layer of each kind: a forward over whole sequences gives
    something else where a model's decoding depends on how many tokens it is given at once."""

    row: int
    held: dict[int, list[torch.Tensor]]  # by layer: keys [T, heads, head_dim], or the states
    real: torch.Tensor  # [prompt], 0 where the row's prompt is padding
    length: int  # positions of the call
    refuted: Callable[[], None]  # called where it does not agree

    @classmethod
    def of(cls, cache, row: int, mask, length: int, surplus: bool, refuted) -> "Witness":
        """row: what slot 0 holds; mask [rows, prompt] or None. surplus: the last position is to be left out."""
        held = {}
        for index in {type(layer): index for index, layer in enumerate(cache.layers)}.values():
            keys = row_keys(cache.layers[index], 0)
            if keys is not None:
                held[index] = [keys[: len(keys) - surplus].clone()]
            elif not surplus:
                held[index] = [state.clone() for state in row_states(cache.layers[index], 0)]
        real = torch.ones(0) if mask is None else mask[row]
        return cls(row, held, real, length, refuted)

    def agrees(self, cache) -> bool:
        """Whether a rebuilt cache holds what the call had computed."""
        for index, held in self.held.items():
            keys = row_keys(cache.layers[index], self.row)
            found = row_states(cache.layers[index], self.row) if keys is None else [keys]
            pairs = list(zip(held, found, strict=True))
            if keys is not None:
                pairs = [self._comparable(*pair) for pair in pairs]
            if not all(self._close(had, got, 1e-2 if keys is None else 1e-3) for had, got in pairs):
                return False
        return True

    def _comparable(self, had, got) -> tuple[torch.Tensor, torch.Tensor]:
        """The last positions that both have (sliding layers keep a window), without padding: nobody reads its keys, and
        eager attention fills them with an average over all keys."""
        count = min(len(had), len(got))
        real = torch.ones(self.length, dtype=torch.bool, device=had.device)
        real[: len(self.real)] = self.real.to(had.device) != 0
        real = real[self.length - count :]
        return had[len(had) - count :][real], got[len(got) - count :][real]

    def _close(self, had, got, relative: float) -> bool:
        if had.shape != got.shape or not had.numel():
            return had.shape == got.shape
        tolerance = max(relative, 16 * _rounding(had)) * float(had.abs().max())
        return bool(((got - had).abs() <= tolerance).all())


class RebuiltCache(DynamicCache):
    """A `DynamicCache` of all rows and positions, equal to Hugging Face's up to rounding.

    Finished rows gave their KV back during the call, so the first access, a copy or a pickle runs one forward of the
    model over the returned sequences, and this becomes a plain `DynamicCache`. It does not keep the model alive; the
    call's inputs it holds until then. Raises RuntimeError where the model is gone or is not what it was in the call.
    """

    def __init__(self, model, build):
        """build(model): the cache."""
        self.__dict__["_source"] = weakref.ref(model), ModelState(model), build

    def __getattr__(self, name: str):
        if name.startswith("__") or "_source" not in self.__dict__:
            raise AttributeError(name)
        self._become_real()
        return getattr(self, name)

    def __reduce_ex__(self, protocol):
        self._become_real()
        return self.__reduce_ex__(protocol)

    def _become_real(self) -> None:
        reference, state, build = self.__dict__["_source"]
        model = reference()
        changed = "the model is gone" if model is None else state.change(model)
        if changed is not None:
            raise RuntimeError(
                f"the returned cache can no longer be computed: {changed}. Read it before that, or let the next call"
                " start from the returned sequences"
            )
        with state.autocast():
            built = build(model)
        self.__dict__.clear()
        self.__dict__.update(vars(built))
        self.__class__ = type(built)


def rebuild_as_witnessed(model, witness: Witness, *call) -> DynamicCache:
    """The cache of a call (the arguments of `rebuild`), in one forward or, where that gives another, token by token."""
    cache = rebuild(model, *call)
    if witness.agrees(cache):
        return cache
    witness.refuted()
    cache = _decode_again(model, *call)
    if not witness.agrees(cache):
        raise RuntimeError(
            "the returned cache cannot be computed: decoding the sequences again gave other keys. Call generate again:"
            " from now on this model's rows stay for their cache"
        )
    return cache


@torch.no_grad()
def rebuild(model, config, prompt_kwargs: dict, cache_name: str, prompt_length: int, sequences) -> DynamicCache:
    """The cache after a forward over all but the last position of `sequences` [rows, T]."""
    new = sequences.shape[1] - 1 - prompt_length
    kwargs = {**prompt_kwargs, cache_name: DynamicCache(config=model.config.get_text_config(decoder=True))}
    if kwargs.get("inputs_embeds") is not None:
        later = model.get_input_embeddings()(sequences[:, prompt_length:-1])
        kwargs["inputs_embeds"] = torch.cat([kwargs["inputs_embeds"], later], 1)
    if kwargs.get("attention_mask") is not None:
        mask = kwargs["attention_mask"]
        kwargs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), new)], 1)
    if kwargs.get("token_type_ids") is not None:
        types = kwargs["token_type_ids"]
        kwargs["token_type_ids"] = torch.cat([types, types[:, -1:].expand(-1, new)], 1)
    if kwargs.get("position_ids") is not None:
        positions = kwargs["position_ids"]
        later = positions[:, -1:] + torch.arange(1, new + 1, device=positions.device)
        kwargs["position_ids"] = torch.cat([positions, later], 1)
    model._prefill(sequences[:, :-1], config, kwargs)
    return kwargs[cache_name]


@torch.no_grad()
def _decode_again(model, config, prompt_kwargs: dict, cache_name: str, prompt_length: int, sequences) -> DynamicCache:
    """As `rebuild`, in Hugging Face's own steps."""
    kwargs = {**prompt_kwargs, cache_name: DynamicCache(config=model.config.get_text_config(decoder=True))}
    outputs = model._prefill(sequences[:, :prompt_length], config, kwargs, is_first_iteration=True)
    for length in range(prompt_length + 1, sequences.shape[1]):
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=False)
        inputs = model.prepare_inputs_for_generation(sequences[:, :length], next_sequence_length=1, **kwargs)
        outputs = model(**inputs, return_dict=True)
    return kwargs[cache_name]
