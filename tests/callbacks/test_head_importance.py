"""HeadImportance against a copy of the model with the heads' value rows zeroed."""

import copy

import numpy as np
import pytest
import torch
from conftest import numbers, small_data, small_module, small_trainer
from scipy import stats

from lightning_icl.callbacks import FigureWriter, HeadImportance
from lightning_icl.callbacks.head_importance import score_rows
from lightning_icl.functional.agreement import rank_agreement
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import importance_scores
from lightning_icl.functional.risk import bootstrap_weights, measured_mean
from lightning_icl.instruments.ablation import AblatedHeads
from lightning_icl.instruments.importance import HeadScores, head_importance
from lightning_icl.record.rows import frame, plain_rows

HEADS = [4, 2, 1]


def scale_up(module):
    """Weights large enough that heads matter in an untrained model."""
    with torch.no_grad():
        for layer in module.network.layers:
            layer.attention.value.weight.mul_(3)
    return module


def slow_errors(module, prompt, ablated):
    """Squared error of each prompt with the listed (layer, head) pairs removed from the weights."""
    model = copy.deepcopy(module)
    for layer, head in ablated:
        block = model.network.layers[layer].attention
        block.value.weight.data[head * block.head_dim : (head + 1) * block.head_dim] = 0
    prediction = model(prompt).detach().numpy().astype(np.float64)
    return np.array([np.mean((p - f) ** 2) for p, f in zip(prediction, prompt.f_query.numpy(), strict=True)])


def validated(tmp_path, callbacks, module):
    data = small_data()
    trainer = small_trainer(tmp_path, callbacks)
    trainer.validate(module, datamodule=data, verbose=False)
    return numbers(*callbacks), data


def table(found, heads):
    return frame(plain_rows(score_rows(found, heads)))


@pytest.mark.parametrize("chunk_size", [7, 512])
def test_importance_equals_the_slow_way(tmp_path, chunk_size):
    module = scale_up(small_module(heads=HEADS))
    importance = HeadImportance(n_prompts=64, chunk_size=chunk_size)
    logged, data = validated(tmp_path, [importance], module)
    found = importance.rows
    prompt = data.held_out("head_importance", 64)
    full = slow_errors(module, prompt, [])
    for layer, n_heads in enumerate(HEADS):
        cost = [slow_errors(module, prompt, [(layer, head)]) - full for head in range(n_heads)]
        positive = np.array([max(c.mean(), 0) for c in cost])
        for head, c in enumerate(cost):
            place = f"layer{layer + 1}/head{head + 1}"
            assert logged[f"heads/leave_one_out/importance/{place}"] == pytest.approx(c.mean(), abs=1e-6)
            low, high = stats.t.interval(0.95, 63, c.mean(), stats.sem(c))
            row = found[
                found["metric"].eq("heads/leave_one_out/importance")
                & found["layer"].eq(layer + 1)
                & found["head"].eq(head + 1)
            ].iloc[0]
            assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
        total = np.sum(cost, axis=0)
        if total.mean() <= 1.96 * total.std(ddof=1) / 8:
            assert logged[f"heads/leave_one_out/effective/layer{layer + 1}"] is None
            continue
        share = positive / positive.sum()
        entropy = -sum(s * np.log(s) for s in share if s > 0)
        assert logged[f"heads/leave_one_out/effective/layer{layer + 1}"] == pytest.approx(np.exp(entropy), rel=1e-4)
        assert logged[f"heads/leave_one_out/top_share/layer{layer + 1}"] == pytest.approx(share.max(), rel=1e-4)
        for head in range(n_heads):
            assert logged[f"heads/leave_one_out/share/layer{layer + 1}/head{head + 1}"] == pytest.approx(
                share[head], abs=1e-4
            )


def test_a_head_without_value_scores_exactly_zero(tmp_path):
    module = scale_up(small_module(heads=HEADS))
    module.network.layers[0].attention.value.weight.data[4:8] = 0  # head 2 of layer 1, of size 4
    logged, _ = validated(tmp_path, [HeadImportance(n_prompts=64)], module)
    assert logged["heads/leave_one_out/importance/layer1/head2"] == 0


