"""What a model shows of a decode step beside its logits: queries, inputs of attention, the last hidden state."""

import threading
from collections import deque
from contextlib import ExitStack, contextmanager
from functools import partial

import torch


class LayerWatch:
    """The last `most` queries of one cache layer, or the inputs of its attention, for the slots of a call.

    module: the attention that read the layer. scale, softcap: of its scores. kwargs: of its latest call. Attention
    functions call it with what they were given, where the keys carry it (`watched_by`).
    """

    def __init__(self, queries: int, hidden: int):
        self._queries: deque[torch.Tensor] = deque(maxlen=queries)
        self._hidden: deque[torch.Tensor] = deque(maxlen=hidden)
        self._wants_hidden = hidden > 0
        self.module, self.scale, self.softcap, self.calls = None, None, None, 0
        self.kwargs: dict = {}

    def attach(self, layer) -> None:
        """Let the keys that a cache layer returns carry this watch."""
        layer.update = partial(_watched_update, layer.update, self)

    def __call__(self, module, query, settings: dict) -> None:
        """query [slots, Hq, q, D]"""
        self.calls += 1
        self.module, self.scale, self.softcap = module, settings.get("scaling"), settings.get("softcap")
        if self._queries.maxlen:
            self._queries.append(query[:, :, -1].clone())

    def take_input(self, hidden, kwargs: dict) -> None:
        """hidden [slots, q, h]: what the attention module was given."""
        self._hidden.append(hidden[:, -1].clone())
        self.kwargs = kwargs

    def reorder(self, index) -> None:
        """Slot i becomes what slot index[i] was; index on the device."""
        for kept in (self._queries, self._hidden):
            for place, tensor in enumerate(kept):
                kept[place] = tensor[index]

    def saved(self) -> tuple:
        """What `restore` takes."""
        return self._queries.copy(), self._hidden.copy(), self.kwargs

    def restore(self, state: tuple) -> None:
        """Forget what came since."""
        self._queries, self._hidden, self.kwargs = state

    def queries(self) -> torch.Tensor:
        """[slots, Hq, w, D], the oldest first."""
        return torch.stack(tuple(self._queries), 2)

    def hidden(self) -> torch.Tensor:
        """[slots, w, h], the oldest first."""
        return torch.stack(tuple(self._hidden), 1)

    @contextmanager
    def inputs(self):
        """Inside, the attention's inputs are noted, once it is known which module that is."""
        if self.module is None or not self._wants_hidden:
            yield
            return
        thread = threading.get_ident()

        def note(module, args, kwargs):
            # Another thread may run the same model.
            if threading.get_ident() == thread:
                hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                self.take_input(hidden, kwargs)

        handle = self.module.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _watched_update(update, watch: LayerWatch, *args, **kwargs):
    keys, values = update(*args, **kwargs)
    keys.watched_by = watch
    return keys, values


@contextmanager
def watched_inputs(watches):
    """Inside, every watch notes its attention's inputs."""
    with ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch.inputs())
        yield


@contextmanager
def last_hidden(model, take):
    """Inside, take(hidden [slots, h]) is called with what the output embeddings are given for the last position."""
    thread = threading.get_ident()

    def note(module, args):
        if threading.get_ident() == thread:
            take(args[0][:, -1])

    handle = model.get_output_embeddings().register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
