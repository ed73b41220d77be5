"""The figure of P-probing shows every arm, and its legend covers nothing."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl.callbacks.figures import p_probing_risks
from lightning_icl.functional.seeds import Interval

HEADS = {f"layer_1/{h}": h for h in (1, 2, 4, 8)}
LABELS = {arm: f"layer 1 of {h}-8-8, {h} heads" for arm, h in HEADS.items()} | {
    "untrained": "untrained layer 1, 8 heads",
    "raw": "x",
    "r_hat": "R_hat x",
    "r_hat_power": "|r_hat|^0.5 x",
    "gd_plus_plus": "GD++: (I - 0.7 C/λmax) x",
}


def drawn(worst=0.9, depths=4):
    curve = [Interval(worst / (k + 1), 0.05) for k in range(depths)]
    risks = {optimiser: dict.fromkeys(LABELS, curve) for optimiser in ("attention", "descent")}
    figure = p_probing_risks(risks, LABELS, HEADS)
    FigureCanvasAgg(figure).draw()
    return figure


def test_nothing_covers_anything_and_arms_have_colours_of_their_own():
    figure = drawn()
    parts = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_window_extent()]
    for i, part in enumerate(parts):
        assert figure.bbox.x0 <= part.x0
        assert part.x1 <= figure.bbox.x1
        assert not any(part.overlaps(other) for other in parts[:i])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LABELS.values())
    colours = [bars.lines[0].get_color() for bars in figure.axes[0].containers]
    assert len(set(colours)) == len(LABELS)


@pytest.mark.parametrize(("worst", "depths", "scale"), [(0.9, 4, "linear"), (0.9, 12, "log"), (np.nan, 4, "linear")])
def test_the_axis_is_logarithmic_where_the_risks_are_wide(worst, depths, scale):
    assert drawn(worst, depths).axes[0].get_yscale() == scale
