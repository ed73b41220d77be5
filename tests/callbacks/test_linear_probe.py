"""LinearProbe against scikit-learn on states captured by hooks."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer
from sklearn.linear_model import Ridge

from lightning_icl.callbacks import LinearProbe, figures
from lightning_icl.callbacks.linear_probe import _best_layer
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import Estimate, shuffled_prompts
from lightning_icl.functional.prompts import pair_tokens
from lightning_icl.functional.tasks import LinearRegression, SparseLinearRegression, Task
from lightning_icl.instruments.probing import Probe, ProbeTable, Scored, probe_layers, untrained_like


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes longer than all else here."""
    monkeypatch.setattr("lightning_icl.callbacks.linear_probe.save_figure", lambda *_: None)


def hooked_states(module, prompt):
    """Query states after the read-in and each layer, by forward hooks rather than the named output."""
    captured = []
    modules = [module.transformer.read_in, *module.transformer.layers]
    hooks = [m.register_forward_hook(lambda _m, _i, output: captured.append(output)) for m in modules]
    with torch.no_grad():
        module.transformer(pair_tokens(prompt), n_queries=3)
    for hook in hooks:
        hook.remove()
    return [states[:, -3:].reshape(-1, states.shape[-1]).double().numpy() for states in captured]


def targets(prompt):
    x, y = prompt.x.double().numpy(), prompt.y.double().numpy()
    r_hat = np.array([xi.T @ yi / len(yi) for xi, yi in zip(x, y, strict=True)])
    return {
        "f_query": prompt.f_query.double().numpy().reshape(-1, 1),
        "w": np.repeat(prompt.w.double().numpy(), 3, axis=0),
        "preprocessed_query": (prompt.x_query.double().numpy() * r_hat[:, None]).reshape(-1, 4),
    }


@pytest.mark.usefixtures("without_figures")
def test_probes_equal_scikit_learn(tmp_path):
    module, data = small_module(), small_data()
    trainer = small_trainer(tmp_path, [LinearProbe(n_prompts=60, alpha=2.0, chunk_size=32)])
    trainer.validate(module, datamodule=data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    fit, score = data.held_out("probe_fit", 60), data.held_out("probe_score", 60)
    index = torch.arange(60.0)[:, None, None]
    order = shuffled_prompts(index, torch.Generator().manual_seed(0)).flatten().long().numpy()
    for layer, (seen, fresh) in enumerate(zip(hooked_states(module, fit), hooked_states(module, score), strict=True)):
        for name, labels in targets(fit).items():
            truth = targets(score)[name]
            shuffled = labels.reshape(60, 3, -1)[order].reshape(180, -1)
            errors = {}
            for key, used in ((name, labels), (f"shuffled/{name}", shuffled)):
                predicted = Ridge(alpha=2.0).fit(seen, used).predict(fresh).reshape(truth.shape)
                errors[key] = ((predicted - truth) ** 2).sum(axis=1).mean()
                assert logged[f"probe/{key}/layer{layer}"] == pytest.approx(errors[key], rel=1e-5)
            r2 = 1 - errors[name] / truth.var(axis=0).sum()
            assert logged[f"probe/r2/{name}/layer{layer}"] == pytest.approx(r2, abs=1e-5)


@pytest.mark.usefixtures("without_figures")
def test_shuffled_labels_are_worth_no_more_than_the_mean(tmp_path):
    data = small_data()
    probe = LinearProbe(n_prompts=512)
    small_trainer(tmp_path, [probe]).validate(small_module(), datamodule=data, verbose=False)
    best_constant = float(data.held_out("probe_score", 512).f_query.double().var())
    for row in probe.table.by_layer("f"):
        assert row.shuffled.risk.value > best_constant - 4 * row.shuffled.risk.standard_error


def test_what_is_logged_and_recorded_is_what_probe_layers_finds(tmp_path):
    module, data, probe = small_module(), small_data(), LinearProbe(n_prompts=40)
    trainer = small_trainer(tmp_path, [probe])
    trainer.validate(module, datamodule=data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    sets = [data.held_out(f"probe_{name}", 40) for name in ("fit", "choose", "score")]
    table = probe_layers(module.transformer, data.task, *sets, untrained=untrained_like(module.transformer))
    expected = {}
    for row in table.rows:
        name = {"f": f"f_{row.token}", "preprocessed": f"preprocessed_{row.token}"}.get(row.target, row.target)
        group, place = "probe" if row.token == "query" else "probe/context", f"{name}/layer{row.layer}"
        expected[f"{group}/{place}"] = row.trained.risk.value
        expected[f"{group}/r2/{place}"] = row.trained.r2.value
        expected[f"{group}/selectivity/{place}"] = row.over_untrained.value
        if row.target == "support":
            expected[f"{group}/auc/{place}"] = row.trained.auc.value
        if row.token == "query":
            expected[f"probe/shuffled/{place}"] = row.shuffled.risk.value
            expected[f"probe/untrained/{place}"] = row.untrained.risk.value
    assert {name: value for name, value in logged.items() if name.startswith("probe/")} == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )
    (record,) = json.loads((tmp_path / "results.json").read_text())["LinearProbe"]
    for row, written in zip(table.rows, record["probes"], strict=True):
        assert (written["target"], written["token"], written["layer"]) == (row.target, row.token, row.layer)
        for arm in ("trained", "shuffled", "untrained"):
            assert written[arm]["alpha"] == pytest.approx(getattr(row, arm).alpha)
            for score in ("risk", "r2"):
                wanted = getattr(getattr(row, arm), score)._asdict()
                assert written[arm][score] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("linear_probe", "probe_map") for kind in ("png", "svg")
    }


