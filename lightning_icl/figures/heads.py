"""Which heads matter, by which score, and since when."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.figures import style

SCORES = {"leave_one_out": "leave-one-out", "leave_one_in": "leave-one-in", "gradient": "gradient"}
NUMBERS = {"effective": "effective number of heads", "top_share": "share of the top head"}
BOUNDS = {"effective": 0.75, "top_share": 0.6}  # our bounds of a reproduction: 0.75 h in layer 1, 0.6 later
CELL = (0.62, 0.46)  # inches of a head with its number and interval

Shape = tuple[int, int]  # layers and heads


def score_label(name: str) -> str:
    """A score's name with its ablation: "leave-one-out, mean ablation"."""
    score = next(known for known in SCORES if name.startswith(known))
    ablation = name.removeprefix(score).removeprefix("_") or "zero"
    return SCORES[score] + ("" if score == "gradient" else f", {ablation} ablation")


def importance_map(rows: pd.DataFrame) -> Figure:
    """Layer by head map of leave-one-out importance with its intervals; rows heads/leave_one_out/..."""
    found = _numbers(rows, "leave_one_out")
    n_layers, n_heads = shape = _shape(found)
    figure, (axes,) = style.panels(1, max(5.0, 0.9 + CELL[0] * n_heads), 0.4 + CELL[1] * n_layers)
    power, unit = unit_of(found["importance"])
    importance_panel(axes, found["importance"], shape, power)
    effective = found["effective"].set_index("layer")["mean"].dropna()
    labels = dict.fromkeys(range(1, n_layers + 1), "no heads")
    labels |= dict.fromkeys(found["importance"]["layer"], "total not above 0")
    labels |= {layer: f"{mean:.1f} effective" for layer, mean in effective.items()}
    axes.set_yticks(range(n_layers), [f"layer {layer}\n{said}" for layer, said in labels.items()])
    style.title(figure, f"Rise of the excess risk without the head ({unit}, ± 95 %)")
    return figure


def unit_of(found: pd.DataFrame) -> tuple[int, str]:
    """A power of ten that numbers are said in, and the unit in words: tiny ones in thousandths and so on."""
    power = 3 * math.ceil(max(0.0, -math.log10(_largest(found)) - 2) / 3)
    return power, f"$10^{{-{power}}}$ squared label units" if power else "squared label units"


def importance_panel(axes: Axes, found: pd.DataFrame, shape: Shape, power: int = 0) -> None:
    """A map of cells by layer and head, with each number and half its interval in units of 10^-power."""
    decimals = int(np.clip(2 - power - math.floor(math.log10(_largest(found))), 0, 3))
    number = f"{{:z.{decimals}f}}".format
    halves = 10**power * (found["high"] - found["mean"])
    bars = halves.map(lambda half: f"\n±{number(half)}" if math.isfinite(half) else "")
    _head_map(axes, found.assign(text=(10**power * found["mean"]).map(number) + bars), shape)


