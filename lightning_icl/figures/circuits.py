"""Heads' maps in input coordinates and attention patterns: a tile a head, on a colour scale for each layer."""

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
    n_keys = min(patterns[0].shape[2], n_tokens)
    names = [f"{i + 1}" if i < first_query else f"q{i - first_query + 1}" for i in range(n_tokens)]
    queries = f"the first {n_tokens - first_query} of its queries" if n_tokens < patterns[0].shape[1] else "its queries"
    shown = [pattern[:, :n_tokens, :n_keys] for pattern in patterns]
    words = f"Attention on one held-out prompt: its context,\nbelow the line {queries}"
    return _tiles(shown, names, names[:n_keys], "attending token", "attention", words, first_query)


def prediction_rows(rows: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """What each coordinate of an attended token adds to the prediction, one (heads, coordinates) tensor a layer."""
    tall = [min(MAX_HEADS, max(2, *(len(row) for row in rows[i : i + 2]), 2)) for i in range(0, len(rows), 2)]
    figure = Figure(figsize=(6.9, 0.8 + sum(1.0 + 0.2 * n for n in tall)), layout="constrained")
    every = figure.subplots(len(tall), 2, squeeze=False, height_ratios=[0.5 + 0.2 * n for n in tall]).flatten().tolist()
    for i, (row, axes) in enumerate(zip(rows, every, strict=False)):
        axes.set_title(f"layer {i + 1}", size=10)
        axes.set_xlabel("coordinate of the attended token", size=9)
        shown = row[:MAX_HEADS].numpy()
        _image(axes, shown, "label units", [axes], shown)
        if len(row):
            _name(axes.xaxis, [0], names, 2.3)
            _name(axes.yaxis, [0], [str(head + 1) for head in range(len(shown))], 0.2 * len(shown))
            axes.set_ylabel("head", size=9)
    for axes in every[len(rows) :]:
        axes.remove()
    title(figure, "What a fully attended token adds to the prediction directly" + _left_out(rows))
    return figure


def _tiles(
    maps: Sequence[Tensor],
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    unit: str,
    words: str,
    line: int = 0,
) -> Figure:
    """Every layer's heads, ACROSS side by side, with a line above row ``line``."""
    across = min(ACROSS, max(4, *(len(layer) for layer in maps), 4))
    tile = 5.6 / across
    height = max(0.7, tile * min(max(len(rows) / len(columns), 0.5), 2.0))
    n_blocks = [max(1, -(-min(len(layer), MAX_HEADS) // ACROSS)) for layer in maps]
    figure = Figure(figsize=(6.9, 1.1 + sum(n_blocks) * (height + 0.4)), layout="constrained")
    every = iter(figure.subplots(sum(n_blocks), 1, squeeze=False).flat)
    gap = max(1, len(columns) // 4)
    firsts = [place * (len(columns) + gap) for place in range(across)]
    for i, (layer, n) in enumerate(zip(maps, n_blocks, strict=True)):
        of_layer = [next(every) for _ in range(n)]
        for block, axes in enumerate(of_layer):
            heads = layer[:MAX_HEADS].numpy()[block * ACROSS : (block + 1) * ACROSS]
            mosaic = np.full((len(rows), firsts[-1] + len(columns)), np.nan)
            for h, (first, head) in enumerate(zip(firsts, heads, strict=False)):
                mosaic[:, first : first + len(columns)] = head
                left, right = first - 0.5, first + len(columns) - 0.5
                name = f"head {block * ACROSS + h + 1}"
                axes.text((left + right) / 2, -0.6, name, ha="center", va="bottom", size=9)
                if line:
                    axes.hlines(line - 0.5, left, right, color="black", lw=0.8)
            _image(axes, mosaic, unit, of_layer, layer[:MAX_HEADS].numpy())
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

    Those too close to stand apart share a label, such as "y 1".
    """
    pitch = inches / len(names)
    room = [LETTER * (len(name) + 0.7) if isinstance(axis, XAxis) else 1.6 * LETTER for name in names]
    kinds = [name.rstrip("0123456789") or "number" for name in names]
    named: list[tuple[float, str]] = []
    for i, name in enumerate(names):
        if pitch < max(room) and i not in (0, len(names) - 1) and kinds[i] == kinds[i - 1]:
            continue
        if named and pitch * (i - named[-1][0]) < room[i]:
            named[-1] = ((named[-1][0] + i) / 2, f"{named[-1][1]} {name}")
        else:
            named.append((i, name))
    axis.set_ticks(
        [first + place for first in firsts for place, _ in named], [name for _ in firsts for _, name in named], size=9
    )
    axis.set_tick_params(length=1.5, pad=1)
    if isinstance(axis, XAxis) and len(named) < len(names):  # within their block, away from the next one's
        for label in axis.get_ticklabels():
            if label.get_text() in (named[0][1], named[-1][1]):
                label.set_horizontalalignment("left" if label.get_text() == named[0][1] else "right")


def _left_out(maps: Sequence[Tensor]) -> str:
    """That not all heads are drawn, where it is so."""
    return f"\n(the first {MAX_HEADS} heads of each layer)" if max(len(layer) for layer in maps) > MAX_HEADS else ""
