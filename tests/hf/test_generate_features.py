"""Every generate feature, against the unpatched model's output, with the plan that must serve it."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from recorders import RecordingStreamer, RowLengths, forward_calls
from tiny_models import EOS, FAST, PAD, SLOW, build, left_padded, prompts, shared
from transformers import DynamicCache, GenerationConfig, GenerationMixin, StaticCache, TextStreamer

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 8, 9
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


def padded_inputs():
    return left_padded(prompts(3, WIDTH), [8, 3, 6])


def both(model, call, plan="full"):
    """call(model) on the unpatched and on the patched model; the latter must take `plan`."""
    unpatched = call(model)
    with ak.patched(model, MODES):
        patched = call(model)
        assert ak.last_stats(model).plan == plan
    return unpatched, patched


def assert_same(ours, theirs):
    """Equal nested tuples of tensors."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif theirs is not None:
        assert torch.equal(ours, theirs)


def cached(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


class TestStreamer:
    @pytest.mark.parametrize("rows", [1, 3])
    def test_call_sequence(self, rows):
        def call(model):
            streamer = RecordingStreamer()
            criteria = [RowLengths(WIDTH, [4, 2, 7][:rows])]
            # An EOS criterion that never fires: it is there to make ended rows pad.
            ends = {**GREEDY, "eos_token_id": EOS, "suppress_tokens": [EOS]}
            model.generate(prompts(rows, WIDTH), streamer=streamer, stopping_criteria=criteria, **ends)
            return streamer.calls

        unpatched, patched = both(shared("qwen3"), call)
        assert patched == unpatched
        assert len(unpatched) == 2 + (7 if rows == 3 else 4)

    def test_text_streamer_prints_the_same(self, capsys):
        def call(model):
            model.generate(prompts(1, WIDTH), streamer=TextStreamer(char_tokenizer()), **GREEDY)
            return capsys.readouterr().out

        unpatched, patched = both(shared("qwen3"), call)
        assert patched == unpatched and patched.strip()

    def test_order_against_criteria(self):
        def call(model):
            events = []

            class Streamer(RecordingStreamer):
                def put(self, value):
                    events.append("put")

                def end(self):
                    events.append("end")

            class Criterion(RowLengths):
                def __call__(self, *args, **kwargs):
                    events.append("criterion")
                    return super().__call__(*args, **kwargs)

            model.generate(prompts(1, 4), streamer=Streamer(), stopping_criteria=[Criterion(4, [3])], **GREEDY)
            return events

        unpatched, patched = both(shared("qwen3"), call)
        assert patched == unpatched


class TestCriteria:
    def test_see_every_row_in_order_though_rows_have_left(self):
        """Ended rows show pad, in their own place, with the scores Hugging Face passes."""

        def call(model):
            seen = []

            class Criterion(RowLengths):
                def __call__(self, input_ids, scores, **kwargs):
                    seen.append((input_ids.tolist(), scores, input_ids.is_contiguous()))
                    return super().__call__(input_ids, scores, **kwargs)

            ends = {**GREEDY, "eos_token_id": EOS, "suppress_tokens": [EOS]}
            criteria = [Criterion(WIDTH, [2, 9, 1, 6, 1, 2])]
            model.generate(prompts(6, WIDTH), stopping_criteria=criteria, **ends)
            return seen

        unpatched, patched = both(shared("qwen3"), call)
        assert patched == unpatched and len(patched) == 9

    def test_a_criterion_that_ends_one_row_of_a_sampled_group(self):
        def call(model):
            ends = {"eos_token_id": EOS, "suppress_tokens": [EOS], "max_new_tokens": NEW}
            criteria = [RowLengths(WIDTH, [1, 9, 3, 9, 2, 2])]
            arguments = {"do_sample": True, "top_k": 1, "num_return_sequences": 2, **ends}
            return model.generate(**padded_inputs(), stopping_criteria=criteria, **arguments)

        unpatched, patched = both(shared("qwen3"), call)
        assert torch.equal(unpatched, patched)

    @pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.6}, {"no_repeat_ngram_size": 2}], ids=str)
    def test_processors_follow_rows_that_move(self, penalty):
        def call(model):
            ends = {"eos_token_id": EOS, "bad_words_ids": [[EOS]], **penalty}
            criteria = [RowLengths(WIDTH, [2, 9, 4])]
            return model.generate(**padded_inputs(), stopping_criteria=criteria, **{**GREEDY, **ends})

        unpatched, patched = both(shared("qwen3"), call)
        assert torch.equal(unpatched, patched)


