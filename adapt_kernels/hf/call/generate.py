"""The `generate` of a patched model: takes the mode arguments, picks the plan, and runs our loop or Hugging Face's."""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from adapt_kernels.hf.call.arguments import by_name
from adapt_kernels.hf.call.generate_call import OWN_ARGUMENTS, GenerateCall
from adapt_kernels.hf.call.plan import loop_plan, own_loop_reason
from adapt_kernels.hf.call.state import STATES
from adapt_kernels.hf.loop.decode_loop import decode
from adapt_kernels.program.paths import Paths
from adapt_kernels.program.request import ModeRequest
from adapt_kernels.program.steer_request import SteerRequest

_ACTIVE: ContextVar[GenerateCall | None] = ContextVar("adapt_kernels_generate_call", default=None)


_BeforeAModel: Any = object  # whose methods `super()` finds


class ModeGenerate(_BeforeAModel):
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
        cuda_graph=False,
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
                the model can and it pays: when rows' copies of the prompts would take 16 MiB per layer or more (on a
                GPU with Triton), and on such a GPU where prompts are padded, for there "sdpa" would make the host wait
                at every step.
            cuda_graph: "auto": the forwards of decode steps are replayed from a CUDA graph, captured anew where half of
                its slots are left or KV segments grow: on a CUDA device, under plan "full" with layout "rows", where
                the forward proves to give the same logits over KV of a fixed size, up to rounding; else
                `out.stats.graph_reason` says why not. True: raises then, and implies kv_layout="rows". False: no graph.
                Not run on a GPU so far.
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
                A returned cache holds everything: it is recomputed. With output_scores or output_logits no row leaves.
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
            state.modes, mode, mode_bias, fast_prob, seed, rng, bool(return_logprobs), compact_at, kv_layout, cuda_graph
        )
        steer = SteerRequest(program, thinking_budget, program_inputs)
        call = GenerateCall(self, state, request, steer, paths, kv_keep, by_name(super().generate, args, kwargs))
        reason = own_loop_reason(self.original_class, call.arguments) or state.loop.reason
        if reason is not None:
            call.leave_to_huggingface(reason)
        with _running(state, call):
            output = super().generate(*args, **kwargs)
        state.last_stats = call.stats
        return call.finish(output)

    def generate_batch(self, *args, **kwargs):
        """Hugging Face's continuous batching, which drops arguments it does not know: ours raise ValueError."""
        given = [name for name in OWN_ARGUMENTS if kwargs.get(name) is not None]
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
        if call is not None and call.plan.undecided:
            call.decide(config)
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
        if call is not None and synced_gpus and not call.plan.original:
            call.leave_to_huggingface("synced_gpus: all ranks must run the same number of forwards")
        if call is None or call.plan.original:
            return super()._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        inputs = input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
        call.plan = loop_plan(self, call, generation_config, logits_processor, len(input_ids), model_kwargs)
        return decode(self, call, *inputs)

    def _prepare_generated_length(self, *args, **kwargs):
        # Whatever loop comes next, the prompt has its final width here.
        call = self._own_call()
        if call is not None:
            call.prompt_length = by_name(super()._prepare_generated_length, args, kwargs)["input_ids_length"]
        return super()._prepare_generated_length(*args, **kwargs)

    def _own_call(self) -> GenerateCall | None:
        call = _ACTIVE.get()
        return call if call is not None and call.model is self else None


@contextmanager
def _running(state, call: GenerateCall):
    token = _ACTIVE.set(call)
    state.running += 1
    try:
        yield
    finally:
        state.running -= 1
        _ACTIVE.reset(token)
