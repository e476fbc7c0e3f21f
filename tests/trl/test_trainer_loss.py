"""The trainer's loss and gradient: the published group, plain float64 loops for every scheme, and TRL's own loss."""

import math

import plain_adapt
import pytest
import torch

trl = pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

import tiny_trainer  # noqa: E402
from tiny_trainer import FAST, PROMPTS, SLOW, WORDS, make_config, make_model, make_tokenizer, make_trainer  # noqa: E402

from adapt_kernels.trl.rollout import Rollout  # noqa: E402


def rolled_out(trainer, prompts=PROMPTS[:2]):
    """One batch of the trainer, as its own loop would make it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": p, "reference_accuracy": 0.25} for p in prompts for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(rows)


def unigram_model(probabilities):
    """The same distribution at every position: {id: probability}, the others exp(-30)."""
    model = make_model(tie_word_embeddings=False, rms_norm_eps=0.0)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        logits = torch.full((len(WORDS),), -30.0)
        for token, probability in probabilities.items():
            logits[token] = math.log(probability)
        model.lm_head.weight.copy_(logits[:, None].expand(-1, 16) / 16)
    return model


def test_the_published_group(tmp_path, monkeypatch):
    """methods: advantages and loss of ADaPT's released arithmetic at P(think) = .7, ratio 1 after the mode token."""
    accuracy = lambda completions, **_: [1.0, 0.0, 1.0, 1.0]  # noqa: E731
    shape = lambda completions, **_: [1.0] * 4  # noqa: E731
    trainer = make_trainer(
        tmp_path, unigram_model({SLOW: 0.7, FAST: 0.3}), reward=[accuracy, shape], scheme="reference",
        reward_weights=[1.0, 0.8], per_device_train_batch_size=4,
    )  # fmt: skip
    ids = [[SLOW, 7, 8, 1], [SLOW, 9, 1], [FAST, 1], [FAST, 1]]
    rest = torch.log_softmax(trainer.model.lm_head.weight.detach().sum(1), 0)

    def stub(prompt_ids, *_):
        modes = torch.tensor([1, 1, 0, 0])
        own = torch.tensor([[0.3, 0.7]] * 4)
        lengths = torch.tensor([len(row) for row in ids])
        trainer._rollout = Rollout(modes, own, own.log()[range(4), modes], lengths)
        return ids, [[rest[token].item() for token in row] for row in ids]

    monkeypatch.setattr(trainer, "_generate_single_turn", stub)
    batch = rolled_out(trainer, PROMPTS[:1])
    expected = [
        [-0.259160, 0.691093, 0.691093, 0.691093],
        [-2.159667, -1.209413, -1.209413],
        [0.691093, 0.691093],
        [0.691093, 0.691093],
    ]
    for row, wanted in zip(batch["advantages"], expected, strict=True):
        torch.testing.assert_close(row[: len(wanted)], torch.tensor(wanted), rtol=0, atol=1e-6)
    assert batch["old_logprobs"][:, 0].tolist() == pytest.approx([math.log(0.5)] * 4)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(-0.0736044, abs=5e-7)


