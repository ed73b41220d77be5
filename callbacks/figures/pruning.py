"""What is lost when heads are pruned."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.callbacks.figures.style import COLOURS, INTERVAL, MODEL, RISK, RiskAndError, is_wide

MARKERS = "os^D"
MAX_COLUMNS = 40  # of an allocation whose numbers can still be read


class ScoredPath(NamedTuple):
    """Greedy removal on prompts other than those it was chosen by.

    ``removed`` has (layer, head), counted from 1, in order; the other lists have the full model first.
    """

    heads_left: list[int]
    risks: list[RiskAndError]
    allocation: list[list[int]]
    removed: list[tuple[int, int]]


def pruning_risks(
    risks: Mapping[str, Mapping[str, RiskAndError]],
    labels: Mapping[str, str],
    beside: Mapping[str, RiskAndError],
) -> Figure:
    """Full model, pruned models and controls, a row each, under every treatment; other models below them."""
    rows = [*labels, *beside]
    figure = Figure(figsize=(9.5, 1.5 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.linspace(0.24, -0.24, len(risks)) if len(risks) > 1 else [0.0]
    for place, marker, colour, (treatment, of_models) in zip(places, MARKERS, COLOURS, risks.items(), strict=False):
        shown = [name for name in rows if name in of_models]
        y = [len(rows) - 1 - rows.index(name) + place for name in shown]
        _dots(axes, y, [of_models[name] for name in shown], fmt=marker, color=colour, label=treatment)
    if beside:
        y = [float(len(beside) - 1 - i) for i in range(len(beside))]
        _dots(axes, y, list(beside.values()), fmt="*", color="black", label="another model, as it is")
    as_is = next(iter(risks.values()))
    axes.axvline(as_is["full"][0], color=MODEL, lw=1, ls=":", label="full model as it is")
    for row in range(1, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    axes.set_yticks(range(len(rows)), [labels.get(name, name) for name in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _risk_axis(axes, [risk for of_models in [*risks.values(), beside] for risk, _ in of_models.values()])
    axes.set_xlabel(RISK + INTERVAL)
    axes.grid(axis="x", which="both", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure


def _dots(axes: Axes, y: Sequence[float], risks: Sequence[RiskAndError], fmt: str, color: str, label: str) -> None:
    values = np.array([risk for risk, _ in risks])
    errors = 1.96 * np.nan_to_num([error for _, error in risks])
    # The bar stops at a tenth of the value: a logarithmic axis has no zero.
    bars = [np.minimum(errors, 0.9 * values), errors]
    axes.errorbar(values, y, xerr=bars, fmt=fmt, color=color, label=label, capsize=2, ms=5)


def _risk_axis(axes: Axes, values: Sequence[float]) -> None:
    if is_wide([value for value in values if np.isfinite(value)]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")


def greedy_path(path: ScoredPath, marked: Mapping[str, tuple[int, RiskAndError]]) -> Figure:
    """Excess risk against the number of heads left, with other strategies' (number of heads, risk), over allocation."""
    figure = Figure(figsize=(9.5, 4.6 + 0.32 * len(path.allocation[0])), layout="constrained")
    over, under = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.6 + 0.32 * len(path.allocation[0])])
    risks, errors = np.array(path.risks).T
    low, high = risks - np.minimum(1.96 * np.nan_to_num(errors), 0.9 * risks), risks + 1.96 * np.nan_to_num(errors)
    over.plot(path.heads_left, risks, "o-", ms=3, color=COLOURS[0], label="greedy removal")
    over.fill_between(path.heads_left, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    over.axhline(risks[0], color=MODEL, lw=1, ls=":", label="full model")
    for marker, colour, (label, (n_heads, (risk, error))) in zip("s^Dv", COLOURS[1:], marked.items(), strict=False):
        bar = 1.96 * np.nan_to_num(error)
        over.errorbar(n_heads, risk, [[min(bar, 0.9 * risk)], [bar]], fmt=marker, color=colour, capsize=3, label=label)
    if is_wide([*risks.tolist(), *(risk for _, (risk, _) in marked.values())]):
        over.set_yscale("log")
        over.yaxis.set_major_formatter("{x:g}")
    over.set_ylabel(RISK + "\n" + INTERVAL.removeprefix(", "))
    over.grid(which="both", alpha=0.25)
    _allocation(figure, under, path)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _allocation(figure: Figure, axes: Axes, path: ScoredPath) -> None:
    """How many heads of each layer are left, as colours and numbers."""
    table = np.array(path.allocation).T
    edges = np.array([*path.heads_left, path.heads_left[-1] - 1]) + 0.5
    image = axes.pcolormesh(edges, np.arange(len(table) + 1) + 0.5, table, cmap="Blues", vmin=0)
    if table.shape[1] <= MAX_COLUMNS:
        for (layer, column), value in np.ndenumerate(table):
            colour = "white" if value > 0.6 * table.max() else "black"
            place = (path.heads_left[column], layer + 1)
            axes.annotate(str(value), place, ha="center", va="center", size=8, color=colour)
    figure.colorbar(image, ax=axes, label="heads left", pad=0.01).locator = MaxNLocator(4, integer=True)
    axes.set_yticks(range(1, len(table) + 1), [f"layer {layer}" for layer in range(1, len(table) + 1)])
    axes.invert_yaxis()
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("heads left in all, removed one at a time, the cheapest first")
