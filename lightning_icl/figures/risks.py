"""Excess risks of models and reference estimators.

A run's figures are made of rows (the columns of Row), those of val/excess_risk/<estimator> (test/... of a test run) and
against/<estimator>/difference. ``by_points`` draws one panel of cells, of a run or of a study.
"""

import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from lightning_icl.figures import style
from lightning_icl.figures.style import MODEL, Limits, Style, estimator_label, estimator_styles

METRIC = r"(?:val|test)/excess_risk/(?P<estimator>.+)"
SERIES = 6  # of one figure: more cover each other, and stand in the table
FIRST = (MODEL, "ridge", "lasso", "bayes", "gd_best", "preprocess_then_gd_best")
LEVELS = ("ridge", "lasso", "bayes")
FEW = 8  # numbers of examples up to which each has a tick


def risk_by_estimator(rows: pd.DataFrame, prompts: str) -> Figure:
    """The model among the reference estimators on all prompts, lowest risk at the top.

    At the right each estimator's risk minus the model's, paired over prompts, with its interval.
    """
    found = _overall(rows).sort_values("mean", ascending=False, na_position="first").reset_index(drop=True)
    styles, limits = estimator_styles(found["estimator"]), _limits(found)
    names = [_with_settings(cell.estimator, cell.note) for cell in found.itertuples()]
    height = 1.5 + sum(0.3 + 0.13 * name.count("\n") for name in names)
    figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for place, cell in enumerate(found.itertuples()):
        look = styles[cell.estimator] | {"ls": "", "ms": 8 if cell.estimator == MODEL else 5}
        style.over(axes, [place], found.iloc[[place]], along="x", **look)
        _say(axes, place, cell.mean, limits)
    style.limit(axes, limits, along="x")
    axes.set_ylim(-0.6, len(found) - 0.3)
    axes.set_yticks(range(len(found)), names, size=8)
    axes.set_xlabel(style.RISK_WITH_BARS, size=9)
    paired = style.parts(rows[rows["n_points"].isna()], "against/(?P<estimator>.+)/difference").set_index("estimator")
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(found)), [_difference(name, paired) for name in found["estimator"]], size=8)
    axes.text(1.02, 1.01, "its risk minus the model's\n(paired, 95 % interval)", transform=axes.transAxes, size=8)
    style.title(figure, f"Excess risk on {prompts}")
    return figure