def score_maps(rows: pd.DataFrame) -> Figure:
    """Each head's share of its layer by each score, on one scale, and how far every two scores agree."""
    scores = rows["metric"].str.extract(r"^heads/(\w+)/importance$")[0].dropna().unique().tolist()
    by_score = {score: _numbers(rows, score) for score in scores}
    n_layers, n_heads = shape = _shape(by_score[scores[0]])
    beside = len(scores) == 3  # the table of agreement has the fourth place, or else a row of its own
    heights = [0.8 + 0.26 * n_layers] * -(-len(scores) // 2) + [0.6 + 0.42 * len(scores)] * (not beside)
    figure = Figure(figsize=(max(6.9, 1.4 + 0.56 * n_heads), sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for place, (score, found) in enumerate(by_score.items()):
        axes = figure.add_subplot(grid[place // 2, place % 2])
        heads = found["share"].merge(found["importance"], on=["layer", "head"], suffixes=("", "_importance"))
        heads["mean"] *= 100
        noise = (heads["low_importance"] <= 0) & (heads["high_importance"] >= 0)
        percent = heads["mean"].map("{:.0f}".format)
        _head_map(axes, heads.assign(text=percent.where(~noise, "(" + percent + ")")), shape, ends=(0.0, 100.0))
        for layer in set(heads["layer"]) - set(heads.dropna(subset="mean")["layer"]):
            axes.text(n_heads / 2 - 0.5, layer - 1, "total not above 0", ha="center", va="center", size=9)
        axes.set(ylabel="layer", title=score_label(score))
    _agreement(figure.add_subplot(grid[-1, int(beside) :]), rows, scores)
    style.title(figure, "Each head's share of its layer's importance in %\n(in brackets: importance within noise of 0)")
    return figure


def _agreement(axes: Axes, rows: pd.DataFrame, scores: Sequence[str]) -> None:
    """Rank correlation of every two scores with its interval; the table is symmetric, so half of it is drawn."""
    whole = rows[rows["layer"].isna() & rows["n_points"].isna()]
    found = style.cells(whole, rf"heads/agreement/(?P<first>{'|'.join(scores)})_and_(?P<second>{'|'.join(scores)})")
    found = found.assign(row=found["second"].map(scores.index) - 1, column=found["first"].map(scores.index))
    said = [f"{c.mean:z.2f}" + f"\n[{c.low:z.2f}, {c.high:z.2f}]" * (c.low == c.low) for c in found.itertuples()]
    found["text"] = pd.Series(said, found.index, dtype=object).where(found["mean"].notna(), "not defined")
    labels = [score_label(name).replace(", ", ",\n").removesuffix(" ablation") for name in scores]
    style.cell_map(axes, found, labels[1:], labels[:-1], ends=(-1.0, 1.0), missing="white")
    axes.set_title("rank correlation [95 % interval]", size=10)


def specialisation(rows: pd.DataFrame) -> Figure:
    """Excess risk, and of each layer the effective number of heads and the top share, over training.

    ``rows`` are those of all validations, with the column step.
    """
    rows = rows[rows["n_points"].isna()].sort_values("step", kind="stable")
    found = _numbers(rows, "leave_one_out")
    n_heads = {int(layer): int(n) for layer, n in found["importance"].groupby("layer")["head"].max().items()}
    labels = {layer: f"layer {layer} ({n} head{'s' * (n != 1)})" for layer, n in n_heads.items()}
    figure = Figure(figsize=(style.WIDTH, 7.0), layout="constrained")
    risk, *pair = figure.subplots(3, 1, sharex=True)
    full = style.cells(rows, "heads/(?P<number>risk)")
    _course(risk, full["step"], full, color=style.BLUE, marker="o", label="full model")
    style.limit(risk, style.risk_limits(full))
    risk.set_ylabel(style.RISK.replace(" (", "\n("), size=9)
    for axes, number in zip(pair, NUMBERS, strict=True):
        colours = style.ordered_colours(max(n_heads))
        in_use(axes, number, found[number], found[number]["step"], n_heads, colours, labels, course=True)
    pair[-1].set_xlabel("training step", size=9)
    style.legend(figure, columns=3)
    style.title(figure, "When heads specialise (leave-one-out, 95 %)\ndotted: what the paper's claim is held to")
    return figure


def in_use(
    axes: Axes, number: str, found: pd.DataFrame, places: pd.Series, n_heads: Mapping[int, int], colours: Sequence[Any],
    labels: Mapping[int, str] | None = None, course: bool = False, line_width: float = 1.4,
) -> None:  # fmt: skip
    """One of NUMBERS at these places, a line a layer: over the ``course`` of training with bands, else with bars.

    The axis has the same ends whatever the numbers, and the bound: of effective heads it is one on layer 1.
    """
    layers = sorted(set(found["layer"]) & set(n_heads))  # those that have any
    for i, layer in enumerate(layers):
        line, x = found[found["layer"] == layer], places[found["layer"] == layer]
        look = {"color": colours[layer - 1], "marker": style.MARKERS[(layer - 1) % len(style.MARKERS)]}
        look["label"] = (labels or {}).get(layer, f"layer {layer}")
        if course:
            _course(axes, x, line, **look)
        else:
            style.over(axes, style.apart(x, i, len(layers), places), line, ms=4, lw=line_width, **look)
    bound = BOUNDS[number] * (n_heads.get(1, 0) if number == "effective" else 1)
    axes.axhline(bound, color=colours[0] if number == "effective" else "0.4", lw=1, ls=":")
    if number == "effective":
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(*((0.7, max(n_heads.values()) + 0.3) if number == "effective" else (0, 1.04)))
    axes.set_ylabel(NUMBERS[number], size=9)
    axes.grid(alpha=0.2)


def _course(axes: Axes, steps: pd.Series, found: pd.DataFrame, **look: Any) -> None:
    """A line with a band, and bars for points that have no neighbour; a gap where there is no value."""
    style.band(axes, steps, found, ms=3, lw=1.4, **look)
    style.over(axes, steps, found, ls="", capsize=0, color=look["color"], alpha=0.5)


def _numbers(rows: pd.DataFrame, score: str) -> dict[str, pd.DataFrame]:
    """Cells of one score at all examples, by what they are: importance, share, effective, top_share."""
    found = style.cells(rows[rows["n_points"].isna()], rf"heads/{score}/(?P<number>\w+)")
    return {str(number): of_number for number, of_number in found.groupby("number")}


def _shape(found: Mapping[str, pd.DataFrame]) -> Shape:
    return int(found["effective"]["layer"].max()), int(found["importance"]["head"].max())


def _largest(found: pd.DataFrame) -> float:
    return max(map(abs, style.scale(found["mean"].to_numpy(dtype=float))))


def _head_map(axes: Axes, found: pd.DataFrame, shape: Shape, **options: Any) -> None:
    """Cells by layer and head, with their text; nothing where there is no such head or it has no number."""
    found = found.assign(row=found["layer"] - 1, column=found["head"] - 1).dropna(subset="mean")
    style.cell_map(axes, found, *([str(i + 1) for i in range(n)] for n in shape), **options)
    axes.set_xlabel("head", size=9)
