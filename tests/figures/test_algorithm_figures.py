"""What the figure of algorithms shows: distances of readings, the closest of them, and none joined across a gap."""

import itertools

import numpy as np
import pytest
from artists import arrows, assert_nothing_covers_anything, bars, texts
from conftest import small_data, small_module
from matplotlib.patches import Rectangle

from lightning_icl.callbacks.algorithm_match import distance_rows
from lightning_icl.figures import algorithms
from lightning_icl.instruments.algorithms import algorithm_distances, closest, default_algorithms
from lightning_icl.record.rows import Row, frame

NOTES = {
    "gd": "GD, 3 steps of 0.9/λmax (best up to 50)",
    "ridge": "ridge, alpha 0.5 (fitted)",
    "least_squares": "least squares",
    "bayes": "Bayes (exact posterior mean)",
}
SETTINGS = {"gd": {"step": 0.9, "steps": 3.0}, "ridge": {"alpha": 0.5}}
SIZES = (4, 8, 16)


def distance(algorithm, layer, n, number):
    value = 0.1 * (1 + list(NOTES).index(algorithm)) + 0.01 * layer + 0.001 * n
    return 30.0 if (algorithm, n) == ("least_squares", 8) else value * (2 if number == "relative_ilwd" else 1)


def measured(layers=2, sizes=SIZES, zero=()):
    """Both readings of all layers; those of the pairs ``zero`` read 0."""
    rows = []
    for n, reading, layer in itertools.product(sizes, ("read_out", "probe"), range(1, layers + 1)):
        reads = (reading, layer) not in zero
        for rank, (algorithm, note) in enumerate(NOTES.items(), start=1):
            name, place = f"algorithm/{reading}/{algorithm}", {"layer": layer, "n_points": n}
            for number in algorithms.KINDS:
                value = distance(algorithm, layer, n, number) if reads else np.nan
                said = note if number == "relative_spd" else None
                rows.append(Row(f"{name}/{number}", value, 0.7 * value, 1.25 * value, note=said, **place))
            rows.append(Row(f"{name}/spd", 99.0, 98.0, 100.0, **place))
            rows += [Row(f"{name}/setting/{key}", x, **place) for key, x in SETTINGS.get(algorithm, {}).items()]
            rows.append(Row(f"{name}/setting/scale", 7.0, **place))
            low = {"gd": 0.0, "ridge": -0.01}.get(algorithm, 0.02) if reads else np.nan
            rows.append(Row(f"{name}/excess_over_closest", 0.03, low, 0.08, **place))
            rows.append(Row(f"{name}/rank", rank * reads, **place))
    return frame(rows)


PLACES = [f"{reading}\nlayer {layer}" for reading in ("read-out", "probe") for layer in (1, 2)]


