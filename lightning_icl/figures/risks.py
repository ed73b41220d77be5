"""Excess risks of models and reference estimators.

A run's figures are made of rows (the columns of Row), those of val/excess_risk/<estimator> (test/... of a test run) and
against/<estimator>/difference. ``by_points`` draws one panel of cells, of a run or of a study.
"""

import textwrap
from collections.abc import Iterable, Mapping

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
    figure, (axes,) = style.panels(1, 5.0, 1.0 + sum(0.3 + 0.13 * name.count("\n") for name in names))
    for place, cell in enumerate(found.itertuples()):
        look = styles[cell.estimator] | {"ls": "", "ms": 8 if cell.estimator == MODEL else 5}
        style.over(axes, [place], found.iloc[[place]], along="x", **look)
        if limits.low <= cell.mean <= limits.high:
            text: Style = {"textcoords": "offset points", "ha": "center", "size": 8}
            axes.annotate(style.number(cell.mean), (cell.mean, place), (0, 6), **text)
    style.limit(axes, limits, along="x", said=True)
    axes.set_yticks(range(len(found)), names, size=8)
    axes.set(ylim=(-0.6, len(found) - 0.3), xlabel=style.RISK_WITH_BARS)
    paired = style.parts(rows[rows["n_points"].isna()], "against/(?P<estimator>.+)/difference").dropna(subset="value")
    said = {p.estimator: f"{p.value:+#.2g} [{p.low:+#.2g}, {p.high:+#.2g}]" for p in paired.itertuples()}
    beside = [said.get(name, "the model" if name == MODEL else "") for name in found["estimator"]]
    axes.secondary_yaxis("right").set_yticks(range(len(found)), beside, size=8)
    axes.text(1.02, 1.01, "its risk minus the model's\n(paired, 95 % interval)", transform=axes.transAxes, size=8)
    style.title(figure, f"Excess risk on {prompts}")
    return figure


def risk_by_points(rows: pd.DataFrame, prompts: str) -> Figure:
    """Excess risk against the number of examples, a line for the model and at most five references."""
    found = style.cells(rows[rows["n_points"].notna()], METRIC)
    figure, (axes,) = style.panels(1, 5.0, 3.9)
    by_points(axes, _series(found), _limits(found, _chosen(found)))
    _finish(figure, f"Excess risk on {prompts}", found)
    return figure


def risk_by_stream(rows: pd.DataFrame) -> Figure:
    """Excess risk on every validation stream side by side, of the model and at most five references."""
    found = _overall(rows, stream=None).assign(stream=lambda found: found["stream"].fillna("first"))
    streams, series = list(dict.fromkeys(found["stream"])), _series(found)
    figure, (axes,) = style.panels(1, max(5.0, 0.9 + 1.3 * len(streams)), 3.9)
    for i, (label, (line, look)) in enumerate(series.items()):
        places = line["stream"].map(streams.index) + 0.7 * ((i + 0.5) / len(series) - 0.5)
        style.over(axes, places, line, label=label, **(look | {"ls": "", "ms": 5}))
    for boundary in range(1, len(streams)):
        axes.axvline(boundary - 0.5, color="black", lw=0.5, alpha=0.3)
    style.limit(axes, _limits(found, _chosen(found)))
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(streams)), [textwrap.fill(stream.replace("_", " "), 16) for stream in streams])
    axes.set(xlim=(-0.5, len(streams) - 0.5), xlabel="stream of prompts", ylabel=style.RISK_WITH_BARS)
    _finish(figure, "Excess risk by stream", found)
    return figure


