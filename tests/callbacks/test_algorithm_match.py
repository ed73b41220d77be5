"""AlgorithmMatch: what it logs and keeps is what the instrument finds on the held-out prompts."""

import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl import ReLUNetwork
from lightning_icl.callbacks import AlgorithmMatch
from lightning_icl.callbacks.algorithm_match import distance_rows
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import GD, Bayes, NearestNeighbours, Ridge
from lightning_icl.functional.risk import t_quantile
from lightning_icl.instruments.algorithms import Distance, algorithm_distances
from lightning_icl.record import frame

KINDS = ("spd", "relative_spd", "ilwd", "relative_ilwd", "cosine")


def rows_by_place(match):
    rows = match.rows.assign(layer=match.rows["layer"].fillna(0))
    return rows.set_index(["metric", "layer", "n_points"])


def test_the_rows_are_what_the_instrument_finds(tmp_path, undrawn):
    module, data = small_module(), small_data()
    match = AlgorithmMatch(20, n_points=[5, 2], algorithms=[GD(max_steps=4), Ridge(), Bayes()], alpha=0.5, chunk_size=7)
    trainer = small_trainer(tmp_path, [match])
    trainer.validate(module, datamodule=data, verbose=False)
    prompts = [data.held_out(f"algorithm_{name}", n) for name, n in (("fit", 40), ("choose", 20), ("score", 20))]
    algorithms = [GD(max_steps=4), Ridge(), Bayes()]
    expected = algorithm_distances(module.transformer, *prompts, data.task, algorithms, [5, 2], 0.5)
    rows = rows_by_place(match)
    assert len(expected) == 2 * 3 * 3  # sizes, algorithms, readings
    assert len(rows) == sum(6 + len(d.setting) for d in expected)
    close = {"rel": 1e-4, "abs": 1e-6}
    for d in expected:
        layer = 0 if d.reading == "read_out" else int(d.reading[-1])
        place = f"algorithm/{'layer' if layer else 'read_out'}/{d.algorithm}"
        for kind in KINDS:
            row, half = rows.loc[f"{place}/{kind}", layer, d.n_points], t_quantile(20) * getattr(d, f"{kind}_error")
            assert row["value"] == pytest.approx(getattr(d, kind), **close)
            assert [row["value"] - row["low"], row["high"] - row["value"]] == pytest.approx([half, half], **close)
        excess = rows.loc[f"{place}/excess_over_closest", layer, d.n_points]
        assert excess[["value", "low", "high"]].tolist() == pytest.approx(list(d[-3:]), **close)
        for name, value in d.setting.items():
            assert rows.loc[f"{place}/setting/{name}", layer, d.n_points]["value"] == pytest.approx(value)
        assert rows.loc[f"{place}/relative_spd", layer, d.n_points]["note"] == d.label
    logged = {name for name in trainer.callback_metrics if name.startswith("algorithm/")}
    assert logged == {f"algorithm/read_out/{name}/relative_spd/n5" for name in {d.algorithm for d in expected}}
    lines = match.summary(match.rows)
    assert "20 held-out prompts of 5" in lines[0]
    assert max(map(len, lines)) <= 80
    nearest = min((d for d in expected if (d.n_points, d.reading) == (5, "layer1")), key=lambda d: d.relative_spd)
    said = " ".join(line.strip() for line in lines[2:])
    if nearest.relative_spd + t_quantile(20) * nearest.relative_spd_error < 1:
        assert said.startswith(f"layer 1: {nearest.label}; distance ")
    else:
        assert said.startswith("layer 1: none is closer than predicting 0")


def test_the_closing_lines_claim_no_more_than_the_intervals_hold():
    def distance(algorithm, value, excess_low=0.5):
        excess = (value / 0.2 - 1, excess_low, 3.0)
        return Distance(algorithm, "layer1", 5, algorithm.upper(), {}, *(value, 0.01) * 5, *excess)

    def said(*found):
        match = AlgorithmMatch(n_prompts=1000)
        return match.summary(frame(row for one in found for row in distance_rows(distance(*one), 1000)))[2:]

    assert said(("ridge", 0.3), ("gd", 0.2, 0.0), ("lasso", 0.21, -0.1)) == [
        "  layer 1: GD; distance 0.2 ± 0.02 (cannot be told from it: lasso)"
    ]
    assert said(("gd", 0.2, 0.0), ("lasso", 0.21)) == ["  layer 1: GD; distance 0.2 ± 0.02"]
    assert said(("gd", 0.99, 0.0), ("lasso", 1.0)) == ["  layer 1: none is closer than predicting 0"]
    assert said(("gd", float("nan"), 0.0)) == ["  layer 1: none is closer than predicting 0"]


def test_it_runs_in_the_trainers_precision(tmp_path, undrawn):
    spd = {}
    for precision in ("32-true", "bf16-mixed"):
        match = AlgorithmMatch(64, n_points=[5], algorithms=[Ridge()])
        trainer = small_trainer(tmp_path, [match], precision=precision)
        trainer.validate(small_module(), datamodule=small_data(), verbose=False)
        spd[precision] = rows_by_place(match).loc["algorithm/read_out/ridge/spd", 0, 5]["value"]
    assert spd["bf16-mixed"] == pytest.approx(spd["32-true"], rel=0.02)
    assert spd["bf16-mixed"] != spd["32-true"]


def test_no_algorithm_is_logged_by_default_where_there_are_many(tmp_path, undrawn):
    match = AlgorithmMatch(8, n_points=[5], algorithms=[GD(t) for t in range(1, 10)])
    trainer = small_trainer(tmp_path, [match])
    trainer.validate(small_module(), datamodule=small_data(), verbose=False)
    assert not [name for name in trainer.callback_metrics if name.startswith("algorithm/")]
    assert len(rows_by_place(match)) == 9 * 3 * 8


def test_it_runs_while_fitting_and_leaves_the_training_as_it_was(tmp_path, undrawn):
    def trained(callbacks):
        module = small_module(mlp=True)
        small_trainer(tmp_path, callbacks, val_check_interval=3).fit(module, datamodule=small_data())
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    match = AlgorithmMatch(8, algorithms=[GD(1)])
    assert torch.equal(trained([]), trained([match]))
    assert match.measured_at == 6


def test_a_task_without_weights_and_the_alternating_layout(tmp_path, undrawn):
    data = small_data(ReLUNetwork(4, 3))
    match = AlgorithmMatch(6, n_points=[4])
    module = small_module(mask="causal", layout="alternating")
    small_trainer(tmp_path, [match]).validate(module, datamodule=data, verbose=False)
    assert not match.rows["metric"].str.contains("/bayes/").any()
    assert match.summary(match.rows)


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
