"""What the figures of risks show, read back from their artists."""

import numpy as np
import pandas as pd
import pytest
from artists import arrows, assert_nothing_covers_anything, band, bars, line, texts
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl.figures import risk_by_estimator, risk_by_points, risk_by_step, risk_by_stream
from lightning_icl.record.rows import Row, frame

NOTES = {
    "transformer": "transformer",
    "zero": "zero predictor",
    "least_squares": "least squares",
    "ridge": "ridge, alpha 0.64 (from the law)",
    "preprocess_then_gd_best": "preprocess + GD, 197 to 200 steps of 1/λmax (best up to 200)",
    "knn_3": "3 nearest neighbours",
}
RISKS = {"transformer": 0.2, "zero": 0.8, "ridge": 0.3, "preprocess_then_gd_best": 0.25, "least_squares": 9e4}
OTHERS = ("lasso", "bayes", "gd_best", "gd_at_depth", "oracle_support", "preprocess_then_gd_at_depth")
MANY = RISKS | dict.fromkeys(OTHERS, 0.4)


def rows(risks=RISKS, n_points=(), stream=None, stage="val"):
    """An interval from a tenth below to a fifth above; at n examples 10 / n times the risk."""
    found = []
    for name, risk in risks.items():
        note = NOTES.get(name, name)
        for n in (None, *n_points):
            at_n = risk if n is None else risk * 10 / n
            found.append(Row(f"{stage}/excess_risk/{name}", at_n, 0.9 * at_n, 1.2 * at_n, None, None, n, stream, note))
        if name != "transformer":
            d = risk - risks["transformer"]
            found.append(Row(f"against/{name}/difference", d, d - 0.01, d + 0.02, stream=stream))
            found.append(Row(f"against/{name}/ratio", 5.0, 4.0, 6.0, stream=stream))
    return frame(found)


def by_estimator(risks=RISKS):
    return risk_by_estimator(rows(risks), "validation prompts, stream shifted_in_every_way")


def by_points(risks=RISKS):
    return risk_by_points(rows(risks, range(1, 21)), "validation prompts")


def by_few_points(risks=RISKS):
    return risk_by_points(rows(risks, (8, 16)), "validation prompts")


def by_stream(risks=RISKS):
    return risk_by_stream(pd.concat([rows(stream="in_distribution"), rows(risks, stream="shifted")]))


def by_step(risks=RISKS):
    return risk_by_step(pd.concat([rows(risks).assign(step=step) for step in (100, 200)]))


ALL = pytest.mark.parametrize("draw", [by_estimator, by_points, by_few_points, by_stream, by_step])


@ALL
@pytest.mark.parametrize("risks", [RISKS, MANY, {"transformer": 0.2, "knn_3": 0.3}])
def test_title_legend_and_axes_cover_nothing_of_each_other(draw, risks):
    assert_nothing_covers_anything(draw(risks))


@ALL
@pytest.mark.parametrize("risk", [np.nan, 1e30])
def test_a_model_that_has_diverged_is_drawn_too(draw, risk):
    FigureCanvasAgg(draw(RISKS | {"transformer": risk})).draw()


@ALL
@pytest.mark.parametrize("risk", [9e4, 6e-10])
def test_no_reference_squeezes_the_rest(draw, risk):
    axes = draw(RISKS | {"ridge": risk}).axes[0]
    low, high = axes.get_xlim() if draw == by_estimator else axes.get_ylim()
    scale = 10 if draw == by_points else 1
    assert high < 5 * scale
    assert low > 0.001 if axes.get_yscale() == "log" else low == 0


def test_each_estimator_has_its_risk_with_its_interval_lowest_at_the_top():
    axes = by_estimator().axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert [name.split("\n")[0] for name in names] == [
        "least squares", "zero predictor", "ridge", "preprocess + GD", "model",
    ]  # fmt: skip
    assert names[2] == "ridge\nalpha 0.64 (from the law)"
    drawn = {}
    for container in axes.containers:
        data, _, (segments,) = container.lines
        drawn[int(data.get_ydata()[0])] = (data.get_xdata()[0], *segments.get_segments()[0][:, 0])
    for place, risk in ((1, 0.8), (2, 0.3), (4, 0.2)):
        np.testing.assert_allclose(drawn[place], (risk, 0.9 * risk, 1.2 * risk))
    assert [(place, marker) for _, place, marker, _ in arrows(axes)] == [(0, ">")]
    assert {"9.00e+04", "0.800", "0.300", "0.250", "0.200"} <= set(texts(axes))


