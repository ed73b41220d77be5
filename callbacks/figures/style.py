"""What the figures share: colours, axes' names, and risks as dots with intervals."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

RiskAndError = tuple[float, float]
MODEL, REFERENCE, ORACLE = "tab:red", "tab:blue", "tab:gray"
RISK = "excess risk (squared label units)"
INTERVAL = ", 95 % interval"
ABSURD = 5  # times the zero predictor's risk: beyond lies least squares at n = d, whose risk has no mean
NEGLIGIBLE = 1e-5  # times the model's risk: below lie references that are exact without noise, up to rounding
COLOURS = (
    "tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan",
    "black", "gold", "navy", "teal", "magenta", "sienna",
)  # fmt: skip


def dots(
    risks: Mapping[str, RiskAndError],
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    floor: float = 0.0,
    cut: float = np.inf,
) -> Figure:
    """One row per name, lowest risk at the top, with error bars of 1.96 standard errors and the value written out.

    What lies below ``floor`` or beyond ``cut`` is an arrow at the edge with its value, so that one outlier does not
    squeeze the rest.
    """
    order = sorted(risks, key=lambda name: risks[name][0], reverse=True)
    values = np.array([risks[name][0] for name in order])
    errors = 1.96 * np.nan_to_num([risks[name][1] for name in order])
    figure = Figure(figsize=(8.5, 0.8 + 0.36 * len(order)), layout="constrained")
    axes = figure.subplots()
    edge = axes.get_yaxis_transform()  # x as a part of the axis' length
    for row, name in enumerate(order):
        if values[row] < floor:
            axes.plot(0.015, row, marker="<", color=colours[name], transform=edge)
            axes.annotate(number(values[row]), (0.015, row), (7, -3), edge, textcoords="offset points", size=8)
            continue
        if values[row] > cut:
            axes.plot(cut, row, marker=">", color=colours[name])
            axes.annotate(
                f"{number(values[row])} ", (cut, row), (-6, -3), textcoords="offset points", ha="right", size=8
            )
            continue
        # The bar stops at a tenth of the value: a logarithmic axis has no zero.
        low = min(errors[row], 0.9 * values[row])
        axes.errorbar(values[row], row, xerr=[[low], [errors[row]]], fmt="o", capsize=3, color=colours[name])
        axes.annotate(number(values[row]), (values[row], row), (0, 6), textcoords="offset points", ha="center", size=8)
    if is_wide([value for value in values.tolist() if floor <= value <= cut]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(order)), [labels[name] for name in order])
    axes.set_ylim(-0.6, len(order) - 0.2)
    axes.margins(x=0.12)
    axes.set_xlabel(RISK + INTERVAL)
    axes.grid(axis="x", which="both", alpha=0.25)
    return figure


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def kind(name: str) -> str:
    return {"transformer": MODEL, "oracle_support": ORACLE}.get(name, REFERENCE)


def limits(by_place: Collection[Mapping[str, RiskAndError]]) -> tuple[float, float]:
    """Where a plot of risks may begin, far below the model's, and where it may end, a few times the zero predictor's.

    Without the zero predictor the model's risk stands in for it; a model that has diverged sets no limit.
    """
    model = [risks["transformer"][0] for risks in by_place]
    zero = [risks.get("zero", risks["transformer"])[0] for risks in by_place]
    floor = NEGLIGIBLE * min(filter(np.isfinite, model), default=0.0)
    return floor, ABSURD * max(filter(np.isfinite, zero), default=np.inf)


def shown(by_place: Collection[Mapping[str, RiskAndError]]) -> list[float]:
    """The risks within the limits."""
    floor, cut = limits(by_place)
    return [risk for risks in by_place for risk, _ in risks.values() if floor <= risk <= cut]


def is_wide(shown: Sequence[float]) -> bool:
    """Whether these values need a logarithmic axis."""
    return len(shown) > 0 and max(shown) > 10 * min(shown) > 0
