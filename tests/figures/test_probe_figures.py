"""What the figures of linear probes show, read back from their artists."""

import numpy as np
import pytest
from artists import arrows, assert_nothing_covers_anything, bars, line

from lightning_icl.figures import probe_map, probe_risks
from lightning_icl.record.rows import Row, frame

TARGETS = ("f", "w", "preprocessed", "gd_1", "preprocess_then_gd_2")


def r2(token, target, layer):
    return round(0.3 * layer + 0.01 * TARGETS.index(target) - 0.2 * (token == "context"), 2)


def rows(depth=3, bayes=0.1):
    found = []
    for layer in range(depth + 1):
        for arm, risk in (("trained", 1 / (1 + layer)), ("untrained", 0.97), ("shuffled", 1.02)):
            found.append(Row(f"probe/query/f/{arm}/risk", risk, risk - 0.01, risk + 0.03, layer))
        for token in ("query", "context"):
            for target in TARGETS:
                place, value = f"probe/{token}/{target}", r2(token, target, layer)
                if (token, target) == ("context", "w"):  # a constant
                    found += [Row(f"{place}/trained/r2", None, layer=layer)]
                    continue
                found.append(Row(f"{place}/trained/r2", value, value - 0.05, value + 0.1, layer))
                found.append(Row(f"{place}/selectivity/untrained", value - 0.5, value - 0.6, value - 0.4, layer))
                found.append(Row(f"{place}/selectivity/shuffled", 0.77, 0.7, 0.8, layer))
                found.append(Row(f"{place}/shuffled/r2", -0.03, -0.1, 0.1, layer))
    for layer in range(1, depth + 1):
        found.append(Row("probe/curve/gd", 0.9**layer, 0.3, 0.95, layer))
        found.append(Row("probe/curve/preprocess_then_gd", 0.5**layer, 0.001, 0.6, layer))
    levels = {"transformer": 0.4, "ridge": 0.6, "bayes": bayes}
    return frame([*found, *(Row(f"probe/level/{name}", v, v - 0.01, v + 0.02) for name, v in levels.items())])


def test_probe_controls_and_descent_have_their_risks_by_layer():
    axes = probe_risks(rows()).axes[0]
    trained = [(1 / k, 1 / k - 0.01, 1 / k + 0.03) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(bars(axes, "probe"), trained)
    np.testing.assert_allclose(bars(axes, "probe, untrained network"), [(0.97, 0.96, 1.0)] * 4)
    np.testing.assert_allclose(bars(axes, "probe, shuffled labels"), [(1.02, 1.01, 1.05)] * 4)
    np.testing.assert_allclose(bars(axes, "GD, layer - 1 steps"), [(0.9**k, 0.3, 0.95) for k in (1, 2, 3)])
    places = {c.get_label(): c.lines[0].get_xdata().tolist() for c in axes.containers}
    assert places["probe"] == [0, 1, 2, 3]
    assert places["preprocess + GD, layer - 1 steps"] == [1, 2, 3]
    assert line(axes, "ridge, 0.600").get_ydata() == [0.6, 0.6]
    assert line(axes, "the model, 0.400").get_ydata() == [0.4, 0.4]


def test_no_two_lines_share_a_marker():
    axes = probe_risks(rows()).axes[0]
    markers = [container.lines[0].get_marker() for container in axes.containers]
    assert len(set(markers)) == len(markers) == 5


def test_a_level_out_of_reach_is_an_arrow():
    axes = probe_risks(rows(bayes=50.0)).axes[0]
    assert [marker for _, _, marker, _ in arrows(axes)] == ["^"]
    assert axes.get_ylim()[1] < 2


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("draw", [probe_risks, probe_map])
def test_nothing_covers_anything(draw, depth):
    assert_nothing_covers_anything(draw(rows(depth)))


@pytest.mark.parametrize("depth", [3, 8])
def test_the_map_has_every_target_and_layer_of_both_kinds_of_token(depth):
    figure = probe_map(rows(depth))
    tables = {axes.get_title(): axes for axes in figure.axes if axes.images and axes.get_title()}
    assert list(tables) == ["query: R²", "query: above untrained", "context: R²", "context: above untrained"]
    for token in ("query", "context"):
        wanted = np.array([[r2(token, target, layer) for layer in range(depth + 1)] for target in TARGETS])
        if token == "context":
            wanted[1] = np.nan
        found = np.ma.filled(tables[f"{token}: R²"].images[0].get_array(), np.nan)
        np.testing.assert_allclose(found, wanted)
        found = np.ma.filled(tables[f"{token}: above untrained"].images[0].get_array(), np.nan)
        np.testing.assert_allclose(found, wanted - 0.5)
    names = [tick.get_text() for tick in tables["query: R²"].get_yticklabels()]
    assert names == ["f(x)", "w", "R̂ x", "GD, 1 step", "preprocess + GD, 2 steps"]


def test_brackets_are_where_the_interval_holds_zero_and_all_is_on_one_scale():
    figure = probe_map(rows())
    query, *others = (axes for axes in figure.axes if axes.get_title())
    said = {text.get_position(): text.get_text() for text in query.texts}
    assert [said[0, row] for row in range(5)] == ["(.00)", "(.01)", "(.02)", "(.03)", "(.04)"]
    assert said[1, 0] == ".30"
    assert len(said) == 20
    assert {axes.images[0].get_clim() for axes in [query, *others]} == {(-0.7, 1.0)}
    assert "at most 0.03)" in figure._suptitle.get_text().replace("\n", " ")
    assert "hatch" not in figure._suptitle.get_text()
