"""The numbers that the figures of heads show, read back from what the axes hold."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl.figures import heads
from lightning_icl.record.rows import Row, frame

# By layer and head; layer 2 has no heads, layer 3 fewer, and its total is within noise of 0.
IMPORTANCE = {1: [0.41, -0.13, 0.2], 2: [], 3: [-0.01, 0.02]}
SHARE = {1: [0.672, 0.0, 0.328], 2: [], 3: [None, None]}
EFFECTIVE = {1: (1.9, 1.6, 2.3), 2: (None,) * 3, 3: (None,) * 3}
TOP = {1: (0.67, 0.6, 0.71), 2: (None,) * 3, 3: (None,) * 3}
SCORES = ("leave_one_out", "leave_one_in", "gradient")
AGREEMENT = {
    "leave_one_out_and_leave_one_in": (-0.25, -0.5, 0.1),
    "leave_one_out_and_gradient": (0.75, 0.7, 0.8),
    "leave_one_in_and_gradient": (None, None, None),
}


def measured(scores=("leave_one_out",), times=1.0, half=0.15, n_points=None):
    rows = [Row("heads/risk", 0.5 * times, 0.45 * times, 0.56 * times, n_points=n_points)]
    for score in scores:
        for layer, values in IMPORTANCE.items():
            for head, (value, share) in enumerate(zip(values, SHARE[layer], strict=True), start=1):
                value *= times
                place = {"layer": layer, "head": head, "n_points": n_points}
                rows.append(
                    Row(f"heads/{score}/importance", value, value - half * times, value + half * times, **place)
                )
                rows.append(Row(f"heads/{score}/share", share, share, share, **place))
            place = {"layer": layer, "n_points": n_points}
            rows += [Row(f"heads/{score}/effective", *EFFECTIVE[layer], **place)]
            rows += [Row(f"heads/{score}/top_share", *TOP[layer], **place)]
    return rows


def over_training(*steps):
    by_step = [frame(measured(times=1 / (i + 1))).assign(step=step) for i, step in enumerate(steps)]
    return pd.concat(by_step)


def written(axes):
    """Texts by (layer, head), both from 1."""
    return {(int(y) + 1, int(x) + 1): text.get_text() for text in axes.texts for x, y in [text.get_position()]}


def colour(image, value):
    return np.array(image.cmap(image.norm(value)))


def test_importance_is_written_with_half_its_interval_and_white_at_zero():
    (axes,) = heads.importance_map(frame([*measured(), *measured(times=9.0, n_points=4)])).axes
    image = axes.images[0]
    shown = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[0.41, -0.13, 0.2], [np.nan] * 3, [-0.01, 0.02, np.nan]])
    assert written(axes)[1, 1] == "0.410\n±0.150"
    assert written(axes)[3, 1] == "-0.010\n±0.150"
    assert len(axes.texts) == 5
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["layer 1\n1.9 effective", "layer 2\nno heads", "layer 3\ntotal not above 0"]
    np.testing.assert_allclose(colour(image, 0.0)[:3], 0.97, atol=0.02)
    assert (image.norm.vmin, image.norm.vmax) == (-0.13, 0.41)  # no half of the scale is empty
    assert colour(image, -0.13)[2] > colour(image, -0.13)[0]  # blue below, red above
    assert colour(image, 0.13)[0] > colour(image, 0.13)[2]


def test_tiny_importance_is_said_in_a_unit_of_its_own():
    figure = heads.importance_map(frame(measured(times=1e-5)))
    assert written(figure.axes[0])[1, 1] == "4.10\n±1.50"
    assert "$10^{-6}$ squared label units" in figure.get_suptitle().replace("\n", " ")


def test_importance_of_nothing_is_drawn():
    assert written(heads.importance_map(frame(measured(times=0.0))).axes[0])[1, 1] == "0.00\n±0.00"


def test_scores_are_shares_on_one_scale_with_brackets_where_importance_is_within_noise():
    rows = measured(SCORES) + [Row(f"heads/agreement/{pair}", *found) for pair, found in AGREEMENT.items()]
    figure = heads.score_maps(frame(rows))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["leave-one-out, zero ablation", "leave-one-in, zero ablation", "gradient"]
    for axes in figure.axes[:3]:
        image = axes.images[0]
        assert (image.norm.vmin, image.norm.vmax) == (0, 100)
        np.testing.assert_allclose(np.ma.filled(image.get_array(), np.nan)[0], [67.2, 0, 32.8])
        texts = [text.get_text() for text in axes.texts]
        assert texts == ["67", "(0)", "33", "total not above 0"]
    agreement = figure.axes[3]
    assert [text.get_text() for text in agreement.texts] == [
        "-0.25\n[-0.50, 0.10]",
        "0.75\n[0.70, 0.80]",
        "not defined",
    ]
    assert [text.get_position() for text in agreement.texts] == [(0, 0), (0, 1), (1, 1)]
    assert (agreement.images[0].norm.vmin, agreement.images[0].norm.vmax) == (-1, 1)


@pytest.mark.parametrize("scores", [SCORES[:2], (*SCORES, "leave_one_out_mean")])
def test_agreement_has_a_row_of_its_own_where_no_place_is_left(scores):
    pairs = [f"{a}_and_{b}" for i, b in enumerate(scores) for a in scores[:i]]
    figure = heads.score_maps(
        frame(measured(scores) + [Row(f"heads/agreement/{pair}", 0.5, 0.4, 0.6) for pair in pairs])
    )
    assert len(figure.axes) == len(scores) + 1
    assert len(figure.axes[-1].texts) == len(pairs)
    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_specialisation_has_risk_effective_heads_and_top_share_over_steps():
    figure = heads.specialisation(over_training(10, 20, 30))
    risk, effective, top = figure.axes
    assert effective.get_ylabel() == "effective number of heads"
    assert top.get_ylabel() == "share of the top head"
    for axes, label, number in ((effective, "layer 1 (3 heads)", EFFECTIVE[1]), (top, "layer 1 (3 heads)", TOP[1])):
        line = next(line for line in axes.lines if line.get_label() == label)
        np.testing.assert_allclose(line.get_xydata(), [[step, number[0]] for step in (10, 20, 30)])
        assert bar_ends(axes)[0] == pytest.approx(number[1:])
    full = next(line for line in risk.lines if line.get_label() == "full model")
    np.testing.assert_allclose(full.get_ydata(), [0.5, 0.25, 0.5 / 3])
    np.testing.assert_allclose(bar_ends(risk), [[0.45 / i, 0.56 / i] for i in (1, 2, 3)])
    assert not any("layer 2" in str(line.get_label()) for line in effective.lines)


def bar_ends(axes):
    """The ends of the first error bars' vertical lines."""
    return [segment[:, 1] for segment in axes.containers[0].lines[2][0].get_segments()]


def test_specialisation_shows_what_the_claim_is_held_to():
    _, effective, top = heads.specialisation(over_training(10, 20)).axes
    assert dotted(effective) == [pytest.approx(0.75 * 3)]
    assert dotted(top) == [0.6]


def dotted(axes):
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("leave_one_out", "leave-one-out, zero ablation"),
        ("leave_one_in_mean", "leave-one-in, mean ablation"),
        ("gradient", "gradient"),
    ],
)
def test_scores_in_words(name, label):
    assert heads.score_label(name) == label
