"""What schemes read of each row comes by every way: reward functions, dataset columns, the trainer's own passes."""

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")

from datasets import Dataset
from tiny_trainer import EOS, FAST, MODES, SLOW, letters, make_config, make_model, make_tokenizer

import adapt_kernels as ak
from adapt_kernels.schemes import SCHEMES, Scheme, Segment
from adapt_kernels.schemes.goldens import GOLDENS
from adapt_kernels.trl import ADaPTTrainer
from adapt_kernels.trl.rollout import Rollout
from adapt_kernels.trl.signals import Source

TINY = {"per_device_train_batch_size": 4, "max_steps": 1}
CLOSE = 9


def rolled_out(trainer, **columns):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": "a b c"} for _ in range(trainer.num_generations)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return trainer._generate_and_score_completions(rows)


def giving(name, values):
    """A reward function of that name."""

    def function(completions, **_):
        return list(values)

    function.__name__ = name
    return function


def trainer_of(tmp_path, rewards=letters, columns=(), modes=MODES, model=None, **settings):
    data = Dataset.from_dict({"prompt": ["a b c"], **{name: [0.0] for name in columns}})
    extra = {name: settings.pop(name) for name in ("measure_steps",) if name in settings}
    return ADaPTTrainer(
        make_model() if model is None else model, rewards, modes, make_config(tmp_path, **{**TINY, **settings}), data,
        processing_class=make_tokenizer(), **extra,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["reward", "column", "named column"])
@pytest.mark.parametrize("name", ["fapo", "pear", "arlcp", "adaptthink", "degrpo", "hipo"])
def test_worked_examples_through_the_trainer(tmp_path, monkeypatch, name, way):
    """mean_std, rloo, none and mean; every way a signal can take. Lengths are put in, as nothing draws them at will."""
    golden = GOLDENS[name][0]
    rows = len(golden.correct)
    counted = Rollout.rows

    def with_lengths(self, *arguments):
        return counted(self, *arguments)._replace(drawn=torch.tensor(golden.lengths))

    monkeypatch.setattr(Rollout, "rows", with_lengths)
    rewards, columns, sources = [giving("graded", golden.correct)], {}, {}
    for signal, values in golden.signals.items():
        if way == "reward":
            rewards.append(giving(signal, values))
        else:
            columns[signal if way == "column" else f"my_{signal}"] = values
    if way == "reward" and golden.signals:
        sources = {signal: signal for signal in golden.signals}
    elif way == "named column":
        sources = {signal: f"my_{signal}" for signal in golden.signals}
    settings = {"scheme": name, "signals": sources or None, "num_generations": rows}
    if name == "pear" and way == "column":
        settings["signals"] = {signal: signal for signal in golden.signals}  # else the trainer's own
    trainer = trainer_of(tmp_path, rewards, columns, **settings)
    advantages = rolled_out(trainer, **columns)["advantages"]
    assert advantages[:, 1].tolist() == pytest.approx(golden.advantages, abs=1e-6)
    assert advantages[:, 0].tolist() == pytest.approx(golden.mode_advantages or golden.advantages, abs=1e-6)


def thinking_modes():
    return ak.Modes(fast=FAST, slow=ak.Mode((SLOW,), max_new_tokens=7, closing=(CLOSE,)))


