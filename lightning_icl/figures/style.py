"""The look that all figures share: what things are called, their colours, how numbers are drawn, and axes of risks.

Every drawing function takes *cells*: a DataFrame with one row a number, the columns ``mean, low, high, n`` (the 95 %
interval from low to high over n seeds; one run has n = 1 and its interval is over prompts) and columns that say where
it stands, such as layer. ``cells`` makes them from a run's rows; studies average over seeds.

The model is blue (of several, dark to light by their heads), solid, with markers; references are warm, grey or black,
and dashed: nothing hangs on colour alone (colours after Okabe and Ito 2008).
"""

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

Style = dict[str, Any]  # what matplotlib's plot takes

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, WINE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8b1a4a"
)  # fmt: skip
GREY = "0.55"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, WINE, SKY, "black", "sienna", GREY)  # of what has none of its own
MARKERS = "osD^vP*X"
EDGE = "beyond the axes"  # gid of the arrows among an axes' lines
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))

WIDTH = 5.6  # inches of a run's figure: its smallest words can be read where TensorBoard shows it 450 pixels wide
RISK = "excess risk (squared label units)"
RISK_WITH_BARS = f"{RISK}\nbars: 95 % intervals"
MODEL = "transformer"

# What an estimator is called, and how it is drawn: in every figure, of a run and of a study.
ESTIMATORS: dict[str, tuple[str, Style]] = {
    MODEL: ("model", {"color": BLUE, "ls": "-", "marker": "o"}),
    "ridge": ("ridge", {"color": VERMILLION, "ls": "--", "marker": "s"}),
    "lasso": ("lasso", {"color": ORANGE, "ls": "-.", "marker": "D"}),
    "bayes": ("Bayes", {"color": "black", "ls": "--", "marker": "v"}),
    "oracle_support": ("oracle (told the support)", {"color": GREY, "ls": "-.", "marker": "*"}),
    "gd_at_depth": ("GD, a step a layer", {"color": PURPLE, "ls": ":", "marker": "^"}),
    "gd_best": ("GD, best stopping", {"color": PURPLE, "ls": (0, (1, 3)), "marker": "P"}),
    "preprocess_then_gd_at_depth": ("preprocess + GD, a step a layer", {"color": WINE, "ls": ":", "marker": "<"}),
    "preprocess_then_gd_best": ("preprocess + GD, best stopping", {"color": WINE, "ls": (0, (1, 3)), "marker": "X"}),
    "least_squares": ("least squares", {"color": "sienna", "ls": (0, (5, 1, 1, 1, 1, 1)), "marker": ">"}),
    "zero": ("zero predictor", {"color": "0.7", "ls": ":", "marker": "x"}),
}
OTHERS = (GREEN, SKY, "olive", "teal")


def estimator_label(name: str) -> str:
    """What an estimator is called, by its key: "gd_best" -> "GD, best stopping"."""
    return ESTIMATORS[name][0] if name in ESTIMATORS else name.replace("_", " ")


def estimator_styles(names: Iterable[str]) -> dict[str, Style]:
    """Colour, line and marker of each; those that are not known by name get what the known ones leave."""
    spare = ({"color": c, "ls": DASHES[i % 5], "marker": "sDPX"[i % 4]} for i, c in enumerate(itertools.cycle(OTHERS)))
    return {name: dict(ESTIMATORS[name][1] if name in ESTIMATORS else next(spare)) for name in dict.fromkeys(names)}


def ordered_colours(n: int) -> list[Any]:
    """n colours from dark to light, in an order that also the colour-blind see: of layers, of head counts."""
    return list(colormaps["viridis"](np.linspace(0, 0.85, n)))


