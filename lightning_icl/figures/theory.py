"""Excess risk of algorithms over what the theory speaks of: rows theory/<axis>/<value>/...

- theory/<axis>/<value>/risk/<rule>/<estimator>, and .../risk/<estimator> of those without a step-size rule
- theory/<axis>/<value>/difference/<rule>/<rival>: preprocess-then-GD's risk minus the rival's, paired
- theory/<axis>/<value>/unstable/shared/<estimator>: the share of prompts on which the one step size is too large
- theory/<axis>/<value>/leading_order/<s or d>: s sigma^2/n and d sigma^2/n
"""

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lightning_icl.figures import style
from lightning_icl.figures.style import GREEN, PURPLE, WINE, Style
from lightning_icl.functional.references.iterative import MAX_STEPS

SIGMA, RHO = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER RHO}"
RISK = r"theory/{axis}/(?P<at>[^/]+)/risk/(?:(?P<rule>\w+)/)?(?P<estimator>\w+)"
DIFFERENCE = r"theory/{axis}/(?P<at>[^/]+)/difference/(?P<rule>\w+)/(?P<rival>\w+)"
LEADING_ORDER = r"theory/{axis}/(?P<at>[^/]+)/leading_order/(?P<size>[sd])"


class AxisOf(NamedTuple):
    """An axis: its symbol, what it is in words with its unit, the figure's title, whether it is logarithmic."""

    symbol: str
    label: str
    title: str
    log: bool


AXES = {
    "n": AxisOf("n", "number of in-context examples n", "Excess risk against n", True),
    "d": AxisOf("d", "number of features d", "Excess risk against d", True),
    "s": AxisOf("s", "number of non-zero weights s", "Excess risk against s", True),
    "sigma": AxisOf(SIGMA, f"label noise {SIGMA} (label units)", f"Excess risk against {SIGMA}", False),
    "T": AxisOf("T", "number of steps T", "Excess risk against T", True),
    "correlation": AxisOf(RHO, f"AR(1) correlation {RHO} of features", f"Excess risk against correlation {RHO}", False),
}
RULES = {
    "shared": "T steps,\none step size for all prompts",
    "per_prompt": "T steps,\nstep size c/λmax per prompt",
    "best": f"best stopping (up to {MAX_STEPS} steps),\nstep size 1/λmax per prompt",
}
ARMS: dict[str, tuple[str, Style]] = {
    "preprocess_then_gd": ("preprocess + GD (P-GD)", {"color": WINE, "ls": "-", "lw": 2, "marker": "X", "zorder": 3}),
    "gd": ("GD", {"color": PURPLE, "ls": "--", "marker": "^"}),
    "gd_plus_plus": ("GD++", {"color": GREEN, "ls": "-.", "marker": "P"}),
    **{name: style.ESTIMATORS[name] for name in ("ridge", "lasso", "bayes", "zero")},
}
RIVALS = ("gd", "gd_plus_plus", "ridge")
HEIGHTS = {"ridge": 1.03, "gd": 1.07}  # of the marks where preprocess-then-GD loses to them, in heights of the axes
LEADING: dict[str, tuple[str, Style]] = {
    "s": (f"s {SIGMA}²/n (leading order, ours)", {"color": "0.35", "ls": (0, (2, 2)), "lw": 0.8}),
    "d": (f"d {SIGMA}²/n (leading order, ours)", {"color": "black", "ls": (0, (7, 3)), "lw": 0.8}),
}


def theory_risks(rows: pd.DataFrame, axis: str, standing: str) -> Figure:
    """Excess risk over one of AXES, a panel for each step-size rule; ``standing`` says where the others stand.

    Above each panel a mark in the rival's colour stands where preprocess-then-GD is above GD or ridge: where the paired
    difference's 95 % interval is above 0.
    """
    found = _at(style.cells(rows, RISK.format(axis=axis)))
    differences = _at(style.cells(rows, DIFFERENCE.format(axis=axis)))
    leading = _at(style.cells(rows, LEADING_ORDER.format(axis=axis)))
    rules = [rule for rule in RULES if rule in set(found["rule"])]
    figure, panels = style.panels(len(rules), 3.0, 3.7, sharey=True)
    any_rule, ours = found["rule"].isna(), found["estimator"] == "preprocess_then_gd"
    zero = float(found.loc[found["estimator"] == "zero", "mean"].max())
    limits = style.risk_limits(found[ours], pd.concat([found[~ours], leading]), zero)
    for axes, rule in zip(panels, rules, strict=True):
        of_rule = found[(found["rule"] == rule) | any_rule]
        series = {label: (of_rule[of_rule["estimator"] == name], look) for name, (label, look) in ARMS.items()}
        style.lines(axes, "at", {k: v for k, v in series.items() if len(v[0])}, AXES[axis].log, **{"lw": 1.3, "ms": 4})
        for size, line in leading.groupby("size"):
            label, look = LEADING[size]
            axes.plot(line["at"], line["mean"], label=label, zorder=1.5, **look)
        _mark_losses(axes, differences[differences["rule"] == rule])
        _finish_axis(axes, axis, sorted(set(found["at"])))
        style.limit(axes, limits)
        axes.set_title(RULES[rule], size=10, pad=20)  # above the marks
    panels[0].set_ylabel(style.RISK_WITH_BARS)
    order = [label for label, _ in (ARMS | LEADING).values()]
    style.legend(figure, columns=len(panels), order=order)
    style.title(figure, f"{AXES[axis].title} ({standing})")
    return figure


def _at(found: pd.DataFrame) -> pd.DataFrame:
    return found.assign(at=found["at"].astype(float)).sort_values("at")


def _mark_losses(axes: Axes, differences: pd.DataFrame) -> None:
    """Marks above the axes where preprocess-then-GD loses, a row for each rival."""
    lost = differences[differences["low"] > 0]
    for rival, height in HEIGHTS.items():
        places = lost.loc[lost["rival"] == rival, "at"]
        if len(places):
            name, look = ARMS[rival]
            mark: Style = {"color": look["color"], "marker": look["marker"], "ls": "", "ms": 5, "clip_on": False}
            label = f"above the panel: P-GD loses to {name} there"
            axes.plot(places, [height] * len(places), transform=axes.get_xaxis_transform(), label=label, **mark)


def _finish_axis(axes: Axes, axis: str, places: list[float]) -> None:
    if AXES[axis].log:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(AXES[axis].label)
