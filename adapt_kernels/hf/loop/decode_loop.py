"""The decode loop of plans "full" and "sample_only": Hugging Face's stop rules, our batch and token selection."""

import torch

from adapt_kernels.hf.compat import CACHE
from adapt_kernels.hf.kv.batch import BranchedBatch
from adapt_kernels.hf.kv.cached import cache_of
from adapt_kernels.hf.kv.kept_batch import KeptBatch, counted_prompt, inactive, keep_reason
from adapt_kernels.hf.kv.whole_batch import WholeBatch
from adapt_kernels.hf.loop.path_steps import path_steps
from adapt_kernels.hf.loop.probes import probes_of
from adapt_kernels.hf.loop.row_ends import RowEnds
from adapt_kernels.hf.loop.sampler import TokenSelector
from adapt_kernels.hf.loop.steering import Steering
from adapt_kernels.hf.loop.step_graph import NoGraph, StepGraph, refused_graph, step_graph
from adapt_kernels.hf.loop.stop_check import StopCheck, may_be_late
from adapt_kernels.hf.outputs import GenerateStats, ModeGenerateOutput, asked_outputs
from adapt_kernels.hf.plan import Plan
from adapt_kernels.ops.steer import UNBOUNDED


def decode(model, call, input_ids, logits_processor, stopping_criteria, config, streamer, model_kwargs):
    """Decode all rows to their end. Returns what Hugging Face's `_sample` returns, enriched with modes.

    The plan is the call's at first, then its batch's: what the prefill shows may make it another one.
    Host syncs: on a GPU plan "full" reads the rows' prompts before the first step and their order at the mode step, and
    none per step where nobody can see that the stop check is one step late; else one per step, as in Hugging Face's.
    """
    rows, device = len(input_ids), input_ids.device
    selector = TokenSelector(
        call.modes, call.rows, logits_processor, config, call.prompt, call.request.return_logprobs, device
    )
    most_new = (stopping_criteria.max_length or config.max_length or 1 << 40) - input_ids.shape[1]
    if call.programs is not None:
        call.programs.bind(min(most_new, UNBOUNDED - 1), selector.seeds)
        gate = call.state.gate if selector.gated else None
        selector.steering = Steering(call.programs, selector.processors, config, stopping_criteria, gate)
    rules_end = selector.steering is not None and selector.steering.may_end
    ends = RowEnds(call.modes, stopping_criteria, config, rows, device, rules_end, call.paths is not None)
    counted = counted_prompt(call.keep, input_ids, model_kwargs)  # before the mask grows
    batch = _batch(call.plan, model, call, config, input_ids, model_kwargs, most_new)
    record, paths = _Record(config), path_steps(model, call, batch, selector, input_ids)
    graph: StepGraph | NoGraph = NoGraph()
    try:
        batch, outputs = _prefill(batch, model, call, config, input_ids, most_new)
        graph = step_graph(model, call, batch, device)
        probes = probes_of(model, batch, selector.steering, config)
        late = batch.plan.full and not (paths.reads_ends or asked_outputs(config))
        late = late and may_be_late(stopping_criteria, config, streamer, device)
        stop = StopCheck(rows, most_new, late)
        forward = graph.around(_decode_forward(model, config, batch.kwargs))
        sequences = _steps(model, forward, batch, outputs, selector, ends, record, streamer, stop, input_ids, paths)
        if streamer is not None:
            streamer.end()
        stop.check_lost(selector.blame, latest=True)
        selector.warn_of_nan()
        cache, kv_bytes = batch.close(sequences, config.return_dict_in_generate, stop.surplus)
    except BaseException:
        batch.abandon()
        raise
    finally:
        paths.close()
        graph.close()
    new, call.plan = sequences[:, input_ids.shape[1] :], batch.plan
    more = {**paths.stats(ends, new.shape[1]), **_probed(probes), **_keep_report(batch, call, counted, new.shape[1])}
    call.stats = _stats(batch, kv_bytes, new, {**more, **graph.stats})
    call.state.recent_lengths.add(ends.lengths((selector.modes == 0) & ~paths.cut(ends)))
    if not config.return_dict_in_generate:
        return sequences
    fields = record.fields() | paths.report(ends)
    if selector.steering is not None and selector.steering.run.reports:
        fields |= selector.steering.report(new, ends.new_tokens, fields["forced"])
    return _output(batch, selector, ends, sequences, input_ids.shape[1], call.stats, {CACHE: cache, **fields})


def _prefill(batch, model, call, config, input_ids, most_new) -> tuple:
    """The batch and its model's outputs for the prompts; another one where that shows that it cannot go on."""
    outputs = batch.prefill(input_ids)
    if batch.plan.full == call.plan.full:
        return batch, outputs
    other = _batch(batch.plan, model, call, config, input_ids, batch.restart(), most_new)
    outputs = other.prefill(input_ids)
    other.prefill_tokens += batch.prefill_tokens
    return other, outputs


def _output(batch, selector, ends, sequences, prompt_length: int, stats, fields: dict) -> ModeGenerateOutput:
    return ModeGenerateOutput(
        sequences=sequences,
        prompt_of_row=batch.prompts,
        prompt_length=prompt_length,
        modes=selector.modes,
        mode_probs=selector.mode_probs,
        mode_logprobs=selector.mode_logprobs,
        lengths=ends.new_tokens,
        stats=stats,
        **fields,
    )