def look(i: int) -> Style:
    """Colour and marker of the i-th of those that have none of their own."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def number(value: float) -> str:
    """A number of three digits, as short as it goes: 0.1234 -> "0.123", 91234.5 -> "9.12e+04"."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e4 else f"{value:#.3g}"


def parts(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows whose whole metric fits the regular expression, with its named groups as columns."""
    pattern = re.compile(metric)
    found = rows["metric"].map(pattern.fullmatch)
    rows, matches = rows[found.notna()], found.dropna()
    return rows.assign(**{name: [match[name] for match in matches] for name in pattern.groupindex})


def cells(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one run whose metric fits, as cells: value is the mean, of n = 1 run."""
    return parts(rows, metric).rename(columns={"value": "mean"}).assign(n=1)


def bars(found: pd.DataFrame) -> np.ndarray:
    """Lengths of error bars, down and up (2, cells); NaN where there is no interval."""
    mean, low, high = (found[column].to_numpy(dtype=float) for column in ("mean", "low", "high"))
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(low) & np.isfinite(high), np.maximum([mean - low, high - mean], 0), np.nan)


def over(axes: Axes, places: ArrayLike, found: pd.DataFrame, along: str = "y", **style: Any) -> None:
    """Means at these places with error bars from low to high; ``along`` is the axis that the numbers lie on."""
    x = np.asarray(places, dtype=float)
    data = (x, found["mean"], bars(found)) if along == "y" else (found["mean"], x, None, bars(found))
    axes.errorbar(*data, **({"capsize": 2, "elinewidth": 1} | style))


def band(axes: Axes, places: ArrayLike, found: pd.DataFrame, alpha: float = 0.12, **style: Any) -> None:
    """A line of means with a band from low to high, where there are too many places for error bars."""
    x, (down, up) = np.asarray(places, dtype=float), bars(found)
    axes.plot(x, found["mean"], **style)
    axes.fill_between(x, found["mean"] - down, found["mean"] + up, color=style["color"], alpha=alpha, lw=0)


def level(axes: Axes, cell: Any, limits: "Limits | None" = None, along: str = "y", **style: Any) -> None:
    """A mean that does not depend on the other axis, as a line across with a band; ``cell`` is one of itertuples().

    One beyond the ``limits`` is an arrow at the edge with its number.
    """
    style = {key: value for key, value in style.items() if key != "marker"}
    if limits is not None and not limits.low <= cell.mean <= limits.high:
        place = 0.96 - 0.13 * sum(line.get_gid() == EDGE for line in axes.lines)
        edge(axes, place, bool(cell.mean > limits.high), along, axes.transAxes, cell.mean, **style)
        return
    line, span = (axes.axhline, axes.axhspan) if along == "y" else (axes.axvline, axes.axvspan)
    line(cell.mean, **({"lw": 1.3} | style))
    if math.isfinite(cell.low) and math.isfinite(cell.high):
        span(cell.low, cell.high, color=style["color"], alpha=0.08, lw=0)


def edge(
    axes: Axes, place: float, above: bool, along: str = "y", transform: Any = None, said: float | None = None,
    **style: Any,
) -> None:  # fmt: skip
    """An arrow at the edge of the axes for what lies outside of them, with its number where there is room for one."""
    at, back = (0.98, -7) if above else (0.02, 7)
    if along == "y":
        marker, xy, offset, ha, va = "v^"[above], (place, at), (0, back), "center", "top" if above else "bottom"
    else:
        marker, xy, offset, ha, va = "<>"[above], (at, place), (back, 2), "right" if above else "left", "bottom"
    transform = transform or (axes.get_xaxis_transform() if along == "y" else axes.get_yaxis_transform())
    look = style | {"marker": marker, "ls": "", "ms": 6}
    axes.plot(*xy, transform=transform, clip_on=False, zorder=5, gid=EDGE, **look)
    if said is not None:
        text: Style = {"size": 8, "ha": ha, "va": va, "zorder": 5, "textcoords": "offset points"}
        axes.annotate(number(said), xy, offset, transform, **text)


def lines(axes: Axes, x: str, series: Mapping[str, tuple[pd.DataFrame, Style]], log: bool = False, **look: Any) -> None:
    """Cells over their column x, a line with bars for each label, moved apart so that no bar hides another."""
    every = np.concatenate([found[x].to_numpy(dtype=float) for found, _ in series.values()])
    for i, (label, (found, own)) in enumerate(series.items()):
        found = found.sort_values(x)
        over(axes, apart(found[x], i, len(series), every, log), found, label=label, **(look | own))


def apart(x: ArrayLike, line: int, n: int, places: ArrayLike, log: bool = False) -> np.ndarray:
    """The places x of one of n lines, moved so that no bar hides another, but not far from where they are.

    How far goes by the ``places`` of all lines; where that is a single one, as if the next were 1 away.
    """
    x, every = (np.asarray(values, dtype=float) for values in (x, places))
    at, every = (np.log(x), np.log(every)) if log else (x, every)
    gap, length = min(np.diff(np.unique(every)), default=1.0), np.ptp(every)
    moved = at + min(0.4 / n * gap, max(0.03 * gap, 0.012 * length)) * (line - (n - 1) / 2)
    return np.exp(moved) if log else moved


FURTHEST = 3.0  # times the largest mean: how far an axis follows the intervals, which of two seeds are huge
DEEPEST = 1e-3  # times the model's smallest risk: below lie references that are exact without noise
ABSURD = 5.0  # times the zero predictor's risk: above lies a model that has diverged


class Limits(NamedTuple):
    """Where an axis begins and ends, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False


def risk_limits(model: pd.DataFrame, others: pd.DataFrame | None = None, zero: float = math.nan) -> Limits:
    """The one rule for axes of risks; give it the cells of all panels of a figure, so that they share their limits.

    Inside are all of the model's means, of its intervals what is within reach, and of the ``others`` the means that
    are neither above the ``zero`` predictor's risk (unless it is told: far above the model) nor far below the model.
    The axis is logarithmic where what is inside spans more than ten times.
    """
    model = model[model["mean"] <= (ABSURD * zero if math.isfinite(zero) else math.inf)]
    known, beside = _finite(model, "mean"), _finite(others, "mean")
    known = known or sorted(mean for mean in beside if not mean > zero)[-1:]
    if not known:
        return Limits(0.0, 1.0)
    top = max(*known, zero) if math.isfinite(zero) else FURTHEST * max(known)
    near = known + [mean for mean in beside if DEEPEST * min(known) <= mean <= top]
    highest = max(near + [min(end, FURTHEST * max(near)) for end in _finite(model, "high")])
    if is_wide(near):
        lowest = min(near + [end for end in _finite(model, "low") if end >= min(near) / FURTHEST])
        return Limits(0.8 * lowest, 1.25 * highest, log=True)
    return Limits(min(0.0, *near), 1.06 * highest)


def _finite(found: pd.DataFrame | None, column: str) -> list[float]:
    return [] if found is None else [value for value in found[column].astype(float) if math.isfinite(value)]


def is_wide(values: Sequence[float]) -> bool:
    """Whether these values need a logarithmic axis."""
    return len(values) > 0 and max(values) > 10 * min(values) > 0


def limit(axes: Axes, limits: Limits, along: str = "y", said: bool = False) -> None:
    """Give an axis these limits, after all is drawn: what ``over`` drew outside of them becomes arrows at the edge.

    Lines keep their true course, so they leave the axes towards what lies outside. ``said`` adds the arrows' numbers.
    """
    axis = axes.yaxis if along == "y" else axes.xaxis
    if limits.log:
        (axes.set_yscale if along == "y" else axes.set_xscale)("log")
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        # Two decades have too few whole powers of ten to read.
        axis.set_minor_formatter("{x:g}" if limits.high < 100 * limits.low else NullFormatter())
        axis.set_tick_params(which="minor", labelsize=8)
    (axes.set_ylim if along == "y" else axes.set_xlim)(limits.low, limits.high)
    axes.grid(axis="both" if along == "y" else "x", which="both" if limits.log else "major", alpha=0.2)
    for line in [bars.lines[0] for bars in axes.containers if isinstance(bars, ErrorbarContainer)]:
        points = np.column_stack(line.get_data(orig=False) if along == "y" else line.get_data(orig=False)[::-1])
        for place, value in points.astype(float).tolist():
            if not math.isnan(value) and not limits.low <= value <= limits.high:
                edge(axes, place, value > limits.high, along, None, value if said else None, color=line.get_color())


def scale(*tables: ArrayLike) -> tuple[float, float]:
    """The ends of one colour scale for several tables: 0 and their smallest and largest numbers."""
    values = np.concatenate([np.zeros(1), *map(np.ravel, tables)])
    low, high = (float(end(values[np.isfinite(values)])) for end in (np.min, np.max))
    return (low, high) if low < high else (0.0, 1.0)


def heat_map(
    axes: Axes, values: np.ndarray, texts: Mapping[tuple[int, int], str] | None = None,
    ends: tuple[float, float] | None = None, size: float = 9.0, missing: str = "0.85",
) -> AxesImage:  # fmt: skip
    """A table in colours: white at 0, red above and blue below, as strong as far from 0 on either side.

    The scale goes from one of ``ends`` to the other (of ``scale(values)`` unless told), so no half of it is empty where
    nothing is negative. NaN is ``missing``; ``texts`` are by (row, column).
    """
    low, high = ends or scale(values)
    strongest = max(-low, high)
    part = np.linspace(0.5 + 0.5 * low / strongest, 0.5 + 0.5 * high / strongest, 256)
    colours = LinearSegmentedColormap.from_list("about 0", colormaps["RdBu_r"](part))
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set_facecolor(missing)
    for (row, column), text in (texts or {}).items():
        ink = "white" if abs(values[row, column]) > 0.6 * strongest else "black"
        axes.text(column, row, text, ha="center", va="center", size=size, color=ink)
    return image


def cell_map(
    axes: Axes, found: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], **options: Any
) -> AxesImage:  # fmt: skip
    """A heat map of cells that have the columns row, column and text, with the names of its rows and columns."""
    values, texts = np.full((len(rows), len(columns)), np.nan), {}
    for row, column, mean, text in found[["row", "column", "mean", "text"]].itertuples(index=False):
        values[int(row), int(column)], texts[int(row), int(column)] = mean, text
    axes.set_xticks(range(len(columns)), columns, size=9)
    axes.set_yticks(range(len(rows)), rows, size=9)
    return heat_map(axes, values, texts, **options)


def panels(
    n: int, width: float | int, height: float | int, legend: float | int = 0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of n axes of this size in inches, four of them as two by two; ``legend`` is room at the right."""
    across = 2 if n == 4 else min(n, 3)
    down = -(-n // across)
    figure = Figure(figsize=(0.6 + across * width + legend, 0.5 + down * height), layout="constrained")
    every = figure.subplots(down, across, squeeze=False, **options).flatten().tolist()
    for axes in every[n:]:
        axes.remove()
    return figure, every[:n]


def title(figure: Figure, text: str, size: float | int = 10) -> None:
    """The figure's title, wrapped to its width."""
    figure.suptitle(_wrapped(text, int(figure.get_figwidth() * 128 / size)), size=size)


def panel_title(axes: Axes, text: str, width: int = 44) -> None:
    """A panel's title, wrapped."""
    axes.set_title(_wrapped(text, width), size=10)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, width))


def legend(figure: Figure, where: str = "below", columns: int = 2, order: Sequence[str] = ()) -> None:
    """One legend for all panels, outside of them, "below" or "beside"; each label once.

    Labels come in ``order``, whichever panel has them; others after, as they were drawn, error bars before plain lines.
    """
    known: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    rank = {label: i for i, label in enumerate(order)}
    labels = sorted(known, key=lambda x: (rank.get(x, len(rank)), not isinstance(known[x], ErrorbarContainer)))
    place: Style = {"loc": "outside lower center", "ncols": columns}
    place = place if where == "below" else {"loc": "outside right center"}
    figure.legend([known[label] for label in labels], labels, fontsize=8, frameon=False, **place)
