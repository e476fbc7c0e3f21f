"""The `generate` of a patched model: takes the mode arguments, picks the plan, and runs our loop or Hugging Face's."""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
from transformers.utils import ModelOutput

from adapt_kernels.hf.call.arguments import by_name, eos_ids, prompt_in
from adapt_kernels.hf.call.keep import KEEP, checked_thoughts, draws
from adapt_kernels.hf.call.paths import check_paths
from adapt_kernels.hf.call.plan import no_append_reason, original_reason, own_loop_reason, whole_batch_reason
from adapt_kernels.hf.call.programs import has_probes, program_run
from adapt_kernels.hf.call.state import STATES
from adapt_kernels.hf.kv.prompts import ROW_INPUTS, prompt_of_row
from adapt_kernels.hf.loop.decode_loop import decode
from adapt_kernels.hf.outputs import GenerateStats
from adapt_kernels.program.paths import Paths
from adapt_kernels.program.request import MODE_ARGUMENTS, ModeRequest, RowRequest
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.steer_request import STEER_ARGUMENTS, SteerRequest
from adapt_kernels.prompt_spans import PromptSpans, prompt_spans

_ARGUMENTS = (*MODE_ARGUMENTS, *STEER_ARGUMENTS, "paths", KEEP)
_ACTIVE: ContextVar["GenerateCall | None"] = ContextVar("adapt_kernels_generate_call", default=None)


class GenerateCall:
    """State of one running `generate` call. arguments: all but ours, by name."""

    def __init__(
        self, model, state, request: ModeRequest, steer: SteerRequest, paths: Paths | None, keep, arguments: dict
    ):
        self.paths, self.no_append = paths, None
        self.model, self.modes, self.request, self.arguments = model, state.modes, request, arguments
        self.steer, self.keep, self.thoughts = steer, keep, None
        self.programs: ProgramRun | None = None
        self.state = state
        self.eos_ids = eos_ids(model.generation_config)
        self.rows: RowRequest | None = None
        self.prompt: PromptSpans | None = None
        self.prompt_length: int | None = None
        self.stats: GenerateStats | None = None

    def plan(self, config) -> None:
        """Choose the plan and check the request against it and the batch; raises before anything is computed.

        config: the merged GenerationConfig.
        """
        arguments = self.arguments
        for name in _ARGUMENTS:
            # A GenerationConfig takes any name, and nobody would look at it.
            if getattr(arguments.get("generation_config"), name, None) is not None:
                raise ValueError(f"{name} is no setting of a GenerationConfig: pass it to generate, {name}=...")
        reason = original_reason(self.model, config, arguments)
        if reason is not None:
            self.use_original(reason)
            return
        if self.paths is not None:
            check_paths(self.paths, self.model, config, arguments, self.request)
        if self.request.return_logprobs and not config.return_dict_in_generate:
            raise ValueError("return_logprobs=True needs return_dict_in_generate=True: the log-probs are out.logprobs")
        prompt = prompt_in(arguments)
        batch = 1 if prompt is None else prompt.shape[0]
        samples = config.num_return_sequences or 1
        device = self.model.device if prompt is None else prompt.device
        written = prompt is not None and prompt.ndim == 2
        ids = prompt if written else torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.eos_ids |= eos_ids(config)
        prompt_of = prompt_spans(self.modes, ids, arguments.get("attention_mask"), self.eos_ids)
        if self.request.gated:
            self._check_none_entered(prompt_of)
        self.prompt = prompt_of.repeat(samples)
        prompts = None
        if self.request.mode == "balanced" and samples == 1 and prompt is not None:
            given = [arguments[name] for name in ROW_INPUTS if arguments.get(name) is not None]
            prompts = prompt_of_row([tensor for tensor in (prompt, *given) if len(tensor) == batch])
        random = config.do_sample or self.request.fast_prob is not None or draws(self.keep)
        random = random or (self.paths is not None and self.paths.score == "random")
        self.thoughts = checked_thoughts(self, prompt, ids, samples)
        asked = (self.model, self.state, self.steer, self.request)
        self.programs = program_run(*asked, ids, arguments.get("attention_mask"), samples, config, self.eos_ids)
        # Last: a refused call must not have moved torch's generator.
        self.rows = self.request.spread(batch, samples, random, prompts)

    def _check_none_entered(self, prompt: PromptSpans) -> None:
        some = prompt.entered >= 0
        if not some.any():
            return
        whole = some & (prompt.entered < len(self.modes))
        first = int((whole if whole.any() else some).nonzero()[0])
        mode = int(prompt.entered[first])
        what = "the modes, in part" if mode == len(self.modes) else f"mode {self.modes.names[mode]!r}"
        raise ValueError(
            f"prompt {first} already ends in the tokens of {what}, so no mode is left to choose: use a chat template"
            " that does not prefill it, or leave out mode, mode_bias and fast_prob"
        )

    @property
    def planned(self) -> bool:
        return self.rows is not None or self.stats is not None

    def use_original(self, reason: str) -> None:
        """Take plan "original". Raises ValueError if the request cannot be honoured by it."""
        given = self.request.given_arguments() + self.steer.given_arguments()
        given += ["paths"] * (self.paths is not None) + [KEEP] * (self.keep is not None)
        limited = [name for name in self.modes if self.modes[name].max_new_tokens is not None]
        if given or limited:
            what = ", ".join(given) or f"Mode.max_new_tokens of {', '.join(map(repr, limited))}"
            raise ValueError(
                f"{what} cannot be honoured by this call: {reason}. Change that, or call it on the unpatched model"
            )
        self.stats = GenerateStats("original", reason)

    def finish(self, output):
        """The output of a call, with modes and stats when it is Hugging Face's own."""
        if self.stats.plan == "original" and isinstance(output, ModelOutput):
            output.stats, output.mode_probs, output.modes = self.stats, None, None
            if self.prompt_length is not None:
                before, new = output.sequences.tensor_split([self.prompt_length], dim=1)
                entered = prompt_spans(self.modes, before, eos_ids=self.eos_ids).modes.to(new.device)
                output.modes = torch.where(entered >= 0, entered, _opened_modes(self.modes, new))
        return output


