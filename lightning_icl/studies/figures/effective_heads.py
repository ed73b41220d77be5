"""How many heads each layer uses, against anything a study varies, or over training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.studies.figures import cells, panels
from lightning_icl.studies.figures.importance_maps import checked_score
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import few, heads_label, in_order, key_name, slug, value_text
from lightning_icl.studies.table import config_columns, head_list

NUMBERS = {"effective": "effective number of heads", "top_share": "share of the top head"}
BOUNDS = {"effective": 0.75, "top_share": 0.6}  # PAPER.md section 8: 0.75 h in layer 1, 0.6 in later layers


class Column(NamedTuple):
    """One setting and head configuration: its rows, and cells by (against, layer) of each of NUMBERS."""

    setting: str
    heads: str
    rows: pd.DataFrame
    found: dict[str, pd.DataFrame]

    @property
    def label(self) -> str:
        return heads_label(self.heads) if self.heads.startswith("[") else self.heads

    @property
    def places(self) -> int:
        """How many values of ``against`` have a number."""
        return int(self.found["effective"].iloc[:, 0].nunique())


class EffectiveHeads(StudyFigure):
    """The effective number of heads and the top head's share of each layer; a column for each head configuration.

    Models with one head in every layer are not drawn, nor are those with fewer than two values on the axis.

    Args:
        against: what the axis has: a config key such as data.task.noise_std, "depth" for the number of layers, or
            "step" for the course of training.
        score: which of HeadImportance's scores.
    """

    def __init__(self, against: str = "step", score: str = "leave_one_out") -> None:
        self.against, self.score = against, checked_score(score)

    @property
    def name(self) -> str:
        return f"effective_heads_by_{slug(self.against.rpartition('.')[2])}"

    @property
    def title(self) -> str:
        return "Heads in use over training" if self.against == "step" else f"Heads in use against {self._axis()}"

    def _axis(self) -> str:
        return "number of layers" if self.against == "depth" else key_name(self.against)

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        columns = [column for column in self._columns(table) if column.places > 1]
        by_setting = {column.setting: [c for c in columns if c.setting == column.setting] for column in columns}
        return [
            ("_" * bool(setting) + slug(setting), self._figure(of_setting, setting))
            for setting, of_setting in by_setting.items()
        ]

    def caption(self, table: pd.DataFrame) -> str:
        columns = self._columns(table)
        shown = [column for column in columns if column.places > 1]
        alone = [c.label + f" ({c.setting})" * bool(c.setting) for c in columns if c.places < 2]
        rows = pd.concat([column.rows for column in shown])
        cases = rows[rows["metric"].str.endswith("/effective")]
        missing = int((~np.isfinite(cases["value"].astype(float))).sum())
        return cells.caption(
            "Effective number of heads, exp(entropy of the shares of importance within the layer): 1 where one head "
            "does all, h where all h do as much. Below, the share of the most important head. Dotted: what a "
            "reproduction is held to, in layer 1 at least 0.75 h effective heads, in later layers a top share of at "
            "least 0.6.",
            cells.seeds_said([n for column in shown for number in column.found.values() for n in number["n"]]),
            f"Not drawn, for lack of two values on the axis: {few(alone)}." * bool(alone),
            f"Left out: {missing} of {len(cases)} layers of trained models, whose total importance is within noise of "
            "zero, so that they have no shares." * bool(missing),
        )

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The numbers of models that have more than one head somewhere."""
        prefix = f"heads/{self.score}/"
        rows = table[table["metric"].isin([f"{prefix}{number}" for number in NUMBERS]) & table["n_points"].isna()]
        rows = cells.with_h(rows) if self.against == "step" else cells.final(rows, prefix)
        if self.against not in rows.columns:
            known = [*config_columns(table), "step"]
            raise InputError(f"against is {self.against!r}, which no trial has: {did_you_mean(self.against, known)}")
        rows = rows[rows["h" if self.against == "depth" else self.against].notna()]
        return rows[rows[cells.HEADS].map(lambda text: max(head_list(text)) > 1).astype(bool)]

    def _columns(self, table: pd.DataFrame) -> list[Column]:
        rows = self._rows(table)
        columns: list[Column] = []
        for title, found in cells.settings(table, rows, apart_from=(self.against,)):
            # Against depth, models with equally many heads in a layer belong together.
            labels = found[cells.HEADS].map(heads_label) if self.against == "depth" else found[cells.HEADS]
            for text in in_order(found[cells.HEADS]):
                label = heads_label(text) if self.against == "depth" else text
                if (title, label) not in {(column.setting, column.heads) for column in columns}:
                    chosen = found[labels == label]
                    columns.append(Column(title, label, chosen, self._cells(chosen)))
        return columns

    def _cells(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return {
            number: cells.over_seeds(rows[rows["metric"].str.endswith(f"/{number}")], [self.against, "layer"])
            for number in NUMBERS
        }

    def _figure(self, columns: Sequence[Column], setting: str) -> Figure:
        across = len(columns) if len(columns) <= 4 else 3 if len(columns) <= 6 else 4
        blocks = -(-len(columns) // across)
        figure = Figure(figsize=(1.6 + 3.0 * across, 0.7 + 4.9 * blocks), layout="constrained")
        grid = figure.subplots(2 * blocks, across, squeeze=False, sharex=False)
        last = max(int(found["layer"].max()) for column in columns for found in column.found.values())
        colours = dict(enumerate(panels.ordered_colours(last), start=1))
        for i in range(blocks * across):
            pair = grid[2 * (i // across) : 2 * (i // across) + 2, i % across]
            if i >= len(columns):
                pair[0].remove()
                pair[1].remove()
                continue
            for axes, (number, found) in zip(pair, columns[i].found.items(), strict=True):
                self._lines(axes, found, colours)
                _scale(axes, number, columns[i].heads, colours[1])
                axes.set_ylabel(NUMBERS[number], size=9)
            panels.set_title(pair[0], columns[i].label, 36)
            pair[1].set_xlabel(self._axis())
        panels.legend_beside(figure)
        figure.suptitle(", ".join(filter(None, [self.title, setting])), size=11)
        return figure

    def _lines(self, axes: Axes, found: pd.DataFrame, colours: dict[int, object]) -> None:
        values = sorted(found[self.against].unique(), key=lambda value: (isinstance(value, str), value))
        numeric = all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values)
        places = {value: float(value) if numeric else float(i) for i, value in enumerate(values)}
        layers = sorted(found["layer"].unique())
        for i, layer in enumerate(layers):
            line = found[found["layer"] == layer]
            x = np.array([places[value] for value in line[self.against]])
            style: dict[str, Any] = {"color": colours[int(layer)], "label": f"layer {layer}"}
            style["marker"] = panels.MARKERS[(layer - 1) % len(panels.MARKERS)]
            if self.against == "step":
                panels.band(axes, x, line, ms=3, lw=1.4, **style)
            else:
                panels.over(
                    axes,
                    panels.apart(x, i, len(layers), list(places.values())),
                    line,
                    ms=4,
                    lw=1.2 if numeric else 0,
                    **style,
                )
        if self.against == "step" or len(values) > 8:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=self.against == "step", steps=[1, 2, 2.5, 5, 10]))
        else:
            axes.set_xticks(list(places.values()), [value_text(value) for value in values])
        axes.margins(x=0.08)


def _scale(axes: Axes, number: str, heads: str, first_colour: object) -> None:
    """The same ends whatever the numbers, and the bound: of effective heads it is one on layer 1."""
    most = max(head_list(heads)) if heads.startswith("[") else int(heads.split()[0])
    bound = BOUNDS[number]
    if number == "effective":
        first = head_list(heads)[0] if heads.startswith("[") else most
        bound *= first
        axes.set_ylim(0.7, most + 0.3)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    else:
        axes.set_ylim(0, 1.04)
    axes.axhline(bound, color=first_colour if number == "effective" else "0.4", lw=1, ls=":")
    axes.grid(alpha=0.2)
