"""ADaPTTrainer: TRL's GRPOTrainer with one credit for the mode token and another for the response."""

from collections.abc import Callable, Mapping

import torch
import trl
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import get_config_model_id

from adapt_kernels.advantages import Advantages
from adapt_kernels.modes import Modes
from adapt_kernels.trl.checkpoints import Checkpoints
from adapt_kernels.trl.checks import (
    check_arguments,
    check_model,
    check_modes,
    check_prepared,
    load_tokenizer,
    resolve_modes,
    reward_names,
    steer_arguments,
)
from adapt_kernels.trl.columns import check_columns
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.credit import Crediting, among_drawn, token_advantages, verdicts
from adapt_kernels.trl.engine_rollout import engine_rollout, served_here
from adapt_kernels.trl.epochs import EpochSampler
from adapt_kernels.trl.finite import check_counts, check_gradients, check_rewards, checked_rewards, named, not_finite
from adapt_kernels.trl.generation_settings import own_settings_only
from adapt_kernels.trl.merged_adapter import merged_adapters
from adapt_kernels.trl.metrics import NOT_FINITE, log_rows, loss_metrics, loss_sums, mode_metrics, response_drift
from adapt_kernels.trl.micro_batch import policy_head, token_scores
from adapt_kernels.trl.policy_head import PolicyHead
from adapt_kernels.trl.preparation import prepare, warn_of_drift
from adapt_kernels.trl.rollout import Rollout, RolloutRows, left_padded, row_arguments, whole_parameters
from adapt_kernels.trl.signals import outcome_weights


