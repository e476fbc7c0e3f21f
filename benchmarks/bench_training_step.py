"""One GRPO step, rollout to gradient: `ADaPTTrainer` against TRL's own `GRPOTrainer`.

Both trainers have a Qwen2 of random weights (hidden 64, 2 layers, V = 151936), 4 prompts of 32 tokens with 16 samples
each, of which 14 end after 21 tokens and 2 after 400, no sampling filters, and the same reward. The optimizer, which is
the same, is left out. `seconds_of_rollout` and `seconds_of_loss` split the time: generation, rewards and advantages;
forward and backward pass. TRL's own takes minutes.
"""

import time

import pytest
import torch
from bench_generate import EOS, MODES, RowLengths
from transformers import Qwen2Config, Qwen2ForCausalLM

PROMPT, SHORT, LONG, SAMPLES = 32, 21, 400, 16
VOCAB = 151936
TRAINERS = ("adapt_kernels", "trl")


def build():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": EOS, "eos_token_id": EOS, "bos_token_id": None, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, num_key_value_heads=1, **sizes, **ends))


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Padding with EOS lets TRL see where a row ended that a criterion stopped.
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"<{EOS}>", eos_token=f"<{EOS}>")


def end_rows(model, ends):
    """Row i of every `generate` ends after `ends[i]` new tokens."""
    generate = type(model).generate

    def generate_to_ends(*args, **kwargs):
        return generate(model, *args, stopping_criteria=[RowLengths(PROMPT, ends)], **kwargs)

    model.generate = generate_to_ends


def trainer_of(kind, folder):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset

    from adapt_kernels.trl import ADaPTConfig, ADaPTTrainer

    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 4 * SAMPLES, "num_generations": SAMPLES,
        "max_completion_length": LONG, "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    prompts = [" ".join(f"<{10 + (7 * p + 3 * t) % 1000}>" for t in range(PROMPT)) for p in range(4)]
    given = {
        "model": build(),
        "reward_funcs": lambda completions, **_: [len(text) % 7 / 7 for text in completions],
        "train_dataset": Dataset.from_dict({"prompt": prompts}),
        "processing_class": tokenizer(),
    }
    if kind == "trl":
        trainer = trl.GRPOTrainer(args=trl.GRPOConfig(**settings), **given)
    else:
        trainer = ADaPTTrainer(modes=MODES, args=ADaPTConfig(**settings), **given)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer, [{"prompt": prompt} for prompt in prompts for _ in range(SAMPLES)]


def step(trainer, rows) -> dict:
    """Rollout, loss and gradient of one batch; what they took and made."""
    start = time.process_time()
    batch = trainer._generate_and_score_completions(rows)
    rolled_out = time.process_time()
    trainer.compute_loss(trainer.model, batch).backward()
    trainer.model.zero_grad()
    return {
        "seconds_of_rollout": rolled_out - start,
        "seconds_of_loss": time.process_time() - rolled_out,
        "tokens": int(batch["completion_mask"].sum()),
    }


@pytest.mark.parametrize("kind", TRAINERS)
def test_training_step(benchmark, tmp_path, kind):
    trainer, rows = trainer_of(kind, tmp_path)
    # Short rows first: kernels compile, and memory is there. TRL's rows get an EOS behind their last token.
    end_rows(trainer.model, [2] * len(rows))
    step(trainer, rows)
    short = SHORT - (kind == "trl")
    end_rows(trainer.model, ([short] * 14 + [LONG] * 2) * 4)
    found = benchmark.pedantic(step, args=(trainer, rows), rounds=1, iterations=1)
    assert found["tokens"] == 4 * (14 * SHORT + 2 * LONG)
    benchmark.extra_info |= found