def test_each_reference_has_its_paired_difference_with_its_interval():
    axes = by_estimator().axes[0]
    (beside,) = axes.child_axes
    said = [tick.get_text() for tick in beside.get_yticklabels()]
    assert said[1:] == ["+0.60 [+0.59, +0.62]", "+0.10 [+0.090, +0.12]", "+0.050 [+0.040, +0.070]", "the model"]
    assert said[0].startswith("+9.0e+04")


def test_differences_at_single_numbers_of_examples_are_not_meant():
    of_all = rows(n_points=(8,))
    at_8 = of_all[of_all["metric"].str.startswith("against/")].assign(n_points=8, value=77.0)
    (beside,) = risk_by_estimator(pd.concat([at_8, of_all]), "prompts").axes[0].child_axes
    assert not any("77" in tick.get_text() for tick in beside.get_yticklabels())


def test_a_test_run_has_its_own_risks():
    axes = risk_by_estimator(rows(stage="test"), "test prompts").axes[0]
    assert len(axes.containers) == len(RISKS)


def test_risk_by_points_shows_each_number_of_examples_with_its_interval():
    axes = by_few_points().axes[0]
    for label, risk in (("model", 0.2), ("preprocess + GD, best stopping", 0.25)):
        wanted = [(risk * 10 / n, 9 * risk / n, 12 * risk / n) for n in (8, 16)]
        np.testing.assert_allclose(bars(axes, label), wanted)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8", "16"]


def test_every_prefix_is_a_line_with_a_band():
    axes = by_points({"transformer": 0.2}).axes[0]
    np.testing.assert_allclose(line(axes, "model").get_ydata(), [2 / n for n in range(1, 21)])
    np.testing.assert_allclose(band(axes, 4), (0.9 * 0.5, 1.2 * 0.5))
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize("draw", [by_few_points, by_stream])
def test_six_series_are_shown_and_the_number_of_others_is_said(draw):
    figure = draw(MANY | {"knn_3": 0.3} if draw == by_few_points else MANY)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "model", "ridge", "lasso", "Bayes", "GD, best stopping", "preprocess + GD, best stopping",
    ]  # fmt: skip
    left = 6 if draw == by_few_points else 5
    assert f"({left} more estimators are in the run's table)" in figure._suptitle.get_text()


def test_a_user_s_own_references_come_before_those_that_say_little():
    figure = by_few_points(RISKS | {"knn_3": 0.3, "newton": 0.4})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"knn 3", "newton"} < set(labels)
    assert "more estimators" in figure._suptitle.get_text()


def test_no_line_covers_the_model_s():
    lines = {container.get_label(): container.lines[0].get_zorder() for container in by_few_points().axes[0].containers}
    assert lines.pop("model") > max(lines.values())


def test_streams_stand_side_by_side():
    axes = by_stream(RISKS | {"transformer": 0.6}).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["in distribution", "shifted"]
    np.testing.assert_allclose(bars(axes, "model"), [(0.2, 0.18, 0.24), (0.6, 0.54, 0.72)])
    places = {c.get_label(): np.round(c.lines[0].get_xdata()).tolist() for c in axes.containers}
    assert set(map(tuple, places.values())) == {(0, 1)}


def test_training_is_a_line_of_the_model_between_the_references():
    found = [rows(RISKS | {"transformer": risk}).assign(step=step) for step, risk in ((200, 0.3), (100, 0.7))]
    other = rows({"transformer": 55.0, "ridge": 55.0}, stream="shifted").assign(step=100)
    axes = risk_by_step(pd.concat([*found, other])).axes[0]
    model = line(axes, "model")
    assert model.get_xdata().tolist() == [100, 200]
    np.testing.assert_allclose(model.get_ydata(), (0.7, 0.3))
    np.testing.assert_allclose(band(axes, 200), (0.27, 0.36))
    assert line(axes, "ridge, 0.300").get_ydata() == [0.3, 0.3]
    assert len(arrows(axes)) == 0


def test_a_reference_out_of_reach_is_said_beside_training():
    axes = by_step(RISKS | {"lasso": 9e4}).axes[0]
    assert [marker for _, _, marker, _ in arrows(axes)] == ["^"]
    assert "lasso, 9.00e+04" in axes.get_legend_handles_labels()[1]
