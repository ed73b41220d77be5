"""Axes side by side, and what is drawn in them: means over seeds with their intervals."""

import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from lightning_icl.callbacks.figures.style import is_wide
from lightning_icl.studies.names import heads_label, in_order
from lightning_icl.studies.table import uniform_heads

# Warm and gray, with lines that differ too, since heads have the cool colours (after Okabe and Ito 2008).
REFERENCES: dict[str, dict[str, Any]] = {
    "ridge": {"color": "#d55e00", "ls": "--"},
    "lasso": {"color": "#e69f00", "ls": "-."},
    "gd_at_depth": {"color": "#cc79a7", "ls": ":"},
    "gd_best": {"color": "#cc79a7", "ls": (0, (1, 3))},
    "preprocess_then_gd_at_depth": {"color": "#8b1a4a", "ls": ":"},
    "preprocess_then_gd_best": {"color": "#8b1a4a", "ls": (0, (1, 3))},
    "bayes": {"color": "black", "ls": "--"},
    "oracle_support": {"color": "0.55", "ls": "-."},
    "zero": {"color": "0.7", "ls": ":"},
}
OTHER = {"color": "sienna", "ls": (0, (5, 1, 1, 1, 1, 1))}
MARKERS = "osD^vP*X"

FURTHEST = 3.0  # times the largest mean: how far an axis follows the intervals, which of two seeds are huge
DEEPEST = 0.01  # times the model's smallest risk: below lie references that are exact without noise


