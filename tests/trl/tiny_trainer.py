"""A tiny Qwen2 with two mode tokens, a tokenizer of words, and ADaPTTrainers on them."""

import math

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from adapt_kernels.trl import ADaPTConfig, ADaPTTrainer

WORDS = ["<pad>", "<eos>", "<answer>", "<think>", *"abcdefghijklmnopqrstuvwxyz", "<unk>"]
PAD, EOS, FAST, SLOW = range(4)
MODES = {"fast": "<answer>", "slow": "<think>"}
PROMPTS = ["a b c", "d e", "x y z u", "q r s"]


def make_tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def make_model(seed=0, **settings):
    """Varied logits: every matrix at 1.5 / fan_in; no dropout."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    config = Qwen2Config(**{"vocab_size": len(WORDS), "num_key_value_heads": 1, **sizes, **ends, **settings})
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=math.sqrt(1.5 / parameter.shape[-1]))
    return model


def letters(completions, **_):
    """A reward that depends on the text alone: 1 where it holds an even number of letters up to m, else 0."""
    return [float(sum(word in set("abcdefghijklm") for word in text.split()) % 2 == 0) for text in completions]


def make_config(folder, **settings):
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6,
        "max_steps": 2, "learning_rate": 0.1, "logging_steps": 1, "report_to": [], "use_cpu": True, "seed": 0,
        "save_strategy": "no", "optim": "sgd", "bf16": False, "gradient_checkpointing": False,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "disable_tqdm": True,
    }  # fmt: skip
    return ADaPTConfig(**{**defaults, **settings})


def make_trainer(folder, model=None, modes=MODES, reward=letters, prompts=PROMPTS, eval_dataset=None, **settings):
    """`settings` that are not of the config go to the trainer."""
    others = {name: settings.pop(name) for name in ("peft_config", "reward_processing_classes") if name in settings}
    return ADaPTTrainer(
        model=make_model() if model is None else model,
        reward_funcs=reward,
        modes=modes,
        args=make_config(folder, **settings),
        train_dataset=Dataset.from_dict({"prompt": prompts, "reference_accuracy": [0.25] * len(prompts)}),
        eval_dataset=eval_dataset,
        processing_class=make_tokenizer(),
        **others,
    )


def small_config(name, **settings):
    """Of that type of model: small where its sizes have the usual names, over the same words, without dropout."""
    sizes = {
        **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim", "d_model"), 16),
        **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 32),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2),
        **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "attention_heads"), 2),
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), 2),
        **{"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "rotary_dim": 4},
        **{"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": EOS, "vocab_size": len(WORDS)},
    }
    usual = AutoConfig.for_model(name)
    given = {key: value for key, value in sizes.items() if getattr(usual, key, None) is not None or "token" in key}
    off = {key: 0.0 for key, value in usual.to_dict().items() if "drop" in key and isinstance(value, float)}
    return AutoConfig.for_model(name, **{**given, **off, **settings})


def make_architecture(name, **settings):
    """A causal model of that type with varied logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(name, **settings))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=math.sqrt(1.5 / parameter.shape[-1]))
    return model


def first_batch(trainer, prompts=PROMPTS[:2]):
    """The first rollout, as the trainer's own loop would make it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": p, "reference_accuracy": 0.25} for p in prompts for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(rows)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
