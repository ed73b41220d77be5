"""HeadImportance and HeadPruning against a copy of the model with the heads' value rows zeroed."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl.callbacks import HeadImportance, HeadPruning, figures
from lightning_icl.callbacks.analysis import plain
from lightning_icl.functional.agreement import rank_agreement
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import importance_scores
from lightning_icl.functional.risk import bootstrap_weights
from lightning_icl.instruments.ablation import AblatedHeads
from lightning_icl.instruments.importance import HeadScores, head_importance, head_importance_by_points

HEADS = [4, 2, 1]


def scale_up(module):
    """Weights large enough that heads matter in an untrained model."""
    with torch.no_grad():
        for layer in module.transformer.layers:
            layer.attention.value.weight.mul_(3)
    return module


def slow_errors(module, prompt, ablated):
    """Squared error of each prompt with the listed (layer, head) pairs removed from the weights."""
    model = copy.deepcopy(module)
    for layer, head in ablated:
        block = model.transformer.layers[layer].attention
        block.value.weight.data[head * block.head_dim : (head + 1) * block.head_dim] = 0
    prediction = model(prompt).detach().numpy().astype(np.float64)
    return np.array([np.mean((p - f) ** 2) for p, f in zip(prediction, prompt.f_query.numpy(), strict=True)])


def validated(tmp_path, callbacks, module):
    data = small_data()
    trainer = small_trainer(tmp_path, callbacks)
    trainer.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, data


@pytest.mark.parametrize("chunk_size", [7, 512])
def test_importance_equals_the_slow_way(tmp_path, chunk_size):
    module = scale_up(small_module(heads=HEADS))
    logged, data = validated(tmp_path, [HeadImportance(n_prompts=64, chunk_size=chunk_size)], module)
    prompt = data.held_out("head_importance", 64)
    full = slow_errors(module, prompt, [])
    for layer, n_heads in enumerate(HEADS):
        cost = [slow_errors(module, prompt, [(layer, head)]) - full for head in range(n_heads)]
        positive = np.array([max(c.mean(), 0) for c in cost])
        for head, c in enumerate(cost):
            place = f"layer{layer + 1}/head{head + 1}"
            assert logged[f"heads/importance/{place}"] == pytest.approx(c.mean(), abs=1e-6)
            assert logged[f"heads/standard_error/{place}"] == pytest.approx(c.std(ddof=1) / 8, abs=1e-6)
        total = np.sum(cost, axis=0)
        if total.mean() <= 1.96 * total.std(ddof=1) / 8:
            assert f"heads/effective/layer{layer + 1}" not in logged
            continue
        share = positive / positive.sum()
        entropy = -sum(s * np.log(s) for s in share if s > 0)
        assert logged[f"heads/effective/layer{layer + 1}"] == pytest.approx(np.exp(entropy), rel=1e-4)
        assert logged[f"heads/top_share/layer{layer + 1}"] == pytest.approx(share.max(), rel=1e-4)
        for head in range(n_heads):
            assert logged[f"heads/share/layer{layer + 1}/head{head + 1}"] == pytest.approx(share[head], abs=1e-4)


def test_a_head_without_value_scores_exactly_zero(tmp_path):
    module = scale_up(small_module(heads=HEADS))
    module.transformer.layers[0].attention.value.weight.data[4:8] = 0  # head 2 of layer 1, of size 4
    logged, _ = validated(tmp_path, [HeadImportance(n_prompts=64)], module)
    assert logged["heads/importance/layer1/head2"] == logged["heads/standard_error/layer1/head2"] == 0


def test_every_score_is_logged_under_its_name_and_recorded_with_intervals(tmp_path):
    module = scale_up(small_module(heads=HEADS))
    callback = HeadImportance(64, ablations=["zero", "mean", "resample"], n_points=[2])
    logged, data = validated(tmp_path, [callback], module)
    prompt = data.held_out("head_importance", 64)
    more, reference = (data.held_out("head_importance_reference", n) for n in (8 * 64, 64))
    ablations = [AblatedHeads(), AblatedHeads("mean", more), AblatedHeads("resample", reference)]
    expected = head_importance(module.transformer, prompt, ablations=ablations)
    by_points = head_importance_by_points(module.transformer, prompt, [2], ablations=ablations)
    for place, found in (("", expected), ("n2/", by_points[2])):
        for name, scores in found.scores.items():
            prefix = f"heads/{place}" if name == "leave_one_out" else f"heads/{place}{name}/"
            for layer, n_heads in enumerate(HEADS):
                for head in range(n_heads):
                    key = f"{prefix}importance/layer{layer + 1}/head{head + 1}"
                    assert logged[key] == pytest.approx(scores.raw[layer, head].item(), abs=1e-6)
                effective = f"{prefix}effective/layer{layer + 1}"
                assert (effective in logged) == (not scores.effective_heads[layer].isnan())
    for pair, agreement in expected.agreement.items():
        assert logged[f"heads/agreement/{pair}"] == pytest.approx(agreement.overall.item(), abs=1e-3)
    assert logged["heads/agreement/leave_one_out_and_leave_one_in"] <= 1
    record = json.loads((tmp_path / "results.json").read_text())["HeadImportance"][-1]
    assert list(record["scores"]) == list(expected.scores)
    assert len(record["scores"]["gradient"]["interval"]) == 2
    assert record["by_points"]["2"]["risk"] == pytest.approx(by_points[2].risk.item(), rel=1e-5)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"head_importance.png", "head_importance.svg", "head_scores.png"} <= names


def test_importance_is_a_series_over_training_that_survives_a_resume(tmp_path):
    module, checkpoint = scale_up(small_module(heads=HEADS)), tmp_path / "half.ckpt"
    trainer = small_trainer(tmp_path, [HeadImportance(16)], max_steps=4, val_check_interval=2)
    trainer.fit(module, datamodule=small_data())
    trainer.save_checkpoint(checkpoint)
    assert (tmp_path / "figures" / "head_specialisation.png").exists()
    resumed = HeadImportance(16)
    trainer = small_trainer(tmp_path, [resumed], max_steps=6, val_check_interval=2)
    trainer.fit(small_module(heads=HEADS), datamodule=small_data(), ckpt_path=checkpoint)
    assert [record["step"] for record in resumed.records] == [2, 4, 6]
    assert all(record["risk"] > 0 for record in resumed.records)
    assert resumed.records[0]["risk"] != resumed.records[2]["risk"]


def test_the_summary_names_the_heads_whose_work_others_do_too(tmp_path):
    """Two copies of a head: neither is missed, so both are named, where one alone does what the layer does."""
    callback = HeadImportance(16)
    values = torch.rand(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out, alone = values - 0.5, values + 1
    out[:2] -= out[:2].mean(dim=1, keepdim=True)  # layer 1 heads 1 and 2 are not missed
    out[2:] += 5
    alone[2:4] -= 1  # heads 3 and 4 do less alone
    scores = {"leave_one_out": importance_scores(out, [4, 2]), "leave_one_in": importance_scores(alone, [4, 2])}
    zero = torch.tensor(0.0)
    callback.found = HeadScores(scores, {}, zero, zero, torch.zeros(2))
    lines = callback.summary()
    assert lines[-1].strip() == "layer 1 head 1, layer 1 head 2"
    callback.found = callback.found._replace(scores={"leave_one_out": scores["leave_one_out"]})
    assert len(callback.summary()) == 3


def test_the_summary_claims_nothing_of_a_layer_without_heads_or_a_total_within_noise():
    values = torch.rand(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    values[1] -= values[0] + values[1].mean() - values[0].mean()  # each matters, but not their sum
    values[1] -= values.sum(dim=0).mean()
    scores = importance_scores(values, [2, 0])
    agreement = rank_agreement(values[:1], values[:1], [1], bootstrap_weights(50, 4, torch.Generator().manual_seed(0)))
    zero = torch.tensor(0.0)
    callback = HeadImportance(16)
    callback.found = HeadScores({"leave_one_out": scores}, {"leave_one_out_and_gradient": agreement}, zero, zero, zero)
    lines = [line.strip() for line in callback.summary()]
    assert lines[1:3] == ["layer 1: total not above 0 beyond noise, of 2 heads", "layer 2: no heads"]
    assert not [line for line in lines if "nan" in line]


@pytest.mark.parametrize("heads", [[1], [3, 0, 2, 1], [8] * 3, [16] * 8])
@pytest.mark.parametrize("n_scores", [2, 3, 5])
def test_figures_of_heads_cover_nothing(heads, n_scores):
    names = ["leave_one_out", "leave_one_in", "gradient", "leave_one_out_mean", "leave_one_in_mean"][:n_scores]
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(sum(heads), 20, generator=generator, dtype=torch.float64) + 0.2 for name in names}
    weights = bootstrap_weights(20, 20, generator)
    scores = {name: importance_scores(value, heads) for name, value in values.items()}
    pairs = {
        f"{a}_and_{b}": rank_agreement(values[a], values[b], heads, weights)
        for a, b in itertools.combinations(names, 2)
    }
    found = HeadScores(scores, pairs, torch.tensor(1.0), torch.tensor(0.1), torch.tensor([0.8, 1.2]))
    series = [{"step": step, **plain(found._asdict())} for step in (0, 10, 20)]
    for figure in (
        figures.importance_map(scores["leave_one_out"]),
        figures.score_maps(found),
        figures.specialisation(series),
    ):
        FigureCanvasAgg(figure).draw()
        assert not [text for axes in figure.axes for text in axes.texts if "nan" in text.get_text()]
        parts = [axes.get_tightbbox() for axes in figure.axes]
        parts += [legend.get_window_extent() for legend in figure.legends]
        parts += [figure._suptitle.get_window_extent()] if figure._suptitle else []
        for i, part in enumerate(parts):
            assert figure.bbox.x0 - 1 <= part.x0
            assert part.x1 <= figure.bbox.x1 + 1
            assert not any(part.padded(-1).overlaps(other) for other in parts[:i])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("beside_importance", [True, False])
def test_pruning_equals_the_slow_way(tmp_path, beside_importance):
    module = scale_up(small_module(heads=HEADS))
    importance = HeadImportance(n_prompts=64)
    callbacks = [HeadPruning(n_prompts=64), importance] if beside_importance else [HeadPruning(n_prompts=64)]
    logged, data = validated(tmp_path, callbacks, module)
    selection, prompt = data.held_out("head_importance", 64), data.held_out("head_pruning", 64)
    full = slow_errors(module, selection, [])
    cost = [[(slow_errors(module, selection, [(i, h)]) - full).mean() for h in range(n)] for i, n in enumerate(HEADS)]
    top, least = [int(np.argmax(c)) for c in cost], [int(np.argmin(c)) for c in cost]

    def risk(kept):
        ablated = [(i, h) for i, n in enumerate(HEADS) for h in range(n) if h not in kept[i]]
        return slow_errors(module, prompt, ablated).mean()

    every = [range(n) for n in HEADS]
    expected = {
        "full": risk(every),
        "pruned": risk([every[0], [top[1]], [top[2]]]),
        "prune_layer1_instead": risk([[top[0]], every[1], every[2]]),
        "least_important": risk([every[0], [least[1]], [least[2]]]),
    }
    for name, value in expected.items():
        assert logged[f"prune/excess_risk/{name}"] == pytest.approx(value, abs=1e-6)
    assert logged["prune/ratio"] == pytest.approx(expected["pruned"] / expected["full"], rel=1e-5)
    # Layer 3 has one head, so the random control is a mean of draws from two models.
    models = [risk([every[0], [h], [0]]) for h in range(2)]
    weights = (logged["prune/excess_risk/random_head"] - models[0]) / (models[1] - models[0])
    assert weights * 8 == pytest.approx(round(weights * 8), abs=1e-2)


def test_every_n_validations_and_the_last_one(tmp_path):
    at = []

    class Counted(HeadImportance):
        def analyse(self, trainer, module):
            at.append(trainer.global_step)

    trainer = small_trainer(tmp_path, [Counted(every_n_validations=2)], max_steps=10, val_check_interval=2)
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
        (lambda: HeadPruning(n_random=0), "n_random is 0"),
    ],
)
def test_bad_options_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_number_of_examples_beyond_the_prompts_is_named_before_any_work(tmp_path):
    with pytest.raises(InputError, match="n_points has 6, but the prompts have 1 to 5 examples"):
        validated(tmp_path, [HeadImportance(16, n_points=[6])], small_module())
