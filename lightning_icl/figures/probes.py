"""What the states know linearly: rows probe/..., listed in lightning_icl.record.rows."""

import itertools
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.style import ESTIMATORS, GREY, MODEL, PURPLE, WINE, Limits, Style

PROBE = "probe/query/f/trained/risk"
LEVEL = "probe/level/"
# What stands beside the probe, by metric.
BESIDE: dict[str, tuple[str, Style]] = {
    "probe/query/f/untrained/risk": ("probe, untrained network", {"color": "black", "marker": "D", "ls": ":"}),
    "probe/query/f/shuffled/risk": ("probe, shuffled labels", {"color": GREY, "marker": "x", "ls": ":"}),
    "probe/curve/gd": ("GD, layer - 1 steps", {"color": PURPLE, "marker": "s", "ls": "--"}),
    "probe/curve/preprocess_then_gd": ("preprocess + GD, layer - 1 steps", {"color": WINE, "marker": "^", "ls": "-."}),
    f"{LEVEL}{MODEL}": ("the model", ESTIMATORS[MODEL][1]),
    f"{LEVEL}ridge": ESTIMATORS["ridge"],
    f"{LEVEL}bayes": ESTIMATORS["bayes"],
}
NAMES = {"f": "f(x)", "preprocessed": "R̂ x", "r_hat": "r̂", "gd": "GD", "preprocess_then_gd": "preprocess + GD"}
COLUMNS = {"trained/r2": "R²", "selectivity/untrained": "above untrained"}
WIDE = 7  # layers from which the maps stand one below the other


def probe_risks(rows: pd.DataFrame) -> Figure:
    """Excess risk of the probe for f(x_q) by depth and of its controls, beside GD after layer - 1 steps and levels."""
    trained, beside = style.cells(rows, PROBE), style.cells(rows, "|".join(BESIDE))
    figure, (axes,) = style.panels(1, 5.0, 3.9)
    look = ESTIMATORS[MODEL][1] | {"lw": 2, "zorder": 4}
    risk_by_layer(axes, {"probe": (trained, look)}, beside, style.risk_limits(trained, beside), numbers=True)
    style.legend(figure)
    style.title(figure, "Linear probe of the query's state for f(x_q), by layer")
    return figure


def risk_by_layer(
    axes: Axes, probes: Mapping[str, tuple[pd.DataFrame, Style]], beside: pd.DataFrame, limits: Limits,
    numbers: bool = False,
) -> None:  # fmt: skip
    """One panel: cells with layer by label, and what stands beside them, cells with metric (one of BESIDE) and layer.

    ``numbers`` puts those of the lines across into the legend, where there is one panel.
    """
    style.lines(axes, "layer", probes, ms=5)
    for metric, (label, look) in BESIDE.items():
        found = beside[beside["metric"] == metric]
        if not metric.startswith(LEVEL) and len(found):
            style.over(axes, found["layer"], found, label=label, **(Style(ms=4, lw=1.2) | look))
        for cell in found.itertuples() if metric.startswith(LEVEL) else ():
            style.level(axes, cell, limits, label=label + f", {style.number(cell.mean)}" * numbers, **look)
    style.limit(axes, limits)
    axes.set_xticks(range(int(max(found["layer"].max() for found, _ in probes.values())) + 1))
    axes.set(xlabel="layer (0 is the read-in)", ylabel=style.RISK_WITH_BARS)


def probe_map(rows: pd.DataFrame) -> Figure:
    """R^2 of every target by layer, and how far it is above the untrained network's; of query and context states."""
    found = style.cells(rows, rf"probe/(?P<token>query|context)/(?P<target>\w+)/(?P<kind>{'|'.join(COLUMNS)})")
    tokens, targets = list(dict.fromkeys(found["token"])), list(dict.fromkeys(found["target"]))
    layers = int(found["layer"].max()) + 1
    ends = max(-1.0, min(0.0, found["mean"].min())), 1.0
    found = found.assign(row=found["target"].map(targets.index), column=found["layer"]).dropna(subset="mean")
    found["text"] = found["mean"].map(_short)
    found["text"] = found["text"].where((found["low"] > 0) | (found["high"] < 0), "(" + found["text"] + ")")
    across = 1 if layers > WIDE else 2
    down = len(tokens) * 2 // across
    size = max(style.WIDTH, 2.6 + across * 0.42 * layers), 1.2 + down * (0.5 + 0.23 * len(targets))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True, sharex=True)
    for axes, (token, kind) in zip(grid.flat, itertools.product(tokens, COLUMNS), strict=True):
        shown, names = found[(found["token"] == token) & (found["kind"] == kind)], list(map(target_label, targets))
        image = style.cell_map(axes, shown, names, list(map(str, range(layers))), ends=ends, size=7.5)
        axes.set_title(f"{token}: {COLUMNS[kind]}", size=9)
    for axes in grid[-1]:
        axes.set_xlabel("layer (0 is the read-in)", size=9)
    figure.colorbar(image, ax=grid, pad=0.02, shrink=0.7, aspect=30).set_label("R², or difference of R²", size=9)
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
    by_chance = style.parts(rows, r"probe/\w+/\w+/shuffled/r2")["value"].abs().max()
    said = f"; with shuffled labels |R²| is at most {by_chance:.2g}" if np.isfinite(by_chance) else ""
    how = f"(in brackets: the 95 % interval holds 0; grey: no R², as of a constant{said})"
    style.title(figure, f"What the states know linearly of each target\n{how}", size=9)
    return figure


def target_label(target: str) -> str:
    """A target in words: "gd_2" -> "GD, 2 steps"."""
    name, _, steps = target.rpartition("_")
    if re.fullmatch(r"(preprocess_then_)?gd_\d+", target):
        return f"{NAMES[name]}, {steps} step{'s' * (steps != '1')}"
    return NAMES.get(target, target.replace("_", " "))


def _short(value: float) -> str:
    return f"{value:z.2f}".replace("0.", ".") if abs(value) < 10 else f"{value:.0f}"
