"""What can be optimised on the first layer's output."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.style import COLOURS, INTERVAL, MODEL, ORACLE, RISK, is_wide
from lightning_icl.functional.seeds import Interval
from lightning_icl.instruments.p_probing import Optimiser

Curves = Mapping[str, Sequence[Interval]]  # by arm, one for each depth
MODELS = (MODEL, "darkorange", "firebrick", "gold", "maroon", "salmon")
TITLES: dict[Optimiser, tuple[str, str]] = {
    "attention": ("k trained layers of single-head linear attention", "layers k"),
    "descent": ("trained linear map, t tuned gradient steps", "steps t"),
}


def p_probing_risks(risks: Mapping[Optimiser, Curves], labels: Mapping[str, str], heads: Mapping[str, int]) -> Figure:
    """One panel an optimiser, one line an arm; ``heads`` holds the arms that are a trained model's first layer."""
    figure = Figure(figsize=(11.5, 5.4), layout="constrained")
    colours = _colours(labels, heads)
    panels = figure.subplots(1, len(risks), sharey=True, squeeze=False)[0]
    for axes, (optimiser, curves) in zip(panels, risks.items(), strict=True):
        for i, (arm, curve) in enumerate(curves.items()):
            shift = 0.025 * (i - (len(curves) - 1) / 2)  # so that no interval hides another
            depths = np.arange(1, len(curve) + 1) + shift
            axes.errorbar(
                depths, [risk.mean for risk in curve], _bars(curve), label=labels[arm], color=colours[arm], capsize=2,
                marker="o" if arm in heads else "s", ms=5 if arm in heads else 4, lw=2 if arm in heads else 1.2,
                ls="-" if arm in heads else "--", zorder=3 if arm in heads else 2,
            )  # fmt: skip
        title, name = TITLES[optimiser]
        axes.set(title=title, xlabel=name, xticks=range(1, max(map(len, curves.values())) + 1))
        axes.grid(alpha=0.25, which="both")
    panels[0].set_ylabel(RISK + INTERVAL)
    means = [risk.mean for curves in risks.values() for curve in curves.values() for risk in curve]
    if is_wide([mean for mean in means if np.isfinite(mean)]):
        panels[0].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _bars(curve: Sequence[Interval]) -> list[list[float]]:
    """Lower and upper lengths; the lower one stops at a tenth of the mean, as a logarithmic axis has no zero."""
    return [[min(risk.half_width, 0.9 * risk.mean) for risk in curve], [risk.half_width for risk in curve]]


def _colours(labels: Mapping[str, str], heads: Mapping[str, int]) -> dict[str, str]:
    """Warm colours for trained first layers, most heads first; gray for the untrained one."""
    trained = sorted(heads, key=lambda arm: -heads[arm])
    others = [arm for arm in labels if arm not in heads and arm != "untrained"]
    cool = [colour for colour in COLOURS if colour not in (*MODELS, "tab:orange")]
    colours = {arm: MODELS[i % len(MODELS)] for i, arm in enumerate(trained)}
    return colours | dict(zip(others, cool, strict=False)) | {"untrained": ORACLE}
