"""Which algorithm a layer's reading is closest to."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lightning_icl.callbacks.figures.style import COLOURS
from lightning_icl.instruments.algorithms import READ_OUT, Distance

FARTHEST = 1.25  # where colours and axes end: 1 is the zero predictor, and least squares at n = d has no mean
SYMBOLS = {
    "steps": "t",
    "step": "c",
    "gamma": "\N{GREEK SMALL LETTER GAMMA}",
    "alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "features": "s",
}
KINDS = {"relative_spd": "predictions", "relative_ilwd": "implied weights"}


def algorithm_match(found: Sequence[Distance]) -> Figure:
    """Above, relative distances of every reading at the most examples; below, the model's by number of examples."""
    n_points = max(d.n_points for d in found)
    whole = [d for d in found if d.n_points == n_points]
    readings = list(dict.fromkeys(d.reading for d in whole))
    names = _names(whole)
    heights = 0.9 + 0.42 * len(names), 3.6
    figure = Figure(figsize=(4.4 + 2 * max(3.4, 0.95 * len(readings)), sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=heights)
    for column, (kind, name) in zip(axes.T, KINDS.items(), strict=True):
        image = _map(column[0], whole, kind, list(names), readings)
        column[0].set_title(f"{name}, n = {n_points} examples, ± standard error")
        _by_points(column[1], [d for d in found if d.reading == READ_OUT], kind, names)
        column[1].set_title(f"{name}, the model's own read-out")
    axes[0, 0].set_yticks(range(len(names)), list(names.values()))
    axes[0, 1].set_yticks([])
    axes[1, 0].set_ylabel("relative distance, 95 % interval")
    figure.colorbar(image, ax=axes[0], label="relative distance", extend="max")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(
        "How far each layer's reading is from the closest member of each family\n"
        "0: the same, 1: no closer than predicting 0; red frame: the closest; settings fitted on other prompts"
    )
    return figure


def _names(whole: Sequence[Distance]) -> dict[str, str]:
    """Each algorithm in words, without the settings it was fitted to but with its step-size rule."""
    names = {}
    for d in whole:
        rule = ""
        if "step" in d.setting:
            rule = ",\nsteps c/λmax" if "/λmax" in d.label else ",\none step size c"
        names[d.algorithm] = d.label.split(",")[0].removesuffix(" (exact posterior mean)") + rule
    unique = len(set(names.values())) == len(names)
    return names if unique else {key: key for key in names}


def _map(
    axes: Axes, whole: Sequence[Distance], kind: str, algorithms: Sequence[str], readings: Sequence[str]
) -> AxesImage:
    """One row an algorithm, one column a reading, with the settings of the closest member."""
    table = np.full((len(algorithms), len(readings)), np.nan)
    for d in whole:
        row, column = algorithms.index(d.algorithm), readings.index(d.reading)
        table[row, column] = value = getattr(d, kind)
        text = _number(value, getattr(d, f"{kind}_error"))
        if d.setting:
            text += "\n" + " ".join(f"{SYMBOLS[name]}={setting:.2g}" for name, setting in d.setting.items())
        axes.text(column, row, text, ha="center", va="center", size=7, color="white" if value < 0.35 else "black")
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=FARTHEST, aspect="auto")
    for column in range(len(readings)):  # the closest family of each reading
        best = int(np.nan_to_num(table[:, column], nan=np.inf).argmin())
        axes.add_patch(_frame(column, best))
    axes.set_xticks(range(len(readings)), [_short(reading) for reading in readings])
    return image


def _by_points(axes: Axes, found: Sequence[Distance], kind: str, names: dict[str, str]) -> None:
    for i, (algorithm, name) in enumerate(names.items()):
        line = sorted((d for d in found if d.algorithm == algorithm), key=lambda d: d.n_points)
        # What lies beyond the axes is left out, its interval too.
        values = np.array([(d.n_points, getattr(d, kind), 1.96 * getattr(d, f"{kind}_error")) for d in line])
        values = values[values[:, 1] <= FARTHEST]
        axes.errorbar(*values.T, marker=".", capsize=2, lw=1.2, color=COLOURS[i % len(COLOURS)], label=_flat(name))
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set_ylim(0, FARTHEST)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("number of in-context examples n")
    axes.grid(alpha=0.25)


def _number(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.1g}" if value < 10 else "> 10"


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="tab:red", lw=2)


def _short(reading: str) -> str:
    return "read-out" if reading == READ_OUT else f"layer {reading.removeprefix('layer')}"


def _flat(name: str) -> str:
    return name.replace("\n", " ")
