"""How many heads each layer uses, against anything a study varies, or over training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.figures import style
from lightning_icl.figures.heads import NUMBERS, in_use
from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.importance_maps import checked_score
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import few, heads_label, in_order, key_name, slug, value_text
from lightning_icl.studies.table import config_columns, head_list

ACROSS = 3  # configurations side by side


class Column(NamedTuple):
    """One setting and head configuration: its rows, and cells by (against, layer) of each of NUMBERS."""

    setting: str
    label: str
    rows: pd.DataFrame
    found: dict[str, pd.DataFrame]

    @property
    def places(self) -> int:
        """How many values of ``against`` have a number."""
        return int(self.found["effective"].iloc[:, 0].nunique())

    @property
    def n_heads(self) -> dict[int, int]:
        """The heads of each layer that has any, of the deepest of its models."""
        deepest = max(map(head_list, self.rows[cells.HEADS].unique()), key=len)
        return {layer: n for layer, n in enumerate(deepest, start=1) if n}


class EffectiveHeads(StudyFigure):
    """The effective number of heads and the top head's share of each layer; a column for each head configuration.

    Models with one head in every layer are not drawn, nor are those with fewer than two values on the axis.

    Args:
        against: what the axis has: a config key such as data.task.noise_std, "depth" for the number of layers, or
            "step" for the course of training.
        score: which of HeadImportance's scores.
    """

    needs = "HeadImportance"

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
        rows = rows if self.against == "step" else cells.final(rows, prefix)
        if self.against not in rows.columns:
            known = [*config_columns(table), "step"]
            raise InputError(f"against is {self.against!r}, which no trial has: {did_you_mean(self.against, known)}")
        rows = rows[rows[self.against].notna()]
        return rows[rows[cells.HEADS].map(lambda text: max(head_list(text)) > 1).astype(bool)]

    def _columns(self, table: pd.DataFrame) -> list[Column]:
        columns: list[Column] = []
        for title, found in cells.settings(table, self._rows(table), apart_from=(self.against,)):
            # Models with equally many heads in a layer have one label at every depth.
            labels = found[cells.HEADS].map(heads_label)
            for label in dict.fromkeys(map(heads_label, in_order(found[cells.HEADS]))):
                rows = found[labels == label]
                columns.append(Column(title, label, rows, {number: self._cells(rows, number) for number in NUMBERS}))
        return columns

    def _cells(self, rows: pd.DataFrame, number: str) -> pd.DataFrame:
        return cells.over_seeds(rows[rows["metric"].str.endswith(f"/{number}")], [self.against, "layer"])

    def _figure(self, columns: Sequence[Column], setting: str) -> Figure:
        across = min(ACROSS, len(columns))
        blocks = -(-len(columns) // across)
        figure = Figure(figsize=(0.6 + 2.6 * across, 0.9 + 4.6 * blocks), layout="constrained")
        grid = figure.subplots(2 * blocks, across, squeeze=False)
        colours = style.ordered_colours(max(max(column.n_heads) for column in columns))
        for i, column in enumerate(columns):
            pair = grid[2 * (i // across) : 2 * (i // across) + 2, i % across]
            for axes, (number, found) in zip(pair, column.found.items(), strict=True):
                values = sorted(found[self.against].unique(), key=lambda value: (isinstance(value, str), value))
                numeric = all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values)
                at = {value: float(value) if numeric else float(i) for i, value in enumerate(values)}
                in_use(
                    axes, number, found, found[self.against].map(at), column.n_heads, colours,
                    course=self.against == "step", line_width=1.4 if numeric else 0.0,
                )  # fmt: skip
                if self.against == "step" or len(at) > 8:
                    whole = self.against == "step"
                    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10]))
                else:
                    axes.set_xticks(list(at.values()), [value_text(value) for value in at], size=9)
                axes.margins(x=0.08)
            style.panel_title(pair[0], column.label, 36)
            pair[1].set_xlabel(self._axis(), size=9)
        for axes in [axes for axes in figure.axes if not axes.has_data()]:
            axes.remove()
        style.legend(figure, columns=3)
        style.title(figure, ", ".join(filter(None, [self.title, setting])))
        return figure
