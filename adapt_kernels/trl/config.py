"""ADaPTConfig: TRL's GRPOConfig with the mode token's settings; refuses what the trainer would not honour."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches

from trl import GRPOConfig

from adapt_kernels.program.paths import Paths
from adapt_kernels.program.program import Program
from adapt_kernels.schemes import SCHEMES, Schedule, Scheme, SchemeSettings
from adapt_kernels.trl.engine_rollout import check_engine_rollouts
from adapt_kernels.trl.field_kinds import check_kinds, made

KINDS = ("none", "ppo", "cispo", "reinforce")  # in the order of policy_loss's kinds
_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
# Generation settings that act after the log-probs are taken.
_FILTERS = ("top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
# TRL options whose effect the loss or the rollout of ADaPTTrainer does not have, and what to use instead.
_NOT_HONOURED = {
    "use_transformers_continuous_batching": "rollouts come from the patched generate",
    "cache_implementation": "rollouts keep KV in segments of their own",
    "delta": "use dual_clip",
    "off_policy_mask_threshold": "rollouts are the policy's own",
    "use_bias_correction_kl": "the KL term has no importance weight here, so set it to False",
    "use_adaptive_entropy": "use entropy_coef",
}
_FIXED = {
    "importance_sampling_level": ("token", "the mode token and the response have ratios of their own"),
    "top_entropy_quantile": (1.0, "the scheme says which tokens count"),
    "scale_rewards": ("group", "the scheme says how rewards are scaled"),
    "multi_objective_aggregation": ("sum_then_normalize", "the scheme says how rewards are scaled"),
}


@dataclass
class ADaPTConfig(GRPOConfig):
    """`trl.GRPOConfig` and these fields; a value of None is the scheme's own (`adapt_kernels.schemes.SCHEMES`).

    scheme: "separate" (default: mode token and response are normalised apart), "reference" (ADaPT as released), or
        any other row of the table; `adapt schemes` lists them.
    signals: {signal: reward function or dataset column} for what the scheme needs of each row. Left out, a signal is
        the reward function of its name; else the trainer's own ("finished", "entropy_think", "entropy_answer",
        "entropy_top" and "kl" of the rollout); else the column of its name. "malformed" may be given for any scheme:
        rows where it is not 0 have no mode. A reward function that gives a signal weighs 0 without reward_weights.
    constants: {name: value} of `SchemeSettings` beyond the fields below; a number may be {"start": ..., "end": ...,
        "shape": ...} (`Schedule`). max_length is max_completion_length unless given.
    rollout: "balanced": a prompt's `num_generations` samples are split evenly over the modes, first mode first;
        "auto": the model chooses. Evaluation always lets it choose.
    mode_weight: multiplies the mode token's loss.
    mode_margin_coef: c of the penalty c (logit_slow - logit_fast)^2 on the mode position, weighted as the mode token is
        without mode_weight; with M modes c * 2 * sum_m (logit_m - mean)^2, which is the same for two.
    mode_kind, response_kind: "ppo", "cispo", "reinforce" or "none" for the two segments. The importance ratio's old
        log-prob is the rollout's own; a forced mode token's is the log-prob the policy itself gave it, so forcing
        leaves no importance weight, except under "reference" and "adaptthink", where it is log(1/M).
    mask_mode_token: no loss on the mode token (AdaCoT's selective loss masking); the margin penalty stays.
    old_logprobs: "rollout": log-probs of the response as it was drawn; "policy": one more forward pass per rollout, for
        processors that reshape the distribution (repetition_penalty).
    program: rules that steer every rollout: an `adapt_kernels.Program`, its JSON form, or a folder that holds one. What
        they write carries no loss. Rules that reshape the distribution (gate, bias, sample) need old_logprobs="policy".
    use_vllm: with vllm_mode="colocate" rollouts come from the engine that TRL keeps in this process, each row with its
        mode; without filters, paths, sleep mode and tensor parallelism.
    thinking_budget: tokens after which a rollout's thought is closed (`generate`).
    paths: `adapt_kernels.Paths`, or its settings as a mapping: which of a prompt's training rollouts go on living. Rows
        that it ends carry no loss and count for no one else's, like rows that were not graded. Groups must lie on one
        rank each, and be of different prompts. Evaluation lets every row live.
    merge_adapter: rollouts decode with the PEFT model's adapters merged into copies of its weights, which is faster.
    correct_reward: name of the reward function that says whether an answer is correct; None = the first one.
    correct_threshold: correct means a reward of at least this.
    reference_accuracy_column: dataset column with each prompt's accuracy before training, for "adaptthink".
    epsilon, epsilon_high, dual_clip: clip of the ratio to [1 - epsilon, 1 + epsilon_high], and the bound of the loss
        where the advantage is negative (0 = none).
    loss_type: the normaliser: "dapo" (tokens of all the batches of an optimizer step), "bnpo" (tokens of the local
        batch), "dr_grpo" (rows * max_completion_length), "grpo" (each row's length, so the mode token of a long row
        counts less).
    use_bias_correction_kl: False, unlike TRL's default: the KL term has no importance weight. Left out with a beta,
        that is said in a warning.
    mask_truncated_completions: leaves out the response of rows that did not end; their mode token stays in the loss.

    Constants of the schemes (gamma, degrpo_alpha, length_penalty ...) are fields of the same name: `SchemeSettings`.
    `length_scale` None = max_completion_length. Raises ValueError for options that would not be honoured.
    """

    scheme: str = field(default="separate", metadata={"help": "How the mode token and the response are credited."})
    signals: dict | None = field(default=None, metadata={"help": "Sources of the scheme's signals, by signal."})
    constants: dict | None = field(default=None, metadata={"help": "Other constants of the schemes."})
    rollout: str = field(default="balanced", metadata={"help": "'balanced' or 'auto': who chooses the modes."})
    mode_weight: float = field(default=1.0, metadata={"help": "Multiplies the mode token's loss."})
    mode_margin_coef: float | None = field(default=None, metadata={"help": "Penalty on the spread of mode logits."})
    mode_kind: str | None = field(default=None, metadata={"help": "Loss of the mode token."})
    response_kind: str | None = field(default=None, metadata={"help": "Loss of the response tokens."})
    mask_mode_token: bool = field(default=False, metadata={"help": "No loss on the mode token."})
    old_logprobs: str = field(default="rollout", metadata={"help": "'rollout' or 'policy'."})
    program: dict | str | None = field(default=None, metadata={"help": "Rules that steer rollouts, or their folder."})
    thinking_budget: int | None = field(default=None, metadata={"help": "Cap on the tokens of a rollout's thought."})
    paths: dict | None = field(default=None, metadata={"help": "Which rollouts of a prompt go on living."})
    merge_adapter: bool = field(default=False, metadata={"help": "Merge a PEFT model's adapters for rollouts."})
    correct_reward: str | None = field(default=None, metadata={"help": "Reward function that grades correctness."})
    correct_threshold: float = field(default=0.5, metadata={"help": "Reward from which an answer is correct."})
    reference_accuracy_column: str = field(default="reference_accuracy", metadata={"help": "AdaptThink's baseline."})
    dual_clip: float | None = field(default=None, metadata={"help": "Bound where the advantage is negative; 0 = none."})
    use_bias_correction_kl: bool | None = field(
        default=None, metadata={"help": "Not honoured: the KL term has no importance weight. None = False, said so."}
    )
    loss_type: str | None = field(default=None, metadata={"help": "The loss's normaliser."})

    gamma: float = field(default=0.5, metadata={"help": "Accuracy asked of the fast mode (ADaPT, AdaCoT)."})
    degrpo_rewards: list[float] = field(
        default_factory=lambda: [1.0, 0.5, -1.0],
        metadata={"help": "DeGRPO: correct fast, slow, wrong."},
    )
    degrpo_alpha: float = field(default=1e-3, metadata={"help": "Weight of DeGRPO's mode token."})
    adaptthink_delta: float = field(default=0.05, metadata={"help": "AdaptThink's bonus for the fast mode."})
    adacot_missed: float = field(default=0.3, metadata={"help": "AdaCoT's penalty for missed reasoning."})
    adacot_over: float = field(default=0.3, metadata={"help": "AdaCoT's penalty for needless reasoning."})
    avr_bonus: list[float] = field(
        default_factory=lambda: [0.5, 0.3, 0.0], metadata={"help": "AVR's bonus per mode, fast first."}
    )
    avr_penalty: list[float] = field(
        default_factory=lambda: [-0.5, -0.2, 0.0], metadata={"help": "AVR's penalty per mode, fast first."}
    )
    avr_length: int = field(default=300, metadata={"help": "Tokens up to which AVR's reward is whole."})
    avr_diversity: float = field(default=0.5, metadata={"help": "AVR's reward for rare modes, at the start."})
    length_penalty: float = field(default=0.3, metadata={"help": "Reward lost by a response of length_scale tokens."})
    length_scale: float | None = field(default=None, metadata={"help": "None = max_completion_length."})

    def __post_init__(self):
        _one_of("scheme", self.scheme, SCHEMES)
        self.loss_type = SCHEMES[self.scheme].loss_type if self.loss_type is None else self.loss_type
        self._check_own()
        self._check_trl()
        if self.use_bias_correction_kl is None:
            if self.beta:
                warnings.warn(
                    "the KL term of ADaPTTrainer has no importance weight, which TRL's use_bias_correction_kl=True (its"
                    " default) gives it: set use_bias_correction_kl=False to say that this is meant",
                    stacklevel=3,
                )
            self.use_bias_correction_kl = False
        super().__post_init__()

    def to_dict(self) -> dict:
        """As TRL's, with the program in its JSON form, and paths, which may hold a function, as text."""
        shown = super().to_dict()
        program = self.program.to_dict() if isinstance(self.program, Program) else self.program
        return {**shown, "program": program, "paths": None if self.paths is None else repr(self.paths)}

    @property
    def method(self) -> Scheme:
        """The scheme's row of the table."""
        return SCHEMES[self.scheme]

    @property
    def scheme_settings(self) -> SchemeSettings:
        """The schemes' constants."""
        given = {f.name: getattr(self, f.name) for f in fields(SchemeSettings) if hasattr(self, f.name)}
        scale = float(self.max_completion_length) if self.length_scale is None else self.length_scale
        given |= {"length_scale": scale, "max_length": self.max_completion_length, **(self.constants or {})}
        return SchemeSettings(**{name: _setting(value) for name, value in given.items()})

    @property
    def kinds(self) -> tuple[int, int]:
        """`policy_loss`'s kinds of the mode token and of the response."""
        return KINDS.index(self.mode_kind or self.method.mode_kind), KINDS.index(
            self.response_kind or self.method.response_kind
        )

    @property
    def margin_coef(self) -> float:
        return self.method.margin if self.mode_margin_coef is None else self.mode_margin_coef

    @property
    def clipping(self) -> dict:
        """`policy_loss`'s arguments for the clips."""
        dual_clip = self.method.dual_clip if self.dual_clip is None else self.dual_clip
        high = self.method.clip_high if self.epsilon_high is None else self.epsilon_high
        return {"clip_low": self.epsilon, "clip_high": high, "dual_clip": dual_clip or None}

    def _check_own(self) -> None:
        check_kinds(self)
        _one_of("rollout", self.rollout, ("balanced", "auto"))
        _one_of("old_logprobs", self.old_logprobs, ("rollout", "policy"))
        _one_of("loss_type", self.loss_type, _LOSS_TYPES)
        for name in ("mode_kind", "response_kind"):
            if getattr(self, name) is not None:
                _one_of(name, getattr(self, name), KINDS)
        for name in ("mode_weight", "mode_margin_coef"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if self.dual_clip is not None and self.dual_clip != 0 and not self.dual_clip > 1:
            raise ValueError(f"dual_clip must be above 1, or 0 to leave it out; got {self.dual_clip}")
        self._check_rollout()
        self._check_paths()
        self._check_scheme()

    def _check_scheme(self) -> None:
        names = {f.name for f in fields(SchemeSettings)}
        for name in self.constants or ():
            if name not in names or name in {f.name for f in fields(self)}:
                where = "is a field of its own" if name in names else "is none of SchemeSettings"
                close = ", ".join(get_close_matches(name, names)) or "see `adapt schemes`"
                raise ValueError(f"constants: {name!r} {where}: {close}")
        usable = {*self.method.signals, *self.method.optional, "malformed"}
        for name in self.signals or ():
            if name not in usable:
                raise ValueError(
                    f"signals: scheme {self.scheme!r} has no use for {name!r}, only for {', '.join(sorted(usable))}"
                )
        if self.method.kl_weight is not None and not self.beta:
            warnings.warn(
                f"scheme {self.scheme!r} weighs the KL term by row, and beta=0 leaves that term out", stacklevel=5
            )
        assert self.scheme_settings

    def _check_rollout(self) -> None:
        reshaping = [name for name in self.generation_kwargs or () if name not in _FILTERS]
        if self.repetition_penalty != 1.0:
            reshaping.append("repetition_penalty")
        if "kv_keep" in reshaping:
            raise ValueError(
                "generation_kwargs: rollouts refuse kv_keep, since their tokens and log-probs would be of what rows"
                " still hold, while the policy's forward reads everything: leave it out"
            )
        if reshaping and self.old_logprobs == "rollout":
            raise ValueError(
                f"{', '.join(reshaping)} may reshape the rollout's log-probs, so they are no log-probs of the policy:"
                " set old_logprobs='policy', or leave that out"
            )

    def _check_paths(self) -> None:
        if isinstance(self.paths, Mapping):
            self.paths = made(Paths, self.paths, "paths")
        if self.paths is None:
            return
        if not isinstance(self.paths, Paths):
            raise TypeError(f"paths must be an adapt_kernels.Paths or its settings; got {self.paths!r}")
        if self.paths.keep == 1 and not self.paths.per_mode:
            raise ValueError("paths: keep=1 leaves no two rows of a prompt to compare: keep 2 or more, or use per_mode")

    def _check_trl(self) -> None:
        if self.use_vllm:
            check_engine_rollouts(self)
            # The engine's log-probs are the old ones of the ratio itself; TRL would correct for them once more.
            self.vllm_importance_sampling_correction = False
        for name, instead in _NOT_HONOURED.items():
            if getattr(self, name):
                raise ValueError(f"ADaPTTrainer does not honour {name}={getattr(self, name)!r}: {instead}")
        for name, (only, why) in _FIXED.items():
            value = getattr(self, name)
            if value != only and not (name == "scale_rewards" and value is True):
                raise ValueError(f"ADaPTTrainer does not honour {name}={value!r}, only {only!r}: {why}")


def _setting(value):
    """As `SchemeSettings` takes it, from what JSON and YAML have."""
    if isinstance(value, dict):
        return made(Schedule, value, "a schedule")
    return tuple(value) if isinstance(value, list) else value


def _one_of(name: str, value, allowed) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