@pytest.mark.usefixtures("undrawn")
def test_every_score_has_rows_under_its_name_with_intervals(tmp_path):
    module = scale_up(small_module(heads=HEADS))
    callback = HeadImportance(64, ablations=["zero", "mean", "resample"], n_points=[2])
    logged, data = validated(tmp_path, [callback], module)
    prompt = data.held_out("head_importance", 64)
    more, reference = (data.held_out("head_importance_reference", n) for n in (8 * 64, 64))
    ablations = [AblatedHeads(), AblatedHeads("mean", more), AblatedHeads("resample", reference)]
    expected = head_importance(module.network, prompt, ablations=ablations)
    at_2 = head_importance(module.network, prompt, ablations=ablations, n_points=2)
    for place, found in (("", expected), ("/n2", at_2)):
        assert logged[f"heads/risk{place}"] == pytest.approx(found.risk.value.item(), rel=1e-5)
        for name, scores in found.scores.items():
            for layer, n_heads in enumerate(HEADS):
                for head in range(n_heads):
                    key = f"heads/{name}/importance{place}/layer{layer + 1}/head{head + 1}"
                    assert logged[key] == pytest.approx(scores.raw.value[layer, head].item(), abs=1e-6)
                effective = logged[f"heads/{name}/effective{place}/layer{layer + 1}"]
                assert (effective is None) == bool(scores.effective_heads.value[layer].isnan())
    for pair, agreement in expected.agreement.items():
        assert logged[f"heads/agreement/{pair}"] == pytest.approx(agreement.overall.item(), abs=1e-3)
    rows = callback.rows
    layer1 = rows[rows["metric"].eq("heads/gradient/effective") & rows["layer"].eq(1) & rows["n_points"].isna()].iloc[0]
    interval = expected.scores["gradient"].effective_heads.interval[:, 0].tolist()
    assert [layer1["low"], layer1["high"]] == pytest.approx(interval, rel=1e-3)
    assert {"head_importance", "head_scores"} <= set(callback.figures(rows))


def test_the_summary_names_the_heads_whose_work_others_do_too(tmp_path):
    """Two copies of a head: neither is missed, so both are named, where one alone does what the layer does."""
    callback = HeadImportance(16)
    values = torch.rand(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out, alone = values - 0.5, values + 1
    out[:2] -= out[:2].mean(dim=1, keepdim=True)  # layer 1 heads 1 and 2 are not missed
    out[2:] += 5
    alone[2:4] -= 1  # heads 3 and 4 do less alone
    scores = {"leave_one_out": importance_scores(out, [4, 2]), "leave_one_in": importance_scores(alone, [4, 2])}
    zero = measured_mean(torch.zeros(2))
    lines = callback.summary(table(HeadScores(scores, {}, zero), [4, 2]))
    assert lines[-1].strip() == "layer 1 head 1, layer 1 head 2"
    alone = HeadScores({"leave_one_out": scores["leave_one_out"]}, {}, zero)
    assert len(callback.summary(table(alone, [4, 2]))) == 4


def test_the_summary_claims_nothing_of_a_layer_without_heads_or_a_total_within_noise():
    values = torch.rand(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    values[1] -= values[0] + values[1].mean() - values[0].mean()  # each matters, but not their sum
    values[1] -= values.sum(dim=0).mean()
    scores = importance_scores(values, [2, 0])
    agreement = rank_agreement(values[:1], values[:1], [1], bootstrap_weights(50, 4, torch.Generator().manual_seed(0)))
    zero = measured_mean(torch.zeros(2))
    callback = HeadImportance(16)
    scored = {"leave_one_out": scores}
    found = HeadScores(scored, {"leave_one_out_and_gradient": agreement}, zero)
    lines = [line.strip() for line in callback.summary(table(found, [2, 0]))]
    assert lines[2:4] == ["layer 1: total not above 0 beyond noise, of 2 heads", "layer 2: no heads"]
    assert not [line for line in lines if "nan" in line]


def test_every_n_validations_and_the_last_one(tmp_path):
    at = []

    class Counted(HeadImportance):
        def analyse(self, trainer, module):
            at.append(trainer.global_step)

    trainer = small_trainer(
        tmp_path, [Counted(every_n_validations=2), FigureWriter("never")], max_steps=10, val_check_interval=2
    )
    trainer.fit(small_module(), datamodule=small_data())
    assert at == [4, 8, 10]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HeadImportance(n_prompts=1), "n_prompts is 1"),
        (lambda: HeadImportance(chunk_size=0), "chunk_size is 0"),
        (lambda: HeadImportance(every_n_validations=0), "every_n_validations is 0"),
        (lambda: HeadImportance(scores=["gradient"]), "leave_one_out must be among them"),
        (lambda: HeadImportance(ablations=["mean"]), "zero must be among them"),
        (lambda: HeadImportance(ablations=["zero", "zero"]), "one or more of zero, mean, resample, each once"),
    ],
)
def test_bad_options_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_number_of_examples_beyond_the_prompts_is_named_before_any_work(tmp_path):
    with pytest.raises(InputError, match="n_points has 6, but the prompts have 1 to 5 examples"):
        validated(tmp_path, [HeadImportance(16, n_points=[6])], small_module())


@pytest.mark.parametrize("optimizer", ["adamw", "muon_per_head", "muon"])
def test_the_summary_of_a_fit_says_where_the_optimizer_spreads_work_over_heads(tmp_path, optimizer):
    callback = HeadImportance(16)
    trainer = small_trainer(tmp_path, [callback, FigureWriter(when="never")], max_steps=2)
    trainer.fit(small_module(optimizer=optimizer), datamodule=small_data())
    assert ("Trained by muon, which" in " ".join(callback.summary(callback.rows))) == (optimizer == "muon")
    trainer.validate(small_module(optimizer=optimizer), datamodule=small_data(), verbose=False)
    assert "Trained by" not in " ".join(callback.summary(callback.rows))
