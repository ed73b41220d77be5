"""AlgorithmMatch: what it logs and keeps is what the instrument finds on the held-out prompts."""

import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl import ReLUNetwork
from lightning_icl.callbacks import AlgorithmMatch
from lightning_icl.callbacks.algorithm_match import distance_rows
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import GD, Bayes, NearestNeighbours, Ridge
from lightning_icl.functional.risk import Interval, t_quantile
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
    expected = algorithm_distances(module.network, *prompts, data.task, algorithms, [5, 2], 0.5, 7)
    rows = rows_by_place(match)
    assert len(expected) == 2 * 3 * 4  # sizes, algorithms, readings of two layers in two ways
    assert len(rows) == sum(8 + len(d.setting) for d in expected)
    close = {"rel": 1e-4, "abs": 1e-6}
    for d in expected:
        place, layer = f"algorithm/{d.reading}/{d.algorithm}", d.layer
        for kind in KINDS:
            row, half = rows.loc[f"{place}/{kind}", layer, d.n_points], t_quantile(20) * d.errors[kind]
            assert row["value"] == pytest.approx(getattr(d, kind), **close)
            assert [row["value"] - row["low"], row["high"] - row["value"]] == pytest.approx([half, half], **close)
        excess = rows.loc[f"{place}/excess_over_closest", layer, d.n_points]
        assert excess[["value", "low", "high"]].tolist() == pytest.approx(list(d.excess_over_closest), **close)
        assert rows.loc[f"{place}/rank", layer, d.n_points]["value"] == d.rank
        assert rows.loc[f"{place}/from_closest", layer, d.n_points]["value"] == pytest.approx(d.from_closest, **close)
        for name, value in d.setting.items():
            row = rows.loc[f"{place}/setting/{name}", layer, d.n_points]
            assert row["value"] == pytest.approx(value, rel=1e-3)
            if name == "steps":
                assert (row["low"], row["high"]) == d.steps_range
        assert rows.loc[f"{place}/relative_spd", layer, d.n_points]["note"] == d.label
    logged = {name for name in trainer.callback_metrics if name.startswith("algorithm/")}
    assert logged == {f"algorithm/read_out/{name}/relative_spd/n5/layer2" for name in {d.algorithm for d in expected}}
    lines = match.summary(match.rows)
    assert "20 held-out prompts of 5" in lines[0]
    assert max(map(len, lines)) <= 80
    assert lines[2] == "  the model's read-out of layer"
    assert [line[:6] for line in lines].count("    1:") == 2  # one of each way to read it


def distance(algorithm, value, rank, excess_low=0.5, apart=0.1, steps=(3, 3)):
    place = (rank, apart, Interval(value / 0.2 - 1, excess_low, 3.0))
    words, setting, errors = algorithm.upper(), {"steps": 3.0} if steps else {}, dict.fromkeys(KINDS, 0.01)
    return Distance(algorithm, "probe", 1, 5, words, setting, steps or (0, 0), *[value] * 5, errors, *place)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            [
                ("ridge", 0.3, 4, 0.1),
                ("gd", 0.2, 1, 0.0, 0.0, (2, 5)),
                ("newton", 0.23, 3, 0.0),
                ("lasso", 0.21, 2, -0.1),
            ],
            "GD; distance 0.2 ± 0.02; 2 to 5 steps are as good; cannot be told from it: LASSO (0.21); NEWTON (0.23)",
        ),
        (
            [("gd_plus_plus", 0.2, 2, 0.0, 1e-9), ("gd", 0.2, 1, 0.0, 0.0), ("lasso", 0.21, 3)],
            "GD; distance 0.2 ± 0.02; with these settings the same, if less simple: GD_PLUS_PLUS",
        ),
        ([("gd", 0.2, 1, 0.0), ("lasso", 0.21, 2)], "GD; distance 0.2 ± 0.02"),
        ([("lasso", 0.2, 1, 0.0, 0.0, ())], "LASSO; distance 0.2 ± 0.02"),
        ([("gd", 0.7, 1, 0.0), ("lasso", 0.8, 2)], "no algorithm; the closest, GD, is at distance 0.7 ± 0.02"),
        ([("gd", 0.99, 1, 0.0), ("lasso", 1.0, 2)], "none is closer than predicting 0"),
        ([("gd", float("nan"), 1, 0.0)], "none is closer than predicting 0"),
        ([("gd", float("nan"), 0, float("nan")), ("lasso", float("nan"), 0, float("nan"))], "reads 0"),
    ],
)
def test_the_closing_lines_claim_no_more_than_the_intervals_hold(found, said):
    rows = frame(row for one in found for row in distance_rows(distance(*one), 1000))
    lines = AlgorithmMatch(n_prompts=1000).summary(rows)[3:]
    assert " ".join(line.strip() for line in lines) == f"1: {said}"


def test_it_runs_in_the_trainers_precision(tmp_path, undrawn):
    spd = {}
    for precision in ("32-true", "bf16-mixed"):
        match = AlgorithmMatch(64, n_points=[5], algorithms=[Ridge()])
        trainer = small_trainer(tmp_path, [match], precision=precision)
        trainer.validate(small_module(), datamodule=small_data(), verbose=False)
        spd[precision] = rows_by_place(match).loc["algorithm/read_out/ridge/spd", 2, 5]["value"]
    assert spd["bf16-mixed"] == pytest.approx(spd["32-true"], rel=0.02)
    assert spd["bf16-mixed"] != spd["32-true"]


def test_no_algorithm_is_logged_by_default_where_there_are_many(tmp_path, undrawn):
    match = AlgorithmMatch(8, n_points=[5], algorithms=[GD(t) for t in range(1, 14)])
    trainer = small_trainer(tmp_path, [match])
    trainer.validate(small_module(), datamodule=small_data(), verbose=False)
    assert not [name for name in trainer.callback_metrics if name.startswith("algorithm/")]
    assert len(rows_by_place(match)) == 13 * (2 * 10 + 2 * 11)  # a probe's scale is one more


def test_it_runs_while_fitting_and_leaves_the_training_as_it_was(tmp_path, undrawn):
    def trained(callbacks):
        module = small_module(mlp=True)
        small_trainer(tmp_path, callbacks, val_check_interval=3).fit(module, datamodule=small_data())
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    match = AlgorithmMatch(8, algorithms=[GD(1)])
    assert torch.equal(trained([]), trained([match]))
    assert match.measured_at == 6


def test_a_task_without_weights_and_the_alternating_layout(tmp_path, undrawn, unchecked):
    data = small_data(ReLUNetwork(4, 3))
    match = AlgorithmMatch(6, n_points=[4])
    module = small_module(mask="causal", layout="alternating", heads=[2])
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
