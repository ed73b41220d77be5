"""Which algorithm a layer's reading is closest to."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator

from lightning_icl.figures import style

FARTHEST = 1.25  # where colours and axes end: 1 is the zero predictor, and least squares at n = d has no mean
EQUAL = 1e-12  # below is rounding
SYMBOLS = {"steps": "t", "step": "c", "gamma": "\u03b3", "alpha": "\u03b1", "features": "s"}
READINGS = {"read_out": "read-out", "probe": "probe"}
KINDS = {"relative_spd": "predictions", "relative_ilwd": "implied weights"}
SIDE_BY_SIDE = 4  # readings of maps that stand so


def algorithm_match(rows: pd.DataFrame) -> Figure:
    """Above, relative distances of every reading at the most examples; below, of the model's prediction, over examples.

    From algorithm/<reading>/<algorithm>/..., with the algorithm in words as the note of relative_spd.
    """
    found = style.cells(rows, r"algorithm/(?P<reading>\w+)/(?P<algorithm>[^/]+)/(?P<number>.+)")
    found["place"] = found["reading"].map(READINGS) + "\nlayer " + found["layer"].astype(str)
    own = found["reading"] == "read_out"
    if found["layer"][own].nunique() == 1:
        found.loc[own, "place"] = "prediction"
    n = found["n_points"].max()
    whole = found[found["n_points"] == n]
    names, readings = _names(whole), whole["place"].unique().tolist()
    tall, wide = 0.8 + 0.5 * len(names), 1.4 + 1.05 * len(readings)
    beside = len(readings) <= SIDE_BY_SIDE
    maps = [list(KINDS)] if beside else [[number] * 2 for number in KINDS]
    ratios = [tall] * len(maps) + [2.6]
    size = max(6.9, 2 * wide - 1 if beside else wide), sum(ratios) + 1.0
    figure = Figure(figsize=size, layout="constrained")
    axes: dict[Any, Axes] = figure.subplot_mosaic([*maps, [0, 1]], height_ratios=ratios)  # type: ignore[list-item]
    for i, (number, said) in enumerate(KINDS.items()):
        _map(axes[number], whole, number, names, readings)
        if beside and i:
            axes[number].set_yticks([])
        axes[number].set_title(f"{said}, {n} examples", size=10)
        last = own & (found["layer"] == found["layer"][own].max())
        _by_points(axes[i], found[last & (found["number"] == number)], names)
        axes[i].set_title(f"the model's {said}", size=10)
    axes[0].set_ylabel("relative distance", size=9)
    style.legend(figure)
    style.title(
        figure,
        "How far readings are from the closest member of each family (± and bars: 95 %)\n"
        "0: the same, 1: no closer than 0 is; frames: the closest, dashed: not told from it\n"
        "read-out: the model's own; probe: the best linear use of the state for f, up to scale",
    )
    return figure


def _names(whole: pd.DataFrame) -> dict[str, str]:
    """Each algorithm in words, without the settings it was fitted to but with its step-size rule."""
    stepped = set(whole[whole["number"] == "setting/step"]["algorithm"])
    names = {}
    for row in whole[whole["number"] == "relative_spd"].drop_duplicates("algorithm").itertuples():
        rule = "\nsteps c/λmax" if "/λmax" in row.note else "\none step size c"
        words = row.note.split(",")[0].removesuffix(" (exact posterior mean)")
        names[row.algorithm] = words + rule * (row.algorithm in stepped)
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def _map(axes: Axes, whole: pd.DataFrame, number: str, names: dict[str, str], readings: list[str]) -> None:
    """One row an algorithm, one column a reading; beside predictions the settings of the closest member."""
    whole = whole.assign(row=whole["algorithm"].map(list(names).index), column=whole["place"].map(readings.index))
    found = whole[(whole["number"] == number) & np.isfinite(whole["mean"])].set_index(["row", "column"])
    texts = {cell.Index: _said(cell.mean, cell.high - cell.mean) for cell in found.itertuples()}
    frames: dict[Any, str] = {}
    if number == "relative_spd":
        settings = whole[whole["number"].str.startswith("setting/")]
        for place, said in settings.groupby(["row", "column"]):
            keys = said["number"].str.removeprefix("setting/").map(SYMBOLS)  # a probe's scale has none
            words = " ".join(f"{key}={value:.2g}" for key, value in zip(keys, said["mean"], strict=True) if key == key)
            texts |= {place: f"{texts[place]}\n{textwrap.fill(words, 16)}".strip()} if place in texts else {}
        alike = whole[(whole["number"] == "excess_over_closest") & (whole["low"] <= 0)]
        frames = dict.fromkeys(zip(alike["row"], alike["column"], strict=True), "--")
    ranks = whole[whole["number"] == "rank"]
    named = ranks[ranks["mean"] == 1].set_index(["row", "column"]).index.intersection(found.index)
    frames |= dict.fromkeys(named, "-")
    for column in ranks[ranks["mean"] == 0]["column"].unique():
        axes.text(column, (len(names) - 1) / 2, "reads 0", rotation=90, ha="center", va="center", size=9)
    found = found.assign(text=[texts[place] for place in found.index]).reset_index()
    style.cell_map(axes, found, list(names.values()), readings, ends=(0.0, FARTHEST), size=8.0)
    for (row, column), ls in frames.items():
        frame: style.Style = {"fill": False, "edgecolor": "black", "ls": ls, "lw": 2.2 if ls == "-" else 1.2}
        axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, **frame))


def _said(distance: float, half: float) -> str:
    if distance < EQUAL:
        return "0"
    return f"{distance:.2g} ±{half:.1g}" if distance < 10 else "> 10"


def _by_points(axes: Axes, found: pd.DataFrame, names: dict[str, str]) -> None:
    """A line an algorithm; one that is beyond the axes has an arrow at the edge, and its line ends before."""
    for i, (algorithm, name) in enumerate(names.items()):
        line = found[found["algorithm"] == algorithm].sort_values("n_points")
        x = style.apart(line["n_points"], i, len(names), found["n_points"])
        inside = line.assign(mean=line["mean"].where(line["mean"] <= FARTHEST))
        style.over(axes, x, inside, lw=1.2, ms=4, label=name.replace("\n", " "), **style.look(i))
        for place in x[line["mean"] > FARTHEST]:
            style.edge(axes, place, True, **style.look(i))
    axes.axhline(1, color="black", lw=0.8, ls=":")
    places = sorted(found["n_points"].astype(float).unique())
    # style.apart moves a point by up to a fifth of a gap.
    room = max(0.5, 0.06 * np.ptp(places), 0.2 * min(np.diff(places), default=0.0))
    axes.set(xlim=(places[0] - room, places[-1] + room), ylim=(0, FARTHEST))
    axes.xaxis.set_major_locator(FixedLocator(places) if len(places) < 6 else MaxNLocator(5, integer=True))
    axes.set_xlabel("number of in-context examples n", size=9)
    axes.grid(alpha=0.2)
