"""The figure of P-probing shows every arm with its interval, and its legend covers nothing."""

import numpy as np
import pytest
from artists import assert_nothing_covers_anything, bars

from lightning_icl.figures import p_probing_risks
from lightning_icl.record.rows import Row, frame

LABELS = {
    "heads_8": "layer 1, 8 heads (8-8-8)",
    "heads_1": "layer 1, 1 head (1-8-8)",
    "untrained": "untrained layer 1, 8 heads",
    "read_in": "read-in",
    "raw": "x",
    "gd_plus_plus": "GD++: (I - 0.7 C/λmax) x",
}
IN_ORDER = ["heads_1", "heads_8", "read_in", "raw", "gd_plus_plus", "untrained"]


def drawn(worst=0.9, depths=4, optimisers=("attention", "descent")):
    found = []
    for optimiser in optimisers:
        for i, arm in enumerate(LABELS):
            for k in range(1, depths + 1):
                risk = worst / k * (1 + i / 10) * (1 + (optimiser == "descent"))
                found.append(Row(f"p_probing/{optimiser}/{k}/{arm}", risk, 0.9 * risk, 1.3 * risk))
    return p_probing_risks(frame(found), LABELS)


@pytest.mark.parametrize("optimisers", [("attention", "descent"), ("descent",)])
@pytest.mark.parametrize("depths", [1, 4, 12])
def test_nothing_covers_anything_and_arms_have_colours_of_their_own(optimisers, depths):
    figure = drawn(depths=depths, optimisers=optimisers)
    assert_nothing_covers_anything(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [LABELS[arm] for arm in IN_ORDER]
    colours = [container.lines[0].get_color() for container in figure.axes[0].containers]
    assert len({str(colour) for colour in colours}) == len(LABELS)


def test_each_arm_has_its_risk_and_interval_at_each_depth():
    attention, descent = drawn().axes
    for axes, factor in ((attention, 1), (descent, 2)):
        risks = factor * 0.9 * 1.1 / np.arange(1, 5)
        np.testing.assert_allclose(bars(axes, LABELS["heads_1"]), np.column_stack([risks, 0.9 * risks, 1.3 * risks]))
        places = axes.containers[0].lines[0].get_xdata()
        np.testing.assert_allclose(places, np.arange(1, 5), atol=0.2)
    assert attention.get_ylim() == descent.get_ylim()


@pytest.mark.parametrize(("worst", "depths", "scale"), [(0.9, 4, "linear"), (0.9, 12, "log"), (np.nan, 4, "linear")])
def test_the_axis_is_logarithmic_where_the_risks_are_wide(worst, depths, scale):
    figure = drawn(worst, depths, ("descent",))
    assert figure.axes[0].get_yscale() == scale
