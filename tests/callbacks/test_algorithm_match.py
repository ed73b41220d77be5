"""AlgorithmMatch: what it logs and keeps is what the instrument finds on the held-out prompts."""

import json

import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl import ReLUNetwork
from lightning_icl.callbacks import AlgorithmMatch, figures
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import GD, Bayes, Lasso, NearestNeighbours, Ridge
from lightning_icl.instruments.algorithms import Distance, algorithm_distances


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longer than the rest."""
    monkeypatch.setattr("lightning_icl.callbacks.algorithm_match.save_figure", lambda *_: None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_logged_and_kept_is_what_the_instrument_finds(tmp_path, precision, undrawn):
    module, data = small_module(), small_data()
    match = AlgorithmMatch(20, n_points=[5, 2], algorithms=[GD(max_steps=4), Ridge(), Bayes()], alpha=0.5, chunk_size=7)
    trainer = small_trainer(tmp_path, [match], precision=precision)
    trainer.validate(module, datamodule=data, verbose=False)
    prompts = [data.held_out(f"algorithm_{name}", n) for name, n in (("fit", 40), ("choose", 20), ("score", 20))]
    assert len(match.result) == 2 * 3 * 3  # sizes, algorithms, readings
    assert json.loads((tmp_path / "results.json").read_text())["AlgorithmMatch"][0]["distances"] == [
        d._asdict() for d in match.result
    ]
    for d in match.result:
        if d.n_points == 5:
            place = f"{d.algorithm}/{d.reading}"
            for kind in ("spd", "relative_spd", "ilwd", "relative_ilwd", "cosine"):
                for end in ("", "_error"):
                    logged = float(trainer.callback_metrics[f"algorithm/{kind}{end}/{place}"])
                    assert logged == pytest.approx(getattr(d, kind + end), rel=1e-6)
            for name, value in d.setting.items():
                assert float(trainer.callback_metrics[f"algorithm/setting/{name}/{place}"]) == pytest.approx(value)
    if precision == "32-true":
        expected = algorithm_distances(
            module.transformer, *prompts, data.task, [GD(max_steps=4), Ridge(), Bayes()], [5, 2], alpha=0.5
        )
        for found, other in zip(match.result, expected, strict=True):
            assert found[:5] == other[:5]
            assert found[5:] == pytest.approx(other[5:], rel=1e-4, abs=1e-6)
    lines = match.summary()
    assert len(lines) == 1 + 3
    nearest = min((d for d in match.result if (d.n_points, d.reading) == (5, "layer1")), key=lambda d: d.relative_spd)
    if nearest.relative_spd + 2 * nearest.relative_spd_error < 1:
        assert lines[1].startswith(f"  layer 1: {nearest.label}; distance ")
    else:
        assert lines[1] == "  layer 1: none is closer than predicting 0"


def test_the_closing_lines_claim_no_more_than_the_intervals_hold():
    def distance(algorithm, value):
        return Distance(algorithm, "layer1", 5, algorithm.upper(), {}, *(value, 0.01) * 5)

    def said(*found):
        match = AlgorithmMatch()
        match.result = [distance(*one) for one in found]
        return match.summary()[1]

    assert said(("ridge", 0.3), ("gd", 0.2), ("lasso", 0.23)) == (
        "  layer 1: GD; distance 0.2 +- 0.01 (intervals overlap: lasso)"
    )
    assert said(("gd", 0.2), ("lasso", 0.3)) == "  layer 1: GD; distance 0.2 +- 0.01"
    assert said(("gd", 0.99), ("lasso", 1.0)) == "  layer 1: none is closer than predicting 0"
    assert said(("gd", float("nan"))) == "  layer 1: none is closer than predicting 0"


def test_it_runs_while_fitting_and_leaves_the_training_as_it_was(tmp_path, undrawn):
    def trained(callbacks):
        module = small_module(mlp=True)
        small_trainer(tmp_path, callbacks, val_check_interval=3).fit(module, datamodule=small_data())
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    match = AlgorithmMatch(8, algorithms=[GD(1)])
    assert torch.equal(trained([]), trained([match]))
    assert [record["step"] for record in match.records] == [3, 6]


def test_a_task_without_weights_and_the_alternating_layout(tmp_path, undrawn):

    data = small_data(ReLUNetwork(4, 3))
    match = AlgorithmMatch(6, n_points=[4])
    module = small_module(mask="causal", layout="alternating")
    small_trainer(tmp_path, [match]).validate(module, datamodule=data, verbose=False)
    assert "bayes" not in {d.algorithm for d in match.result}
    assert match.summary()


def test_the_figure_names_each_family_once_and_has_an_interval_at_every_size(tmp_path):
    match = AlgorithmMatch(16, n_points=[2, 5], algorithms=[GD(), GD(step_size="shared", max_steps=3), Lasso()])
    small_trainer(tmp_path, [match]).validate(small_module(), datamodule=small_data(), verbose=False)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"algorithm_match.png", "algorithm_match.svg"}
    figure = figures.algorithm_match(match.result)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["GD,\nsteps c/λmax", "GD,\none step size c", "lasso"]
    assert [len(axes.texts) for axes in figure.axes[:2]] == [9, 9]
    assert [len(axes.containers) for axes in figure.axes[2:4]] == [3, 3]
    match.result = [d._replace(relative_spd=float("nan")) for d in match.result]
    figures.algorithm_match(match.result)  # a model that has diverged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_prompts": 1}, "n_prompts is 1"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"n_points": [3, 0]}, "n_points is 0"),
        ({"n_points": []}, "n_points is \\[\\], but it must have at least one entry"),
        ({"algorithms": []}, "algorithms is \\[\\]"),
        ({"algorithms": [NearestNeighbours()]}, "only estimators of linear weights"),
        ({"algorithms": [GD(), GD()]}, "gd_best_tuned_step 2 times"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        AlgorithmMatch(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_points": [6]}, "at most 5 examples"), ({"algorithms": [Bayes()]}, "Bayes needs an exact posterior")],
)
def test_what_the_data_cannot_serve_is_refused_before_any_work(tmp_path, options, message):
    data = small_data(ReLUNetwork(4, 3))
    with pytest.raises(InputError, match=message):
        small_trainer(tmp_path, [AlgorithmMatch(**options)]).validate(small_module(), datamodule=data, verbose=False)
