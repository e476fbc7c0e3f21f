"""What ADaPTTrainer refuses, before a model is loaded where that can be told."""

from collections.abc import Mapping
from typing import Any

import trl
from accelerate.utils import get_int_from_env, parse_flag_from_env
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.utils import get_callable_name

from adapt_kernels.modes import Modes
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Bias, Gate, Sample, label_of
from adapt_kernels.program.steer_request import SteerRequest, thought_spans
from adapt_kernels.trl.columns import check_columns
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.fused_logprobs import KNOWN_VERSIONS
from adapt_kernels.trl.signals import grading, signal_sources

_NOT_HONOURED = ("tools", "environment_factory", "rollout_func")
_AUX_LOSS = "the load-balancing loss of this model is not computed: set router_aux_loss_coef=0.0"
_FSDP1 = "rollouts need FSDP2, which gathers parameters for them: set fsdp_config's version to 2"


def check_arguments(args, reward_funcs, train_dataset, eval_dataset, processing_class, others: dict) -> None:
    """Raises RuntimeError, TypeError or ValueError for a TRL version or arguments that the trainer would not honour."""
    if trl.__version__ not in KNOWN_VERSIONS:
        raise RuntimeError(
            f"ADaPTTrainer knows trl {', '.join(KNOWN_VERSIONS)}; got {trl.__version__}."
            f" Install a known one: pip install trl=={KNOWN_VERSIONS[-1]}"
        )
    if not isinstance(args, ADaPTConfig):
        raise TypeError(f"args must be an ADaPTConfig; got {type(args).__name__}")
    if processing_class is not None and not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(f"processing_class must be a tokenizer (text only); got {type(processing_class).__name__}")
    for name in _NOT_HONOURED:
        if others.get(name):
            raise ValueError(f"ADaPTTrainer does not honour {name}: rollouts come from the patched generate")
    names = reward_names(reward_funcs)
    if not names:
        raise ValueError("reward_funcs must hold at least one reward function; one of them says what is correct")
    if args.correct_reward is not None and args.correct_reward not in names:
        raise ValueError(f"correct_reward must be one of {', '.join(map(repr, names))}; got {args.correct_reward!r}")
    sources = signal_sources(args, names)
    grading(args, names)
    if args.method.placed is not None and not callable(others.get("measure_steps")):
        raise ValueError(
            f"scheme {args.scheme!r} needs measure_steps, a function that gives each completion's accuracies along its"
            " thought"
        )
    check_columns(args, sources, train_dataset, eval_dataset)
    if _asked_fsdp_version(args) == 1:
        raise ValueError(_FSDP1)


def _asked_fsdp_version(args) -> int | None:
    """The version that accelerate will take: of the training arguments, or else of the environment."""
    if args.fsdp_plugin_args is not None:
        return args.fsdp_plugin_args["fsdp_version"]
    return get_int_from_env(["FSDP_VERSION"], 1) if parse_flag_from_env("ACCELERATE_USE_FSDP") else None


def reward_names(reward_funcs) -> list[str]:
    """The names TRL gives reward functions and models."""
    functions = reward_funcs if isinstance(reward_funcs, list) else [] if reward_funcs is None else [reward_funcs]
    return [_reward_name(function) for function in functions]


def _reward_name(function) -> str:
    path = function if isinstance(function, str) else getattr(getattr(function, "config", None), "_name_or_path", None)
    return get_callable_name(function) if path is None else path.rstrip("/").split("/")[-1]