class TestReasons:
    """What keeps a call off plan "full" is said in the stats."""

    CASES = {
        "rng='hf' draws for the whole batch": {"rng": "hf"},
        "output_scores shows what finished rows compute": {"output_scores": True, "return_dict_in_generate": True},
        "PrefixConstrainedLogitsProcessor may depend on the place": {"prefix_allowed_tokens_fn": lambda row, ids: [9]},
        "there is no cache to branch": {"use_cache": False},
        "StaticCache, offloaded, quantized or static": {"cache_implementation": "static"},
        "past_key_values was given": {"past_key_values": True},
        "model input 'extra' may hold rows": {"extra": torch.zeros(3)},
    }

    @pytest.mark.parametrize("reason", CASES)
    def test_is_named(self, reason):
        arguments = dict(self.CASES[reason])
        model = build("llama")
        if "past_key_values" in arguments:
            arguments["past_key_values"] = DynamicCache(config=model.config)
        if "extra" in arguments:
            # A model whose forward takes more inputs than llama's.
            model._validate_model_kwargs = lambda kwargs: None
        with ak.patched(model, MODES):
            model.generate(**padded_inputs(), **GREEDY, **arguments)
            stats = ak.last_stats(model)
        assert stats.plan == "sample_only" and reason in stats.reason

    def test_training_mode(self):
        # Trainers generate in it; without dropout it makes no difference.
        for rate, plan in ((0.0, "full"), (0.1, "sample_only")):
            with ak.patched(build("llama", attention_dropout=rate).train(), MODES) as model:
                model.generate(**padded_inputs(), **GREEDY)
                stats = ak.last_stats(model)
                assert stats.plan == plan and ("dropout" in stats.reason) == (rate > 0)

    def test_position_ids_for_all_rows_at_once(self):
        arguments = {"input_ids": prompts(3, WIDTH), "position_ids": torch.arange(WIDTH)[None], **GREEDY}
        unpatched, patched = both(shared("llama"), lambda m: m.generate(**arguments), "sample_only")
        assert torch.equal(unpatched, patched)


class TestInputs:
    @pytest.mark.parametrize("with_ids", [False, True])
    @pytest.mark.parametrize("samples", [1, 2])
    def test_inputs_embeds(self, with_ids, samples):
        model, inputs = shared("llama"), padded_inputs()
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
        ids = {"input_ids": inputs["input_ids"]} if with_ids else {}
        sampling = {"do_sample": True, "top_k": 1} if samples > 1 else {}
        unpatched, patched = both(
            model,
            lambda m: m.generate(
                inputs_embeds=embeds,
                attention_mask=inputs["attention_mask"],
                num_return_sequences=samples,
                **{**GREEDY, **sampling},
                **ids,
            ),
        )
        assert torch.equal(unpatched, patched)

    @pytest.mark.parametrize("with_ids", [False, True])
    def test_inputs_embeds_with_a_mode(self, with_ids):
        model, ids = shared("llama"), prompts(3, WIDTH)
        embeds = model.get_input_embeddings()(ids).detach()
        arguments = {**GREEDY, "mode": "slow", "return_dict_in_generate": True}
        with ak.patched(model, MODES):
            by_ids = model.generate(ids, **arguments)
            given = {"input_ids": ids} if with_ids else {}
            by_embeds = model.generate(inputs_embeds=embeds, **given, **arguments)
        assert torch.equal(by_embeds.sequences[:, -NEW:], by_ids.sequences[:, -NEW:])
        assert by_embeds.modes.tolist() == [1, 1, 1] and by_embeds.stats.prefill_tokens == 3 * WIDTH

    def test_positional_and_config_arguments(self):
        config = GenerationConfig(**GREEDY, pad_token_id=PAD)
        unpatched, patched = both(shared("llama"), lambda m: m.generate(prompts(3, WIDTH), config))
        assert torch.equal(unpatched, patched)
        unpatched, patched = both(
            shared("llama"), lambda m: m.generate(inputs=prompts(3, WIDTH), generation_config=config)
        )
        assert torch.equal(unpatched, patched)

    def test_settings_are_merged_once(self, monkeypatch):
        merges, own = [], GenerationMixin._prepare_generation_config

        def counted(*args, **kwargs):
            merges.append(kwargs)
            return own(*args, **kwargs)

        monkeypatch.setattr(GenerationMixin, "_prepare_generation_config", counted)
        config = GenerationConfig(**GREEDY, pad_token_id=PAD)
        before = config.to_dict()
        with ak.patched(shared("llama"), MODES) as model:
            tokens = model.generate(prompts(3, WIDTH), config, max_new_tokens=2, mode="slow")
        assert tokens.shape[1] == WIDTH + 2 and len(merges) == 1
        assert config.to_dict() == before

    def test_num_return_sequences_from_the_models_own_config(self):
        model = build("llama")
        model.generation_config.num_return_sequences, model.generation_config.do_sample = 3, True
        with ak.patched(model, MODES):
            out = model.generate(prompts(2, WIDTH), max_new_tokens=2, mode="balanced", return_dict_in_generate=True)
        assert out.modes.tolist() == [0, 0, 1] * 2

    def test_token_healing(self):
        tokenizer = char_tokenizer()
        ids = tokenizer(["xyza", "kmnd"], return_tensors="pt").input_ids
        arguments = {"token_healing": True, "tokenizer": tokenizer, **GREEDY}
        unpatched, patched = both(shared("llama"), lambda m: m.generate(ids, **arguments))
        assert torch.equal(unpatched, patched)
        assert not torch.equal(unpatched[:, : ids.shape[1]], ids), "healing must change a prompt"


