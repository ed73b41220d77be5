"""Which heads matter, and how many each layer uses: a figure for each setting."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from lightning_icl.figures import style
from lightning_icl.figures.heads import BOUNDS, CELL, NUMBERS, SCORES, importance_panel, in_use, score_label, unit_of
from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.cells import HEADS
from lightning_icl.studies.figures.study_figure import OverSeeds
from lightning_icl.studies.names import few, heads_label, in_order, key_name, slug, value_text
from lightning_icl.studies.table import analysed_on, config_columns, head_list, uniform_heads

AROUND = 0.6  # inches of a map's title and ticks
ACROSS = 3  # configurations side by side


class _Heads(OverSeeds):
    """What one of HeadImportance's scores says of every head configuration; a figure a setting."""

    name = title = ""  # each has its own
    needs = "HeadImportance"
    drawn: ClassVar[str] = "n > 0"  # which cells are

    def __init__(self, score: str) -> None:
        if not score.startswith(tuple(SCORES)):
            known = did_you_mean(score, SCORES)
            raise InputError(f"score is {score!r}, but HeadImportance knows none of that name: {known}")
        self.score = score

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        by_setting = self.found(table).query(self.drawn).groupby("setting", sort=False)
        return [("_" * bool(setting) + slug(setting), self.figure(found)) for setting, found in by_setting]

    def words(self, found: pd.DataFrame) -> str:
        """The title, and the setting where there are several."""
        return ", ".join(filter(None, [self.title, found["setting"].iloc[0]]))


class ImportanceMaps(_Heads):
    """Layer by head maps of importance, averaged over seeds; a figure for each setting, a map for each configuration.

    Heads of one layer are exchangeable between seeds, so each seed's are sorted by importance within their layer
    before the average.

    Args:
        score: which of HeadImportance's scores, such as leave_one_out, leave_one_in, gradient, leave_one_out_mean.

    Example:
        >>> from lightning_icl.studies.figures import ImportanceMaps
        >>> ImportanceMaps(score="gradient").title
        'What each head is worth (gradient)'
    """

    def __init__(self, score: str = "leave_one_out") -> None:
        super().__init__(score)
        self.name = "head_importance" + ("" if score == "leave_one_out" else f"_{score}")
        self.title = f"What each head is worth ({score_label(score)})"

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        metric = f"heads/{self.score}/importance"
        return cells.final(table[(table["metric"] == metric) & table["n_points"].isna()], metric)

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        """By layer and rank, which stands for the head."""
        rank = rows.groupby(["trial", "layer"])["value"].rank(ascending=False, method="first").astype("Int64")
        return cells.over_seeds(rows.assign(head=rank), [HEADS, "layer", "head"])

    def figure(self, found: pd.DataFrame) -> Figure:
        """One map below another, more than three in two columns, all cells of one size."""
        maps = {text: found[found[HEADS] == text] for text in in_order(found[HEADS])}
        widest, (power, unit) = int(found["head"].max()), unit_of(found)
        across = 2 if len(maps) > ACROSS else 1
        every = [AROUND + CELL[1] * int(of["layer"].max()) for of in maps.values()]
        heights = [max(every[i : i + across]) for i in range(0, len(every), across)]
        size = max(style.WIDTH, across * (1.0 + CELL[0] * widest)), sum(heights) + 0.8
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(heights), across, squeeze=False, height_ratios=heights).flatten()
        for axes in grid[len(maps) :]:
            axes.remove()
        for axes, (text, of) in zip(grid, maps.items(), strict=False):
            n_layers = int(of["layer"].max())
            importance_panel(axes, of, (n_layers, widest), power)
            axes.set_xlabel("")
            axes.set_yticks(range(n_layers), [f"layer {layer + 1}" for layer in range(n_layers)], size=9)
            axes.set_title(heads_label(text), size=9)
        figure.supxlabel("head, by rank within its layer and seed", size=9)
        style.title(figure, f"{', '.join(filter(None, [self.title, found['setting'].iloc[0]]))},\nin {unit}")
        return figure

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        what = {
            "leave_one_out": "Rise of the excess risk when a head is removed",
            "leave_one_in": "Fall of the excess risk when a head is the only one of its layer",
            "gradient": "Mean size of the loss's derivative by a head's mask",
        }[next(name for name in SCORES if self.score.startswith(name))]
        return [
            f"{what}, in squared label units, on {analysed_on(rows)}: the mean over seeds, ± half its interval.",
            cells.seeds_said(found),
            "Heads of one layer are exchangeable between seeds, so each seed's are first sorted by importance: column "
            "1 is each seed's most important head of the layer. Sorting alone makes equal heads differ by their noise.",
            "Each map has colours of its own, up to its largest number.",
            cells.missing_said(rows),
        ]


