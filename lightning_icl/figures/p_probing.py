"""What can be optimised on the first layer's output: rows p_probing/<optimiser>/<depth>/<arm>."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.style import GREY, OTHERS, PURPLE, VERMILLION, WINE, Limits, Style

METRIC = r"p_probing/(?P<optimiser>\w+)/(?P<steps>\d+)/(?P<arm>.+)"
TITLES = {
    "attention": ("k trained layers of single-head linear attention", "layers k"),
    "descent": ("trained linear map, t tuned gradient steps", "steps t"),
}
ARMS: dict[str, tuple[str, Style]] = {
    "read_in": ("what layer 1 is given, the read-in", {"color": "black", "ls": "--", "marker": "*"}),
    "raw": ("the examples as they are, x", {"color": VERMILLION, "ls": "--", "marker": "s"}),
    "r_hat": ("preprocessed exactly, R̂ x", {"color": WINE, "ls": "--", "marker": "^"}),
    "r_hat_power": ("|r̂|^p x", {"color": PURPLE, "ls": "-.", "marker": "v"}),
    "gd_plus_plus": ("GD++, (I - \N{GREEK SMALL LETTER GAMMA}C) x", {"color": style.ORANGE, "ls": "-.", "marker": "D"}),
    "untrained": ("layer 1 of an untrained network", {"color": GREY, "ls": ":", "marker": "x"}),
}


def p_probing_risks(rows: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """One panel an optimiser, one line an arm, called what ``labels`` say."""
    found = style.cells(rows, METRIC)
    optimisers = list(dict.fromkeys(found["optimiser"]))
    styles = arm_styles(found["arm"], labels)
    figure, panels = style.panels(len(optimisers), max(2.8, 5.0 / len(optimisers)), 3.9)
    limits = style.risk_limits(found)
    for axes, optimiser in zip(panels, optimisers, strict=True):
        risk_by_depth(axes, optimiser, found[found["optimiser"] == optimiser], styles, limits)
        style.panel_title(axes, TITLES[optimiser][0], 28)
    figure.axes[0].set_ylabel(style.RISK_WITH_BARS, size=9)
    style.legend(figure, order=[label for label, _ in styles.values()])
    style.title(figure, "What can be optimised on each representation")
    return figure


def arm_styles(arms: Iterable[str], labels: Mapping[str, str] | None = None) -> dict[str, tuple[str, Style]]:
    """Label and style of each arm, the trained models' first, by their heads; ``labels`` come before the usual ones."""
    arms = set(arms)
    heads = sorted(int(arm.removeprefix("heads_")) for arm in arms if arm.startswith("heads_"))
    styles: dict[str, tuple[str, Style]] = {}
    for h, colour in zip(heads, style.ordered_colours(len(heads)), strict=True):
        look = {"color": colour, "ls": "-", "lw": 2, "zorder": 3, "marker": "o"}
        styles[f"heads_{h}"] = (f"layer 1 with {h} head{'s' * (h != 1)}", look)
    styles |= {arm: known for arm, known in ARMS.items() if arm in arms}
    for arm, colour in zip(sorted(arms - set(styles)), OTHERS * len(arms), strict=False):
        styles[arm] = (arm.replace("_", " "), {"color": colour, "ls": ":", "marker": "P"})
    return {arm: ((labels or {}).get(arm, label), look) for arm, (label, look) in styles.items()}


def risk_by_depth(
    axes: Axes, optimiser: str, found: pd.DataFrame, styles: Mapping[str, tuple[str, Style]], limits: Limits
) -> None:
    """One panel: an optimiser's cells with arm and steps."""
    found = found.astype({"steps": int})
    style.lines(
        axes, "steps", {label: (found[found["arm"] == arm], look) for arm, (label, look) in styles.items()}, ms=4
    )
    style.limit(axes, limits)
    deepest = found["steps"].max()
    axes.set(xticks=range(1, deepest + 1), xlim=(0.7, deepest + 0.3), xlabel=TITLES[optimiser][1])
