"""Bars end where their intervals do, axes hold what they should, and colours are centred at 0."""

import itertools

import numpy as np
import pandas as pd
import pytest
from artists import arrows, band, bars, line, texts
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.record.rows import Row, frame

NAN = float("nan")
CELLS = pd.DataFrame({"mean": [2.0, 3.0], "low": [1.5, -1.0], "high": [4.0, 3.25], "n": [4, 4]})  # lopsided


@pytest.fixture
def axes():
    return Figure().subplots()


def cells(means, **columns):
    means = np.asarray(means, dtype=float)
    return pd.DataFrame({"mean": means, "low": means - 0.1, "high": means + 0.1, "n": 1} | columns)


@pytest.mark.parametrize("along", ["x", "y"])
def test_error_bars_go_from_low_to_high(axes, along):
    style.over(axes, [5, 7], CELLS, along, label="line", ls="")
    np.testing.assert_allclose(bars(axes, "line", along), CELLS[["mean", "low", "high"]])
    assert list(line_of(axes).get_data()[0 if along == "y" else 1]) == [5, 7]


def line_of(axes):
    return axes.containers[0].lines[0]


@pytest.mark.parametrize("end", [NAN, np.inf])
def test_without_an_interval_there_is_no_bar(axes, end):
    style.over(axes, [1], pd.DataFrame({"mean": [2.0], "low": [-end], "high": [end], "n": [1]}), label="line")
    assert not np.isfinite(bars(axes, "line")[0, 1:]).any()


def test_bands_go_from_low_to_high(axes):
    style.band(axes, [5, 7], CELLS, color="red", label="line")
    np.testing.assert_allclose(line(axes, "line").get_ydata(), CELLS["mean"])
    assert [band(axes, 5), band(axes, 7)] == [(1.5, 4.0), (-1.0, 3.25)]


@pytest.mark.parametrize("along", ["x", "y"])
def test_a_level_is_a_line_across_with_its_interval(axes, along):
    (cell,) = CELLS.iloc[:1].itertuples()
    style.level(axes, cell, along=along, color="red", label="ridge")
    at = line(axes, "ridge").get_data()[1 if along == "y" else 0]
    assert list(at) == [2.0, 2.0]
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    np.testing.assert_allclose((box.y0, box.y1) if along == "y" else (box.x0, box.x1), (1.5, 4.0))


def test_levels_outside_are_arrows_with_their_numbers(axes):
    limits = style.Limits(2.5, 10.0)
    for mean in (2.0, 91234.0):
        style.level(axes, next(cells([mean]).itertuples()), limits, color="red", marker="o", label=f"level {mean}")
    assert [(y, marker) for _, y, marker, _ in arrows(axes)] == [(0.02, "v"), (0.98, "^")]
    assert texts(axes) == ["2.00", "9.12e+04"]
    assert axes.get_legend_handles_labels()[1] == ["level 2.0", "level 91234.0"]


@pytest.mark.parametrize("along", ["x", "y"])
def test_points_outside_are_arrows_and_their_line_keeps_its_course(axes, along):
    style.over(axes, [1, 2, 3, 4], cells([1.0, 50.0, 1e-9, NAN]), along, color="red", label="line")
    style.limit(axes, style.Limits(0.5, 2.0), along)
    expected = [(2, 0.98), (3, 0.02)]
    found = arrows(axes)
    assert [(a, b) if along == "y" else (b, a) for a, b, *_ in found] == expected
    assert [marker for _, _, marker, _ in found] == (["^", "v"] if along == "y" else [">", "<"])
    assert {colour for *_, colour in found} == {"red"}
    np.testing.assert_array_equal(bars(axes, "line", along)[:, 0], [1.0, 50.0, 1e-9, NAN])
    assert (axes.get_ylim() if along == "y" else axes.get_xlim()) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("model", "others", "zero", "within", "outside"),
    [
        ([0.4], [0.3, 0.7, 1.0, 9e4], 1.0, [0.4, 0.3, 0.7, 1.0], [9e4]),  # least squares at n = d
        ([0.4], [0.3, 6e-10], 1.0, [0.4, 0.3], []),  # what is exact without noise is at the foot of a linear axis
        ([1.3], [0.3, 1.1], 1.0, [1.3, 0.3, 1.1], [1.6]),  # a model that is still worse than the zero predictor
        ([1e30], [0.3, 0.7, 9e4], 1.0, [0.3, 0.7], [9e4, 1e30]),  # a model that has diverged
        ([NAN], [0.3, 0.7, 9e4], 1.0, [0.3, 0.7], [9e4]),
        ([0.4], [0.3, 5.0], NAN, [0.4, 0.3], [5.0]),  # without the zero predictor
        ([0.01, 0.4], [0.3, 6e-10, 9e4], 1.0, [0.01, 0.3, 0.4], [6e-10, 9e4]),  # logarithmic
    ],
)
def test_axes_of_risks_hold_the_model_and_the_references_near_it(model, others, zero, within, outside):
    low, high, log = style.risk_limits(cells(model), cells(others), zero)
    assert all(low <= value <= high for value in within)
    assert not any(low <= value <= high for value in outside)
    assert high < 2 * max(within)
    assert log == (max(within) > 10 * min(within))


