"""Remember the marked: what a KV budget costs in accuracy, by the score that chooses what stays.

    python benchmarks/keep_miniature.py --seed 0

A prompt names two of eight letters. The thought goes through all eight, each a token that fuses it with a random digit
and four fillers, the first of which marks a letter that was asked for; the answer repeats the two digits. A tiny model
learns that, a `TokenScorer` learns from its attention which tokens the answer will need, and every policy then decodes
under one budget. Right: both digits are those that the row's own thought gave its letters.
"""

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak

PAD, BOS, EOS, ASK, THINK, END, ANSWER, FILL, MARK, UNUSED = range(10)
LETTERS, DIGITS, FUSED, VOCAB = 11, 19, 29, 109
START, STOP = 5, 45  # of the thought
MODES = ak.Modes(fast=UNUSED, slow=UNUSED + 1)
BUDGET = {"budget": 24, "keep": 0.6, "window": 8, "count": "all"}


def draw(rows: int, generator, mark: bool = True) -> torch.Tensor:
    """[rows, 50] ids of right samples."""
    asked = torch.rand(rows, 8, generator=generator).argsort(1)[:, :2]
    order = torch.rand(rows, 8, generator=generator).argsort(1)
    digits = torch.randint(10, (rows, 8), generator=generator)
    marked = (order[:, :, None] == asked[:, None]).any(-1) & mark
    fill = torch.full((rows, 8), FILL)
    fused = FUSED + order * 10 + digits.gather(1, order)
    thought = torch.stack([fused, fill.masked_fill(marked, MARK), fill, fill, fill], 2).flatten(1)
    before = torch.tensor([ASK, THINK]).expand(rows, -1)
    after = torch.tensor([END, ANSWER]).expand(rows, -1)
    first, last = torch.full((rows, 1), BOS), torch.full((rows, 1), EOS)
    return torch.cat([first, LETTERS + asked, before, thought, after, DIGITS + digits.gather(1, asked), last], 1)


def is_right(sequences) -> torch.Tensor:
    """[rows] bool"""
    thought = sequences[:, START:STOP:5] - FUSED
    asked = sequences[:, 1:3] - LETTERS
    place = (thought[:, None] // 10 == asked[:, :, None]).float().argmax(-1)
    return ((thought.gather(1, place) % 10 + DIGITS) == sequences[:, STOP + 2 : STOP + 4]).all(1)


def trained(seed: int, steps: int, mark: bool) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(seed + 100)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    weights = torch.ones(49 - START + 1)
    weights[-3:-1] = 10.0  # the digits of the answer
    for step in range(steps):
        rate = 3e-3 * min(1.0, (step + 1) / 40, max(0.05, (steps - step) / (0.3 * steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = draw(64, generator, mark)
        logits = model(ids).logits[:, START - 1 : -1]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, START:], reduction="none")
        loss = (each * weights).sum() / (weights.sum() * len(ids))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: {float(each.detach()[:, -3:-1].mean()):.3f} nats a digit", flush=True)
    return model.eval()


class Oracle:
    """Scores by whether a token is about to be marked: the model's own word for what was asked."""

    def __init__(self, model):
        self._head = model.lm_head

    def token_scores(self, hidden) -> torch.Tensor:
        return self._head(hidden).float().softmax(-1)[:, MARK]

    def check_model(self, model) -> None:
        """It has no weights of its own."""


@torch.no_grad()
def table(model, head, rows: int, seed: int) -> None:
    ids = draw(rows, torch.Generator().manual_seed(seed + 7))[:, :START]
    call = {"do_sample": True, "top_k": 0, "eos_token_id": None, "max_new_tokens": 45, "seed": seed}
    call |= {"return_dict_in_generate": True, "pad_token_id": PAD}
    policies = {"full": None, "window": "recent", "random": "random", "key_norm": "key_norm", "snap": "snap"}
    policies |= {"r_kv": "r_kv", "DynTS": head, "oracle": Oracle(model)}
    with ak.patched(model, MODES):
        for name, score in policies.items():
            settings = {} if score is None else {"kv_keep": ak.KeepKV(**BUDGET, score=score)}
            out = model.generate(ids, **call, **settings)
            peak = out.stats.kv_held_peak or out.sequences.shape[1] - 1
            print(f"{name:10s} {float(is_right(out.sequences).float().mean()):.2f} at peak {peak}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--no-mark", action="store_true", help="Control: the thought does not mark what was asked.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    model = trained(given.seed, given.steps, not given.no_mark)
    print(f"model: {time.process_time() - begun:.0f} s")
    head = ak.TokenScorer(model)
    samples = draw(400, torch.Generator().manual_seed(given.seed + 3), not given.no_mark)
    losses = head.fit(model, [(ids, START, STOP) for ids in samples], epochs=40, batch_size=40, lr=2e-3, progress=False)
    print(f"head: loss {losses[0]:.1f} to {losses[-1]:.1f}, {time.process_time() - begun:.0f} s")
    table(model, head, given.rows, given.seed)


if __name__ == "__main__":
    main()