def load_tokenizer(name: str, args: ADaPTConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, as TRL would load it."""
    revision = (args.model_init_kwargs or {}).get("revision", "main")
    return AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left", truncation_side="left")


def resolve_modes(modes: Modes | Mapping | None, folder: str, tokenizer) -> Modes:
    """`modes` as given, resolved by the tokenizer, or read from the model's folder."""
    if modes is None:
        return Modes.from_pretrained(folder)
    return modes if isinstance(modes, Modes) else Modes.from_tokenizer(tokenizer, modes)


def steer_arguments(args: ADaPTConfig, modes: Modes, tokenizer) -> dict:
    """`program` and `thinking_budget` of every rollout's `generate`.

    Raises ValueError or TypeError for what it would refuse, and for rules that make the rollout's log-probs no
    log-probs of the policy.
    """
    program: Any = args.program
    if isinstance(program, str):
        program = Program.from_pretrained(program, tokenizer)
    elif isinstance(program, Mapping):
        program = Program.from_dict(program, tokenizer)
    SteerRequest(program, args.thinking_budget).spread(1, 1, thought_spans(modes, {}))
    for index, rule in enumerate(() if program is None else program.rules):
        if isinstance(rule, (Bias, Gate, Sample)) and args.old_logprobs == "rollout":
            raise ValueError(
                f"program: {label_of(index, rule)} reshapes the rollout's log-probs, so they are no log-probs of the"
                " policy: set old_logprobs='policy', or leave that rule out"
            )
    if program is not None and (program.inputs or program.probes):
        what = f"the row input {program.inputs[0]!r}" if program.inputs else f"the probe {program.probes[0]!r}"
        raise ValueError(f"program: it reads {what}, which rollouts do not have: leave that rule out")
    return {"program": program, "thinking_budget": args.thinking_budget}


def check_modes(modes: Modes, args: ADaPTConfig, signals: Mapping) -> None:
    """Raises ValueError where the scheme or the rollout cannot serve these modes."""
    args.method.check(args.scheme, args.scheme_settings, len(modes), signals)
    if args.rollout == "balanced" and args.num_generations < len(modes):
        raise ValueError(
            f"rollout='balanced' needs num_generations of at least {len(modes)}, one per mode; got"
            f" {args.num_generations}"
        )
    if args.margin_coef and None in modes.token_ids:
        raise ValueError("mode_margin_coef needs modes with a token each; 'any other token' has none: set it to 0")
    opening = len(modes.prefix) + 1 + max(map(len, modes.suffixes))
    if args.max_completion_length < opening:
        raise ValueError(
            f"max_completion_length must hold the {opening} tokens that open a mode; got {args.max_completion_length}"
        )


def check_model(model, modes: Modes, args: ADaPTConfig) -> None:
    """Raises ValueError for a model, or a path to one, that lacks the modes' tokens or has a loss of its own."""
    # Settings in model_init_kwargs change the config that the model is loaded with.
    settings = args.model_init_kwargs or {}
    config = AutoConfig.from_pretrained(model, **settings) if isinstance(model, str) else model.config
    config = config.get_text_config()
    outside = [i for name in modes for i in modes.tokens(name) or () if i >= config.vocab_size]
    if outside:
        raise ValueError(
            f"token id {outside[0]} of {modes} is outside the model's vocabulary of {config.vocab_size}: after"
            " tokenizer.add_special_tokens call model.resize_token_embeddings(len(tokenizer))"
        )
    # As TRL tells whether it will add the loss.
    coef = args.router_aux_loss_coef
    coef = getattr(config, "router_aux_loss_coef", 0.0) if coef is None else coef
    if coef != 0.0 and hasattr(config, "output_router_logits"):
        raise ValueError(_AUX_LOSS)


def check_prepared(trainer) -> None:
    """What TRL and accelerate made of the model and the arguments: the load-balancing loss and FSDP1 once more, and
    whether there are adapters to merge."""
    if trainer.aux_loss_enabled:
        raise ValueError(_AUX_LOSS)
    if trainer._dist.fsdp_version == 1:
        raise ValueError(_FSDP1)
    if trainer.args.merge_adapter and not hasattr(trainer.model, "merge_adapter"):
        raise ValueError("merge_adapter=True needs a PEFT model, whose adapters can be merged: set it to False")
    if trainer.args.merge_adapter and trainer._dist.fsdp_version:
        raise ValueError("merge_adapter=True is not served under FSDP, whose weights are in parts: set it to False")
