"""The numbers that the figure of a construction that is trained on shows, read back from what the axes hold."""

import numpy as np
import pandas as pd
from artists import assert_nothing_covers_anything, bars

from lightning_icl.figures.constructions import construction_course
from lightning_icl.record.rows import Row, frame


def measured(step):
    rows = [Row("construction/risk/difference", -0.1 * step, -0.2 * step, 0.1 * step)]
    for layer in (0, 1, 2):
        rows.append(Row("construction/beyond_input", 0.9 if layer else None, 0.8, 0.95, layer=layer))
    for layer in (1, 2):
        rows.append(Row("construction/weights", 1 - layer * step / 2, 0.9 - layer * step / 2, 1.0, layer=layer))
        overlap = (0.7, 0.6, 0.8) if layer == 1 else (None,) * 3
        rows.append(Row("construction/heads/overlap", *overlap, layer=layer))
    return frame(rows).assign(step=step)


def test_risk_and_alignment_over_training():
    figure = construction_course(pd.concat([measured(step) for step in (1, 2, 3)]))
    risk, states, weights, heads = figure.axes
    (container,) = risk.containers
    np.testing.assert_allclose(container.lines[0].get_xydata(), [[1, -0.1], [2, -0.2], [3, -0.3]])
    ends = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[-0.2, 0.1], [-0.4, 0.2], [-0.6, 0.3]])
    np.testing.assert_allclose(bars(states, "layer 2"), [[0.9, 0.8, 0.95]] * 3)
    np.testing.assert_allclose(bars(weights, "layer 2"), [[0, -0.1, 1], [-1, -1.1, 1], [-2, -2.1, 1]])
    np.testing.assert_allclose(bars(heads, "layer 1"), [[0.7, 0.6, 0.8]] * 3)
    assert weights.get_ylim()[0] <= -2.1
    assert heads.get_ylim() == (0, 1.05)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "training step"]
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert_nothing_covers_anything(figure)