@pytest.mark.usefixtures("without_figures")
def test_the_levels_beside_the_probe(tmp_path):
    """GD and preprocess-then-GD start from 0; the model's level is its excess risk; Bayes is below ridge."""
    module, data, probe = small_module(), small_data(SparseLinearRegression(4, 2, 0.3)), LinearProbe(n_prompts=300)
    small_trainer(tmp_path, [probe]).validate(module, datamodule=data, verbose=False)
    score = data.held_out("probe_score", 300)
    errors = (module(score) - score.f_query).double().square().detach().numpy().mean(1)
    assert probe.levels["transformer"].value == pytest.approx(errors.mean(), rel=1e-5)
    assert probe.levels["transformer"].standard_error == pytest.approx(errors.std(ddof=1) / 300**0.5, rel=1e-5)
    assert probe.levels["bayes"].value < probe.levels["ridge"].value
    zero = float(score.f_query.double().square().mean())
    for curve in probe.curves.values():
        assert len(curve) == 2
        assert curve[0].value == pytest.approx(zero, rel=1e-6)
        assert curve[1].value < zero


@pytest.mark.usefixtures("without_figures")
def test_the_closing_table_says_what_is_known_and_what_is_constant(tmp_path):
    probe = LinearProbe(n_prompts=32)
    assert probe.summary() == []
    trainer = small_trainer(tmp_path, [probe])
    trainer.validate(small_module(), datamodule=small_data(LinearRegression(4, 0.3)), verbose=False)
    lines = probe.summary()
    assert lines[1].count(":") == 3  # the read-in and two layers
    assert "  support: constant on these prompts" in lines
    for target in ("w", "ridge"):
        best = max(probe.table.by_layer(target), key=lambda row: row.trained.r2.value)
        known = best.trained.r2.value > 2 * best.trained.r2.standard_error
        said = next(line for line in lines if line.startswith(f"  {target}: "))
        assert f"{best.trained.r2.value:.3f} +- " in said
        assert (f" in layer {best.layer}, " in said) == known
        assert ("not above 0 in any layer, " in said) != known
    assert not [name for name in trainer.callback_metrics if name.startswith(("probe/auc", "probe/r2/support"))]
    assert trainer.callback_metrics["probe/support/layer1"] == pytest.approx(0, abs=1e-12)