class ADaPTTrainer(Checkpoints, trl.GRPOTrainer):
    """GRPO in which the mode token and the response are credited apart (`adapt_kernels.schemes`).

        trainer = ADaPTTrainer(model, reward, modes={"fast": "<answer>", "slow": "<think>"}, args=ADaPTConfig(...), ...)

    The model is patched (`adapt_kernels.patch`) and stays so: rollouts share a prompt's KV, take their modes as
    `args.rollout` says, and keep the log-probs they were drawn with; the loss is `linear_policy_loss`, so no logits are
    kept. Rows and groups are TRL's: `num_generations` rows of one prompt, which may lie on several ranks.

    Args, beside TRL's own:
        modes: `Modes`, or {name: text} resolved by the tokenizer, fast first; None = modes.json of the model's folder.
            It is saved beside every checkpoint.
        reward_funcs: as TRL's; they also get `mode`, each completion's mode name. Their weighted sum is the outcome;
            `args.correct_reward` at `args.correct_threshold` or more says which answers are correct. Rows that no
            function scores, or not that one, get no credit and count for no one else's.
        args: `ADaPTConfig`.
        measure_steps: for schemes with rewards along a thought: called as a reward function is, gives (token of the
            completion, accuracy there) for every split of each row, its end last.

    Seeds of a rollout's rows depend on `args.seed`, the step and the row's place in the whole batch: not on the number
    of ranks, and not on what was drawn before, so a resumed run goes on as it would have. Raises ValueError or
    TypeError, before a model is loaded from a path, for what it would not honour, and ValueError after it for a head
    that it cannot compute. A run stops before the optimiser steps where rewards or advantages (ValueError), log-probs,
    loss or gradients (RuntimeError) are not finite.
    """

    reward_weights: torch.Tensor
    # Of the rollout that was generated last.
    _rollout: Rollout
    _rewards: torch.Tensor
    _tag_names = ["trl", "grpo", "adapt"]
    _name = "ADaPT"

    def __init__(
        self,
        model,
        reward_funcs,
        modes: Modes | Mapping | None = None,
        args: ADaPTConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        measure_steps: Callable | None = None,
        **kwargs,
    ):
        args = ADaPTConfig() if args is None else args
        others = {**kwargs, "measure_steps": measure_steps}
        check_arguments(args, reward_funcs, train_dataset, eval_dataset, processing_class, others)
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        if processing_class is None:
            processing_class = load_tokenizer(name, args)
        self.modes = resolve_modes(modes, name, processing_class)
        self._crediting = Crediting(args, self.modes, reward_names(reward_funcs), measure_steps)
        check_modes(self.modes, args, self._crediting.sources)
        self._steering = steer_arguments(args, self.modes, processing_class)
        check_model(model, self.modes, args)
        self._served = served_here(self.modes, self._steering) if args.use_vllm else None
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_prepared(self)
        reference = None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        self._lm_head, random = prepare(self.model, reference, self.modes, args, stacklevel=2)
        self._policy_name = name or type(self.model).__name__
        self._checks_drift, self._is_fresh = not random, False
        self.reward_weights = outcome_weights(args, self.reward_func_names, self.reward_weights)
        if not args.use_vllm:
            self.generation_config.return_dict_in_generate = True
        # Ours keeps the mode token; TRL's would hide the whole row.
        self.mask_truncated_completions = False
        self._entropy: torch.Tensor | None = None
        self._steps: list | None = None
        self._evaluated_batches, self._scores_rollout = 0, False

    @property
    def _forces_modes(self) -> bool:
        return self.args.rollout == "balanced" and self.model.training

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), epoch=lambda: int(self.state.epoch or 0))

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        if not isinstance(eval_dataset, str):  # the name of one that was checked
            check_columns(self.args, self._crediting.sources, eval_dataset=eval_dataset)
        self._evaluated_batches = 0
        return super().evaluate(eval_dataset, *args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch):
        loss = super().training_step(model, inputs, num_items_in_batch)
        # A scaler leaves such steps out itself, and lowers its scale.
        if self.accelerator.sync_gradients and self.accelerator.scaler is None:
            check_gradients(self.model, self._policy_name, self.state.global_step)
        return loss

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """TRL's hook: completion ids and their log-probs, two lists of lists; the rest goes to `self._rollout`."""
        if self.use_vllm:
            *found, self._rollout = engine_rollout(self, prompt_ids, self._row_arguments(prompt_ids, num_generations))
            return found
        padding = self._tokenizer.pad_token_id, self.pad_to_multiple_of
        generate_inputs = left_padded(prompt_ids, *padding, self.accelerator.device)
        training, arguments = self.model.training, self._row_arguments(prompt_ids, num_generations)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            own_settings_only(model),
            whole_parameters(model, bool(getattr(plugin, "reshard_after_forward", False))),
            merged_adapters(model, self.args.merge_adapter),
            named(self._policy_name, self.state.global_step),
        ):
            model.eval()
            out = model.generate(
                **generate_inputs,
                **arguments,
                generation_config=self.generation_config,
                return_logprobs=True,
                synced_gpus=False,
            )
            model.train(training)
        self._rollout = Rollout.of(out)
        ends, tokens = out.lengths.tolist(), out.sequences[:, generate_inputs["input_ids"].shape[1] :]
        return tuple(
            [row[:end] for row, end in zip(rows.tolist(), ends, strict=True)] for rows in (tokens, out.logprobs)
        )

    def _row_arguments(self, prompt_ids, num_generations: int) -> dict:
        """What `generate` is told about this rank's rows."""
        training = self.model.training
        index = self._step if training else self._evaluated_batches
        self._evaluated_batches += not training
        first = self.accelerator.process_index * len(prompt_ids)
        place = first, prompt_ids, num_generations
        return row_arguments(self.args, self.modes, training, index, *place) | self._steering

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        chosen = self._rollout.modes.tolist()
        inputs = [{**x, "mode": self.modes.names[mode]} for x, mode in zip(inputs, chosen, strict=True)]
        with checked_rewards(self):
            self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        check_rewards(self._rewards, self)
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in ("prompt", "completion")}
        self._steps = self._crediting.measured(prompts, completions, completion_ids_list, columns)
        return self._rewards

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=0, **_):
        # TRL first scores a rollout whose steps outlive it; that is known already. A reference model may come next.
        if self._scores_rollout:
            self._scores_rollout = False
            return None, None, None
        return self._scores(model, input_ids, attention_mask, logits_to_keep, batch_size or len(input_ids)), None, None

    def _scores(self, model, ids, attention, width: int, rows: int, entropy: bool = False) -> torch.Tensor:
        with self.accelerator.autocast():
            return token_scores(model, ids, attention, width, rows, self.temperature, self._lm_head, entropy)

    def _generate_and_score_completions(self, inputs):
        outlives = self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations)
        own_pass = self.args.old_logprobs == "rollout" or self._crediting.needs_entropy
        self._scores_rollout = bool(outlives) and own_pass
        batch = super()._generate_and_score_completions(inputs)
        self._is_fresh = self.model.training
        rollout = self._rollout
        at_mode, drawn = rollout.segments(self.modes, batch["completion_ids"].shape[1])
        response = drawn
        if self.args.mask_truncated_completions:
            response = response & rollout.ended(batch["completion_ids"], self.eos_token_ids)[:, None]
        batch["loss_mask"] = response if self.args.mask_mode_token else response | at_mode
        batch["old_logprobs"] = self._old_logprobs(batch, at_mode)
        found = self._credit(batch, inputs, at_mode, drawn)
        batch["advantages"] = token_advantages(found, at_mode, drawn)
        if found.kl_weight is not None and self.beta:
            batch["kl_weight"] = found.kl_weight
        bad = not_finite(batch, batch["loss_mask"])
        counts = torch.stack([batch["loss_mask"].sum(), response.sum(), *bad.values()])
        counts = self.accelerator.reduce(counts, reduction="sum")
        check_counts(counts[2:], tuple(bad), self._policy_name, self.state.global_step)
        batch["num_items_in_batch"], batch["num_response_tokens"] = counts[:2]
        return batch

    def _old_logprobs(self, batch, at_mode) -> torch.Tensor:
        old, scored = batch.pop("sampling_per_token_logps"), batch.pop("old_per_token_logps", None)
        if self._crediting.needs_entropy or (self.args.old_logprobs == "policy" and scored is None):
            scored, self._entropy = self._policy_scores(batch)
        old = scored if self.args.old_logprobs == "policy" else old
        mode = self._rollout.mode_logprobs
        if self.args.method.uniform_old and self._forces_modes:
            mode = torch.full_like(mode, 1 / len(self.modes)).log()
        return torch.where(at_mode, mode[:, None], old)

    def _policy_scores(self, batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probs of the rollout's tokens, and their entropies where the scheme reads those."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        rows = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        width = batch["completion_ids"].shape[1]
        entropy = self._crediting.needs_entropy
        with torch.no_grad():
            found = self._scores(self.model, ids, attention, width, rows, entropy)
        return (found[..., 0], found[..., 1]) if entropy else (found, None)

    def _credit(self, batch, inputs, at_mode, drawn) -> Advantages:
        """Advantages of this rank's rows, from the groups of all ranks."""
        rewards = self._rewards
        rows = self._crediting.rows(self._rollout, batch, inputs, drawn, self._entropy, self.eos_token_ids)
        everyone: RolloutRows = self.accelerator.gather(rows)
        steps = None if self._steps is None else gather_object(among_drawn(self._steps, at_mode | drawn))
        outcome = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        correct = verdicts(rewards[:, self._crediting.correct], self.args.correct_threshold)
        correct = correct.masked_fill(everyone.cut, torch.nan)  # as if they were not graded
        training = self.model.training
        size = self.num_generations if training else self.num_generations_eval
        done = self.state.global_step / max(self.state.max_steps, 1), self.state.global_step
        scored = rewards, outcome, correct, size, done, steps
        found = self._crediting.advantages(everyone, *scored, training)
        self._log(mode_metrics(self.modes, everyone.modes, everyone.mode_probs, correct, everyone.lengths))
        log_rows(self._logs, self.modes, everyone.modes, (found.mode, found.rest))
        own = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        return Advantages._make(None if part is None else part[own] for part in found)

    def _compute_loss(self, model, inputs):
        head = self._policy_head(inputs)
        with self.accelerator.autocast():
            out = model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                policy_head=head,
            )
        sums = self.accelerator.reduce(loss_sums(out, head.mask, head.gate, head.ref_logprobs), reduction="sum")
        check_counts(sums[-2:], NOT_FINITE, self._policy_name, self.state.global_step)
        if self.model.training and self._is_fresh and self._checks_drift:
            self._checks_drift = False
            half = self.accelerator.mixed_precision != "no" or self.model.dtype != torch.float32
            warn_of_drift(response_drift(sums), half, stacklevel=2)
        self._log(loss_metrics(sums, with_kl=head.ref_logprobs is not None))
        return out["loss"]

    def _policy_head(self, inputs) -> PolicyHead:
        args, training = self.args, self.model.training
        accumulation = self.current_gradient_accumulation_steps if training else 1
        # Counts span the rollout; this is one rank's share of an optimizer step.
        share = (accumulation / args.steps_per_generation if training else 1) / self.accelerator.num_processes
        counts = {
            "window_tokens": inputs["num_items_in_batch"] * share,
            "window_response": inputs["num_response_tokens"] * share,
            "accumulation": accumulation,
            "max_length": self.max_completion_length,
        }
        settings = {"kl_coef": self.beta, "entropy_coef": args.entropy_coef, "temperature": self.temperature}
        return policy_head(args, self.modes.token_ids, len(self.modes.prefix), inputs, counts, self._lm_head, settings)

    def _log(self, metrics: dict) -> None:
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
