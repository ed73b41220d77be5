"""LinearProbe against scikit-learn on states captured by hooks."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_data, small_module, small_trainer
from sklearn.linear_model import Ridge

from lightning_icl.callbacks import LinearProbe
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import shuffled_prompts
from lightning_icl.functional.prompts import tokens
from lightning_icl.functional.tasks import LinearRegression, SparseLinearRegression, Task
from lightning_icl.instruments.probing import probe_layers
from lightning_icl.record import Row, frame
from lightning_icl.record.folder import set_run_folder
from lightning_icl.transformer import Transformer


def validated(folder, probe, module=None, data=None):
    trainer = small_trainer(folder, [probe])
    trainer.validate(module or small_module(), datamodule=data or small_data(), verbose=False)
    return probe.rows.set_index(["metric", "layer"]), trainer


def hooked_states(module, prompt):
    """Query states after the read-in and each layer, by forward hooks rather than the named output."""
    captured = []
    modules = [module.network.read_in, *module.network.layers]
    hooks = [m.register_forward_hook(lambda _m, _i, output: captured.append(output)) for m in modules]
    with torch.no_grad():
        module.network(tokens(prompt, "pairs"), n_queries=3)
    for hook in hooks:
        hook.remove()
    return [states[:, -3:].reshape(-1, states.shape[-1]).double().numpy() for states in captured]


def targets(prompt):
    x, y = prompt.x.double().numpy(), prompt.y.double().numpy()
    r_hat = np.array([xi.T @ yi / len(yi) for xi, yi in zip(x, y, strict=True)])
    return {
        "f": prompt.f_query.double().numpy().reshape(-1, 1),
        "w": np.repeat(prompt.w.double().numpy(), 3, axis=0),
        "preprocessed": (prompt.x_query.double().numpy() * r_hat[:, None]).reshape(-1, 4),
    }


@pytest.mark.usefixtures("undrawn")
def test_probes_equal_scikit_learn(tmp_path):
    module, data = small_module(), small_data()
    found, _ = validated(tmp_path, LinearProbe(n_prompts=60, alpha=2.0, chunk_size=32), module, data)
    fit, score = data.held_out("probe_fit", 60), data.held_out("probe_score", 60)
    index = torch.arange(60.0)[:, None, None]
    order = shuffled_prompts(index, torch.Generator().manual_seed(0)).flatten().long().numpy()
    for layer, (seen, fresh) in enumerate(zip(hooked_states(module, fit), hooked_states(module, score), strict=True)):
        for name, labels in targets(fit).items():
            truth = targets(score)[name]
            shuffled = labels.reshape(60, 3, -1)[order].reshape(180, -1)
            errors = {}
            for arm, used in (("trained", labels), ("shuffled", shuffled)):
                predicted = Ridge(alpha=2.0).fit(seen, used).predict(fresh).reshape(truth.shape)
                errors[arm] = ((predicted - truth) ** 2).sum(axis=1)
                risk = found.loc[f"probe/query/{name}/{arm}/risk", layer]
                assert risk["value"] == pytest.approx(errors[arm].mean(), rel=1e-5)
                by_prompt = errors[arm].reshape(60, 3).mean(axis=1)
                half = 1.96 * by_prompt.std(ddof=1) / 60**0.5
                assert [risk["value"] - risk["low"], risk["high"] - risk["value"]] == pytest.approx(
                    [half, half], rel=1e-3
                )
                assert risk["note"] == "ridge strength 2"
            r2 = 1 - errors["trained"].mean() / truth.var(axis=0).sum()
            assert found.loc[f"probe/query/{name}/trained/r2", layer]["value"] == pytest.approx(r2, abs=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_shuffled_labels_are_worth_no_more_than_the_mean(tmp_path):
    data = small_data()
    found, _ = validated(tmp_path, LinearProbe(n_prompts=512), data=data)
    best_constant = float(data.held_out("probe_score", 512).f_query.double().var())
    shuffled = found.loc["probe/query/f/shuffled/risk"]
    assert len(shuffled) == 3
    assert (shuffled["high"] + (shuffled["high"] - shuffled["value"]) > best_constant).all()


def test_the_rows_are_what_probe_layers_finds(tmp_path):
    module, data, probe = small_module(), small_data(), LinearProbe(n_prompts=40)
    trainer = small_trainer(tmp_path, [probe])
    set_run_folder(trainer, tmp_path)
    trainer.validate(module, datamodule=data, verbose=False)
    found = probe.rows.set_index(["metric", "layer"])
    sets = [data.held_out(f"probe_{name}", 40) for name in ("fit", "choose", "score")]
    table = probe_layers(module.network, data.task, *sets, untrained=module.network.untrained())
    expected = {}
    for row in table.rows:
        place = f"probe/{row.token}/{row.target}"
        for arm in ("trained", "shuffled", "untrained"):
            scored = getattr(row, arm)
            expected[f"{place}/{arm}/risk", row.layer] = scored.risk
            expected[f"{place}/{arm}/r2", row.layer] = scored.r2
            if row.target == "support":
                expected[f"{place}/{arm}/auc", row.layer] = scored.auc
        for control in ("shuffled", "untrained"):
            expected[f"{place}/selectivity/{control}", row.layer] = getattr(row, f"over_{control}")
    probes = found[~found.index.get_level_values("metric").str.contains("/curve/|/level/")]
    assert set(probes.index) == set(expected)
    for place, estimate in expected.items():
        row = probes.loc[place]
        wanted = [estimate.value, *estimate.interval]
        assert row[["value", "low", "high"]].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6, nan_ok=True)
    shown = {name for name in trainer.callback_metrics if name.startswith("probe/")}
    assert shown == {f"probe/query/f/trained/risk/layer{layer}" for layer in range(3)}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("linear_probe", "probe_map") for kind in ("png", "svg")
    }


@pytest.mark.usefixtures("undrawn")
def test_the_untrained_network_is_made_and_probed_once_a_run(tmp_path, monkeypatch):
    """And once more on other prompts; what is found is what a fresh LinearProbe finds."""
    made, real = [], Transformer.untrained
    monkeypatch.setattr(Transformer, "untrained", lambda model: made.append(model) or real(model))
    probe, module, data = LinearProbe(n_prompts=20), small_module(), small_data()
    trainer = small_trainer(tmp_path, [probe], max_steps=6, val_check_interval=2)
    trainer.fit(module, datamodule=data)
    assert (len(made), probe.measured_at) == (1, 6)
    for prompts in (data, small_data(seed=4)):
        if prompts is not data:
            validated(tmp_path, probe, module, prompts)
        validated(tmp_path, fresh := LinearProbe(n_prompts=20), module, prompts)
        pd.testing.assert_frame_equal(probe.rows, fresh.rows)


def test_another_architecture_within_a_run_has_another_untrained_network(tmp_path):
    module, cut, probe = small_module(), small_module(heads=[4, 1]), LinearProbe(n_prompts=20)
    _, trainer = validated(tmp_path, probe, module)
    again = {model: list(probe.analyse(trainer, model)) for model in (cut, module)}
    for model, rows in again.items():
        assert rows == list(LinearProbe(n_prompts=20).analyse(trainer, model))


@pytest.mark.usefixtures("undrawn")
def test_the_levels_beside_the_probe(tmp_path):
    """GD and preprocess-then-GD start from 0; the model's level is its excess risk; Bayes is below ridge."""
    module, data = small_module(), small_data(SparseLinearRegression(4, 2, noise_std=0.3))
    found, _ = validated(tmp_path, LinearProbe(n_prompts=300), module, data)
    levels = found.loc[[m for m in found.index.levels[0] if m.startswith("probe/level/")]].droplevel("layer")
    score = data.held_out("probe_score", 300)
    errors = (module(score) - score.f_query).double().square().detach().numpy().mean(1)
    model = levels.loc["probe/level/transformer"]
    assert model["value"] == pytest.approx(errors.mean(), rel=1e-5)
    assert model["high"] - model["value"] == pytest.approx(1.96 * errors.std(ddof=1) / 300**0.5, rel=1e-5)
    assert levels["value"]["probe/level/bayes"] < levels["value"]["probe/level/ridge"]
    assert levels["note"]["probe/level/ridge"].startswith("ridge, alpha")
    zero = float(score.f_query.double().square().mean())
    for name in ("gd", "preprocess_then_gd"):
        curve = found.loc[f"probe/curve/{name}"]["value"]
        assert curve.index.tolist() == [1, 2]
        assert curve[1] == pytest.approx(zero, rel=1e-6)
        assert curve[2] < zero


