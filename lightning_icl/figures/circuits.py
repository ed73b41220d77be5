"""Heads' maps in input coordinates and attention patterns: a tile a head, on a colour scale for each layer."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl.figures.style import heat_map, scale, title

MAX_HEADS = 16  # drawn of a layer
MAX_QUERIES = 4  # drawn of a prompt
ACROSS = 8  # heads side by side
LETTER = 0.09  # inches of one at the size of ticks


def query_key_maps(maps: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """Scores z_q^T QK z_k of every head, one (heads, coordinates, coordinates) tensor a layer."""
    words = "Query-key maps in input coordinates, score = z_q' QK z_k"
    return _tiles(maps, names, names, "attending token", "score", words)


def output_value_maps(maps: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """What every head adds to (x, y), one (heads, added, coordinates) tensor a layer."""
    words = "Output-value maps: what a fully attended token adds"
    return _tiles(maps, names[:-1], names, "added", "input units", words)


def attention_maps(patterns: Sequence[Tensor], first_query: int) -> Figure:
    """Where every token of one prompt attends, one (heads, tokens, keys) tensor a layer."""
    n_tokens = min(patterns[0].shape[1], first_query + MAX_QUERIES)
    shown = [pattern[:, :n_tokens, :n_tokens] for pattern in patterns]
    names = [f"{i + 1}" if i < first_query else f"q{i - first_query + 1}" for i in range(n_tokens)]
    queries = f"the first {n_tokens - first_query} of its queries" if n_tokens < patterns[0].shape[1] else "its queries"
    words = f"Attention on one held-out prompt: its context,\nbelow the line {queries}"
    return _tiles(shown, names, names[: shown[0].shape[2]], "attending token", "attention", words, first_query)


def prediction_rows(rows: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """What each coordinate of an attended token adds to the prediction, one (heads, coordinates) tensor a layer."""
    tall = [0.5 + 0.2 * min(MAX_HEADS, max(2, len(row))) for row in rows]
    figure = Figure(figsize=(6.9, 0.9 + sum(tall)), layout="constrained")
    every = figure.subplots(len(rows), 1, squeeze=False, height_ratios=tall).flatten().tolist()
    for i, (row, axes) in enumerate(zip(rows, every, strict=True)):
        shown = row[:MAX_HEADS].numpy()
        _image(axes, shown, "label units", [axes], shown)
        axes.set_ylabel(f"layer {i + 1}\nhead", size=9)
        if len(row):
            _name(axes.xaxis, [0], names, 5.0)
            _name(axes.yaxis, [0], [str(head + 1) for head in range(len(shown))], 0.2 * len(shown))
    axes.set_xlabel("coordinate of the attended token", size=9)
    title(figure, "What a fully attended token adds to the prediction directly" + _left_out(rows))
    return figure


def _tiles(
    maps: Sequence[Tensor], rows: Sequence[str], columns: Sequence[str], row_title: str, unit: str, words: str,
    line: int = 0,
) -> Figure:  # fmt: skip
    """Every layer's heads, ACROSS side by side, with a line above row ``line``."""
    across = min(ACROSS, max(4, *(len(layer) for layer in maps), 4))
    tile, width = 5.6 / across, len(columns)
    height = max(0.7, tile * min(max(len(rows) / width, 0.5), 2.0))
    n_blocks = [max(1, -(-min(len(layer), MAX_HEADS) // ACROSS)) for layer in maps]
    figure = Figure(figsize=(6.9, 1.1 + sum(n_blocks) * (height + 0.4)), layout="constrained")
    every = iter(figure.subplots(sum(n_blocks), 1, squeeze=False).flat)
    firsts = [place * (width + max(1, width // 4)) for place in range(across)]
    for i, (layer, n) in enumerate(zip(maps, n_blocks, strict=True)):
        of_layer, shown = list(itertools.islice(every, n)), layer[:MAX_HEADS].numpy()
        for start, axes in zip(range(0, MAX_HEADS, ACROSS), of_layer, strict=False):
            heads = shown[start : start + ACROSS]
            mosaic = np.full((len(rows), firsts[-1] + width), np.nan)
            for h, (first, head) in enumerate(zip(firsts, heads, strict=False), start=start + 1):
                mosaic[:, first : first + width] = head
                axes.text(first + width / 2 - 0.5, -0.6, f"head {h}", ha="center", va="bottom", size=9)
                if line:
                    axes.hlines(line - 0.5, first - 0.5, first + width - 0.5, color="black", lw=0.8)
            _image(axes, mosaic, unit, of_layer, shown)
            axes.set_ylabel(f"layer {i + 1}\n{row_title}", size=9)
            axes.set_frame_on(False)
            axes.set_xticks([])
            if len(heads):
                _name(axes.yaxis, [0], rows, height)
                _name(axes.xaxis, firsts[: len(heads)], columns, 0.8 * tile)
    axes.set_xlabel("attended token (all layers)", size=9)
    title(figure, words + _left_out(maps))
    return figure


def _image(axes: Axes, values: np.ndarray, unit: str, of_layer: Sequence[Axes], layer: np.ndarray) -> None:
    """A heat map on the layer's scale, with one colour bar beside all its axes."""
    if not layer.size:
        axes.set_frame_on(False)
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no heads", ha="center", va="center", size=9, transform=axes.transAxes)
        return
    image = heat_map(axes, values, ends=scale(layer), missing="white")
    if axes is of_layer[0]:
        axes.figure.colorbar(image, ax=list(of_layer), fraction=0.05, pad=0.01).set_label(unit, size=9)


def _name(axis: Axis, firsts: Sequence[int], names: Sequence[str], inches: float) -> None:
    """The names of each block from its first place on: all, or else the first of each kind and the last of all.

    The last two share a label then if they are neighbours, such as "y 1".
    """
    across, pitch = isinstance(axis, XAxis), inches / len(names)
    named: dict[float, str] = dict(enumerate(names))
    if pitch < LETTER * (max(map(len, names)) + 0.7 if across else 1.6):
        kinds = [name.rstrip("0123456789") for name in names]
        named = {i: names[i] for i in range(len(names)) if i in (0, len(names) - 1) or kinds[i] != kinds[i - 1]}
        *_, before, last = named
        if last == before + 1:
            named[last - 0.5] = f"{named.pop(before)} {named.pop(last)}"
    axis.set_ticks([first + place for first in firsts for place in named], [*named.values()] * len(firsts), size=9)
    axis.set_tick_params(length=1.5, pad=1)
    if across and len(named) < len(names):  # within their block, away from the next one's
        for i, label in enumerate(axis.get_ticklabels()):
            if (place := i % len(named)) in (0, len(named) - 1):
                label.set_horizontalalignment("right" if place else "left")


def _left_out(maps: Sequence[Tensor]) -> str:
    """That not all heads are drawn, where it is so."""
    return f"\n(the first {MAX_HEADS} heads of each layer)" if max(len(layer) for layer in maps) > MAX_HEADS else ""
