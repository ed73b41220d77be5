"""What the states know linearly."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.style import COLOURS, MODEL, ORACLE, RISK, RiskAndError


def probe_curves(
    risks: Mapping[str, Sequence[RiskAndError]], r2: Mapping[str, Sequence[float]], gd: Mapping[str, Sequence[float]]
) -> Figure:
    """Left: the probe's excess risk for f(x_q) by depth, beside GD; right: R^2 of every target."""
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label, colour in (("f_query", "probe", MODEL), ("shuffled/f_query", "probe, shuffled labels", ORACLE)):
        values = np.array(risks[key])
        bars = 1.96 * np.nan_to_num(values[:, 1])
        left.errorbar(range(len(values)), values[:, 0], bars, label=label, color=colour, marker="o", capsize=3)
    for (name, curve), colour in zip(gd.items(), COLOURS, strict=False):
        layers = range(1, len(curve) + 1)
        left.plot(layers, curve, ls="--", marker="s", ms=4, color=colour, label=f"{name}, layer - 1 steps")
    left.set_ylim(bottom=0)
    left.set_ylabel(RISK)
    left.set_title("Linear probe of the query's state for f(x_q), 95 % intervals")
    names = {"f_query": "f(x_q)", "w": "w", "preprocessed_query": "R̂ x_q"}
    for (name, explained), colour in zip(r2.items(), COLOURS, strict=False):
        right.plot(range(len(explained)), explained, marker="o", label=names.get(name, name), color=colour)
    right.set_ylabel("R² on fresh prompts")
    right.set_ylim(min(-0.05, *(min(v) for v in r2.values())), 1.05)
    right.set_title("What the query's state knows linearly")
    for axes in (left, right):
        axes.set_xlabel("layer (0 is the read-in)")
        axes.set_xticks(range(len(risks["f_query"])))
        axes.grid(alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False)
    return figure
