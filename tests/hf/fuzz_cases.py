"""Random `generate` calls for the fuzzer: everything about a call follows from an architecture and a seed."""

import random
from dataclasses import asdict, dataclass, fields

import torch
from tiny_models import PAD, SLOW, VOCAB

# How tokens are chosen. Beams, assistants and prompt look-up have loops of their own.
DRAWS = (
    *("greedy",) * 6,
    *("top_k_1",) * 4,
    *("rng_hf", "rng_hf", "own_seeds", "forced", "beams", "beam_sample", "assisted", "lookup"),
)
_SAMPLED = ("top_k_1", "rng_hf", "own_seeds")
_OUTPUTS = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")


@dataclass(frozen=True)
class Case:
    """One call, in plain values."""

    architecture: str
    seed: int
    draw: str
    rows: int
    width: int
    new: int
    prompt_of_row: tuple[int, ...]  # equal numbers, equal prompts
    weights: int = 0  # seed of the model
    attention: str | None = None  # implementation
    lengths: tuple[int, ...] | None = None  # real tokens per prompt; None = all
    mask: str = "left"  # where padding is: "left", "right" or "holes"
    mask_type: str = "int64"  # or "bool", "float32"
    positions: bool = False  # position_ids are given
    samples: int = 1
    eos: tuple[tuple[int, int], ...] = ()  # (row, step) of the free run whose tokens end rows; () = no EOS id
    has_pad: bool = True
    row_ends: tuple[int, ...] | None = None  # new tokens after which a stopping criterion ends each row
    stop_at: tuple[int, int] | None = None  # (row, step) of the free run whose text is a stop string
    processors: tuple[tuple[str, object], ...] = ()
    outputs: tuple[str, ...] = ()
    rich: bool = False  # return_dict_in_generate
    layout: str = "auto"
    shares_early: bool = False  # "auto" shares from the first byte on
    compact_at: float = 0.75
    use_cache: bool = True
    cache: str | None = None  # "static", or "given": an empty cache of the caller's
    inputs: str = "input_ids"  # or "inputs_embeds", or "none"
    token_types: bool = False
    kv_tokens: int | None = None  # of the first mode: how early KV segments grow
    hook: str | None = None  # "seen": looks at a layer's output; "rows": adds another number to each row
    training: bool = False
    checkpointing: bool = False  # while training
    continued: bool = False  # a second call takes the sequences and the cache of the first
    streamed: bool = False
    limit: str = "max_new_tokens"

    def describe(self) -> str:
        """The settings that are not the default ones."""
        defaults = {f.name: f.default for f in fields(self)}
        return ", ".join(f"{n}={v!r}" for n, v in asdict(self).items() if v != defaults[n])


def draw_case(architecture: str, seed: int) -> Case:
    """The case of a seed."""
    r = random.Random(f"{architecture} {seed}")
    draw = r.choice(DRAWS)
    rows = 1 if draw in ("assisted", "lookup") else r.randint(1, 6)
    kind = r.choices(["input_ids", "inputs_embeds", "none"], [88, 10, 2])[0]
    rows = 1 if kind == "none" else rows
    width, new = r.randint(3, 10), r.randint(4, 14)
    samples = r.randint(2, 4) if draw in _SAMPLED and r.random() < 0.6 else 1
    shape = {"rows": rows, "width": width, "new": new, "samples": samples, "prompt_of_row": _prompt_numbers(r, rows)}
    case = shape | _inputs(r, rows, width, kind) | _ends(r, rows, new, samples) | _settings(r)
    # Where a model draws numbers while training, tokens drawn from the same generator would shift them.
    case["training"] &= draw in ("greedy", "forced", "rng_hf")
    case["checkpointing"] &= case["training"]
    if draw == "forced":
        case["outputs"] = ()  # at a forced step they show what nobody drew from
    if draw not in ("greedy", "top_k_1", "rng_hf") or case["inputs"] != "input_ids":
        case["continued"] = False
    if draw not in ("greedy", "forced", *_SAMPLED):
        case |= {"row_ends": None, "stop_at": None, "streamed": False}
    return Case(architecture, seed, draw, weights=seed % 3, **case)