def test_the_trainers_own_signals(tmp_path):
    """Entropies by phase, their highest fifth and what ended, against loops over the tokens of plain forwards."""
    seen = {}
    settings = {"scheme": "pear", "num_generations": 24, "per_device_train_batch_size": 24, "max_completion_length": 9}
    trainer = trainer_of(tmp_path, modes=thinking_modes(), temperature=0.7, **settings)
    trainer._crediting.sources |= {name: Source("trainer", name) for name in ("entropy_top", "finished")}
    advantages = trainer._crediting.advantages
    trainer._crediting.advantages = lambda everyone, *rest: seen.update(rows=everyone) or advantages(everyone, *rest)
    batch = rolled_out(trainer)
    found, kinds = seen["rows"].signals, []
    for row, ids in enumerate(batch["completion_ids"]):
        ids = ids[: int(trainer._rollout.lengths[row])]
        inputs = torch.cat([batch["prompt_ids"][row][batch["prompt_mask"][row] > 0], ids])[None]
        with torch.no_grad():
            logits = trainer.model(input_ids=inputs).logits[0, -len(ids) - 1 : -1].double() / 0.7
        entropy = torch.distributions.Categorical(logits=logits).entropy().tolist()
        tokens, fast = ids.tolist(), int(ids[0]) == FAST
        end = tokens.index(CLOSE) if CLOSE in tokens else 0 if fast else len(tokens)
        drawn = [i for i in range(1, len(tokens)) if batch["loss_mask"][row, i]]
        think = [entropy[i] for i in drawn if i < end]
        answer = [entropy[i] for i in drawn if i >= end + (CLOSE in tokens)]
        top = sorted((entropy[i] for i in drawn), reverse=True)[: max(1, len(drawn) // 5)]
        wanted = {"entropy_think": think, "entropy_answer": answer, "entropy_top": top, "finished": [tokens[-1] == EOS]}
        for name, values in wanted.items():
            mean = sum(values) / len(values) if values else 0
            assert found[name][row].item() == pytest.approx(mean, abs=1e-5), (name, tokens)
        kinds.append((fast, CLOSE in tokens))
    assert {(True, False), (False, True), (False, False)} <= set(kinds), "every case is among the rows"


def test_entropies_leave_the_old_logprobs_as_they_are(tmp_path):
    plain = rolled_out(trainer_of(tmp_path, modes=thinking_modes()))
    for old, misaligned in (("rollout", {}), ("policy", {"num_iterations": 2, "steps_per_generation": 1})):
        settings = {"scheme": "pear", "modes": thinking_modes(), "old_logprobs": old, **misaligned}
        batch = rolled_out(trainer_of(tmp_path, **settings))
        mask = batch["loss_mask"]
        assert torch.equal(batch["completion_ids"], plain["completion_ids"])
        torch.testing.assert_close(batch["old_logprobs"][mask], plain["old_logprobs"][mask], rtol=1e-4, atol=1e-5)


def test_rows_may_be_malformed_for_any_scheme(tmp_path):
    rewards = [giving("graded", (1, 1, 0, 1)), giving("malformed", (0, 0, 0, 1))]
    settings = {"scheme": "avr", "signals": {"malformed": "malformed"}}
    advantages = rolled_out(trainer_of(tmp_path, rewards, **settings))["advantages"][:, 0].double()
    reward = torch.tensor([1.5, 1.5, 0.0, -1.0]) + 0.5 * torch.tensor([1 / 3, 1 / 3, 2 / 3, 0])
    assert advantages.tolist() == pytest.approx(((reward - reward.mean()) / reward.std()).tolist(), abs=1e-5)


def test_functions_that_give_signals_weigh_nothing_and_grade_nothing(tmp_path):
    rewards = [giving("flawed", (0, 1, 0, 0)), giving("graded", (1, 1, 0, 1))]
    batch = rolled_out(trainer := trainer_of(tmp_path, rewards, scheme="fapo"))
    assert trainer.reward_weights.tolist() == [0, 1]
    assert batch["advantages"][:, 1].tolist() == pytest.approx(GOLDENS["fapo"][0].advantages, abs=1e-6)
    assert trainer_of(tmp_path, rewards, scheme="fapo", reward_weights=[2.0, 1.0]).reward_weights.tolist() == [2, 1]


def test_answers_and_steps_are_credited_by_token(tmp_path, monkeypatch):
    """Ids before and after the mode token are no tokens of the scheme's; an answer has its own advantage."""
    modes = ak.Modes(fast=(8, FAST, 10), slow=(8, SLOW))

    def measure(prompts, completion_ids, mode, **_):
        assert mode == ["fast", "fast", "slow", "slow"]
        return [[(1, 0.0), (len(ids) - 1, 0.25), (len(ids) - 1, 0.75)] for ids in completion_ids]

    settings = {"scheme": "vsrm", "constants": {"baseline": "none"}, "measure_steps": measure, "modes": modes}
    batch = rolled_out(trainer_of(tmp_path, giving("graded", (1, 0, 1, 0)), **settings))
    for row, right in enumerate((1, 0, 1, 0)):
        credit = batch["advantages"][row][batch["loss_mask"][row]].tolist()
        assert credit == pytest.approx([right + 0.75, *[right + 0.5] * (len(credit) - 1)], abs=1e-6)
    own = Segment(lambda rollouts, settings, state: rollouts.lengths.double(), "none")
    monkeypatch.setitem(SCHEMES, "grpo", Scheme(SCHEMES["grpo"].reward, "none", segments={"answer": own}))
    settings = {"scheme": "grpo", "modes": thinking_modes(), "max_completion_length": 9}
    batch = rolled_out(trainer_of(tmp_path, giving("graded", (1, 0, 1, 0)), **settings))
    for row, right in enumerate((1, 0, 1, 0)):
        mask, tokens = batch["loss_mask"][row].tolist(), batch["completion_ids"][row].tolist()
        start = tokens.index(CLOSE) + 1 if CLOSE in tokens else 1 if row < 2 else len(tokens)
        wanted = [right if place < start else sum(mask) for place in range(len(tokens)) if mask[place]]
        assert batch["advantages"][row][batch["loss_mask"][row]].tolist() == pytest.approx(wanted)


def test_kl_terms_are_weighed_by_row(tmp_path):
    settings = {"scheme": "ares", "beta": 0.5, "signals": {"triggers": "hits"}, "use_bias_correction_kl": False}
    make_model().save_pretrained(tmp_path / "model")
    trainer = trainer_of(tmp_path, columns=["hits"], model=str(tmp_path / "model"), **settings)
    with torch.no_grad():  # else policy and reference are one
        trainer.model.get_output_embeddings().weight.mul_(1.5)
    batch = rolled_out(trainer, hits=(1, 2, 3, 4))
    assert (
        batch["kl_weight"].shape == (4,) and "ares_kl_0" in trainer.scheme_state or "ares_kl_1" in trainer.scheme_state
    )

    def loss(weight):
        return trainer.compute_loss(trainer.model, {**batch, "kl_weight": weight}).item()

    plain = trainer.compute_loss(trainer.model, {k: v for k, v in batch.items() if k != "kl_weight"}).item()
    none, one = loss(torch.zeros(4)), loss(torch.ones(4))
    assert one == pytest.approx(plain, abs=1e-6) and one - none > 1e-3
    parts = [loss(torch.eye(4)[row]) - none for row in range(4)]
    assert sum(parts) == pytest.approx(one - none, abs=1e-5)
    assert loss(torch.tensor([2.0, 0, 0.5, 0])) - none == pytest.approx(2 * parts[0] + parts[2] / 2, abs=1e-5)


REFUSED = [
    (
        {"scheme": "fapo"},
        {},
        "scheme 'fapo' needs flawed, 1 where a judge.*dataset column 'flawed'.*train_dataset has prompt",
    ),
    ({"scheme": "fapo", "signals": {"flawed": "bad"}}, {}, "in a dataset column 'bad'"),
    (
        {"scheme": "pear"},
        {},
        "needs entropy_think and entropy_answer, and these modes do not tell where a thought closes",
    ),
    ({"scheme": "hbpo"}, {}, r"hbpo_budgets must be at most max_length = 6 for scheme 'hbpo'; got \(512"),
    ({"scheme": "hbpo", "constants": {"max_length": 4096}}, {}, "an entry of hbpo_budgets for each of the 2 modes"),
    ({"scheme": "adactrl"}, {"modes": ak.Modes(a=2, b=3, c=4)}, "scheme 'adactrl' is defined for 2 modes; got 3"),
    ({"scheme": "vsrm"}, {}, "scheme 'vsrm' needs measure_steps"),
    (
        {"scheme": "fapo"},
        {"rewards": [giving("flawed", [0] * 4)]},
        "must hold one that says what is correct; flawed give",
    ),
]


@pytest.mark.parametrize(("settings", "others", "text"), REFUSED)
def test_what_is_missing_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, settings, others, text):
    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", None)
    with pytest.raises(ValueError, match=text):
        trainer_of(tmp_path, model="no-such-model", **others, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"signals": {"flawed": "x"}}, "signals: scheme 'separate' has no use for 'flawed', only for malformed"),
        ({"constants": {"laser_lenght": 5}}, "constants: 'laser_lenght' is none of SchemeSettings: laser_length"),
        ({"constants": {"gamma": 0.1}}, "constants: 'gamma' is a field of its own"),
        (
            {"scheme": "crf", "constants": {"crf_annealing": {"start": 1.0, "shape": "up"}}},
            "shape must be one of 'linear'",
        ),
        ({"constants": {"baseline": "rloo"}, "scheme": "reference"}, None),
        ({"constants": {"kimi_weight": float("inf")}}, "kimi_weight must be finite"),
    ],
)
def test_settings(tmp_path, settings, text):
    if text is None:
        with pytest.raises(ValueError, match="scheme 'reference' has a baseline of its own"):
            trainer_of(tmp_path, **settings)
        return
    with pytest.raises(ValueError, match=text):
        make_config(tmp_path, **settings)