class TestRichOutput:
    ASKED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")

    @pytest.mark.parametrize("asked", [*((name,) for name in ASKED), ASKED, ()], ids="+".join)
    def test_fields(self, asked):
        model = build("qwen2", attn_implementation="eager")
        arguments = {**padded_inputs(), **GREEDY, "return_dict_in_generate": True, "repetition_penalty": 1.2}
        plan = "sample_only" if asked else "full"
        theirs, ours = both(model, lambda m: m.generate(**arguments, **dict.fromkeys(asked, True)), plan)
        assert set(theirs.keys()) <= set(ours.keys())
        for field in ("sequences", "scores", "logits", "attentions", "hidden_states"):
            assert_same(getattr(ours, field), getattr(theirs, field))

    def test_returned_cache(self):
        arguments = {**padded_inputs(), **GREEDY, "return_dict_in_generate": True}
        theirs, ours = both(shared("llama"), lambda m: m.generate(**arguments))
        assert type(ours.past_key_values) is DynamicCache
        for ours_kv, theirs_kv in zip(cached(ours.past_key_values), cached(theirs.past_key_values), strict=True):
            assert_same(ours_kv, theirs_kv)

    @pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3_next", "mamba", "bloom"])
    @pytest.mark.parametrize("embedded", [False, True])
    def test_returned_cache_of_rows_that_left(self, architecture, embedded):
        # Including what Hugging Face computes from pad after a row's end; computed again, so up to rounding.
        model, inputs = shared(architecture), padded_inputs()
        if embedded:
            inputs["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()
        ends = {"eos_token_id": EOS, "suppress_tokens": [EOS], "stopping_criteria": [RowLengths(WIDTH, [3, 8, 5])]}
        arguments = {**inputs, **GREEDY, "return_dict_in_generate": True, **ends}
        theirs, ours = both(model, lambda m: m.generate(**arguments))
        assert isinstance(ours.past_key_values, DynamicCache)
        for ours_layer, theirs_layer in zip(ours.past_key_values.layers, theirs.past_key_values.layers, strict=True):
            assert type(ours_layer) is type(theirs_layer)
            states = {k: v for k, v in vars(theirs_layer).items() if torch.is_tensor(v) or isinstance(v, dict)}
            assert states
            for name, expected in states.items():
                ours_state = getattr(ours_layer, name)
                if name in ("keys", "values"):
                    # What stands at padding is never read.
                    real = torch.nn.functional.pad(inputs["attention_mask"], (0, expected.shape[2]), value=1)
                    real = real[:, WIDTH + 7 - expected.shape[2] : WIDTH + 7, None].unsqueeze(1)
                    ours_state, expected = ours_state * real, expected * real
                torch.testing.assert_close(ours_state, expected, rtol=1e-4, atol=1e-4)

    def test_per_step_outputs_need_return_dict(self):
        out = both(shared("llama"), lambda m: m.generate(prompts(2, WIDTH), output_scores=True, **GREEDY))
        assert torch.equal(*out)


class TestCaches:
    def test_given_cache_is_filled_in_place(self):
        caches = []

        def call(model):
            caches.append(DynamicCache(config=model.config))
            return model.generate(**padded_inputs(), past_key_values=caches[-1], **GREEDY)

        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)
        assert_same(tuple(cached(caches[1])), tuple(cached(caches[0])))

    def test_continuation(self):
        def call(model):
            first = model.generate(prompts(2, WIDTH), return_dict_in_generate=True, **no_pad)
            longer = torch.cat([first.sequences, prompts(2, 3, seed=5)], 1)
            return model.generate(longer, past_key_values=first.past_key_values, **no_pad)

        # A generated pad would be masked as a prompt's padding.
        no_pad = {**GREEDY, "suppress_tokens": [PAD]}
        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)
        fresh = shared("llama").generate(patched[:, : WIDTH + NEW + 3], **no_pad)
        assert torch.equal(patched, fresh)

    def test_continuation_computes_only_what_is_not_cached(self):
        with ak.patched(build("llama"), MODES) as model:
            first = model.generate(prompts(2, WIDTH), return_dict_in_generate=True, **GREEDY)
            longer = torch.cat([first.sequences, prompts(2, 3, seed=5)], 1)
            with forward_calls(model) as calls:
                out = model.generate(
                    longer, past_key_values=first.past_key_values, mode="fast", return_dict_in_generate=True, **GREEDY
                )
        # The last generated token was never fed back, so it is computed with the 3 that were added.
        assert calls[0]["input_ids"].shape == (2, 4) and out.stats.prefill_tokens == 2 * 4
        assert (out.sequences[:, WIDTH + NEW + 3] == FAST).all()

    def test_only_the_tokens_after_the_cache_are_given(self):
        arguments = {"attention_mask": torch.ones(2, WIDTH + 2, dtype=torch.long), "return_dict_in_generate": True}
        with ak.patched(build("llama"), MODES) as model:
            first = model.generate(prompts(2, 2), max_new_tokens=1, return_dict_in_generate=True, eos_token_id=None)
            with forward_calls(model) as calls:
                out = model.generate(
                    prompts(2, WIDTH, seed=3), past_key_values=first.past_key_values, **arguments, **GREEDY
                )
        assert calls[0]["input_ids"].shape == (2, WIDTH)
        assert out.stats.prefill_tokens == 2 * WIDTH

    def test_given_static_cache(self):
        def call(model):
            cache = StaticCache(config=model.config, max_cache_len=64)
            first = model.generate(prompts(2, WIDTH), past_key_values=cache, **no_pad)
            return model.generate(torch.cat([first, prompts(2, 3)], 1), past_key_values=cache, **no_pad)

        no_pad = {**GREEDY, "suppress_tokens": [PAD]}
        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)
        with ak.patched(shared("llama"), MODES) as model:
            call(model)
            stats = ak.last_stats(model)
        assert type(stats.prefill_tokens) is int and stats.prefill_tokens == 2 * 4

    @pytest.mark.parametrize("chunk", [1, 3, 64])
    def test_prefill_in_chunks(self, chunk):
        arguments = {**padded_inputs(), **GREEDY, "prefill_chunk_size": chunk}
        unpatched, patched = both(shared("llama"), lambda m: m.generate(**arguments))
        assert torch.equal(unpatched, patched)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba", "qwen3_next"])
    def test_no_cache(self, architecture):
        arguments = {"input_ids": prompts(3, WIDTH), **GREEDY, "use_cache": False}
        unpatched, patched = both(shared(architecture), lambda m: m.generate(**arguments), "sample_only")
        assert torch.equal(unpatched, patched)
        with ak.patched(shared(architecture), MODES) as model:
            out = model.generate(**arguments, return_dict_in_generate=True, mode="slow")
        assert out.stats.kv_bytes_peak == 0 and (out.sequences[:, WIDTH] == SLOW).all()

    @pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss", "mistral", "deepseek_v3", "lfm2"])
    def test_static_cache(self, architecture):
        # Twice: a resized or kept static cache would break the second call.
        arguments = {**padded_inputs(), **GREEDY, "cache_implementation": "static"}
        for _ in range(2):
            unpatched, patched = both(shared(architecture), lambda m: m.generate(**arguments), "sample_only")
            assert torch.equal(unpatched, patched)

    def test_static_cache_stats(self):
        with ak.patched(shared("llama"), MODES) as model:
            model.generate(prompts(3, WIDTH), cache_implementation="static", mode="fast", **GREEDY)
            stats = ak.last_stats(model)
        assert type(stats.prefill_tokens) is int and stats.prefill_tokens == 3 * WIDTH
        assert stats.kv_bytes_peak >= 2 * 2 * 3 * 2 * 8 * 4 * (WIDTH + NEW - 1)

    def test_continuation_of_rows_that_left(self):
        def call(model):
            ends = {"eos_token_id": EOS, "suppress_tokens": [EOS], "stopping_criteria": [RowLengths(WIDTH, [3, 8, 5])]}
            first = model.generate(prompts(3, WIDTH), return_dict_in_generate=True, **{**GREEDY, **ends})
            longer = torch.cat([first.sequences, prompts(3, 3, seed=5)], 1)
            mask = torch.ones_like(longer)
            arguments = {"attention_mask": mask, "past_key_values": first.past_key_values, **GREEDY}
            return model.generate(longer, **arguments)

        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)

    def test_sampled_continuation_with_huggingface_generator(self):
        def call(model, **ours):
            torch.manual_seed(3)
            arguments = {**GREEDY, "do_sample": True, "top_k": 0, **ours}
            first = model.generate(prompts(2, WIDTH), return_dict_in_generate=True, **arguments)
            return model.generate(first.sequences, past_key_values=first.past_key_values, **arguments)

        model = shared("llama")
        expected = call(model)
        with ak.patched(model, MODES):
            assert torch.equal(call(model, rng="hf"), expected)
