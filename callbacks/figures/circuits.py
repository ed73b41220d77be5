"""Heads' maps in input coordinates and attention patterns: a row a layer, a tile a head."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

MAX_HEADS = 16  # drawn of a layer
MAX_QUERIES = 4  # drawn of a prompt
FEW = 12  # rows and columns of a tile that can all be named
TILE = 1.2  # inches
ACROSS = 4  # layers side by side


def query_key_maps(maps: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """Scores z_q^T QK z_k of every head, one (heads, coordinates, coordinates) tensor a layer."""
    figure = _tiles(maps, names, names, "attending token", "score")
    figure.suptitle(f"Query-key maps QK in input coordinates, score = z_q' QK z_k{_left_out(maps)}")
    return figure


def output_value_maps(maps: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """What every head adds to (x, y), one (heads, added, coordinates) tensor a layer."""
    figure = _tiles(maps, names[:-1], names, "added", "input units")
    figure.suptitle(f"Output-value maps: what a fully attended token adds, in input coordinates{_left_out(maps)}")
    return figure


def attention_maps(patterns: Sequence[Tensor], first_query: int) -> Figure:
    """Where every token of one prompt attends, one (heads, tokens, keys) tensor a layer."""
    n_tokens = min(patterns[0].shape[1], first_query + MAX_QUERIES)
    n_keys = min(patterns[0].shape[2], n_tokens)
    rows, columns = (_token_names(n, first_query) for n in (n_tokens, n_keys))
    shown = [pattern[:, :n_tokens, :n_keys] for pattern in patterns]
    figure = _tiles(shown, rows, columns, "attending token", "attention")
    maps = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    for axes, pattern in zip(maps, patterns, strict=True):
        if len(pattern):
            axes.axhline(first_query - 0.5, color="black", lw=0.8)
    queries = f"the first {n_tokens - first_query} of its queries" if n_tokens < patterns[0].shape[1] else "its queries"
    figure.suptitle(f"Attention on one held-out prompt:\nits context, below the line {queries}{_left_out(patterns)}")
    return figure


def prediction_rows(rows: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """What each coordinate of an attended token adds to the prediction, one (heads, coordinates) tensor a layer."""
    n_across = min(ACROSS, len(rows))
    n_down = -(-len(rows) // n_across)
    n_heads = min(MAX_HEADS, max(len(row) for row in rows))
    figure = Figure(figsize=(1 + 3.3 * n_across, 0.9 + n_down * (1.1 + 0.22 * n_heads)), layout="constrained")
    for i, (row, axes) in enumerate(zip(rows, figure.subplots(n_down, n_across, squeeze=False).flat, strict=False)):
        axes.set_title(f"layer {i + 1}", fontsize=10)
        if not len(row):
            axes.text(0.5, 0.5, "no heads", ha="center", transform=axes.transAxes)
            continue
        _image(axes, row[:MAX_HEADS].numpy(), "label units")
        _name_ticks(axes, "x", [(0, names)])
        heads = range(min(len(row), MAX_HEADS))
        axes.set_yticks(heads, [str(h + 1) for h in heads])
        axes.set_ylabel("head")
        axes.set_xlabel("coordinate of the attended token")
    for axes in list(figure.axes):
        if not axes.has_data():
            axes.set_axis_off()
    figure.suptitle(f"What a fully attended token adds to the prediction directly{_left_out(rows)}")
    return figure


def _tiles(maps: Sequence[Tensor], rows: Sequence[str], columns: Sequence[str], row_title: str, unit: str) -> Figure:
    """A row of tiles for each layer, on a colour scale of its own."""
    n_heads = min(MAX_HEADS, max(len(layer) for layer in maps))
    height = TILE * min(max(len(rows) / len(columns), 0.5), 2.0)
    figure = Figure(figsize=(2 + TILE * max(n_heads, 4), 1.1 + len(maps) * (height + 0.45)), layout="constrained")
    gap = max(1, len(columns) // 8)
    firsts = [h * (len(columns) + gap) for h in range(n_heads)]
    for i, (layer, axes) in enumerate(zip(maps, figure.subplots(len(maps), 1, squeeze=False).flat, strict=True)):
        axes.set_ylabel(f"layer {i + 1}\n{row_title}", fontsize=8)
        mosaic = np.full((len(rows), firsts[-1] + len(columns)), np.nan)
        for h, (first, tile) in enumerate(zip(firsts, layer.numpy(), strict=False)):
            mosaic[:, first : first + len(columns)] = tile
            axes.text(first + len(columns) / 2 - 0.5, -0.7, f"head {h + 1}", ha="center", va="bottom", fontsize=8)
        _image(axes, mosaic, unit)
        axes.set_frame_on(False)
        axes.set_xticks([])
        if len(layer):
            _name_ticks(axes, "y", [(0, rows)])
        else:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no heads", ha="center", transform=axes.transAxes)
    _name_ticks(axes, "x", [(first, _ends(columns)) for first in firsts])
    axes.set_xlabel("attended token (all layers)", fontsize=8)
    return figure


def _image(axes: Axes, values: np.ndarray, unit: str) -> None:
    """A heat map about 0; from 0 where nothing is negative, as softmax patterns are."""
    known = values[np.isfinite(values)]
    limit = float(np.abs(known).max(initial=0)) or 1.0
    signed = known.min(initial=0) < 0
    low, colours = (-limit, "RdBu_r") if signed else (0.0, "Reds")
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto", interpolation="nearest")
    if not known.size:
        return  # no heads, no scale
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.01)
    bar.set_label(unit, size=8)
    bar.ax.tick_params(labelsize=7)


def _name_ticks(axes: Axes, which: str, blocks: Sequence[tuple[int, Sequence[str]]]) -> None:
    """The names of each block from its first place on, "" for none; those of a tall block only at its ends."""
    places = [
        (first + i, name)
        for first, names in blocks
        for i, name in enumerate(names if len(names) <= FEW else _ends(names))
        if name
    ]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([place for place, _ in places], [name for _, name in places])
    axes.tick_params(axis="x" if which == "x" else "y", labelsize=6, length=1.5, pad=1)


def _ends(names: Sequence[str]) -> list[str]:
    """The first name of each kind (x1, y, 1; 1, q1) and the last of all, "" for the rest: text is slow to draw."""
    kinds = [name.rstrip("0123456789") or "number" for name in names]
    ends = [i for i in range(len(names)) if i in (0, len(names) - 1) or kinds[i] != kinds[i - 1]]
    return [name if i in ends else "" for i, name in enumerate(names)]


def _token_names(n_tokens: int, first_query: int) -> list[str]:
    return [f"{i + 1}" if i < first_query else f"q{i - first_query + 1}" for i in range(n_tokens)]


def _left_out(maps: Sequence[Tensor]) -> str:
    """That not all heads are drawn, where it is so."""
    return f" (the first {MAX_HEADS} heads of each layer)" if max(len(layer) for layer in maps) > MAX_HEADS else ""
