"""Whole `generate` calls for `make gpu`: patched, unpatched with two caches, and continuous batching.

A process of its own, so that a call that hangs or runs out of memory costs no other stage; what it has measured lies in
--out after every call.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from bench_generate import PLANS, RowLengths, continuous
from gpu_device import Clock, Device

import adapt_kernels as ak

MODES = ak.Modes(fast=5, slow=6)
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95}


def generate_cases(device: Device, clock: Clock) -> Iterator[tuple[str, Callable[[], dict]]]:
    """("generate[workload]-plan", its measurement: seconds, new tokens and bytes) of a Qwen2 of 1.5B shape with random
    weights. A plan comes before the next workload's, so that what is cut off can still be compared."""
    model = build(device)
    for workload, call in workloads(device).items():
        for plan, extra in PLANS.items():
            yield f"generate[{workload}]-{plan}", partial(_measure, device, clock, model, plan, call | extra)


def main(arguments=None) -> int:
    """Measures what there is time for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run")
    parser.add_argument("--seconds", type=float, required=True, help="after which no call begins")
    parser.add_argument("--out", type=Path, required=True, help="the .json to write")
    options = parser.parse_args(arguments)
    device, found = Device(options.device, options.tiny), {}
    deadline = time.monotonic() + options.seconds

    def note(name: str, outcome: dict) -> None:
        found[name] = outcome
        aside = options.out.with_suffix(".tmp")
        aside.write_text(json.dumps(found), "utf-8")
        aside.replace(options.out)

    for name, measure in generate_cases(device, Clock(device)):
        if time.monotonic() > deadline:
            note(name, {"not run": "no time left"})
            continue
        note(name, {"not run": "did not end"})
        try:
            note(name, measure())
        except Exception as error:  # what one plan cannot do is no reason to lose the others
            note(name, {"not run": f"{type(error).__name__}: {error}"})
    return 0


def workloads(device: Device) -> dict:
    """Calls of `generate`: samples of long prompts, rows of mixed lengths, and one row."""
    prompts, samples, length, new = device.pick((4, 16, 512, 128), (2, 2, 6, 3))
    group = {"input_ids": _ids(device, prompts, length), "num_return_sequences": samples, "max_new_tokens": new}
    fast, slow, short, long = device.pick((56, 8, 20, 400), (3, 1, 2, 5))
    ends = [RowLengths(length, [short] * fast + [long] * slow)]
    mixed = {"input_ids": _ids(device, fast + slow, length), "max_new_tokens": long, "stopping_criteria": ends}
    single = {"input_ids": _ids(device, 1, length), "max_new_tokens": new}
    never = {"eos_token_id": None}
    return {
        "samples": {**group, **SAMPLED, **never},
        "mixed": {**mixed, **SAMPLED, "eos_token_id": 1, "pad_token_id": 0},
        "single": {**single, **SAMPLED, **never},
    }


def build(device: Device):
    """The model, in bfloat16 on a GPU."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    big = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    tiny = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=device.pick(151936, 300),
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **device.pick(big, tiny),
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(device.pick(torch.bfloat16, torch.float32))
    try:
        with torch.device(device.name):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def _measure(device: Device, clock: Clock, model, plan, call) -> dict:
    if plan.startswith("patched"):
        ak.patch(model, MODES)
    run = partial(continuous, model) if plan == "continuous" else model.generate  # the patched one, once it is
    try:
        if plan != "continuous":
            # Past 16 tokens, where lengths stop being constants of a compiled kernel.
            warm = min(call["max_new_tokens"], 20)
            model.generate(**{**call, "max_new_tokens": warm, "stopping_criteria": None})
        if device.real:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if device.real else 0
        torch.manual_seed(0)
        outs = []
        seconds = clock.wall_seconds(lambda: outs.append(run(**call)))
        new = outs[0] if plan == "continuous" else int((outs[0][:, call["input_ids"].shape[1] :] != 0).sum())
        found = {"seconds": seconds, "new_tokens": new}
        if device.real:
            found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        if plan.startswith("patched"):
            stats = ak.last_stats(model)
            found |= {"plan": stats.plan, "kv_bytes_peak": stats.kv_bytes_peak, "row_steps": stats.row_steps}
        return found
    finally:
        if plan.startswith("patched"):
            ak.unpatch(model)
        gc.collect()


def _ids(device: Device, rows, length):
    top = device.pick(1000, 200)
    return torch.randint(10, top, (rows, length), generator=torch.Generator().manual_seed(0)).to(device.name)


if __name__ == "__main__":
    sys.exit(main())
