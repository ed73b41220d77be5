"""Which heads matter, by which score, and since when."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from lightning_icl.callbacks.figures.style import MODEL, RISK, is_wide
from lightning_icl.functional.heads import ImportanceScores
from lightning_icl.instruments.importance import HeadScores

NAMES = {"leave_one_out": "leave-one-out", "leave_one_in": "leave-one-in", "gradient": "gradient"}
CELL = (0.75, 0.62)  # inches of a head in a map with numbers


def importance_map(importance: ImportanceScores) -> Figure:
    """Layer by head heat map of leave-one-out importance, annotated with its standard error."""
    raw, error = importance.raw.cpu().numpy(), importance.standard_error.cpu().numpy()
    n_layers, n_heads = raw.shape
    width = max(6.5, 2.6 + CELL[0] * n_heads)
    figure = Figure(figsize=(width, 1.5 + CELL[1] * n_layers), layout="constrained")
    axes = figure.subplots()
    image, limit = _map(axes, raw)
    decimals = max(0, 2 - math.floor(math.log10(limit)))
    for layer, head in np.argwhere(np.isfinite(raw)):
        value = raw[layer, head]
        text = f"{value:.{decimals}f}\n±{error[layer, head]:.{decimals}f}"
        axes.text(head, layer, text, ha="center", va="center", size=8, color=_ink(value, limit))
    axes.set_yticks(range(n_layers), [_layer_label(importance, layer) for layer in range(n_layers)])
    figure.suptitle("Rise of the excess risk without the head (zero ablation, ± standard error)", size=10)
    figure.colorbar(image, ax=axes, label="squared label units")
    return figure


def score_maps(found: HeadScores) -> Figure:
    """A map for each score, in its own colours, and how far every two of them agree."""
    n_layers, n_heads = next(iter(found.scores.values())).raw.shape
    n_scores = len(found.scores)
    beside = n_scores == 3  # the table has the fourth place, or else a row of its own
    heights = [max(2.5, 1.1 + 0.36 * n_layers)] * -(-n_scores // 2) + [1.3 + 0.42 * n_scores] * (not beside)
    width = 2 * max(4.2, 1.5 + 0.36 * n_heads)
    figure = Figure(figsize=(width, sum(heights) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for place, (name, scores) in enumerate(found.scores.items()):
        axes = figure.add_subplot(grid[place // 2, place % 2])
        raw = scores.raw.cpu().numpy()
        image, limit = _map(axes, raw)
        within_noise = scores.interval[0].le(0) & scores.interval[1].ge(0)
        for layer, head in within_noise.nonzero().tolist():
            axes.plot(head, layer, "o", markersize=3, color=_ink(raw[layer, head], limit))
        axes.set_yticks(range(n_layers), [str(layer + 1) for layer in range(n_layers)])
        axes.set_ylabel("layer")
        axes.set_title(score_label(name), size=10)
        figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
    _agreement_table(figure.add_subplot(grid[-1, 1] if beside else grid[-1, :]), found)
    figure.suptitle("What each head is worth, by score (squared label units; dot: 95 % interval contains 0)", size=11)
    return figure


def specialisation(series: Sequence[Mapping[str, Any]]) -> Figure:
    """Excess risk, and of each layer the effective number of heads and the top share, over training.

    ``series`` are HeadImportance's records, one a validation: "step", "risk", "risk_interval", and of the score
    "leave_one_out" what ImportanceScores holds, as lists.
    """
    steps = [record["step"] for record in series]
    figure = Figure(figsize=(9, 8), layout="constrained")
    risk, effective, top = figure.subplots(3, 1, sharex=True)
    _line(
        risk, steps, series, lambda record: (record["risk"], record["risk_interval"]), color=MODEL, label="full model"
    )
    scores = [record["scores"]["leave_one_out"] for record in series]
    n_heads = [sum(value is not None for value in layer) for layer in scores[-1]["raw"]]
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(n_heads)))
    for layer, n in ((layer, n) for layer, n in enumerate(n_heads) if n):
        style = {"color": colours[layer], "label": f"layer {layer + 1} ({n} head{'s' * (n != 1)})"}
        for axes, value in ((effective, "effective"), (top, "top")):
            _line(axes, steps, scores, lambda score, v=value, i=layer: _of_layer(score, v, i), **style)
    if is_wide([record["risk"] for record in series if record["risk"] is not None]):
        risk.set_yscale("log")
        risk.yaxis.set_major_formatter("{x:g}")
    risk.set_ylabel(RISK, size=9)
    effective.set_ylabel("effective number of heads", size=9)
    effective.set_ylim(0.7, max(n_heads) + 0.3)
    effective.yaxis.set_major_locator(MaxNLocator(integer=True))
    top.set_ylabel("share of the top head", size=9)
    top.set_ylim(0, 1.04)
    top.set_xlabel("training step")
    for axes in (risk, effective, top):
        axes.grid(alpha=0.25)
    figure.legend(*effective.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle(
        "When heads specialise (leave-one-out, zero ablation; 95 % intervals; gaps: a layer's total not above 0)",
        size=10,
    )
    return figure


def score_label(name: str) -> str:
    """A score's name with its ablation: "leave-one-out, mean ablation"."""
    score = next(known for known in NAMES if name.startswith(known))
    ablation = name.removeprefix(score).removeprefix("_") or "zero"
    return NAMES[score] + ("" if score == "gradient" else f", {ablation} ablation")


