"""Both interfaces of vLLM's model runners, played with logits that depend on the request and the position alone.

Rows come, move, are preempted and computed anew, and (newer runner) verify drafts, all by the dice; a greedy engine
must say the same whatever happens on the way.
"""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

VOCAB = 32


@dataclass(eq=False)
class Request:
    """One request; `generated` is its live list."""

    number: int
    prompt: list[int]
    extra: dict | None
    length: int
    temperature: float = 0.0
    generated: list[int] = field(default_factory=list)
    left: int = 0  # steps of prefill before it may say something
    slot: int | None = None

    @property
    def params(self):
        return SimpleNamespace(extra_args=self.extra, temperature=self.temperature, max_tokens=self.length)

    @property
    def done(self) -> bool:
        return len(self.generated) >= self.length

    def logits(self, history) -> torch.Tensor:
        """Of the token after `history` [generated so far]: not of the batch, the slot or the step."""
        generator = torch.Generator().manual_seed(hash((self.number, *history)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 3


class Engine:
    """What both runners share: who runs, who waits, who is preempted."""

    def __init__(self, requests, seed: int, places: int = 4):
        self.dice, self.waiting, self.running, self.places = random.Random(seed), list(requests), [], places
        self.preemptions = 0

    def finished(self) -> bool:
        return not (self.waiting or self.running)

    def schedule(self) -> tuple[list[Request], list[Request]]:
        """(left, came): some that were finished or preempted, some new ones."""
        gone = [each for each in self.running if each.done]
        others = [each for each in self.running if not each.done]
        preempted = [each for each in others if self.dice.random() < 0.1]
        self.preemptions += len(preempted)
        self.running = [each for each in others if each not in preempted]
        came = []
        while self.waiting and len(self.running) + len(came) < self.places:
            came.append(self.waiting.pop(0))
            came[-1].left = self.dice.choice((0, 0, 1, 2))
        self.waiting += preempted
        return gone + preempted, came


class OlderEngine(Engine):
    """A dense batch: rows are removed, added in their holes, moved from the end, and swapped."""

    def __init__(self, make, config, requests, seed: int, places: int = 4, directions=None):
        super().__init__(requests, seed, places)
        self.processor, self.batch, self.directions = make(config, torch.device("cpu"), False), [], directions

    def step(self) -> None:
        left, came = self.schedule()
        removed = sorted((self.batch.index(each) for each in left), reverse=True)
        holes, added, moved = list(removed), [], []
        for index in removed:
            self.batch[index] = None
        for each in came:
            index = holes.pop() if holes else len(self.batch)
            self.batch[index:] = [each, *self.batch[index + 1 :]]
            added.append((index, each.params, each.prompt, each.generated))
        while None in self.batch:
            if self.batch[-1] is not None:
                hole = self.batch.index(None)
                moved.append((len(self.batch) - 1, hole, self.directions.UNIDIRECTIONAL))
                self.batch[hole] = self.batch[-1]
            self.batch.pop()
        if len(self.batch) > 1 and self.dice.random() < 0.3:
            one, two = self.dice.sample(range(len(self.batch)), 2)
            self.batch[one], self.batch[two] = self.batch[two], self.batch[one]
            moved.append((one, two, self.directions.SWAP))
        self.running = list(self.batch)
        update = SimpleNamespace(batch_size=len(self.batch), removed=removed)
        update.added, update.moved = added, moved
        self.processor.update_state(update if removed or added or moved else None)
        if not self.batch:
            return
        logits = torch.stack([each.logits(each.generated) for each in self.batch])
        tokens = self.processor.apply(logits).argmax(1).tolist()
        for each, token in zip(self.batch, tokens, strict=True):
            if each.left:  # in the middle of its prompt: what was drawn is thrown away
                each.left -= 1
            else:
                each.generated.append(token)


class _Written:
    """vLLM's staged buffer: writes are put aside, and seen after a flush."""

    def __init__(self, rows: int, columns: int, shows: bool):
        self.gpu = torch.zeros(rows, columns, dtype=torch.int32)
        self._aside = []
        if shows:
            self._staged_write_indices, self._staged_write_starts = [], []
            self._staged_write_contents, self._staged_write_cu_lens = [], []

    def put(self, slot: int, tokens) -> None:
        self._aside.append((slot, list(tokens)))
        if hasattr(self, "_staged_write_indices"):
            self._staged_write_indices.append(slot)
            self._staged_write_starts.append(0)
            self._staged_write_contents.extend(tokens)
            self._staged_write_cu_lens.append(len(self._staged_write_contents))

    def flush(self) -> None:
        for slot, tokens in self._aside:
            self.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        for name in ("indices", "starts", "contents", "cu_lens"):
            getattr(self, f"_staged_write_{name}", []).clear()
        self._aside.clear()


class _Backed:
    def __init__(self, rows: int):
        self.gpu = torch.zeros(rows, dtype=torch.int32)
        self.np = self.gpu.numpy()


class NewerEngine(Engine):
    """Slots that are kept, tokens on the device, rows in any order, and drafts: `drafts` at most per request."""

    def __init__(self, make, config, requests, seed: int, places: int = 4, drafts: int = 0, shows: bool = True):
        super().__init__(requests, seed, places)
        self.drafts, self.free = drafts, list(range(places + 2))
        self.tokens = _Written(places + 2, 96, shows)
        self.prompt_len, self.prefill_len = _Backed(places + 2), _Backed(places + 2)
        self.state = SimpleNamespace(
            device=torch.device("cpu"), max_num_reqs=places + 2, vocab_size=VOCAB, all_token_ids=self.tokens,
            prompt_len=self.prompt_len, prefill_len=self.prefill_len,
        )  # fmt: skip
        self.processor = make(config, self.state)
        self.accepted = 0

    def step(self) -> None:
        left, came = self.schedule()
        self.free += [each.slot for each in left]
        for each in came:
            each.slot = self.free.pop(self.dice.randrange(len(self.free)))
            held = each.prompt + each.generated
            self.prompt_len.np[each.slot], self.prefill_len.np[each.slot] = len(each.prompt), len(held)
            self.tokens.put(each.slot, held)
            each.steered = self.processor.add_request(each.slot, each.params)
        self.tokens.flush()
        self.processor.apply_staged_writes()
        self.running += came
        self.dice.shuffle(self.running)
        if self.running and any(each.steered for each in self.running):
            self._sample()
        else:
            for each in self.running:
                self._commit(each, [int(each.logits(each.generated).argmax())])

    def _sample(self) -> None:
        rows, inputs, of, local, drafted = [], [], [], [], []
        for each in self.running:
            held = each.prompt + each.generated
            draft = self._draft(each)
            drafted.append(draft)
            # In the middle of a prompt the row stands at some earlier token.
            end = len(held) - (each.left * 2 if each.left else 0)
            for number in range(1 + len(draft)):
                history = [*each.generated, *draft[:number]]
                rows.append(each.logits(history))
                inputs.append((held + draft)[max(0, end - 1 + number)])
                of.append((each.slot, end - 1 + number))
                local.append(number)
        slots = np.array([each.slot for each in self.running])
        exact = [pos + 1 for (_, pos), number in zip(of, local, strict=True) if number == 0]
        slack = [0 if each.left else self.dice.randint(0, self.drafts) for each in self.running]
        ceiling = np.array(exact) + np.array(slack)
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor([slot for slot, _ in of], dtype=torch.int32),
            idx_mapping=torch.tensor(slots, dtype=torch.int32), idx_mapping_np=slots,
            expanded_local_pos=torch.tensor(local, dtype=torch.int32),
            input_ids=torch.tensor(inputs, dtype=torch.int32),
            pos=torch.tensor([pos for _, pos in of]), seq_lens_upper_bound_np=ceiling,
        )  # fmt: skip
        tokens = self.processor.apply(torch.stack(rows), context).argmax(1).tolist()
        at = 0
        for each, draft in zip(self.running, drafted, strict=True):
            own, at = tokens[at : at + 1 + len(draft)], at + 1 + len(draft)
            said = 1
            while said <= len(draft) and draft[said - 1] == own[said - 1]:
                said += 1
            self.accepted += said - 1
            self._commit(each, own[:said])

    def _draft(self, each: Request) -> list[int]:
        if each.left or not self.drafts or not each.generated:
            return []
        rest = each.expected[len(each.generated) : -1]
        return [
            right if self.dice.random() < 0.7 else self.dice.randrange(VOCAB)
            for right in rest[: self.dice.randint(0, self.drafts)]
        ]

    def _commit(self, each: Request, tokens) -> None:
        if each.left:
            each.left -= 1
            return
        start = len(each.prompt) + len(each.generated)
        each.generated += tokens
        self.tokens.gpu[each.slot, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
