"""The self-check of a sampling loop that ours was not compared with: both decode the same calls on a tiny model."""

from functools import cache

import torch
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from adapt_kernels.hf.call.class_swap import patched_class
from adapt_kernels.hf.call.state import STATES, PatchState
from adapt_kernels.hf.compat import CheckedLoop, loop_is_known, unknown_loop
from adapt_kernels.modes import Modes

_VOCAB, _PAD, _WIDTH, _NEW = 61, 0, 5, 8


def check_loop() -> CheckedLoop:
    """What is known of the installed loop. An unknown one is compared with ours, once per process (half a second)."""
    loop = GenerationMixin._sample
    if loop_is_known(loop):
        return CheckedLoop(loop)
    difference = _difference(loop)
    if difference is None:
        return CheckedLoop(loop, warning=f"{unknown_loop()}; in a self-check on a tiny model both gave equal tokens")
    reason = f"{unknown_loop()}, and a self-check on a tiny model failed: {difference}"
    return CheckedLoop(loop, reason, f"{reason}. Every call is left to transformers, and mode arguments raise")


@cache
def _difference(loop) -> str | None:
    """What differs between `loop`, which is installed, and ours; None = nothing.

    The state of torch's generators stays as it was; nothing is downloaded.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            model = tiny_model()
            calls = self_check_calls(model)
            theirs = {name: _shown(model, call) for name, call in calls.items()}
            model.__class__ = patched_class(type(model))
            STATES[model] = PatchState(Modes(fast=3, slow=4), CheckedLoop(loop))
            for name, call in calls.items():
                ours = _shown(model, {**call, "rng": "hf"} if call["do_sample"] else call)
                if not _equal(ours, theirs[name]):
                    return f"{name} decoding differs"
                stats = STATES[model].last_stats
                if name == "greedy" and stats is not None and stats.plan != "full":
                    return f"it kept every row: {stats.reason}"
        except Exception as error:  # whatever a release has changed
            return f"{type(error).__name__}: {error}"
    return None


def tiny_model():
    """A model whose greedy tokens vary, which the default initialisation's do not."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=_VOCAB, tie_word_embeddings=False, **sizes)).float().eval()
    generator = torch.Generator("cpu").manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(1.5 / parameter.shape[-1]) ** 0.5, generator=generator)
    return model


def self_check_calls(model) -> dict[str, dict]:
    """`generate` arguments by name: padded and equal prompts, rows that end at different steps.

    model: of the class that transformers gave it.
    """
    prompts = (torch.arange(6 * _WIDTH).view(6, _WIDTH) * 7) % (_VOCAB - 5) + 5
    prompts[4:] = prompts[:2]
    mask = torch.ones_like(prompts)
    mask[2, :3] = mask[3, :1] = 0
    inputs = {"input_ids": prompts.where(mask.bool(), _PAD), "attention_mask": mask, "max_new_tokens": _NEW}
    inputs |= {"pad_token_id": _PAD, "return_dict_in_generate": True, "do_sample": False}
    free = model.generate(**inputs, eos_token_id=None).sequences[:, _WIDTH:]
    inputs["eos_token_id"] = [int(free[row, step]) for row, step in ((0, 2), (2, 4))]
    return {
        "greedy": inputs,
        "sampled": {**inputs, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 1.0},
        "scored": {**inputs, "output_scores": True, "repetition_penalty": 1.2},
    }


class _Witness(BaseStreamer, StoppingCriteria):
    """Keeps what streamers and stopping criteria are shown."""

    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.clone())

    def end(self):
        self.seen.append(torch.empty(0))

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.clone())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _shown(model, call: dict) -> list[torch.Tensor]:
    """Everything a caller sees of a call, in order."""
    witness = _Witness()
    torch.default_generator.manual_seed(0)  # torch.manual_seed would set the GPUs' too
    # Streamers take one row; this one takes any number.
    out = model.generate(**call, streamer=witness, stopping_criteria=[witness])
    return [*witness.seen, out.sequences, *(out.scores or ())]


def _equal(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