def test_constants_in_their_json_forms(tmp_path):
    constants = {"hbpo_budgets": [2, 4], "crf_annealing": {"start": 1.0, "end": 0.5}, "max_length": 50}
    settings = make_config(tmp_path, scheme="crf", constants=constants).scheme_settings
    assert settings.hbpo_budgets == (2, 4) and settings.at(0.5, 0).crf_annealing == 0.75 and settings.max_length == 50
    assert make_config(tmp_path).scheme_settings.max_length == 6


def test_ares_without_a_kl_term_says_so(tmp_path):
    with pytest.warns(UserWarning, match="scheme 'ares' weighs the KL term by row, and beta=0 leaves that term out"):
        make_config(tmp_path, scheme="ares", signals={"triggers": "hits"})


def test_values_that_are_no_numbers_are_named(tmp_path):
    trainer = trainer_of(tmp_path, columns=["flawed"], scheme="fapo")
    with pytest.raises(ValueError, match="column 'flawed' must hold a number in every row, for the signal flawed"):
        rolled_out(trainer, flawed=(0, "no", 0, 0))
    trainer = trainer_of(tmp_path, [giving("graded", (1, 1, 0, 0)), giving("flawed", (0, None, 0, 0))], scheme="fapo")
    with pytest.raises(ValueError, match=r"scheme 'fapo' needs flawed of every row; it is not finite for rows \[1\]"):
        rolled_out(trainer)
    steps = {"scheme": "vsrm", "measure_steps": lambda completions, **_: [[(0, 2.0)]] * 4}
    with pytest.raises(ValueError, match=r"an accuracy in \[0, 1\] for row 0; got \(0, 2.0\)"):
        rolled_out(trainer_of(tmp_path, **steps))
    steps["measure_steps"] = lambda completions, **_: [[]]
    with pytest.raises(ValueError, match="must give a list for each of 4 rows; got 1"):
        rolled_out(trainer_of(tmp_path, **steps))