def _map(axes: Axes, raw: np.ndarray) -> tuple[AxesImage, float]:
    """A heat map of heads, white at zero, and the value at its darkest."""
    limit = float(np.nanmax(np.abs(raw), initial=0.0)) or 1.0
    image = axes.imshow(raw, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_facecolor("0.85")  # where a layer has no such head
    axes.set_xticks(range(raw.shape[1]), [str(head + 1) for head in range(raw.shape[1])])
    axes.set_xlabel("head")
    return image, limit


def _ink(value: float, limit: float) -> str:
    return "white" if abs(value) > 0.6 * limit else "black"


def _agreement_table(axes: Axes, found: HeadScores) -> None:
    """Rank correlation of every two scores with its interval; the table is symmetric, so half of it is drawn."""
    names = list(found.scores)
    table = np.full((len(names) - 1, len(names) - 1), np.nan)
    for row, second in enumerate(names[1:]):
        for column, first in enumerate(names[: row + 1]):
            agreement = found.agreement[f"{first}_and_{second}"]
            table[row, column] = agreement.overall
            low, high = agreement.interval.tolist()
            defined = np.isfinite(table[row, column])
            text = f"{table[row, column]:z.2f}\n[{low:z.2f}, {high:z.2f}]" if defined else "not defined"
            axes.text(column, row, text, ha="center", va="center", size=8, color=_ink(table[row, column], 1.0))
    axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    labels = [score_label(name).replace(", ", ",\n").replace(" ablation", "") for name in names]
    axes.set_xticks(range(len(names) - 1), labels[:-1], size=8)
    axes.set_yticks(range(len(names) - 1), labels[1:], size=8)
    axes.set_title("rank correlation over all heads, 95 % interval", size=10)


def _of_layer(score: Mapping[str, Any], value: str, layer: int) -> tuple[Any, tuple[Any, Any]]:
    estimate = score["effective_heads" if value == "effective" else "top_share"][layer]
    low, high = score[f"{value}_interval"]
    return estimate, (low[layer], high[layer])


def _line(axes: Axes, steps: Sequence[int], series: Sequence[Any], of: Any, **style: Any) -> None:
    """A line over the steps with its interval as a band; a gap where there is no value."""
    found = [of(item) for item in series]
    estimate = np.array([value for value, _ in found], dtype=float)
    low, high = np.array([bounds for _, bounds in found], dtype=float).T
    axes.plot(steps, estimate, marker=".", **style)
    axes.vlines(steps, low, high, color=style["color"], alpha=0.5, lw=1)  # of points without a neighbour too
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, lw=0)


def _layer_label(importance: ImportanceScores, layer: int) -> str:
    effective = float(importance.effective_heads[layer])
    said = "total not above 0" if math.isnan(effective) else f"{effective:.1f} effective"
    return f"layer {layer + 1}\n" + ("no heads" if importance.raw[layer].isnan().all() else said)