def risk_by_step(rows: pd.DataFrame) -> Figure:
    """The model's excess risk on all prompts over training, between the references; ``rows`` have a column step."""
    found = _overall(rows).sort_values("step")
    model, limits, styles = found[found["estimator"] == MODEL], _limits(found, LEVELS), style.ESTIMATORS
    figure, (axes,) = style.panels(1, 5.0, 3.4)
    style.band(axes, model["step"], model, label=styles[MODEL][0], ms=3, **styles[MODEL][1])
    for cell in found[found["estimator"].isin(LEVELS)].drop_duplicates("estimator", keep="last").itertuples():
        label, look = styles[cell.estimator]
        style.level(axes, cell, limits, label=f"{label}, {style.number(cell.mean)}", **look)
    style.limit(axes, limits)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="training step", ylabel=style.RISK_WITH_BARS.replace("bars", "bands"))
    _finish(figure, "Excess risk over training, on all validation prompts")
    return figure


def by_points(axes: Axes, lines: Mapping[str, tuple[pd.DataFrame, Style]], limits: Limits) -> None:
    """One panel: cells with n_points by label; thick lines come in front.

    Few numbers of examples have bars, lines apart a little, and a tick each; many (every prefix) have bands.
    """
    n_points = sorted({int(n) for line, _ in lines.values() for n in line["n_points"]})
    few = len(n_points) <= FEW
    front = {
        label: (line, Style(ms=4, zorder=3 if look.get("lw", 0) > 1.5 else 2) | look)
        for label, (line, look) in lines.items()
    }
    if few:
        log = style.is_wide([float(n) for n in n_points])
        style.lines(axes, "n_points", front, log)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(n_points, [str(n) for n in n_points])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        for label, (line, look) in front.items():
            line = line.sort_values("n_points")
            thin = {"markevery": max(1, len(n_points) // 10), "alpha": 0.12 if look["zorder"] == 3 else 0.06}
            style.band(axes, line["n_points"], line, label=label, **(look | thin))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.limit(axes, limits)
    said = style.RISK_WITH_BARS if few else style.RISK_WITH_BARS.replace("bars", "bands")
    axes.set(xlabel="number of in-context examples n", ylabel=said)


def _overall(rows: pd.DataFrame, stream: str | None = "first") -> pd.DataFrame:
    """Risks on all prompts of a stream; the first that has any, or of every stream."""
    found = style.cells(rows[rows["n_points"].isna()], METRIC)
    streams = found["stream"].fillna("")
    return found if stream is None else found[streams.isin(streams.iloc[:1])]


def _limits(found: pd.DataFrame, names: Iterable[str] | None = None) -> Limits:
    """The axis for some of the estimators; references above the zero predictor's risk lie outside of it."""
    of_model, shown = found["estimator"] == MODEL, found["estimator"].isin(list(names or found["estimator"]))
    zero = float(found.loc[found["estimator"] == "zero", "mean"].max())
    return style.risk_limits(found[of_model], found[shown & ~of_model], zero)


def _chosen(found: pd.DataFrame) -> list[str]:
    """The model and the references that say most: the known ones, then a user's own, then the rest."""
    there = list(dict.fromkeys(found["estimator"]))
    order = [*FIRST, *(name for name in there if name not in style.ESTIMATORS), *style.ESTIMATORS]
    return [name for name in dict.fromkeys(order) if name in there][:SERIES]


def _series(found: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, Style]]:
    """Cells and look of the chosen ones, by label."""
    styles = estimator_styles(found["estimator"])
    return {
        estimator_label(name): (found[found["estimator"] == name], styles[name] | {"lw": 2.4 if name == MODEL else 1.3})
        for name in _chosen(found)
    }


def _with_settings(name: str, note: str | None) -> str:
    """A name and, on lines of their own, the settings that the note has behind it."""
    settings = "" if note is None or pd.isna(note) else note.partition(", ")[2]
    return "\n".join([estimator_label(name).partition(",")[0], *textwrap.wrap(settings, 28)])


def _finish(figure: Figure, title: str, found: pd.DataFrame | None = None) -> None:
    left_out = 0 if found is None else max(0, found["estimator"].nunique() - SERIES)
    style.legend(figure)
    style.title(figure, title + f"\n({left_out} more estimators are in the run's table)" * bool(left_out))