def by_title(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def test_maps_hold_the_distances_at_the_most_examples():
    figure = algorithms.algorithm_match(measured())
    for title, number in (
        ("predictions, 16 examples", "relative_spd"),
        ("implied weights, 16 examples", "relative_ilwd"),
    ):
        axes = by_title(figure, title)
        wanted = [[distance(algorithm, layer, 16, number) for layer in (1, 2, 1, 2)] for algorithm in NOTES]
        np.testing.assert_allclose(axes.images[0].get_array(), wanted)
        assert [label.get_text() for label in axes.get_xticklabels()] == PLACES
    axes = by_title(figure, "predictions, 16 examples")
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["GD\nsteps c/λmax", "ridge", "least squares", "Bayes"]
    value = distance("gd", 1, 16, "relative_spd")
    assert texts(axes)[0] == f"{value:.2g} ±{0.25 * value:.1g}\nc=0.9 t=3"  # half of the interval
    assert sum(f"{algorithms.SYMBOLS['alpha']}=0.5" in text for text in texts(axes)) == 4
    assert not any("=" in text for text in texts(by_title(figure, "implied weights, 16 examples")))
    assert_nothing_covers_anything(figure)


def frames(axes):
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return {
        (round(p.get_y() + 0.45), round(p.get_x() + 0.47)): {"-": "solid", "--": "dashed"}.get(
            p.get_linestyle(), p.get_linestyle()
        )
        for p in found
    }


def test_the_closest_is_framed_and_what_cannot_be_told_from_it_lightly():
    figure = algorithms.algorithm_match(measured())
    closest = {(0, column): "solid" for column in range(4)}
    alike = {(1, column): "dashed" for column in range(4)}
    assert frames(by_title(figure, "predictions, 16 examples")) == closest | alike
    assert frames(by_title(figure, "implied weights, 16 examples")) == closest


def test_a_reading_of_0_has_no_distances_and_says_so():
    figure = algorithms.algorithm_match(measured(zero=[("read_out", 1)]))
    for title in ("predictions, 16 examples", "implied weights, 16 examples"):
        axes = by_title(figure, title)
        assert np.isnan(axes.images[0].get_array().filled(np.nan)[:, 0]).all()
        assert texts(axes).count("reads 0") == 1
        assert {column for _, column in frames(axes)} == {1, 2, 3}


def test_frames_are_those_of_the_distances_that_the_callback_writes():
    data = small_data()
    prompts = [data.held_out(name, n) for name, n in (("fit", 40), ("choose", 20), ("score", 20))]
    known = default_algorithms(data.task, max_steps=8)
    found = algorithm_distances(small_module().network, *prompts, data.task, known, [5])
    figure = algorithms.algorithm_match(frame(row for d in found for row in distance_rows(d, 20)))
    names = list(dict.fromkeys(d.algorithm for d in found))
    readings = list(dict.fromkeys((d.reading, d.layer) for d in found))
    wanted = {}
    for column, reading in enumerate(readings):
        first, *alike = closest(found, *reading, 5)
        wanted |= {(names.index(d.algorithm), column): "dashed" for d in alike}
        wanted[names.index(first.algorithm), column] = "solid"
    assert len(readings) < len(wanted) < len(found)  # some cannot be told from the closest, and some can
    assert frames(by_title(figure, "predictions, 5 examples")) == wanted


def test_a_line_has_bars_from_low_to_high_over_the_numbers_of_examples():
    axes = by_title(algorithms.algorithm_match(measured()), "the model's predictions")
    wanted = [[v, 0.7 * v, 1.25 * v] for n in SIZES for v in [distance("bayes", 2, n, "relative_spd")]]
    np.testing.assert_allclose(bars(axes, "Bayes"), wanted)
    places = next(c for c in axes.containers if c.get_label() == "Bayes").lines[0].get_xdata()
    np.testing.assert_allclose(places, SIZES, atol=0.5)
    assert axes.get_ylim() == (0, 1.25)
    assert [drawn.get_ydata()[0] for drawn in axes.lines if drawn.get_linestyle() == ":"] == [1]


def test_a_distance_beyond_the_axes_is_an_arrow_at_the_edge_and_nothing_is_joined_across():
    axes = by_title(algorithms.algorithm_match(measured()), "the model's predictions")
    line = next(c for c in axes.containers if c.get_label() == "least squares").lines[0]
    assert np.isnan(np.array(line.get_ydata(), dtype=float)).tolist() == [False, True, False]
    ((place, height, marker, colour),) = arrows(axes)
    assert place == pytest.approx(8, abs=0.5)
    assert (height > 0.95, marker, colour) == (True, "^", line.get_color())


@pytest.mark.parametrize("layers", [1, 8])
def test_few_and_many_layers_are_drawn(layers):
    figure = algorithms.algorithm_match(measured(layers, sizes=(16,)))
    assert by_title(figure, "predictions, 16 examples").images[0].get_array().shape == (4, 2 * layers)
    assert_nothing_covers_anything(figure)


def test_a_model_that_diverged_is_drawn_without_numbers():
    rows = measured()
    rows[["value", "low", "high"]] = np.nan
    assert texts(by_title(algorithms.algorithm_match(rows), "predictions, 16 examples")) == []


def test_algorithms_of_one_name_go_by_their_keys():
    rows = measured()
    rows.loc[rows["note"] == NOTES["bayes"], "note"] = "ridge, alpha 1 (told)"
    axes = by_title(algorithms.algorithm_match(rows), "predictions, 16 examples")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NOTES)


def test_lines_of_many_algorithms_stay_within_the_axes(monkeypatch):
    """They are moved apart by parts of a gap, which between 4 and 40 examples is a wide one."""
    monkeypatch.setitem(globals(), "NOTES", {f"gd_{i}": f"GD, {i} steps" for i in range(24)})
    *_, by_points = algorithms.algorithm_match(measured(layers=1, sizes=(4, 40))).axes
    low, high = by_points.get_xlim()
    places = np.concatenate([bar.get_paths()[0].vertices[:, 0] for bar in by_points.collections if bar.get_paths()])
    assert len(places)
    assert low < places.min()
    assert places.max() < high