@pytest.mark.usefixtures("undrawn")
def test_the_closing_table_says_what_is_known_and_what_is_constant(tmp_path):
    probe = LinearProbe(n_prompts=32)
    found, _ = validated(tmp_path, probe, data=small_data(LinearRegression(4, noise_std=0.3)))
    lines = probe.summary(probe.rows)
    assert max(map(len, lines)) <= 80
    assert "32 held-out prompts" in lines[1]
    assert lines[2].count(":") == 3  # the read-in and two layers
    assert "  support: constant on these prompts" in lines
    for target in ("w", "ridge"):
        r2 = found.loc[f"probe/query/{target}/trained/r2"]
        best = r2.loc[r2["value"].idxmax()]
        said = next(line for line in lines if line.startswith(f"  {target}: "))
        assert f"{best['value']:.3f} ± " in said
        assert (f" in layer {best.name}, " in said) == (best["low"] > 0)
        assert ("not above 0 in any layer, " in said) == (best["low"] <= 0)
    assert found.loc["probe/query/support/trained/auc"]["value"].isna().all()
    assert found.loc["probe/query/support/trained/r2"]["value"].isna().all()
    assert found.loc["probe/query/support/trained/risk", 1]["value"] == pytest.approx(0, abs=1e-12)


def test_the_closing_table_names_no_layer_for_what_is_not_known():
    def said(r2, auc=None):
        known = {"trained/r2": r2, "selectivity/untrained": (0.3, 0.26, 0.34)} | ({"trained/auc": auc} if auc else {})
        rows = [Row("probe/query/f/trained/risk", 1.0, layer=2)]
        rows += [Row(f"probe/query/w/{name}", *of, layer=2) for name, of in known.items()]
        return LinearProbe().summary(frame(rows))[-1]

    assert said((0.3, 0.28, 0.32)) == "  w: 0.300 ± 0.02 in layer 2, 0.300 ± 0.04 above"
    unknown = "  w: not above 0 in any layer, 0.010 ± 0.02 at most; AUC 0.500 ± 0.04"
    assert said((0.01, -0.01, 0.03), (0.5, 0.46, 0.54)) == unknown


class Quadratic(Task):
    """Targets without weights."""

    def sample_targets(self, x, generator):
        a = torch.randn(x.shape[0], 1, self.n_dims, generator=generator)
        return (a * x**2).sum(-1), None


@pytest.mark.usefixtures("undrawn")
def test_a_task_without_weights_has_no_target_w(tmp_path):
    probe = LinearProbe(n_prompts=32)
    found, _ = validated(tmp_path, probe, data=small_data(Quadratic(4, noise_std=0.1)))
    assert np.isfinite(found.loc["probe/query/f/trained/risk", 2]["value"])
    assert not [metric for metric, _ in found.index if "/w/" in metric or "support" in metric]
    assert probe.summary(probe.rows)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha_is_named(alpha):
    with pytest.raises(InputError, match="alpha is"):
        LinearProbe(alpha=alpha)
