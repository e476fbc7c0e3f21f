import pytest
from transformers import AutoTokenizer

import adapt_recipes as ar
from adapt_recipes.tasks.tokenizer import VOCABULARY, build_tokenizer, token_id


@pytest.fixture(scope="module", params=["built", "reloaded", "shipped"])
def tokenizer(request, tmp_path_factory):
    if request.param == "shipped":
        return AutoTokenizer.from_pretrained(ar.checkpoint_path("sft"))
    built = build_tokenizer()
    if request.param == "built":
        return built
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_vocabulary(tokenizer):
    assert len(tokenizer) == len(VOCABULARY) == 29
    assert tokenizer.convert_tokens_to_ids(list(VOCABULARY)) == list(range(29))
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert tokenizer.padding_side == "left"


def test_prompts_encode_to_one_shape(tokenizer):
    prompts = [problem.prompt for problem in ar.problems(64, seed=4)]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    assert sorted(encoded) == ["attention_mask", "input_ids"]
    assert encoded["input_ids"].shape == (64, 11)
    assert encoded["attention_mask"].all()
    assert (encoded["input_ids"][:, 0] == tokenizer.bos_token_id).all()
    assert not (encoded["input_ids"] == tokenizer.unk_token_id).any()


def test_decode_and_encode_round_trip(tokenizer):
    for problem in ar.problems(50, seed=4):
        ids = tokenizer(problem.prompt)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == problem.prompt
        assert tokenizer(tokenizer.decode(ids, skip_special_tokens=True))["input_ids"] == ids
    response = "<think> 7 6 </think> 6 <eos>"
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == response
    assert len(ids) == 6


def test_padding_goes_left(tokenizer):
    encoded = tokenizer(["3 ?", "3 +4 ?"], padding=True)
    assert encoded["input_ids"][0][0] == tokenizer.pad_token_id
    assert encoded["attention_mask"] == [[0, 1, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("token", ["<answer>", "<think>", "</think>"])
def test_mode_tokens_are_single_and_survive_skip_special_tokens(tokenizer, token):
    assert tokenizer("3 ?" + token)["input_ids"][3:] == [token_id(token)]
    assert tokenizer.decode([token_id(token)], skip_special_tokens=True) == token
    assert token not in tokenizer.all_special_tokens