def test_the_closing_table_names_no_layer_for_what_is_not_known():
    estimate = Estimate(0.3, 0.01)
    scored = Scored(1.0, estimate, estimate)
    row = Probe("w", "query", 2, scored, scored, estimate, scored, estimate)
    assert _best_layer([row]) == "  w: 0.300 +- 0.01 in layer 2, 0.300 +- 0.01"
    unknown = row._replace(trained=Scored(1.0, estimate, Estimate(0.01, 0.01), Estimate(0.5, 0.02)))
    said = "  w: not above 0 in any layer, 0.010 +- 0.01 at most; AUC 0.500 +- 0.02"
    assert _best_layer([unknown]) == said


@pytest.mark.parametrize(("heads", "layers"), [([2], 2), ([2] * 3, 4)])
def test_the_map_has_a_cell_for_every_target_layer_token_and_comparison(heads, layers):
    module, data = small_module(heads=heads), small_data()
    sets = [data.held_out(name, 8) for name in ("fit", "choose", "score")]
    table = probe_layers(module.transformer, data.task, *sets, untrained=untrained_like(module.transformer))
    figure = figures.probe_map(table)
    panels = figure.axes[:4]
    targets = [text.get_text() for text in panels[0].get_yticklabels()]
    assert len(set(targets)) == len(table.targets()) == 7 + 2 * len(heads)
    for axes, token, above in zip(panels, ("query", "query", "context", "context"), (False, True) * 2, strict=True):
        (image,) = axes.get_images()
        assert image.get_array().shape == (len(targets), layers)
        for row, target in enumerate(table.targets()):
            for layer, probe in enumerate(table.by_layer(target, token)):
                expected = probe.over_untrained if above else probe.trained.r2
                assert image.get_array()[row, layer] == pytest.approx(expected.value)


@pytest.mark.parametrize(("layers", "numbered"), [(14, True), (15, False)])
def test_cells_too_narrow_for_numbers_have_none(layers, numbered):
    module, data = small_module(heads=[1]), small_data()
    sets = [data.held_out(name, 8) for name in ("fit", "choose", "score")]
    rows = [row for row in probe_layers(module.transformer, data.task, *sets).rows if row.layer == 1]
    table = ProbeTable(tuple(row._replace(layer=layer) for layer in range(layers) for row in rows))
    panel = figures.probe_map(table).axes[0]
    assert len(panel.texts) == numbered * layers * len(table.targets())


def test_the_curves_are_drawn_with_their_intervals():
    module, data = small_module(), small_data()
    sets = [data.held_out(name, 16) for name in ("fit", "choose", "score")]
    rows = probe_layers(module.transformer, data.task, *sets).by_layer("f")
    curve = [Estimate(2.0, 0.1), Estimate(1.0, math.nan)]
    figure = figures.probe_risks(rows, {"GD": curve, "preprocess + GD": curve}, {"ridge": Estimate(0.5, 0.1)})
    (axes,) = figure.axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {"probe", "probe, shuffled labels", "GD, layer - 1 steps", "preprocess + GD, layer - 1 steps"}
    data_line, _, (bars,) = drawn["probe"]
    np.testing.assert_allclose(data_line.get_ydata(), [row.trained.risk.value for row in rows])
    for segment, row in zip(bars.get_segments(), rows, strict=True):
        np.testing.assert_allclose(segment[:, 1], row.trained.risk.interval)
    assert list(drawn["GD, layer - 1 steps"][0].get_xdata()) == [1, 2]


class Quadratic(Task):
    """Targets without weights."""

    def sample_targets(self, x, generator):
        a = torch.randn(x.shape[0], 1, self.n_dims, generator=generator)
        return (a * x**2).sum(-1), None


@pytest.mark.usefixtures("without_figures")
def test_a_task_without_weights_has_no_target_w(tmp_path):
    data = small_data(Quadratic(4, 0.1))
    trainer = small_trainer(tmp_path, [LinearProbe(n_prompts=32)])
    trainer.validate(small_module(), datamodule=data, verbose=False)
    assert "probe/f_query/layer2" in trainer.callback_metrics
    assert not [name for name in trainer.callback_metrics if "/w/" in name or "support" in name]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha_is_named(alpha):
    with pytest.raises(InputError, match="alpha is"):
        LinearProbe(alpha=alpha)
