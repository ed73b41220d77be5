"""What the figures of risks show, and that nothing covers anything."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl.callbacks import figures

LABELS = {
    "transformer": "transformer",
    "zero": "zero predictor",
    "gd": "preprocess + GD, 197 to 200 steps of 1/λmax (best up to 200)",
    "least_squares": "least squares",
}
RISKS = {"transformer": (0.2, 0.01), "zero": (0.8, 0.02), "gd": (0.3, 0.01), "least_squares": (0.5, 0.02)}
EXACT = RISKS | {"least_squares": (6e-10, 1e-10)}  # without noise and with n > d
STREAM = "validation prompts, stream shifted_in_every_way"


def by_estimator(risks):
    return figures.risk_by_estimator(risks, LABELS, STREAM)


def by_stream(risks):
    return figures.risk_by_stream({"in_distribution": RISKS, "shifted": risks}, LABELS)


def by_points(risks):
    return figures.risk_by_points(dict.fromkeys(range(1, 21), risks), LABELS, STREAM)


ALL = pytest.mark.parametrize("draw", [by_estimator, by_stream, by_points])


@ALL
def test_title_legend_and_axes_cover_nothing_of_each_other(draw):
    figure = draw(RISKS)
    FigureCanvasAgg(figure).draw()
    parts = [axes.get_tightbbox() for axes in figure.axes]
    parts += [legend.get_window_extent() for legend in figure.legends]
    parts += [figure._suptitle.get_window_extent()]
    for i, part in enumerate(parts):
        assert figure.bbox.x0 <= part.x0
        assert part.x1 <= figure.bbox.x1
        assert not any(part.overlaps(other) for other in parts[:i])


@ALL
def test_a_reference_that_is_exact_does_not_squeeze_the_rest(draw):
    figure = draw(EXACT)
    axes = figure.axes[0]
    lowest, highest = axes.get_xlim() if draw == by_estimator else axes.get_ylim()
    assert lowest > 0.05
    assert 0.8 < highest < 5
    written = [text.get_text() for text in axes.texts] + [figure._suptitle.get_text()]
    assert draw == by_points or any("6.00e-10" in text or "below 2e-06" in text for text in written)


def test_the_number_of_examples_is_a_whole_number():
    figure = figures.risk_by_points(dict.fromkeys(range(1, 5), RISKS), LABELS, STREAM)
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_no_line_covers_the_model_s():
    lines = {bars.get_label(): bars.lines[0].get_zorder() for bars in by_points(RISKS).axes[0].containers}
    assert lines.pop("transformer") > max(lines.values())


@ALL
@pytest.mark.parametrize("risk", [np.nan, 1e30])
def test_a_model_that_has_diverged_is_drawn_too(draw, risk):
    FigureCanvasAgg(draw(RISKS | {"transformer": (risk, risk)})).draw()
