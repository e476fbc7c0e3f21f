"""What streamers and stopping criteria see, against the unpatched model."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from parity import GREEDY, NEW, WIDTH, both, padded_inputs
from recorders import RecordingStreamer, RowLengths
from tiny_models import EOS, prompts, shared
from transformers import TextStreamer


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
