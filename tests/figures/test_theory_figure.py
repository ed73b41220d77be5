"""The theory's figures show every estimator with its interval, the approximations, and where P-GD loses."""

import numpy as np
import pytest
from artists import assert_nothing_covers_anything, bars, line

from lightning_icl.figures import theory_risks
from lightning_icl.figures.theory import ARMS, AXES, LEADING
from lightning_icl.record.rows import Row, frame

VALUES = (4, 8, 32)
ITERATING = ("preprocess_then_gd", "gd", "gd_plus_plus")
LABELS = {name: label for name, (label, _) in ARMS.items()}
LOSES = "above the panel: P-GD loses to {} there"


def rows(axis, losses=(), rules=("shared", "per_prompt", "best"), bayes=VALUES):
    """Risks that fall with the axis; P-GD loses at ``losses``, which are (rule, value, rival)."""
    for at in VALUES:
        place = f"theory/{axis}/{at}"
        arms = [(rule, name) for rule in rules for name in ITERATING if (rule, name) != ("best", "gd_plus_plus")]
        arms += [("", name) for name in ("ridge", "lasso", "zero", *(["bayes"] if at in bayes else []))]
        for rule, name in arms:
            risk = (1 + list(ARMS).index(name)) / at
            yield Row(f"{place}/risk/{rule}/{name}".replace("//", "/"), risk, 0.9 * risk, 1.2 * risk)
        for rule in rules:
            for rival in ("gd", "ridge"):
                low = 0.1 if (rule, at, rival) in losses else -0.1
                yield Row(f"{place}/difference/{rule}/{rival}", low + 0.2, low, low + 0.4)
        yield Row(f"{place}/leading_order/s", 0.5 / at)
        yield Row(f"{place}/leading_order/d", 2.0 / at)


@pytest.mark.parametrize("axis", AXES)
def test_nothing_covers_anything_and_every_axis_has_its_name(axis):
    rules = ("shared", "per_prompt") if axis == "T" else ("shared", "per_prompt", "best")
    lost = [(rule, at, rival) for rule in rules for at in VALUES for rival in ("gd", "ridge")]
    figure = theory_risks(frame(rows(axis, lost, rules)), axis, "n = 32, d = 16, s = 4")
    assert_nothing_covers_anything(figure)
    assert len(figure.axes) == len(rules)
    assert {axes.get_xlabel() for axes in figure.axes} == {AXES[axis].label}
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    marks = [LOSES.format("ridge"), LOSES.format("GD")]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == [*LABELS.values(), *(label for label, _ in LEADING.values()), *marks]


def test_each_estimator_has_its_risk_and_interval_and_the_approximations_are_thin_lines():
    shared, _, best = theory_risks(frame(rows("n", bayes=(4, 8))), "n", "d = 16").axes
    risks = 1 / np.array(VALUES)
    np.testing.assert_allclose(bars(shared, LABELS["gd"]), 2 * np.column_stack([risks, 0.9 * risks, 1.2 * risks]))
    np.testing.assert_allclose(bars(best, LABELS["bayes"])[:, 0], 6 * risks[:2])
    np.testing.assert_allclose(bars(best, LABELS["zero"])[:, 0], 7 * risks)
    assert LABELS["gd_plus_plus"] not in [container.get_label() for container in best.containers]
    for size, factor in (("s", 0.5), ("d", 2.0)):
        drawn = line(best, LEADING[size][0])
        np.testing.assert_allclose(drawn.get_data()[1], factor * risks)
        assert drawn.get_linewidth() < 1
        assert "ours" in drawn.get_label()


def test_marks_stand_where_the_interval_of_the_difference_is_above_0_and_nowhere_else():
    lost = [("shared", 8, "gd"), ("shared", 32, "gd"), ("shared", 4, "ridge")]
    shared, per_prompt, best = theory_risks(frame(rows("n", lost)), "n", "d = 16").axes
    gd, ridge = line(shared, LOSES.format("GD")), line(shared, LOSES.format("ridge"))
    assert gd.get_xdata().tolist() == [8, 32]
    assert ridge.get_xdata().tolist() == [4]
    assert gd.get_color() == ARMS["gd"][1]["color"]
    assert min(*gd.get_ydata(), *ridge.get_ydata()) > 1  # above the panel, in heights of it
    for axes in (per_prompt, best):
        assert not [drawn for drawn in axes.lines if "loses" in str(drawn.get_label())]