def risk_by_points(rows: pd.DataFrame, prompts: str) -> Figure:
    """Excess risk against the number of examples, a line for the model and at most five references."""
    found = _cells(rows)
    found = found[found["n_points"].notna()]
    names, styles = _chosen(found["estimator"]), estimator_styles(found["estimator"])
    lines = {
        estimator_label(name): (found[found["estimator"] == name], styles[name] | {"lw": 2.4 if name == MODEL else 1.3})
        for name in names
    }
    figure = Figure(figsize=(style.WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    by_points(axes, lines, _limits(found, names))
    _finish(figure, f"Excess risk on {prompts}", found["estimator"].nunique() - len(names))
    return figure


def risk_by_stream(rows: pd.DataFrame) -> Figure:
    """Excess risk on every validation stream side by side, of the model and at most five references."""
    found = _overall(rows, stream=None).assign(stream=lambda found: found["stream"].fillna("first"))
    streams, names = list(dict.fromkeys(found["stream"])), _chosen(found["estimator"])
    styles = estimator_styles(found["estimator"])
    figure = Figure(figsize=(max(style.WIDTH, 1.5 + 1.3 * len(streams)), 4.4), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        line = found[found["estimator"] == name]
        places = [streams.index(stream) + 0.7 * ((i + 0.5) / len(names) - 0.5) for stream in line["stream"]]
        style.over(axes, places, line, label=estimator_label(name), **(styles[name] | {"ls": "", "ms": 5}))
    for boundary in range(1, len(streams)):
        axes.axvline(boundary - 0.5, color="black", lw=0.5, alpha=0.3)
    style.limit(axes, _limits(found, names))
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(streams)), ["\n".join(textwrap.wrap(s.replace("_", " "), 16)) for s in streams])
    axes.set_xlim(-0.5, len(streams) - 0.5)
    axes.set_xlabel("stream of prompts")
    axes.set_ylabel(style.RISK_WITH_BARS, size=9)
    _finish(figure, "Excess risk by stream", found["estimator"].nunique() - len(names))
    return figure


def risk_by_step(rows: pd.DataFrame) -> Figure:
    """The model's excess risk on all prompts over training, between the references; ``rows`` have a column step."""
    found = _overall(rows).sort_values("step")
    model, last = found[found["estimator"] == MODEL], found.drop_duplicates("estimator", keep="last")
    beside, limits = last[last["estimator"].isin(LEVELS)], _limits(found, LEVELS)
    figure = Figure(figsize=(style.WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    style.band(axes, model["step"], model, label="transformer", ms=3, **estimator_styles([MODEL])[MODEL])
    for cell in beside.itertuples():
        said = f"{estimator_label(cell.estimator)}, {style.number(cell.mean)}"
        style.level(axes, cell, limits, label=said, **estimator_styles([cell.estimator])[cell.estimator])
    style.limit(axes, limits)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel(f"{style.RISK}\nbands: 95 % intervals", size=9)
    _finish(figure, "Excess risk over training, on all validation prompts")
    return figure


def by_points(axes: Axes, lines: Mapping[str, tuple[pd.DataFrame, Style]], limits: Limits) -> None:
    """One panel: cells with n_points by label; those with a marker of their own colour come in front.

    Few numbers of examples have bars, lines apart a little, and a tick each; many (every prefix) have bands.
    """
    n_points = sorted({int(n) for line, _ in lines.values() for n in line["n_points"]})
    few = len(n_points) <= FEW
    log = few and style.is_wide([float(n) for n in n_points])
    for i, (label, (line, look)) in enumerate(lines.items()):
        line = line.sort_values("n_points")
        look = Style(ms=4, zorder=3 if look.get("lw", 0) > 1.5 else 2) | look
        if few:
            style.over(axes, style.apart(line["n_points"], i, len(lines), n_points, log), line, label=label, **look)
        else:
            thin = {"markevery": max(1, len(n_points) // 10), "alpha": 0.12 if look["zorder"] == 3 else 0.06}
            style.band(axes, line["n_points"], line, label=label, **(look | thin))
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    if few:
        axes.set_xticks(n_points, [str(n) for n in n_points])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.limit(axes, limits)
    axes.set_xlabel("number of in-context examples n")
    axes.set_ylabel(style.RISK_WITH_BARS if few else f"{style.RISK}\nbands: 95 % intervals", size=9)


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    return style.cells(rows, METRIC)


def _overall(rows: pd.DataFrame, stream: str | None = "first") -> pd.DataFrame:
    """Risks on all prompts of a stream; the first that has any, or of every stream."""
    found = _cells(rows)
    found = found[found["n_points"].isna()]
    if stream is None or found.empty:
        return found
    first = found["stream"].iloc[0]
    return found[found["stream"].isna() if pd.isna(first) else found["stream"] == first]


def _limits(found: pd.DataFrame, names: Iterable[str] | None = None) -> Limits:
    """The axis for some of the estimators; references above the zero predictor's risk lie outside of it."""
    of_model, shown = found["estimator"] == MODEL, found["estimator"].isin(list(names or found["estimator"]))
    zero = float(found.loc[found["estimator"] == "zero", "mean"].max())
    return style.risk_limits(found[of_model], found[shown & ~of_model], zero)


def _chosen(names: Iterable[str]) -> list[str]:
    """The model and the references that say most: the known ones, then a user's own, then the rest."""
    there = list(dict.fromkeys(names))
    rest = [name for name in style.ESTIMATORS if name not in FIRST]
    order = [*FIRST, *(name for name in there if name not in style.ESTIMATORS), *rest]
    return [name for name in order if name in there][:SERIES]


def _with_settings(name: str, note: str | None) -> str:
    """A name and, on lines of their own, the settings that the note has behind it."""
    settings = "" if note is None or pd.isna(note) else note.partition(", ")[2]
    return "\n".join([estimator_label(name).partition(",")[0], *textwrap.wrap(settings, 28)])


def _say(axes: Axes, place: int, mean: float, limits: Limits) -> None:
    """The number above its dot, or beside the arrow at the edge that stands for it."""
    if limits.low <= mean <= limits.high:
        axes.annotate(style.number(mean), (mean, place), (0, 6), textcoords="offset points", ha="center", size=8)
    elif not np.isnan(mean):
        above, edge = mean > limits.high, axes.get_yaxis_transform()
        offset, align = ((-8, -3), "right") if above else ((8, -3), "left")
        axes.annotate(style.number(mean), (above, place), offset, edge, textcoords="offset points", ha=align, size=8)


def _difference(name: str, paired: pd.DataFrame) -> str:
    if name not in paired.index:
        return "the model" if name == MODEL else ""
    value, low, high = (paired.loc[name, column] for column in ("value", "low", "high"))
    return "" if np.isnan(value) else f"{value:+#.2g} [{low:+#.2g}, {high:+#.2g}]"


def _finish(figure: Figure, title: str, left_out: int = 0) -> None:
    style.legend(figure)
    style.title(figure, title + f"\n({left_out} more estimators are in the run's table)" * bool(left_out))