def test_an_axis_follows_the_model_s_intervals_but_not_without_end():
    wide = pd.DataFrame({"mean": [1.0], "low": [-4.0], "high": [1.5], "n": [3]})
    assert style.risk_limits(wide).high == pytest.approx(1.06 * 1.5)
    assert style.risk_limits(wide.assign(high=100.0)).high == pytest.approx(1.06 * 3)


def test_no_number_at_all_gives_axes_too():
    assert style.risk_limits(cells([NAN]), cells([NAN])) == (0.0, 1.0, False)


@pytest.mark.parametrize(
    ("values", "ends"), [([[0.0, 3.0]], (0, 3)), ([[-1.0, 3.0]], (-1, 3)), ([[-2.0, NAN]], (-2, 0)), ([[NAN]], (0, 1))]
)
def test_heat_maps_are_white_at_zero_and_their_scale_ends_where_the_numbers_do(axes, values, ends):
    image = style.heat_map(axes, np.array(values))
    assert image.get_clim() == ends
    np.testing.assert_allclose(image.cmap(image.norm(0.0))[:3], (0.97, 0.97, 0.97), atol=0.03)
    above, below = (image.cmap(image.norm(end))[:3] for end in (ends[1], ends[0]))
    assert ends[1] == 0 or above[0] > above[2]  # red
    assert ends[0] == 0 or below[2] > below[0]  # blue


def test_what_is_as_far_from_zero_is_as_strong(axes):
    image = style.heat_map(axes, np.array([[-1.0, 1.0, 4.0]]))
    about = style.heat_map(axes, np.array([[-4.0, 1.0, 4.0]]))
    for value in (-1.0, 1.0, 4.0):
        np.testing.assert_allclose(image.cmap(image.norm(value)), about.cmap(about.norm(value)), atol=0.02)


def test_tables_of_one_figure_share_a_scale():
    assert style.scale(np.array([[1.0, NAN]]), np.array([-0.5, 7.0])) == (-0.5, 7.0)


def test_cells_can_be_read_on_their_colour(axes):
    style.heat_map(axes, np.array([[0.1, 5.0]]), {(0, 0): "light", (0, 1): "dark"})
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [("light", "black"), ("dark", "white")]


def test_rows_are_chosen_by_their_whole_metric_and_told_apart():
    rows = frame(
        [Row("val/excess_risk/ridge", 1.0, 0.5, 2.0), Row("against/ridge/ratio", 2.0), Row("val/excess_risk", 3)]
    )
    found = style.cells(pd.concat([rows, rows]), r"(?:val|test)/excess_risk/(?P<estimator>\w+)")
    assert found[["estimator", "mean", "low", "high", "n"]].to_numpy().tolist() == [["ridge", 1.0, 0.5, 2.0, 1]] * 2
    assert len(style.parts(rows.iloc[:0], "(?P<a>x)")) == 0


def test_no_two_estimators_look_alike():
    styles = style.estimator_styles([*style.ESTIMATORS, "knn_3", "newton", "chebyshev", "ridge_2"])
    for one, other in itertools.combinations(styles.values(), 2):
        assert one["marker"] != other["marker"] or one["color"] != other["color"]
        assert one["color"] != other["color"] or one["ls"] != other["ls"]
    assert styles["ridge"] == style.estimator_styles(["ridge"])["ridge"]


def test_a_line_with_one_place_is_moved_no_farther_than_the_others():
    places = [0.1, 0.2]
    lines = [style.apart(x, i, 3, places) for i, x in enumerate((places, places, [0.2]))]
    moved = np.array([line[-1] for line in lines])
    np.testing.assert_allclose(np.diff(moved), 0.03 * 0.1)
    assert style.apart([8.0], 2, 3, [8.0, 16.0], log=True) == pytest.approx(8 * 2**0.03)
    np.testing.assert_array_equal(style.apart([3.0], 1, 3, [3.0]), [3.0])


def test_a_legend_has_each_label_once_in_the_order_asked_for():
    figure, axes = style.panels(2, 3.0, 2.0)
    for panel, labels in zip(axes, (("b", "c"), ("a", "b")), strict=True):
        for label in labels:
            style.over(panel, [1], cells([1.0]), label=label)
    style.legend(figure, order=["a", "b"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


@pytest.mark.parametrize(("n", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_are_laid_out_to_be_wide(n, shape):
    figure, axes = style.panels(n, 3.0, 2.0)
    grid = axes[0].get_gridspec()
    assert len(axes) == len(figure.axes) == n
    assert (grid.nrows, grid.ncols) == shape
