"""What the figures of pruning show: every model under every treatment, and the greedy path with all beside it."""

import numpy as np
import pandas as pd
import pytest
from artists import arrows, assert_nothing_covers_anything, band, bars, line, texts
from matplotlib.figure import Figure

from lightning_icl.figures import pruning, style
from lightning_icl.record.rows import Row, frame

NOTES = {
    "full": "full model (4 heads)",
    "paper": "paper: all of layer 1, top head of each later layer (3)",
    "top": "most important heads of all layers (3)",
    "top_2": "most important heads of all layers (2)",
    "top_1": "most important heads of all layers (1)",
    "threshold_0.1": "heads that matter by 0.1 of the risk (4)",
    "threshold_1": "heads that matter by 1 of the risk (0)",
    "greedy": "greedy removal (3)",
    "random_head": "control: all of layer 1, a random head of each later layer",
}
KEPT = {"paper": 3, "top": 3, "top_2": 2, "top_1": 1, "threshold_0.1": 4, "threshold_1": 0, "greedy": 3}


def cell(treatment, model):
    """Of a lopsided interval, so that no two of its numbers stand for each other."""
    risk = 0.2 + 0.01 * list(NOTES).index(model) + 0.1 * list(pruning.TREATMENTS).index(treatment)
    return risk, risk - 0.05, risk + 0.08


def measured(treatments=("as_is", "fine_tuned")):
    rows = [
        Row(f"prune/{treatment}/{model}/excess_risk", *cell(treatment, model), note=note)
        for treatment in treatments
        for model, note in NOTES.items()
    ]
    rows += [Row(f"prune/{model}/n_heads", n, note="[[1], [2]]") for model, n in KEPT.items()]
    rows += [Row(f"prune/{model}/n_heads", 1, layer=1) for model in KEPT]
    rows += [Row("prune/checkpoint/single/excess_risk", 0.35, 0.3, 0.45), Row("prune/as_is/paper/ratio", 7.0)]
    rows += [Row("prune/as_is/paper/rank", 2, note="2 of 4")]
    for left, layers in ((4, (2, 2)), (3, (2, 1)), (2, (1, 1)), (1, (1, 0))):
        name = f"prune/greedy_path/heads_{left}"
        rows += [Row(f"{name}/excess_risk", 1 / left, 0.9 / left, 1.3 / left), Row(f"{name}/n_heads", left)]
        rows += [Row(f"{name}/n_heads", n, layer=layer) for layer, n in enumerate(layers, start=1)]
    return frame(rows)


def test_every_model_has_a_row_and_every_treatment_a_bar_from_low_to_high():
    figure = pruning.pruning_risks(measured())
    (axes,) = figure.axes
    rows = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert rows[0] == NOTES["full"]
    assert rows[1] == f"{NOTES['paper']}; rank 2 of 4 random choices, 1 is best"
    assert rows[2:] == [*list(NOTES.values())[2:], "single"]
    for treatment in ("as_is", "fine_tuned"):
        label = pruning.TREATMENTS[treatment][0]
        np.testing.assert_allclose(bars(axes, label, "x"), [cell(treatment, model) for model in NOTES])
        places = next(c for c in axes.containers if c.get_label() == label).lines[0].get_ydata()
        assert np.round(places).tolist() == list(range(len(NOTES)))
    np.testing.assert_allclose(bars(axes, "another model", "x"), [[0.35, 0.3, 0.45]])
    assert vertical(axes) == [cell("as_is", "full")[0]]
    assert "95 %" in axes.get_xlabel()
    assert figure.get_suptitle()
    assert_nothing_covers_anything(figure)


def vertical(axes):
    """Where the dotted lines stand."""
    return [drawn.get_xdata()[0] for drawn in axes.lines if drawn.get_linestyle() == ":"]


def test_a_model_that_pruning_ruined_has_a_logarithmic_axis_and_stands_on_it():
    rows = measured()
    rows.loc[rows["metric"] == "prune/as_is/random_head/excess_risk", ["value", "low", "high"]] = 400.0, 300.0, 500.0
    (axes,) = pruning.pruning_risks(rows).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[1] > 400
    assert arrows(axes) == []


def test_bounds_of_a_panel_are_where_they_are_told():
    treated = pd.DataFrame({"treatment": "as_is", "model": ["full"], "mean": 1.0, "low": 0.9, "high": 1.2})
    axes = Figure().subplots()
    limits = style.Limits(0.5, 3.0)
    pruning.pruned_panel(axes, treated, treated.iloc[:0], {"full": "full model"}, limits, (1.1, 2.0), "trained")
    assert vertical(axes) == [1.1, 2.0]
    assert axes.get_xlim() == (0.5, 3.0)


def test_the_greedy_path_shows_all_strategies_however_many():
    figure = pruning.greedy_path(measured())
    above, below = figure.axes
    shown = {c.get_label(): (c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in above.containers}
    others = [model for model in KEPT if model != "greedy"]
    assert set(shown) == {NOTES[model] for model in others}  # more than there are markers in any short list
    for model in others:
        removed, risk = shown[NOTES[model]]
        assert removed == pytest.approx(4 - KEPT[model], abs=0.3)  # those with as many heads stand beside each other
        assert risk == cell("as_is", model)[0]
        np.testing.assert_allclose(bars(above, NOTES[model]), [cell("as_is", model)])
        assert above.get_xlim()[0] < removed < above.get_xlim()[1]  # one that leaves no head too
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in above.containers}
    assert len(looks) == len(others)
    path = line(above, "greedy removal")
    np.testing.assert_allclose(path.get_xydata(), [[0, 1 / 4], [1, 1 / 3], [2, 1 / 2], [3, 1]])
    np.testing.assert_allclose(band(above, 3), (0.9, 1.3))
    assert line(above, "full model").get_ydata()[0] == 0.25
    np.testing.assert_array_equal(below.images[0].get_array(), [[2, 2, 1, 1], [2, 1, 1, 0]])
    assert texts(below) == ["2", "2", "1", "1", "2", "1", "1", "0"]
    assert [below.xaxis.get_major_formatter()(removed, None) for removed in (0, 3)] == ["4", "1"]
    assert_nothing_covers_anything(figure)


def test_strategies_of_as_many_heads_do_not_hide_each_other():
    above, _ = pruning.greedy_path(measured()).axes
    places = [c.lines[0].get_xdata()[0] for c in above.containers if c.get_label() in (NOTES["paper"], NOTES["top"])]
    assert abs(places[0] - places[1]) > 0.1