class ModeGenerate:
    """Mixin put in front of a model's class by `patch`; `original_class` is what it was."""

    original_class: type

    def generate(
        self,
        *args,
        mode=None,
        mode_bias=None,
        fast_prob=None,
        seed=None,
        rng=None,
        return_logprobs=False,
        compact_at=0.75,
        kv_layout="auto",
        program=None,
        thinking_budget=None,
        program_inputs=None,
        paths=None,
        kv_keep=None,
        **kwargs,
    ):
        """Hugging Face's `generate`, with control over the mode each row enters.

        Any of mode, mode_bias, fast_prob restricts the first new token to the modes; none given, nothing is restricted
        and modes are only reported. Values are one for all rows, one per row (batch x num_return_sequences, Hugging
        Face's order), or one per prompt.

        Args:
            mode: "auto" (the model chooses), a mode name, "balanced" (each prompt's samples, be they returned sequences
                or equal rows, split evenly over the modes, first mode first), or a list of "auto" and names; an array
                or tensor may hold mode indices. A name excludes mode_bias and fast_prob.
            mode_bias: logit units; > 0 favours mode 0. A number, a tensor, or {mode name: number or tensor}.
            fast_prob: exact probability of mode 0, inside (0, 1), at any temperature; drawn even when greedy.
            seed: int (row i draws from `row_seed(seed, i)`), or one per row used as given; one per prompt gives sample
                j of it `row_seed(seed, j)`. None: one 64-bit seed from torch's default CPU generator.
            rng: None, or "hf" for Hugging Face's own sampler and generator.
            return_logprobs: adds `out.logprobs`, each new token's log-prob after bias and temperature, before filters.
            compact_at: finished rows leave the batch when at most this share of it is left (plan "full"); at 0 only
                where KV segments grow. No token depends on it.
            kv_layout: of plan "full". "rows": every row holds its prompt. "shared": each prompt's KV is stored once and
                read by all its rows, by `segment_attention`; the model must take attention functions and give them the
                cached keys as they are (else ValueError after the prefill, before any token). "auto": "shared" where
                the model can and it pays: on a GPU with Triton when rows share prompts, on a CPU when rows' copies of
                the prompts would take 16 MiB per layer or more.
            program: an `adapt_kernels.Program`, or a list with one (or None) per row or prompt: rules that steer each
                row at any position. They act on nothing that a mode argument writes. Probe rules answer by the
                likeliest tokens; rng="hf" raises.
            thinking_budget: tokens after which a thought is closed, exactly, wherever it was opened; an integer >= 0 or
                one (or None) per row or prompt. Its span is "think" of patch(spans=), else those of the modes with a
                closing, else the preset's. Program rules come first, then the budget, then Mode.max_new_tokens.
            program_inputs: {name: one value per row or prompt} that the program's rules read.
            paths: an `adapt_kernels.Paths`: which of a prompt's rows go on living. The others leave the batch, give
                their KV back and are padded; those that stay have the tokens of the call without it.
            kv_keep: an `adapt_kernels.KeepKV`: rows drop KV positions beyond a budget as they decode; plan "full" only.
                A returned cache holds everything: it is recomputed.
            Everything else goes to Hugging Face's `generate`.

        Returns what Hugging Face returns; under `return_dict_in_generate=True` with `modes`, `mode_probs` and `stats`
        (`ModeGenerateOutput`). `adapt_kernels.last_stats(model)` has the stats of the latest call in any case.

        Raises ValueError or TypeError before anything is computed: unknown names, wrong row counts, arguments that
        exclude each other, a prompt that has opened or closed a mode, or a call that only Hugging Face's own loop can
        serve (beams, assisted decoding, encoder-decoder ...) together with any of these arguments; after the prefill,
        a mode whose token a grammar, or another processor that may remember what it refused, puts at -inf.
        """
        state = STATES[self]
        if paths is not None and not isinstance(paths, Paths):
            raise TypeError(f"paths must be an adapt_kernels.Paths; got {paths!r}")
        request = ModeRequest(
            state.modes, mode, mode_bias, fast_prob, seed, rng, bool(return_logprobs), compact_at, kv_layout
        )
        steer = SteerRequest(program, thinking_budget, program_inputs)
        call = GenerateCall(self, state, request, steer, paths, kv_keep, by_name(super().generate, args, kwargs))
        reason = own_loop_reason(self.original_class, call.arguments) or state.loop.reason
        if reason is not None:
            call.use_original(reason)
        with _running(state, call):
            output = super().generate(*args, **kwargs)
        state.last_stats = call.stats
        return call.finish(output)

    def generate_batch(self, *args, **kwargs):
        """Hugging Face's continuous batching, which drops arguments it does not know: ours raise ValueError."""
        given = [name for name in _ARGUMENTS if kwargs.get(name) is not None]
        modes = STATES[self].modes
        given += [f"Mode.max_new_tokens of {name!r}" for name in modes if modes[name].max_new_tokens is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} cannot be honoured by generate_batch, Hugging Face's continuous batching: call"
                " generate, whose finished rows leave the batch too, or unpatch the model"
            )
        return super().generate_batch(*args, **kwargs)

    def _prepare_generation_config(self, *args, **kwargs):
        # Hugging Face merges the settings before it computes anything: here the call can be planned, or refused.
        config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        call = self._own_call()
        if call is not None and not call.planned:
            call.plan(config)
        return config, model_kwargs

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        call = self._own_call()
        if call is not None and synced_gpus and call.stats is None:
            call.use_original("synced_gpus: all ranks must run the same number of forwards")
        if call is None or call.stats is not None:
            return super()._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        config, rows = generation_config, len(input_ids)
        reason = whole_batch_reason(self, call, config, logits_processor, rows, model_kwargs)
        if (call.paths is not None and call.paths.own_function) or has_probes(call.programs):
            call.no_append = no_append_reason(self, config, model_kwargs)
        processors_and_criteria = logits_processor, stopping_criteria
        return decode(self, call, reason, input_ids, *processors_and_criteria, config, streamer, model_kwargs)

    def _prepare_generated_length(self, *args, **kwargs):
        # Whatever loop comes next, the prompt has its final width here.
        call = self._own_call()
        if call is not None:
            call.prompt_length = by_name(super()._prepare_generated_length, args, kwargs)["input_ids_length"]
        return super()._prepare_generated_length(*args, **kwargs)

    def _own_call(self) -> GenerateCall | None:
        call = _ACTIVE.get()
        return call if call is not None and call.model is self else None


def _opened_modes(modes, new_tokens) -> torch.Tensor:
    """[rows] int8: the mode whose tokens the new tokens start with, -1 = none."""
    found = torch.full((new_tokens.shape[0],), -1, dtype=torch.int8, device=new_tokens.device)
    if None in modes.token_ids and new_tokens.shape[1]:
        found.fill_(modes.token_ids.index(None))
    for index, name in enumerate(modes):
        ids = modes[name].ids
        if ids is not None and len(ids) <= new_tokens.shape[1]:
            starts = (new_tokens[:, : len(ids)] == torch.tensor(ids, device=new_tokens.device)).all(1)
            found = found.masked_fill(starts, index)
    return found


@contextmanager
def _running(state, call: GenerateCall):
    token = _ACTIVE.set(call)
    state.running += 1
    try:
        yield
    finally:
        state.running -= 1
        _ACTIVE.reset(token)
