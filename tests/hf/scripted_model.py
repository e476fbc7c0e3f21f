"""A real model whose logits are a script: at each position its first wish has logit 0, the second -1, others -50."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak

VOCAB, PAD, EOS, FILLER = 16, 0, 6, 14
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# How `generate` is brought to each plan.
PLANS = [("full", {}), ("full", {"kv_layout": "shared"}), ("sample_only", {"output_logits": True})]


class ScriptedModel(LlamaForCausalLM):
    """wishes: "8 5>9 ." for all rows, or {first id of the prompt: wishes}; "." = whatever."""

    wishes, width = "", 0

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, **kwargs)
        cache = next(kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None)
        step = cache.get_seq_length() - self.width
        out.logits = torch.stack([self._logits(step)] * len(out.logits))[:, None]
        return out

    def _logits(self, step: int) -> torch.Tensor:
        logits, wishes = torch.full((VOCAB,), -50.0), self.wishes.split()
        wish = wishes[step] if step < len(wishes) else "."
        for place, token in enumerate([FILLER] if wish == "." else map(int, wish.split(">"))):
            logits[token] = -float(place)
        return logits


def scripted(wishes: str, prompt) -> ScriptedModel:
    """A fresh model for prompts as long as `prompt`."""
    config = LlamaConfig(vocab_size=VOCAB, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ScriptedModel(config).eval()
    model.wishes, model.width = wishes, len(prompt)
    return model


def run(wishes: str, prompt=(1,), rows: int = 1, modes=None, spans=None, **arguments):
    """(rows' new tokens up to their end, the output)."""
    model = ak.patch(scripted(wishes, prompt), modes or ak.Modes(fast=12, slow=13), spans)
    settings = {"max_new_tokens": len(wishes.split()), "do_sample": False, "pad_token_id": PAD, **arguments}
    ids = torch.tensor([list(prompt)] * rows)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **settings)
    new = out.sequences[:, len(prompt) :]
    return [row[:n] for row, n in zip(new.tolist(), out.lengths.tolist(), strict=True)], out
