"""Which heads matter, over seeds."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.heads import NAMES, score_label
from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import heads_label, in_order, slug

CELL = (0.66, 0.5)  # inches of a head
LEFT, RIGHT, ABOVE, BELOW = 0.75, 0.3, 0.42, 0.55  # inches around a map
WIDEST = 11.0  # inches of a row of maps
HEADER = 0.5


class Map(NamedTuple):
    """One head configuration's means and half-widths of intervals (layers, heads), NaN where there is no head."""

    label: str
    mean: np.ndarray
    half: np.ndarray
    seeds: int

    @property
    def inches(self) -> tuple[float, float]:
        """Width and height with what is around it."""
        layers, heads = self.mean.shape
        return LEFT + CELL[0] * max(heads, 1.4) + RIGHT, ABOVE + CELL[1] * layers + BELOW


class ImportanceMaps(StudyFigure):
    """Layer by head maps of importance, averaged over seeds; a figure for each setting, a map for each configuration.

    Heads of one layer are exchangeable between seeds, so each seed's are sorted by importance within their layer
    before the average.

    Args:
        score: which of HeadImportance's scores, such as leave_one_out, leave_one_in, gradient, leave_one_out_mean.
    """

    def __init__(self, score: str = "leave_one_out") -> None:
        self.score = checked_score(score)

    @property
    def name(self) -> str:
        return "head_importance" + ("" if self.score == "leave_one_out" else f"_{self.score}")

    @property
    def title(self) -> str:
        return f"What each head is worth ({score_label(self.score)})"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        return [
            ("_" * bool(title) + slug(title), _figure(maps, ", ".join(filter(None, [self.title, title]))))
            for title, maps in self._maps(table)
        ]

    def caption(self, table: pd.DataFrame) -> str:
        counts = [found.seeds for _, maps in self._maps(table) for found in maps]
        what = {
            "leave_one_out": "Rise of the excess risk when a head is removed",
            "leave_one_in": "Fall of the excess risk when a head is the only one of its layer",
            "gradient": "Mean size of the loss's derivative by a head's mask",
        }[next(name for name in NAMES if self.score.startswith(name))]
        interval = "± half a 95 % interval (Student's t)" if max(counts) > 1 else "of one seed, without intervals"
        return cells.caption(
            f"{what}, in squared label units: mean {interval}.",
            f"{_number_of(counts)}." * (max(counts) > 1),
            "Heads of one layer are exchangeable between seeds, so each seed's are first sorted by importance: column "
            "1 is each seed's most important head of the layer. Sorting alone makes equal heads differ by their noise.",
            "Each map has colours of its own, up to its largest number.",
            cells.missing_said(self._rows(table)),
        )

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        metric = f"heads/{self.score}/importance"
        return cells.final(table[(table["metric"] == metric) & table["n_points"].isna()], metric)

    def _maps(self, table: pd.DataFrame) -> list[tuple[str, list[Map]]]:
        """The maps of each setting."""
        settings = cells.settings(table, cells.finite(self._rows(table)))
        return [(title, [_map(text, rows) for text in in_order(rows[cells.HEADS])]) for title, rows in settings]


def checked_score(score: str) -> str:
    """The name of one of HeadImportance's scores, such as leave_one_out or leave_one_out_mean."""
    if not score.startswith(tuple(NAMES)):
        raise InputError(
            f"score is {score!r}, but HeadImportance knows none of that name: " + did_you_mean(score, NAMES)
        )
    return score


def _number_of(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


def _map(text: str, rows: pd.DataFrame) -> Map:
    """The map of one head configuration among a setting's rows."""
    rows = rows[rows[cells.HEADS] == text]
    rank = rows.groupby(["trial", "layer"])["value"].rank(ascending=False, method="first").astype(int)
    found = cells.over_seeds(rows.assign(rank=rank), ["layer", "rank"])
    shape = int(found["layer"].max()), int(found["rank"].max())
    mean, half = np.full(shape, np.nan), np.full(shape, np.nan)
    for cell in found.itertuples():
        mean[cell.layer - 1, cell.rank - 1] = cell.mean
        half[cell.layer - 1, cell.rank - 1] = cell.high - cell.mean
    return Map(heads_label(text), mean, half, int(found["n"].max()))


def _figure(maps: Sequence[Map], title: str) -> Figure:
    """The maps row by row, all cells of one size."""
    rows = list(_packed(maps))
    heights = [max(found.inches[1] for found in row) for row in rows]
    width = max(max(sum(found.inches[0] for found in row) for row in rows), 0.09 * len(title) + 0.5)
    height = HEADER + sum(heights)
    figure = Figure(figsize=(width, height))
    top = height - HEADER
    for row, tall in zip(rows, heights, strict=True):
        left = 0.0
        for found in row:
            layers, heads = found.mean.shape
            size = CELL[0] * heads / width, CELL[1] * layers / height
            _draw(figure, found, (left + LEFT) / width, (top - ABOVE) / height - size[1], *size)
            left += found.inches[0]
        top -= tall
    figure.text(0.5, 1 - 0.25 / height, title, ha="center", va="center", size=11)
    return figure


def _packed(maps: Sequence[Map]) -> Iterator[list[Map]]:
    """The maps in rows that are not too wide."""
    row: list[Map] = []
    for found in maps:
        if row and sum(m.inches[0] for m in [*row, found]) > WIDEST:
            yield row
            row = []
        row.append(found)
    yield row


def _draw(figure: Figure, found: Map, left: float, bottom: float, width: float, height: float) -> None:
    axes = figure.add_axes((left, bottom, width, height))
    limit = float(np.nanmax(np.abs(found.mean), initial=0.0)) or 1.0
    axes.imshow(found.mean, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_facecolor("0.85")  # where a layer has fewer heads
    decimals = int(np.clip(2 - np.floor(np.log10(limit)), 0, 6))
    for (layer, head), mean in np.ndenumerate(found.mean):
        if np.isfinite(mean):
            half = found.half[layer, head]
            text = f"{mean:.{decimals}f}" + (f"\n±{half:.{decimals}f}" if np.isfinite(half) else "")
            ink = "white" if abs(mean) > 0.6 * limit else "black"
            axes.text(head, layer, text, ha="center", va="center", size=7.5, color=ink)
    layers, heads = found.mean.shape
    axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)], size=8)
    axes.set_yticks(range(layers), [f"layer {layer + 1}" for layer in range(layers)], size=8)
    axes.set_xlabel("rank in layer" if heads < 3 else "head, by rank within layer and seed", size=8)
    axes.set_title(found.label, size=9)