class _InUse(_Heads):
    """What NUMBERS say of the heads in use, for models that have more than one head somewhere."""

    def numbers(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows, at all steps, with what they are called in a column "number"."""
        rows = style.parts(table[table["n_points"].isna()], rf"heads/{self.score}/(?P<number>{'|'.join(NUMBERS)})")
        return rows[rows[HEADS].map(lambda text: max(head_list(text)) > 1).astype(bool)]

    def meaning(self, rows: pd.DataFrame) -> str:
        return (
            "Effective number of heads, exp(entropy of the shares of importance within the layer): 1 where one head "
            "does all, h where all h do as much; and the share of the most important head; on "
            f"{analysed_on(rows)}. Dotted: what a reproduction is held to, in layer 1 at least 0.75 h effective heads, "
            "in later layers a top share of at least 0.6."
        )

    def silent_said(self, rows: pd.DataFrame) -> str:
        """How many layers have no shares, for a caption."""
        layers = rows[rows["number"] == "effective"]
        missing = len(layers) - len(cells.finite(layers))
        return (
            f"Left out: {missing} of {len(layers)} layers of trained models, whose total importance is within noise of "
            "zero, so that they have no shares."
        ) * bool(missing)


class HeadsByLayer(_InUse):
    """The effective number of heads and the top head's share layer by layer; a line for each head count.

    A row of two panels for each setting. Models with one head in every layer are not drawn, nor, where there are
    others, those whose layers differ.

    Args:
        score: which of HeadImportance's scores.

    Example:
        >>> from lightning_icl.studies.figures import HeadsByLayer
        >>> HeadsByLayer().title
        'Heads in use by layer'
    """

    name = "heads_by_layer"
    title = "Heads in use by layer"

    def __init__(self, score: str = "leave_one_out") -> None:
        super().__init__(score)

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        return cells.uniform_if_any(cells.final(self.numbers(table), "heads/"))

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        return cells.over_seeds(rows, [HEADS, "number", "layer"])

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        found = self.found(table)
        styles = cells.head_styles(table[HEADS].dropna().unique())  # as in the study's other figures
        return [("", self.figure(found, styles))] if len(found) else []

    def figure(self, found: pd.DataFrame, styles: Mapping[str, style.Style] | None = None) -> Figure:
        settings = found["setting"].unique()
        figure = Figure(figsize=(8.4, 0.8 + 2.6 * len(settings)), layout="constrained")
        grid = figure.subplots(len(settings), len(NUMBERS), squeeze=False, sharex=True, sharey="col")
        styles = styles or cells.head_styles(found[HEADS])
        for row, setting in zip(grid, settings, strict=True):
            shown = found[found["setting"] == setting]
            for axes, (number, words) in zip(row, NUMBERS.items(), strict=True):
                lines = cells.head_lines(shown[shown["number"] == number], styles)
                self._panel(axes, number, lines)
                axes.set_ylabel(words, size=9)
                style.panel_title(axes, setting, 40)
        for axes in grid[-1]:
            axes.set_xlabel("layer", size=9)
        style.legend(figure, columns=4, order=list(styles))
        style.title(figure, self.title)
        return figure

    def _panel(self, axes: Axes, number: str, lines: dict[str, tuple[pd.DataFrame, style.Style]]) -> None:
        deepest = max(int(of["layer"].max()) for of, _ in lines.values())
        every = pd.Series(range(1, deepest + 1))
        for i, (label, (of, look)) in enumerate(lines.items()):
            style.over(axes, style.apart(of["layer"], i, len(lines), every), of, label=label, **(look | {"ms": 4}))
            h = uniform_heads(of[HEADS].iloc[0])
            if number == "effective" and h:
                axes.hlines(BOUNDS[number] * h, 0.75, 1.25, color=look["color"], lw=1.2, ls=":")
        if number == "effective":
            axes.set_ylim(0.7, max(max(head_list(of[HEADS].iloc[0])) for of, _ in lines.values()) + 0.3)
        else:
            axes.hlines(BOUNDS[number], 1.75, max(deepest, 2) + 0.25, color="0.4", lw=1.2, ls=":")
            axes.set_ylim(0, 1.04)
        axes.set_xticks(every)
        axes.grid(alpha=0.2)

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        return [self.meaning(rows), cells.seeds_said(found), self.silent_said(rows)]


class EffectiveHeads(_InUse):
    """The effective number of heads and the top head's share of each layer; a column for each head configuration.

    Models with one head in every layer are not drawn, nor are those with fewer than two values on the axis.

    Args:
        against: what the axis has: a config key such as data.task.noise_std, "depth" for the number of layers, or
            "step" for the course of training.
        score: which of HeadImportance's scores.

    Example:
        >>> from lightning_icl.studies.figures import EffectiveHeads
        >>> EffectiveHeads(against="data.task.noise_std").title
        'Heads in use against noise sd'
    """

    drawn = "places > 1"

    def __init__(self, against: str = "step", score: str = "leave_one_out") -> None:
        super().__init__(score)
        self.against, self.on_axis = against, (against,)
        self.axis = "number of layers" if against == "depth" else key_name(against)
        self.needs = f"HeadImportance at two values of {self.axis}"
        self.name = f"effective_heads_by_{slug(against.rpartition('.')[2])}"
        self.title = "Heads in use over training" if against == "step" else f"Heads in use against {self.axis}"

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        known = [key for key in [*config_columns(table), "step"] if key != HEADS]
        if self.against not in known:
            raise InputError(f"against is {self.against!r}, which no trial has: {did_you_mean(self.against, known)}")
        rows = self.numbers(table)
        rows = rows if self.against == "step" else cells.final(rows, "heads/")
        return rows[rows[self.against].notna()]

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        """With the label of the configuration, the same at every depth, and how many values it has on the axis."""
        found = cells.over_seeds(rows, [self.against, HEADS, "number", "layer"])
        found["label"] = found[HEADS].map(heads_label)
        places = found[found["number"] == "effective"].groupby("label")[self.against].nunique()
        return found.assign(places=found["label"].map(places))

    def figure(self, found: pd.DataFrame) -> Figure:
        labels = list(dict.fromkeys(map(heads_label, in_order(found[HEADS]))))
        across = min(ACROSS, len(labels))
        blocks = -(-len(labels) // across)
        figure = Figure(figsize=(0.6 + 2.6 * across, 0.9 + 4.6 * blocks), layout="constrained")
        grid = figure.subplots(2 * blocks, across, squeeze=False)
        colours = style.ordered_colours(max(len(head_list(text)) for text in found[HEADS]))
        for i, label in enumerate(labels):
            pair = grid[2 * (i // across) : 2 * (i // across) + 2, i % across]
            for axes, number in zip(pair, NUMBERS, strict=True):
                self._panel(axes, number, found[(found["label"] == label) & (found["number"] == number)], colours)
            style.panel_title(pair[0], label, 36)
            pair[1].set_xlabel(self.axis, size=9)
        for axes in [axes for axes in figure.axes if not axes.has_data()]:
            axes.remove()
        style.legend(figure, columns=3)
        style.title(figure, self.words(found))
        return figure

    def _panel(self, axes: Axes, number: str, found: pd.DataFrame, colours: list[Any]) -> None:
        course, axis = self.against == "step", found[self.against]
        numeric = is_numeric_dtype(axis) and not is_bool_dtype(axis)
        at = {value: float(value if numeric else i) for i, value in enumerate(axis.unique())}  # in order as cells are
        deepest = max(map(head_list, found[HEADS]), key=len)
        n_heads = {layer: n for layer, n in enumerate(deepest, start=1) if n}
        in_use(axes, number, found, axis.map(at), n_heads, colours, course=course, line_width=1.4 if numeric else 0.0)
        if course or len(at) > 8:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=course, steps=[1, 2, 2.5, 5, 10]))
        else:
            axes.set_xticks(list(at.values()), [value_text(value) for value in at], size=9)
        axes.margins(x=0.08)

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        shown, alone = found.query(self.drawn), found[found["places"] < 2].drop_duplicates(["label", "setting"])
        lacking = [of.label + f" ({of.setting})" * bool(of.setting) for of in alone.itertuples()]
        return [
            self.meaning(rows),
            cells.seeds_said(shown),
            f"Not drawn, for lack of two values on the axis: {few(lacking)}." * bool(lacking),
            self.silent_said(rows),
        ]
