"""ReferenceRisk and PredictionWriter on a small run."""

import warnings

import numpy as np
import pytest
import torch
from conftest import numbers, small_data, small_module, small_trainer
from scipy import stats
from sklearn.linear_model import Lasso, Ridge
from sklearn.neighbors import KNeighborsRegressor

from lightning_icl import PromptDataModule, Task, ValidationStream
from lightning_icl.callbacks import PredictionWriter, Recorder, ReferenceRisk
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import Bayes, LeastSquares, NearestNeighbours, ZeroPredictor
from lightning_icl.functional.risk import mean_with_interval, paired_ratio
from lightning_icl.record.folder import set_run_folder


class Squares(Task):
    """Targets without weights."""

    def sample_targets(self, x, generator):
        return x.square().sum(-1), None


def validated(tmp_path, data, **options):
    reference = ReferenceRisk(tuning_prompts=32)
    trainer = small_trainer(tmp_path, [reference], **options)
    trainer.validate(module := small_module(), datamodule=data, verbose=False)
    return reference, numbers(reference) | {k: float(v) for k, v in trainer.callback_metrics.items()}, module


def validation_prompts(data):
    return [data.sample("validate", step).double() for step in range(2)]


def scored(prompts, fit):
    """Mean squared error of a scikit-learn-like fit, one prompt at a time."""
    errors = []
    for prompt in prompts:
        for x, y, x_query, f in zip(prompt.x, prompt.y, prompt.x_query, prompt.f_query, strict=True):
            errors.append(np.mean((x_query.numpy() @ fit(x.numpy(), y.numpy()) - f.numpy()) ** 2))
    return np.mean(errors)