def plain_gradients(model, batch, scheme, before=0.25):
    """(loss, gradients) of a float64 copy of the model by plain loops, from what the rollout is."""
    twin = make_model().double()
    twin.load_state_dict(model.state_dict())
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    logits = twin(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    logprobs = torch.log_softmax(logits, -1).gather(2, batch["completion_ids"][..., None])[..., 0]
    lengths = batch["completion_mask"].sum(1).tolist()
    texts = make_tokenizer().batch_decode(batch["completion_ids"], skip_special_tokens=True)
    rewards = tiny_trainer.letters(texts)
    rows = [
        {"outcome": r, "correct": r, "length": n, "mode": int(row[0] == SLOW), "before": before}
        for r, n, row in zip(rewards, lengths, batch["completion_ids"], strict=True)
    ]
    credit = [x for i in range(0, 8, 4) for x in plain_adapt.advantages(scheme, rows[i : i + 4], 0.0, width)]
    margins = logits[:, 0, SLOW] - logits[:, 0, FAST]
    value = plain_adapt.loss(scheme, logprobs, batch["old_logprobs"].double(), credit, lengths, margins)
    return value.item(), torch.autograd.grad(value, twin.parameters())


def moved(model, size=0.05):
    """Move the policy away from the one that rolled out, so that clips act."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("scheme", plain_adapt.METHODS)
def test_every_scheme_is_its_plain_float64_form(tmp_path, scheme):
    trainer = make_trainer(tmp_path, scheme=scheme)
    batch = rolled_out(trainer)
    assert len(set(batch["completion_mask"].sum(1).tolist())) > 1 and batch["advantages"].abs().sum() > 0
    moved(trainer.model)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] > 0
    expected, gradients = plain_gradients(trainer.model, batch, scheme)
    assert loss.item() == pytest.approx(expected, rel=2e-5, abs=1e-6)
    for parameter, wanted in zip(trainer.model.parameters(), gradients, strict=True):
        assert (parameter.grad.double() - wanted).norm() <= 2e-4 * wanted.norm() + 1e-7
    assert sum(wanted.norm() for wanted in gradients) > 1e-3


@pytest.mark.parametrize("scheme", ["separate", "reference"])
@pytest.mark.parametrize("weighed", [False, True], ids=["all rows", "by row"])
def test_which_tokens_the_kl_term_holds(tmp_path, scheme, weighed):
    """All drawn tokens, mode_weight times at the mode token; under "separate" the response alone."""
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    settings = {"beta": 0.5, "use_bias_correction_kl": False, "mode_weight": 3.0, "mode_margin_coef": 0.0}
    trainer = make_trainer(tmp_path / "run", str(folder), scheme=scheme, **settings)
    batch = rolled_out(trainer)
    moved(trainer.model)
    kl_weight = torch.arange(8.0) if weighed else torch.ones(8)
    given = {**batch, "kl_weight": kl_weight} if weighed else batch
    found = trainer.compute_loss(trainer.model, given)
    found.backward()
    gradients = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()
    trainer.beta = 0.0
    without = trainer.compute_loss(trainer.model, batch)
    without.backward()
    logged = trainer._metrics["train"]["kl"]

    mask, twin = batch["loss_mask"], make_model().double()
    twin.load_state_dict(trainer.model.state_dict())
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = twin(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    logprobs = torch.log_softmax(logits, -1).gather(2, batch["completion_ids"][..., None])[..., 0]
    away = batch["ref_per_token_logps"].double() - logprobs
    k3 = away.exp() - away - 1
    weights = mask / mask.sum().double() * kl_weight[:, None]
    weights[:, 0] *= 0.0 if scheme == "separate" else 3.0
    wanted = 0.5 * (weights * k3).sum()
    assert (found - without).item() == pytest.approx(wanted.item(), rel=1e-4) and wanted > 1e-3
    slopes = torch.autograd.grad(wanted, twin.parameters())
    for both, plain, slope in zip(gradients, trainer.model.parameters(), slopes, strict=True):
        assert ((both - plain.grad).double() - slope).norm() <= 1e-3 * slope.norm() + 1e-6
    # What is logged counts every drawn token.
    assert logged[0] == pytest.approx((k3 * mask).sum().item() / mask.sum().item(), rel=1e-4)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_scheme_grpo_is_trls_own_loss(tmp_path, loss_type):
    """The same rows through both trainers: advantages, loss and gradient, with KL and two accumulated batches."""
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    settings = {
        "loss_type": loss_type, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "beta": 0.1,
        "use_bias_correction_kl": False, "model_init_kwargs": {"dtype": "float32"}, "temperature": 0.7,
    }  # fmt: skip
    ours = make_trainer(tmp_path / "ours", str(folder), scheme="grpo", **settings)
    given = {**make_config(tmp_path, **settings).to_dict()}
    names = {f for f in trl.GRPOConfig.__dataclass_fields__ if trl.GRPOConfig.__dataclass_fields__[f].init}
    plain = {k: v for k, v in given.items() if k in names and k not in ("generation_batch_size", "use_cpu")}
    theirs = trl.GRPOTrainer(
        str(folder), tiny_trainer.letters, trl.GRPOConfig(**plain, use_cpu=True), ours.train_dataset,
        processing_class=make_tokenizer(),
    )  # fmt: skip
    batch = rolled_out(ours)
    theirs.model.train()
    theirs.current_gradient_accumulation_steps = 2
    own_advantages = batch["advantages"].clone()
    rewards = tiny_trainer.letters(make_tokenizer().batch_decode(batch["completion_ids"], skip_special_tokens=True))
    grouped = torch.tensor(rewards).view(-1, 4)
    wanted = ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(own_advantages[:, 0], wanted)
    batch["old_per_token_logps"] = batch["old_logprobs"]
    for trainer in (ours, theirs):
        moved(trainer.model)
        half = {k: v[:4] if v.ndim else v for k, v in batch.items()}
        loss = trainer.compute_loss(trainer.model, half)
        loss.backward()
        trainer.found = loss.item()
    assert ours.found == pytest.approx(theirs.found, rel=2e-5, abs=1e-6)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= 2e-4 * other.grad.norm() + 1e-7
    assert ours._metrics["train"]["kl"] == pytest.approx(theirs._metrics["train"]["kl"], rel=1e-4)