def prompts(case: Case) -> dict:
    """Inputs of the case's prompts [rows, width], without mode tokens; a mask only where there is padding."""
    generator = torch.Generator().manual_seed(case.seed)
    ids = torch.randint(SLOW + 1, VOCAB, (case.rows, case.width), generator=generator)
    chosen = torch.tensor(case.prompt_of_row)
    ids = ids[chosen]
    if case.lengths is None:
        return {"input_ids": ids}
    lengths, places = torch.tensor(case.lengths)[chosen, None], torch.arange(case.width)
    if case.mask == "left":
        real = places >= case.width - lengths
    elif case.mask == "right":
        real = places < lengths
    else:
        real = places != lengths - 1
    inputs = {"input_ids": ids.where(real, PAD), "attention_mask": real.to(getattr(torch, case.mask_type))}
    if case.positions:
        inputs["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
    return inputs


def _prompt_numbers(r: random.Random, rows: int) -> tuple[int, ...]:
    if r.random() < 0.4:
        return tuple(range(rows))
    if r.random() < 0.3:
        return (0,) * rows
    return tuple(r.randrange(max(1, rows // 2)) for _ in range(rows))  # equal prompts stand anywhere


def _inputs(r: random.Random, rows: int, width: int, kind: str) -> dict:
    return {
        "lengths": tuple(r.randint(1, width) for _ in range(rows)) if r.random() < 0.6 else None,
        "mask": r.choices(["left", "right", "holes"], [90, 4, 6])[0],
        "mask_type": r.choices(["int64", "bool", "float32"], [88, 8, 4])[0],
        "positions": r.random() < 0.04,
        "inputs": kind,
        "token_types": kind == "input_ids" and r.random() < 0.04,
        "cache": r.choice(["static", "given"]) if r.random() < 0.06 else None,
        "continued": r.random() < 0.15,
    }


def _ends(r: random.Random, rows: int, new: int, samples: int) -> dict:
    def reached():
        return (r.randrange(rows), r.randrange(new))

    eos = tuple(reached() for _ in range(r.randint(1, 3))) if r.random() < 0.7 else ()
    return {
        "eos": eos,
        "has_pad": bool(eos) or r.random() < 0.5,
        "row_ends": tuple(r.randint(1, new) for _ in range(rows * samples)) if r.random() < 0.25 else None,
        "stop_at": reached() if r.random() < 0.08 else None,
        "limit": r.choice(["max_new_tokens"] * 4 + ["max_length"]),
    }


def _settings(r: random.Random) -> dict:
    rich = r.random() < 0.4
    return {
        "attention": r.choice([None, None, None, "eager"]),
        "processors": _processors(r),
        "rich": rich,
        "outputs": tuple(r.sample(_OUTPUTS, r.randint(1, 2))) if rich and r.random() < 0.4 else (),
        "layout": r.choice(["auto", "auto", "rows", "shared", "shared"]),
        "shares_early": r.random() < 0.7,
        "compact_at": r.choice([0, 0.5, 0.75, 1]),
        "use_cache": r.random() < 0.94,
        "hook": r.choice(["seen", "rows"]) if r.random() < 0.06 else None,
        "training": r.random() < 0.15,
        "checkpointing": r.random() < 0.6,
        "kv_tokens": r.randint(1, 6) if r.random() < 0.5 else None,
        "streamed": r.random() < 0.05,
    }


def _processors(r: random.Random) -> tuple:
    ids = [r.randrange(3, VOCAB) for _ in range(8)]
    settings = {
        "repetition_penalty": r.choice([0.8, 1.3, 2.0]),
        "no_repeat_ngram_size": r.randint(1, 3),
        "bad_words_ids": [ids[:1], ids[1:3]],
        "suppress_tokens": ids[3:5],
        "begin_suppress_tokens": ids[5:7],
        "min_new_tokens": r.randint(1, 5),
        "sequence_bias": [[ids[:1], -3.0], [ids[2:4], 4.0]],
        "exponential_decay_length_penalty": (r.randint(1, 4), 1.5),
        "forced_eos_token_id": ids[7],
        "renormalize_logits": True,
        "remove_invalid_values": True,
    }
    return tuple((name, value) for name, value in settings.items() if r.random() < 0.08)
