"""What a study's figures share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.files import write_figure
from lightning_icl.studies.figures.cells import finite
from lightning_icl.studies.names import error_text, setting_text
from lightning_icl.studies.table import by_setting


class StudyFigure(ABC):
    """A figure of a study's table.

    Attributes:
        needs: the analysis whose numbers it shows, for the report to name where there are none.
    """

    needs: str = ""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of its files."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the report calls it."""

    @abstractmethod
    def caption(self, table: pd.DataFrame) -> str:
        """What is shown, how intervals were made over how many seeds, and what was left out."""

    @abstractmethod
    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """The figures, each with what its files' names have after ``name``; none where the table has nothing for it."""


class OverSeeds(StudyFigure):
    """A figure of means over seeds, setting by setting."""

    on_axis: Sequence[str] = ()  # config keys that do not part a setting

    @abstractmethod
    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """What is shown, with trials that have no finite number."""

    @abstractmethod
    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Of the finite rows of one setting the means over seeds; none where there is nothing to draw."""

    @abstractmethod
    def figure(self, found: pd.DataFrame) -> Figure:
        """The picture of cells, with the setting of each in words."""

    @abstractmethod
    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        """Those of the caption; "" is none."""

    def found(self, table: pd.DataFrame) -> pd.DataFrame:
        """The cells of all settings, with the column "setting", "" where a study has only one."""
        settings = by_setting(table, finite(self.rows(table)), self.on_axis)
        return pd.concat([self.cells(rows).assign(setting=setting_text(setting)) for setting, rows in settings])

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        found = self.found(table)
        return [("", self.figure(found))] if len(found) else []

    def caption(self, table: pd.DataFrame) -> str:
        return " ".join(filter(None, self.sentences(self.rows(table), self.found(table))))


class Drawn(NamedTuple):
    """A figure on disk: the PNG and SVG files of all its parts; none where the caption says why there are none."""

    title: str
    caption: str
    files: list[Path]


def panels(
    found: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None], title: str, width: float, height: float,
    legend: str = "below", order: Sequence[str] = (), room: float = 0.0, **shared: Any,
) -> Figure:  # fmt: skip
    """A panel of this size for each setting, and one legend with its labels in ``order``; ``room`` is at the right."""
    figure, axes = style.panels(found["setting"].nunique(), width, height, legend=room, **shared)
    for panel, (setting, cells) in zip(axes, found.groupby("setting", sort=False), strict=True):
        draw(panel, cells)
        panel.xaxis.set_tick_params(labelbottom=True)
        style.panel_title(panel, str(setting), int(12 * width))
    style.legend(figure, legend, columns=3, order=order)
    style.title(figure, title)
    return figure


def write_figures(figures: Sequence[StudyFigure], table: pd.DataFrame, folder: Path) -> list[Drawn]:
    """Draw every figure, as PNG and SVG; one that has nothing to draw, or fails, says so in its caption."""
    return [_drawn(figure, table, folder) for figure in figures]


def _drawn(figure: StudyFigure, table: pd.DataFrame, folder: Path) -> Drawn:
    try:
        files = []
        for suffix, picture in figure.draw(table):
            write_figure(folder, figure.name + suffix, picture)
            files += [folder / f"{figure.name}{suffix}.{ending}" for ending in ("png", "svg")]
        nothing = f"Nothing to draw: no trial has numbers {f'of {figure.needs}' if figure.needs else 'for it'}."
        return Drawn(figure.title, figure.caption(table) if files else nothing, files)
    except Exception as error:  # a figure is anyone's code, and the others and the report must stand
        return Drawn(figure.title, f"It could not be drawn: {error_text(error)}", [])