def panels(n: int, width: float, height: float, legend: float = 0.0, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of n axes of this size in inches, four of them as two by two; ``legend`` is room at the right."""
    across = n if n <= 3 else 2 if n == 4 else 3
    down = -(-n // across)
    figure = Figure(figsize=(0.6 + across * width + legend, 0.5 + down * height), layout="constrained")
    every = figure.subplots(down, across, squeeze=False, **options).flatten().tolist()
    for axes in every[n:]:
        axes.remove()
    return figure, every[:n]


def set_title(axes: Axes, title: str, width: int = 44) -> None:
    """A panel's setting, wrapped."""
    axes.set_title("\n".join(textwrap.wrap(title, width)), size=10)


def legend_beside(figure: Figure) -> None:
    """One legend for all panels, outside of them."""
    _legend(figure, loc="outside right center", fontsize=8, frameon=False)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all panels, below them."""
    _legend(figure, loc="outside lower center", fontsize=8, frameon=False, ncols=columns)


def _legend(figure: Figure, **options: Any) -> None:
    known: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    # Plain lines come first else, and head counts that the first panel lacks come last.
    ordered = sorted(known, key=lambda label: (not isinstance(known[label], Container), _heads_in(label)))
    figure.legend([known[label] for label in ordered], ordered, **options)


def _heads_in(label: str) -> float | int:
    """The number of heads that a label ends with; without end where it names none."""
    found = re.search(r"(\d+) heads?$", label)
    return int(found[1]) if found else math.inf


def bars(cells: pd.DataFrame) -> np.ndarray:
    """Lengths of error bars (2, n), NaN for a seed alone."""
    mean, low, high = (cells[column].to_numpy(dtype=float) for column in ("mean", "low", "high"))
    return np.where(np.isfinite(high), [mean - low, high - mean], np.nan)


def over(axes: Axes, x: ArrayLike, cells: pd.DataFrame, **style: Any) -> None:
    """A line of means with error bars; what is below 0 leaves a logarithmic axis at its foot."""
    axes.errorbar(np.asarray(x, dtype=float), cells["mean"], bars(cells), capsize=2, elinewidth=1, **style)


def band(axes: Axes, x: ArrayLike, cells: pd.DataFrame, alpha: float = 0.12, **style: Any) -> None:
    """A line of means with a band, where there are too many places for error bars."""
    x, lengths = np.asarray(x, dtype=float), bars(cells)
    axes.plot(x, cells["mean"], **style)
    axes.fill_between(
        x, cells["mean"] - lengths[0], cells["mean"] + lengths[1], color=style["color"], alpha=alpha, lw=0
    )


def apart(x: ArrayLike, line: int, n: int, places: ArrayLike, log: bool = False) -> np.ndarray:
    """The places x of one of n lines, moved so that no bar hides another, but not far from where they are.

    How far goes by the ``places`` of all lines, of which a line may have but one. Where all have the same single one,
    they are moved as if the next were 1 away, and the axis needs limits of its own to show it so.
    """
    x, every = (np.asarray(values, dtype=float) for values in (x, places))
    at, every = (np.log(x), np.log(every)) if log else (x, every)
    gap, length = min(np.diff(np.unique(every)), default=1.0), np.ptp(every)
    moved = at + min(0.4 / n * gap, max(0.03 * gap, 0.012 * length)) * (line - (n - 1) / 2)
    return np.exp(moved) if log else moved


def level(axes: Axes, cell: Any, along: str = "x", **style: Any) -> None:
    """A mean that does not depend on the axis it is drawn along, with its interval as a band."""
    line, band = (axes.axhline, axes.axhspan) if along == "x" else (axes.axvline, axes.axvspan)
    line(cell.mean, lw=1.3, **style)
    if math.isfinite(cell.high):
        band(cell.low, cell.high, color=style["color"], alpha=0.08, lw=0)


def risk_limits(model: pd.DataFrame, others: pd.DataFrame | None = None) -> tuple[float, float, bool]:
    """Where an axis of risks begins and ends, and whether it is logarithmic.

    All of the model's means are inside, and of its intervals what is within reach; of the ``others`` the means that
    are neither far above nor far below the model's.
    """
    means = model["mean"].tolist()
    bottom, top = DEEPEST * min(means), FURTHEST * max(means)
    near = means + [m for m in (others["mean"] if others is not None else []) if bottom <= m <= top]
    ends = [high for high in model["high"] if math.isfinite(high)]
    highest = max(near + [min(end, FURTHEST * max(near)) for end in ends])
    lows = [max(low, mean / FURTHEST) for low, mean in zip(model["low"], model["mean"], strict=True)]
    if is_wide(near):
        return 0.8 * min(near + lows), 1.25 * highest, True
    return min(0.0, *near), 1.06 * highest, False


def limit_risks(axes: Axes, limits: tuple[float, float, bool], along: str = "y") -> None:
    """Give an axis these limits, as risk_limits found them."""
    low, high, log = limits
    axis = axes.yaxis if along == "y" else axes.xaxis
    if log:
        (axes.set_yscale if along == "y" else axes.set_xscale)("log")
        axis.set_major_formatter("{x:g}")
        # Two decades have too few whole powers of ten to read.
        axis.set_minor_formatter(_some_minor if high < 100 * low else NullFormatter())
        axis.set_tick_params(which="minor", labelsize=8)
    (axes.set_ylim if along == "y" else axes.set_xlim)(low, high)
    axes.grid(which="both" if log else "major", alpha=0.2)


def _some_minor(value: float, _: Any = None) -> str:
    """The label of a minor tick at 2 or 5 times a power of ten."""
    digit = round(value / 10 ** math.floor(math.log10(value)))
    return f"{value:g}" if digit in (2, 5) else ""


def head_styles(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each head configuration's label: ordered colours by h, black for layers that differ."""
    ordered = in_order(texts)
    uniform = list(dict.fromkeys(heads_label(text) for text in ordered if uniform_heads(text) is not None))
    others = list(dict.fromkeys(heads_label(text) for text in ordered if uniform_heads(text) is None))
    styles = {
        label: {"color": colour, "marker": MARKERS[i % len(MARKERS)]}
        for i, (label, colour) in enumerate(zip(uniform, ordered_colours(len(uniform)), strict=True))
    }
    return styles | {label: {"color": "black", "marker": "D"} for label in others}


def ordered_colours(n: int) -> list[Any]:
    """n colours from dark to light that also the colour-blind see in order."""
    return list(colormaps["viridis"](np.linspace(0, 0.85, n)))


def reference_style(name: str) -> dict[str, Any]:
    return REFERENCES.get(name, OTHER)
