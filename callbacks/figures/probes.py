"""What the states know linearly."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lightning_icl.callbacks.figures.style import INTERVAL, MODEL, ORACLE, REFERENCE, RISK
from lightning_icl.functional.probes import Estimate
from lightning_icl.instruments.probing import TOKENS, Probe, ProbeTable, Token

CONTROLS = {
    "shuffled": ("probe, shuffled labels", ORACLE, "v"),
    "untrained": ("probe, untrained network", "black", "D"),
}
CURVES = ("tab:orange", "tab:green")
LEVELS = {"transformer": ("the model", MODEL), "ridge": ("ridge", REFERENCE), "bayes": ("Bayes", "tab:purple")}
NAMES = {"least_squares": "least squares", "ridge": "ridge", "support": "support", "r_hat": "r̂", "w": "w"}
READABLE_CELLS = 14  # layers up to which a cell has room for its number


def probe_risks(
    probes: Sequence[Probe], curves: Mapping[str, Sequence[Estimate]], levels: Mapping[str, Estimate]
) -> Figure:
    """Excess risk of the probe for f(x_q) by depth and of its controls, beside GD after layer - 1 steps and levels."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    _risks(axes, [row.trained.risk for row in probes], 0, label="probe", color=MODEL, marker="o", zorder=4)
    for name, (label, colour, marker) in CONTROLS.items():
        control = [getattr(row, name) for row in probes]
        if None not in control:
            _risks(axes, [c.risk for c in control], 0, label=label, color=colour, marker=marker, ls=":", ms=4)
    for (name, curve), colour in zip(curves.items(), CURVES, strict=True):
        _risks(axes, curve, 1, label=f"{name}, layer - 1 steps", color=colour, marker="s", ls="--", ms=4)
    for name, level in levels.items():
        label, colour = LEVELS[name]
        axes.axhline(level.value, color=colour, lw=1, ls="-.", label=f"{label}, {level.value:.3g}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(RISK + INTERVAL)
    axes.set_title("Linear probe of the query's state for f(x_q)")
    axes.set_xlabel("layer (0 is the read-in)")
    axes.set_xticks(range(len(probes)))
    axes.grid(alpha=0.25)
    lines, labels = axes.get_legend_handles_labels()
    order = [*range(len(levels), len(lines)), *range(len(levels))]  # matplotlib puts plain lines first
    figure.legend(
        [lines[i] for i in order], [labels[i] for i in order], loc="outside right upper", fontsize=8, frameon=False
    )
    return figure


def _risks(axes: Axes, risks: Sequence[Estimate], first: int, **style: object) -> None:
    values = np.array(risks)
    bars = 1.96 * np.nan_to_num(values[:, 1])
    axes.errorbar(range(first, first + len(values)), values[:, 0], bars, capsize=3, **style)  # type: ignore[arg-type]


def probe_map(table: ProbeTable) -> Figure:
    """R^2 of every target by layer, and how far it is above the untrained network's; query and context states."""
    rows = len(table.targets())
    layers = len(table.by_layer(table.targets()[0]))
    width = 0.42 if layers <= READABLE_CELLS else 0.3
    figure = Figure(figsize=(3.2 + 4 * max(1.7, width * layers), 1.7 + 0.33 * rows), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    images = []
    for token, pair in zip(TOKENS, (panels[:2], panels[2:]), strict=True):
        images += [_heat_map(pair[0], table, token, above=False), _heat_map(pair[1], table, token, above=True)]
    panels[0].set_yticks(range(rows), [label(target) for target in table.targets()])
    figure.supxlabel(
        "layer (0 is the read-in); grey number: 95 % interval holds 0; hatched: target is constant", size=9
    )
    figure.colorbar(images[0], ax=panels.tolist(), label="R² on fresh prompts, or difference of R²")
    by_chance = [abs(row.shuffled.r2.value) for row in table.rows if math.isfinite(row.shuffled.r2.value)]
    figure.suptitle(
        f"What the states know linearly (with shuffled labels |R²| is at most {max(by_chance, default=0):.2g})", size=11
    )
    return figure


def _heat_map(axes: Axes, table: ProbeTable, token: Token, above: bool) -> AxesImage:
    targets = table.targets()
    found = [[_shown(row, above) for row in table.by_layer(target, token)] for target in targets]
    layers = max(map(len, found))
    found = [row or [Estimate(math.nan, math.nan)] * layers for row in found]
    values = np.array([[estimate.value for estimate in row] for row in found])
    axes.set_facecolor("white")
    axes.patch.set(hatch="////", edgecolor="0.8")
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, layer), value in np.ndenumerate(values):
        if np.isfinite(value) and layers <= READABLE_CELLS:
            low, high = found[row][layer].interval
            colour = "0.45" if low <= 0 <= high else "white" if abs(value) > 0.6 else "black"
            axes.text(layer, row, _number(value), ha="center", va="center", size=7.5, color=colour, in_layout=False)
    axes.set_xticks(range(layers))
    axes.set_title(f"{token}: above untrained" if above else f"{token}: R²", size=10)
    return image


def _shown(row: Probe, above: bool) -> Estimate:
    if not above:
        return row.trained.r2
    return row.over_untrained or Estimate(math.nan, math.nan)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".").replace("-.00", ".00") if abs(value) < 10 else f"{value:.0f}"


def label(target: str) -> str:
    """A target's name in the figures."""
    if match := re.fullmatch(r"(gd|preprocess_then_gd)_(\d+)", target):
        return f"{'GD' if match[1] == 'gd' else 'preprocess + GD'}, {match[2]} step{'s' if match[2] != '1' else ''}"
    return {"f": "f(x)", "preprocessed": "R̂ x"}.get(target) or NAMES[target]
