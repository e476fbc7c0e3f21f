"""One running `generate` call: what it was asked, its plan, and what both mean for each of its rows."""

from typing import Any

import torch
from transformers.utils import ModelOutput

from adapt_kernels.hf.call.arguments import eos_ids, prompt_in
from adapt_kernels.hf.call.keep import KEEP, checked_thoughts, draws
from adapt_kernels.hf.call.paths import check_paths
from adapt_kernels.hf.call.plan import original_reason
from adapt_kernels.hf.call.programs import program_run
from adapt_kernels.hf.call.state import PatchState
from adapt_kernels.hf.kv.prompts import ROW_INPUTS, prompt_of_row
from adapt_kernels.hf.outputs import GenerateStats
from adapt_kernels.hf.plan import Plan
from adapt_kernels.program.openings import opened_modes
from adapt_kernels.program.paths import Paths
from adapt_kernels.program.request import MODE_ARGUMENTS, ModeRequest, RowRequest
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.steer_request import STEER_ARGUMENTS, SteerRequest
from adapt_kernels.program.thoughts import ThoughtFlags
from adapt_kernels.prompt_spans import PromptSpans, prompt_spans

OWN_ARGUMENTS = (*MODE_ARGUMENTS, *STEER_ARGUMENTS, "paths", KEEP)


class GenerateCall:
    """A running call. arguments: all but ours, by name. plan: as far as it is known.

    rows, prompt, programs (None: no row has any) and thoughts (None: nobody asks) are of all rows in Hugging Face's
    order; they exist once the plan is "full" or "sample_only".
    """

    rows: RowRequest
    prompt: PromptSpans
    programs: ProgramRun | None
    thoughts: ThoughtFlags | None

    def __init__(
        self,
        model: Any,
        state: PatchState,
        request: ModeRequest,
        steer: SteerRequest,
        paths: Paths | None,
        keep: Any,
        arguments: dict,
    ):
        self.model, self.state, self.modes, self.arguments = model, state, state.modes, arguments
        self.request, self.steer, self.paths, self.keep = request, steer, paths, keep
        self.plan = Plan()
        self.eos_ids = eos_ids(model.generation_config)
        self.prompt_length: int | None = None
        self.stats: GenerateStats | None = None

    def decide(self, config) -> None:
        """Begin with a plan, and check the request against it and the batch; raises before anything is computed.

        config: the merged GenerationConfig.
        """
        self._check_config(config)
        reason = original_reason(self.model, config, self.arguments)
        if reason is not None:
            self.leave_to_huggingface(reason)
            return
        if self.paths is not None:
            check_paths(self.paths, self.model, config, self.arguments, self.request)
        if self.request.return_logprobs and not config.return_dict_in_generate:
            raise ValueError("return_logprobs=True needs return_dict_in_generate=True: the log-probs are out.logprobs")
        self._spread(config)
        self.plan = self.plan.begun()

    def _check_config(self, config) -> None:
        for name in OWN_ARGUMENTS:
            # A GenerationConfig takes any name, and nobody would look at it.
            if getattr(self.arguments.get("generation_config"), name, None) is not None:
                raise ValueError(f"{name} is no setting of a GenerationConfig: pass it to generate, {name}=...")

    def _spread(self, config) -> None:
        """What every row is asked."""
        prompt, mask = prompt_in(self.arguments), self.arguments.get("attention_mask")
        batch, samples = 1 if prompt is None else prompt.shape[0], config.num_return_sequences or 1
        device = self.model.device if prompt is None else prompt.device
        written = prompt is not None and prompt.ndim == 2
        ids = prompt if written else torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.eos_ids |= eos_ids(config)
        prompt_of = prompt_spans(self.modes, ids, mask, self.eos_ids)
        if self.request.gated:
            self._check_none_entered(prompt_of)
        self.prompt = prompt_of.repeat(samples)
        self.thoughts = checked_thoughts(self, prompt, ids, samples)
        asked = (self.model, self.state, self.steer, self.request)
        self.programs = program_run(*asked, ids, mask, samples, config, self.eos_ids, self.prompt)
        # Last: a refused call must not have moved torch's generator.
        self.rows = self.request.spread(batch, samples, self._draws(config), self._equal_prompts(prompt, samples))

    def _draws(self, config) -> bool:
        paths_draw = self.paths is not None and self.paths.score == "random"
        return config.do_sample or self.request.fast_prob is not None or draws(self.keep) or paths_draw

    def _equal_prompts(self, prompt, samples: int) -> torch.Tensor | None:
        if self.request.mode != "balanced" or samples != 1 or prompt is None:
            return None
        given = [self.arguments[name] for name in ROW_INPUTS if self.arguments.get(name) is not None]
        return prompt_of_row([tensor for tensor in (prompt, *given) if len(tensor) == len(prompt)])

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

    def leave_to_huggingface(self, reason: str) -> None:
        """Take plan "original". Raises ValueError if the request cannot be honoured by it."""
        given = self.request.given_arguments() + self.steer.given_arguments()
        given += ["paths"] * (self.paths is not None) + [KEEP] * (self.keep is not None)
        limited = [name for name in self.modes if self.modes[name].max_new_tokens is not None]
        if given or limited:
            what = ", ".join(given) or f"Mode.max_new_tokens of {', '.join(map(repr, limited))}"
            raise ValueError(
                f"{what} cannot be honoured by this call: {reason}. Change that, or call it on the unpatched model"
            )
        self.plan = self.plan.left_to_huggingface(reason)
        graphs = "" if self.request.cuda_graph is False else f"plan {self.plan.name!r}: {reason}"
        self.stats = GenerateStats(self.plan.name, reason, graph_reason=graphs)

    def finish(self, output):
        """The output of a call, with modes and stats when it is Hugging Face's own."""
        if self.plan.original and isinstance(output, ModelOutput):
            output.stats, output.mode_probs, output.modes = self.stats, None, None
            if self.prompt_length is not None:
                before, new = output.sequences.tensor_split([self.prompt_length], dim=1)
                entered = prompt_spans(self.modes, before, eos_ids=self.eos_ids).modes.to(new.device)
                output.modes = torch.where(entered >= 0, entered, opened_modes(self.modes, new))
        return output
