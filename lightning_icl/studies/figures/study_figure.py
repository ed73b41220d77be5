"""What a study's figures share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures.files import write_figure
from lightning_icl.studies.names import error_text


class StudyFigure(ABC):
    """A figure of a study's table.

    Attributes:
        needs: the analysis whose numbers it shows, for the report to name where there are none.
    """

    needs: ClassVar[str] = ""

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


class Drawn(NamedTuple):
    """A figure on disk: the PNG and SVG files of all its parts; none where the caption says why there are none."""

    title: str
    caption: str
    files: list[Path]


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