def _steps(model, forward, batch, outputs, selector, ends, record, streamer, stop, input_ids, paths):
    """From the prefill's outputs, one forward per token until no row is alive. Returns the sequences [rows, T]."""
    step = 0
    with model._optimize_model_for_decode():
        while True:
            batch.kwargs = model._update_model_kwargs_for_generation(outputs, batch.kwargs, is_encoder_decoder=False)
            logits = batch.row_logits(outputs, input_ids.device)
            tokens, scores, logprobs = selector(step, batch.slots.take(input_ids), logits, ends.alive)
            steering = selector.steering
            ends.lose(selector.lost)
            ends.stop(None if steering is None else batch.slots.spread(steering.ended, 0))
            paths.observe(step + 1, logits, tokens, batch, ends.alive)
            record.add(outputs, logits, scores, batch.slots)
            record.add_rows(batch.slots.spread(logprobs, 0.0), batch.slots.spread(selector.forced, False), ends.alive)
            tokens = ends.pad(batch.slots.spread(tokens, ends.pad_token))
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            step += 1
            sleeps = None if steering is None else batch.slots.spread(steering.sleeps, False)
            ends.update(input_ids, record.scores, selector.modes, step, sleeps)
            ends.leave(batch.slots.spread(selector.stops_next(step - 1, ends.alive), False), finished=True)
            pruned = paths.end(step, input_ids, ends, batch)
            stop.put(ends, step)
            if pruned:
                stop.catch_up()
            stop.check_lost(selector.blame)
            if streamer is not None:
                streamer.put(tokens.cpu())
            # Free the logits before the next forward allocates its own.
            del outputs, logits, scores
            if stop.done:
                if not stop.surplus:
                    return input_ids
                record.drop_last()
                return input_ids[:, :-1]
            if batch.advance(stop.gone, selector.modes, step - 1 == selector.gate_step, at_once=pruned):
                selector.place(batch.slots)
            batch.evict(input_ids, stop.gone)
            width = 1 if batch.kwargs["use_cache"] else None
            ids = batch.slots.take(input_ids)
            inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=width, **batch.kwargs)
            with batch.attention():
                outputs = forward(**batch.prepared(inputs), return_dict=True)


def _stats(batch, kv_bytes, new_tokens, more: dict) -> GenerateStats:
    plan, rows = batch.plan, len(new_tokens)
    more |= {"kv_layout": plan.layout, "kv_layout_reason": plan.layout_reason} if plan.full else {}
    return GenerateStats(
        plan.name,
        plan.reason,
        batch.row_steps,
        rows * (new_tokens.shape[1] - 1),
        batch.prefill_tokens,
        kv_bytes,
        **more,
    )


def _probed(probes) -> dict:
    return {} if probes is None else {"probe_tokens": probes.positions}


def _keep_report(batch, call, counted: int, new_tokens: int) -> dict:
    """counted: positions of the prompt that count."""
    report = batch.keep_report()
    if report or call.keep is None:
        return report
    # The last token's KV is never written.
    return {"kv_held_peak": counted + new_tokens - 1, "kv_evictions": 0, "kv_keep_reason": inactive(call.keep)}


def _batch(plan: Plan, model, call, config, input_ids, model_kwargs, most_new):
    refused_graph(model, call, plan, input_ids.device)
    given = model, config, input_ids, model_kwargs, plan
    if call.keep is not None:
        reason = plan.reason or keep_reason(model, call.keep, cache_of(model_kwargs))
        if reason:
            raise ValueError(f"kv_keep cannot serve this call: {reason}. Change that, or leave kv_keep out")
        if counted_prompt(call.keep, input_ids, model_kwargs) + most_new - 1 > call.keep.budget:
            return KeptBatch(*given, call, most_new)
    if plan.full:
        return BranchedBatch(*given, call, most_new)
    if call.request.kv_layout == "shared":
        raise ValueError(
            f"kv_layout='shared' cannot serve this call: {plan.reason}. Change that, or leave kv_layout out"
        )
    return WholeBatch(*given)


class _Record:
    """Per-step outputs the caller asked for, under Hugging Face's names."""

    def __init__(self, config):
        asked = config.return_dict_in_generate
        self.scores: tuple | None = () if asked and config.output_scores else None
        self._logits: tuple | None = () if asked and config.output_logits else None
        self._attentions: tuple | None = () if asked and config.output_attentions else None
        self._hidden_states: tuple | None = () if asked and config.output_hidden_states else None
        self._logprobs: list[torch.Tensor] = []
        self._forced: list[torch.Tensor] = []

    def add(self, outputs, logits, scores, slots) -> None:
        """logits, scores [slots, V]; where they are asked for, every row has a slot."""
        if self.scores is not None:
            self.scores += (slots.spread(scores, None),)
        if self._logits is not None:
            self._logits += (slots.spread(logits, None).to(copy=True, dtype=torch.float32),)
        if self._attentions is not None:
            self._attentions += (outputs.attentions,)
        if self._hidden_states is not None:
            self._hidden_states += (outputs.hidden_states,)

    def add_rows(self, logprobs, forced, alive) -> None:
        """[rows] of one step under return_logprobs, or with programs, else None."""
        if logprobs is not None:
            self._logprobs.append(torch.where(alive, logprobs, 0.0))
        if forced is not None:
            self._forced.append(forced & alive)

    def drop_last(self) -> None:
        """Plan "full" records nothing else per step."""
        del self._logprobs[-1:], self._forced[-1:]

    def fields(self) -> dict:
        return {
            "scores": self.scores,
            "logits": self._logits,
            "attentions": self._attentions,
            "hidden_states": self._hidden_states,
            "logprobs": torch.stack(self._logprobs, 1) if self._logprobs else None,
            "forced": torch.stack(self._forced, 1) if self._forced else None,
        }


def _decode_forward(model, config, model_kwargs):
    if model._valid_auto_compile_criteria(model_kwargs, config):
        return model.get_compiled_call(config.compile_config)
    return model.__call__