def test_references_are_scored_on_the_model_s_own_prompts(tmp_path):
    data = small_data()
    reference, logged, module = validated(tmp_path, data)
    prompts = validation_prompts(data)
    tuned = {r.key: r for r in reference._tuned[0, 5, False]}

    def ridge(x, y):
        return Ridge(alpha=data.task.ridge_alpha, fit_intercept=False).fit(x, y).coef_

    def lasso(x, y):
        return (
            Lasso(alpha=float(tuned["lasso"].setting[0, 0]), fit_intercept=False, tol=1e-12, max_iter=10**6)
            .fit(x, y)
            .coef_
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where its gap is just above 1e-12
        assert logged["val/excess_risk/lasso"] == pytest.approx(scored(prompts, lasso), rel=1e-5)
    assert logged["val/excess_risk/ridge"] == pytest.approx(scored(prompts, ridge), rel=1e-5)
    assert logged["val/excess_risk/zero"] == pytest.approx(scored(prompts, lambda x, y: np.zeros(4)), rel=1e-5)
    least_squares = scored(prompts, lambda x, y: np.linalg.lstsq(x, y)[0])
    assert logged["val/excess_risk/least_squares"] == pytest.approx(least_squares, rel=1e-5)
    model = [(module(data.sample("validate", i)) - data.sample("validate", i).f_query).square().mean() for i in (0, 1)]
    assert logged["val/excess_risk/transformer"] == pytest.approx(float(sum(model) / 2), rel=1e-5)
    assert numbers(reference)["val/excess_risk/transformer"] == pytest.approx(float(sum(model) / 2), rel=1e-5)


def test_free_settings_are_never_tuned_on_the_evaluated_prompts():
    data = small_data()
    tuning = data.held_out("reference_tuning", 32, n_points=5)
    for prompt in validation_prompts(data):
        assert not torch.isin(tuning.x.double(), prompt.x).any()


def test_a_range_of_examples_gives_a_risk_for_each(tmp_path):
    data = small_data(n_points=(2, 5), eval_prompts=32)
    reference, logged, _ = validated(tmp_path, data)
    assert examples(reference) == [2, 3, 4, 5]
    means = [numbers(reference)[f"val/excess_risk/ridge/n{n}"] for n in (2, 3, 4, 5)]
    assert logged["val/excess_risk/ridge"] == pytest.approx(np.mean(means), rel=1e-5)


def examples(reference, stream=None):
    rows = reference.rows if stream is None else reference.rows[reference.rows["stream"] == stream]
    return sorted(rows["n_points"].dropna().unique())


def test_references_are_compared_with_the_model_pair_by_pair(tmp_path):
    data = small_data(eval_prompts=64)
    reference, _, module = validated(tmp_path, data)
    prompts = [data.sample("validate", step) for step in range(8)]
    model = np.concatenate([(module(p) - p.f_query).detach().double().square().mean(-1).numpy() for p in prompts])
    zero = np.concatenate([p.f_query.double().square().mean(-1).numpy() for p in prompts])
    rows = reference.rows.set_index("metric")
    difference = rows.loc["against/zero/difference"]
    assert difference["value"] == pytest.approx((zero - model).mean(), abs=1e-6)
    low, high = stats.t.interval(0.95, 63, (zero - model).mean(), stats.sem(zero - model))
    assert (difference["low"], difference["high"]) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
    ratio = rows.loc["against/zero/ratio"]
    assert ratio["value"] == pytest.approx(model.mean() / zero.mean(), rel=1e-5)
    # The delta method's error of a log ratio, to first order that of the jackknife.
    error = np.std(model / model.mean() - zero / zero.mean(), ddof=1) / 8
    assert np.log(ratio["high"] / ratio["value"]) == pytest.approx(2.0 * error, rel=0.1)
    assert np.log(ratio["value"] / ratio["low"]) == pytest.approx(2.0 * error, rel=0.1)
    assert "against/transformer/ratio" not in rows.index


def test_the_interval_of_a_ratio_covers(generator):
    """Of two risks with long tails, paired; and where they are one and the same it is 1 exactly."""
    hits, n_repeats = 0, 400
    for _ in range(n_repeats):
        common, own, other = torch.randn(3, 200, generator=generator, dtype=torch.float64)
        model, reference = (common + 0.5 * own).exp(), (common + 0.5 * other).exp()  # of equal means
        ratio = paired_ratio(model, reference)
        hits += ratio.low <= 1 <= ratio.high
    assert abs(hits / n_repeats - 0.95) < 0.015 + 4 * (0.95 * 0.05 / n_repeats) ** 0.5
    same, difference = paired_ratio(model, model), mean_with_interval(model - model)
    assert (same.low, same.value, same.high) == (1, 1, 1)
    assert (difference.low, difference.value, difference.high) == (0, 0, 0)


STREAMS = {
    "in_distribution": ValidationStream(),
    "noisier": ValidationStream(shift={"noise_std": 1.0}),
    "longer": ValidationStream(n_points=9),
    "squares": ValidationStream(task=Squares(4, noise_std=0.1)),
}


def test_every_stream_has_its_own_references_logged_side_by_side(tmp_path):
    data = small_data(validation=STREAMS)
    reference, logged, module = validated(tmp_path, data)
    assert reference.rows["stream"].drop_duplicates().tolist() == list(STREAMS)
    for law, name in enumerate(STREAMS):
        prompts = [data.sample("validate", step, law=law) for step in range(2)]
        zero = np.mean([float(p.f_query.double().square().mean()) for p in prompts])
        assert logged[f"val/{name}/excess_risk/zero"] == pytest.approx(zero, rel=1e-5)
        model = np.mean([float((module(p) - p.f_query).detach().square().mean()) for p in prompts])
        assert logged[f"val/{name}/excess_risk/transformer"] == pytest.approx(model, rel=1e-4)
    # What monitors a run finds the first stream's model without a name, too.
    assert logged["val/excess_risk/transformer"] == logged["val/in_distribution/excess_risk/transformer"]
    assert "val/excess_risk/ridge" not in logged
    for name, noise_std in (("in_distribution", 0.3), ("noisier", 1.0)):  # ridge's strength is the stream's own
        law = list(STREAMS).index(name)
        prompts = [data.sample("validate", step, law=law).double() for step in range(2)]
        fit = Ridge(alpha=noise_std**2 / 0.5, fit_intercept=False)
        ridge = scored(prompts, lambda x, y, fit=fit: fit.fit(x, y).coef_)
        assert logged[f"val/{name}/excess_risk/ridge"] == pytest.approx(ridge, rel=1e-5)
    assert "val/squares/excess_risk/oracle_support" not in logged
    assert "val/noisier/excess_risk/bayes" in logged
    drawn = set(reference.figures(reference.rows))
    assert drawn == {f"excess_risk_{name}" for name in STREAMS} | {"excess_risk_by_stream"}


@pytest.mark.parametrize("layout", ["prefixes", "alternating"])
def test_layouts_that_predict_every_prefix_give_the_whole_curve(tmp_path, layout):
    data = small_data()
    reference = ReferenceRisk(32, references=[ZeroPredictor(), LeastSquares(), NearestNeighbours(2)])
    trainer = small_trainer(tmp_path, [reference])
    module = small_module(layout=layout, mask="causal")
    trainer.validate(module, datamodule=data, verbose=False)
    curve = numbers(reference)
    assert examples(reference) == [1, 2, 3, 4, 5]
    prompts = [data.sample("validate", step) for step in range(2)]
    for k in (1, 3, 5):
        errors = {"transformer": [], "least_squares": [], "nearest_neighbours_2": []}
        for p in prompts:
            output = module.output(p)
            at_k = output.prediction[:, 0] if k == 5 else output.prefix_prediction[:, k]
            target, f = (p.x_query[:, 0], p.f_query[:, 0]) if k == 5 else (p.x[:, k], p.f[:, k])
            errors["transformer"] += (at_k - f).detach().square().tolist()
            for b in range(8):
                x, y = p.x[b, :k].double().numpy(), p.y[b, :k].double().numpy()
                w = np.linalg.lstsq(x, y, rcond=None)[0]
                errors["least_squares"].append((target[b].double().numpy() @ w - float(f[b])) ** 2)
                nearest = KNeighborsRegressor(min(2, k)).fit(x, y).predict(target[b : b + 1].double().numpy())
                errors["nearest_neighbours_2"].append((float(nearest[0]) - float(f[b])) ** 2)
        for name, expected in errors.items():
            assert curve[f"val/excess_risk/{name}/n{k}"] == pytest.approx(np.mean(expected), rel=1e-4), (name, k)
    # The table and the logged keys are of the whole prompt, at all its queries.
    whole = np.mean([float((module(p) - p.f_query).detach().square().mean()) for p in prompts])
    assert curve["val/excess_risk/transformer"] == pytest.approx(whole, rel=1e-4)


def test_the_curve_takes_no_more_prompts_than_asked(tmp_path):
    reference = ReferenceRisk(16, references=[ZeroPredictor()], curve_prompts=8)
    module = small_module(layout="prefixes", mask="causal")
    small_trainer(tmp_path, [reference]).validate(module, datamodule=(data := small_data()), verbose=False)
    last = data.sample("validate", 1)
    expected = float(last.f[:, 3].square().mean())
    assert numbers(reference)["val/excess_risk/zero/n3"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("layout", ["prefixes", "alternating"])
def test_the_curve_reaches_the_largest_number_of_examples_where_it_varies(tmp_path, layout, command):
    data = small_data(n_points=(2, 5), eval_prompts=32, validation={"plain": {}, "longer": {"n_points": (3, 9)}})
    reference = ReferenceRisk(16, references=[ZeroPredictor()], curve_prompts=16)
    trainer = small_trainer(tmp_path, [reference])
    getattr(trainer, command)(small_module(layout=layout, mask="causal"), datamodule=data, verbose=False)
    assert [examples(reference, name) for name in ("plain", "longer")] == [list(range(1, n + 1)) for n in (5, 9)]
    prompts = [data.sample(command, step) for step in (2, 3)]  # of 4 and 5 examples
    stage = {"validate": "val", "test": "test"}[command]
    for k, longest in ((3, prompts), (5, prompts[1:])):
        at_k = [p.f_query[:, 0] if p.x.shape[1] == k else p.f[:, k] for p in longest]
        expected = float(torch.cat(at_k).square().mean())
        assert numbers(reference)[f"{stage}/plain/excess_risk/zero/n{k}"] == pytest.approx(expected, rel=1e-5)


def test_a_reference_that_cannot_serve_a_stream_is_refused_before_any_work(tmp_path):
    data = small_data(validation={"squares": ValidationStream(task=Squares(4))})
    trainer = small_trainer(tmp_path, [ReferenceRisk(16, references=[Bayes()])])
    with pytest.raises(InputError, match="Bayes needs an exact posterior"):
        trainer.fit(small_module(), datamodule=data)
    assert trainer.global_step == 0


def test_references_stay_the_same_through_training_and_test_logs_its_own(tmp_path):
    reference = ReferenceRisk(tuning_prompts=32)
    trainer = small_trainer(tmp_path, [reference], val_check_interval=0.5)
    module, data = small_module(), small_data()
    trainer.fit(module, datamodule=data)
    fitted = float(trainer.callback_metrics["val/excess_risk/ridge"])
    trainer.validate(module, datamodule=data, verbose=False)
    assert float(trainer.callback_metrics["val/excess_risk/ridge"]) == pytest.approx(fitted, rel=1e-6)
    trainer.test(module, datamodule=data, verbose=False)
    assert {"test/excess_risk/ridge", "test/excess_risk/transformer"} <= set(trainer.callback_metrics)
    assert float(trainer.callback_metrics["test/excess_risk/ridge"]) != pytest.approx(fitted, rel=1e-3)


@pytest.mark.parametrize("n_points", [4, (2, 5)])
def test_predictions_and_references_are_written(tmp_path, n_points):
    data, module = small_data(n_points=n_points, eval_prompts=32), small_module()
    trainer = small_trainer(tmp_path, [PredictionWriter("out.npz")])
    set_run_folder(trainer, tmp_path)
    trainer.predict(module, datamodule=data)
    with np.load(tmp_path / "out.npz") as file:
        arrays = dict(file)
    assert arrays["transformer"].shape == arrays["ridge"].shape == (32, 3)
    assert arrays["n_points"].tolist() == ([4] * 32 if n_points == 4 else [2] * 8 + [3] * 8 + [4] * 8 + [5] * 8)
    first = data.sample("predict", 0)
    n = first.x.shape[1]
    np.testing.assert_allclose(arrays["transformer"][:8], module(first).detach(), atol=1e-6)
    np.testing.assert_array_equal(arrays["x"][:8, :n], first.x)
    assert np.isnan(arrays["x"][:8, n:]).all()
    np.testing.assert_array_equal(arrays["w"][:8], first.w)
    fit = Ridge(alpha=data.task.ridge_alpha, fit_intercept=False).fit(first.x[0], first.y[0])
    np.testing.assert_allclose(arrays["ridge"][0], fit.predict(first.x_query[0]), atol=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_the_summary_says_where_the_model_stands_in_80_columns(tmp_path, capsys):
    trainer = small_trainer(tmp_path, [ReferenceRisk(32), Recorder()])
    trainer.validate(small_module(), datamodule=small_data(eval_prompts=1024, eval_batch_size=512), verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Excess risk on 1,024 validation prompts (5 examples each),"
    assert len([line for line in lines if line.endswith("<- the model")]) == 1
    assert len([line for line in lines if line.startswith("  ridge, alpha 0.18 (from the law)")]) == 1
    assert max(map(len, lines[:-4])) <= 80


@pytest.mark.usefixtures("undrawn")
def test_callbacks_leave_the_global_generator_alone(tmp_path):
    from lightning_icl.callbacks import HeadImportance, HeadPruning, LinearProbe

    callbacks = [ReferenceRisk(32), HeadImportance(16), HeadPruning(16, n_random=2, finetune_steps=1), LinearProbe(16)]
    module = small_module()
    trainer = small_trainer(tmp_path, callbacks)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer.validate(module, datamodule=small_data(), verbose=False)
    assert torch.equal(before, torch.get_rng_state())


def test_another_datamodule_is_refused(tmp_path):
    data = small_data()
    loader = [data.sample("validate", 0)]
    with pytest.raises(InputError, match="PromptDataModule"):
        small_trainer(tmp_path, [ReferenceRisk()]).validate(small_module(), dataloaders=loader)
    assert isinstance(data, PromptDataModule)
