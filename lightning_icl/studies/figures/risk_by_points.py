"""Excess risk against the number of examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from lightning_icl.callbacks.figures.style import RISK, is_wide
from lightning_icl.studies.figures import cells, panels
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import estimator_label, heads_label, in_order

PREFIX = "excess_risk/"
MODEL = "excess_risk/transformer"
FEW = 8  # numbers of examples up to which each has a tick
Styles = Mapping[str, Mapping[str, Any]]


class RiskByPoints(StudyFigure):
    """Excess risk against the number of examples n, a line for each head count, with reference estimators.

    One panel a setting. Where all prompts have equally many examples, the axis has the head counts instead.

    Args:
        references: the estimators beside the model, by their keys in ReferenceRisk; those that a study lacks are not
            drawn.
    """

    name = "excess_risk_by_examples"
    title = "Excess risk by heads and number of examples"

    def __init__(
        self,
        references: Sequence[str] = (
            "ridge", "lasso", "gd_at_depth", "preprocess_then_gd_at_depth", "bayes", "oracle_support",
        ),
    ) -> None:  # fmt: skip
        self.references = list(references)

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        found = [(title, *self._cells(rows)) for title, rows in self._settings(table)]
        if not found:
            return []
        styles = panels.head_styles([text for _, model, _ in found for text in model[cells.HEADS]])
        figure, axes = panels.panels(len(found), 3.7, 3.3, legend=2.4)
        for panel, (title, model, references) in zip(axes, found, strict=True):
            draw = _lines if model["n_points"].nunique() > 1 else _dots
            draw(panel, model, references, styles)
            panels.limit_risks(panel, panels.risk_limits(model, references))
            panels.set_title(panel, title)
            panel.set_ylabel(RISK)
        panels.legend_beside(figure)
        figure.suptitle(self.title)
        return [("", figure)]

    def caption(self, table: pd.DataFrame) -> str:
        settings = self._settings(table)
        rows = pd.concat([rows for _, rows in settings])
        counts = [n for _, found in settings for n in self._cells(found)[0]["n"]]
        mixed = final_rows(table)["h"].isna().any() and rows["h"].notna().any()
        return cells.caption(
            "Excess risk of trained transformers on held-out prompts, in squared label units, and of reference "
            "estimators on the same prompts.",
            cells.seeds_said(counts, paired=True),
            "The lines are moved apart a little. References far above or below the models lie outside of the panels.",
            "Models whose layers differ in their number of heads are not drawn." * bool(mixed),
            cells.missing_said(rows[rows["metric"] == MODEL], "model"),
        )

    def _settings(self, table: pd.DataFrame) -> list[cells.Setting]:
        """The rows of each setting that has a model with a number."""
        rows = final_rows(table)
        rows = rows[rows["n_points"].notna()]
        rows = cells.uniform_if_any(rows)
        settings = cells.settings(table, rows, apart_from=("data.n_points",))
        return [s for s in settings if len(cells.finite(s.rows[s.rows["metric"] == MODEL]))]

    def _cells(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Of one setting, the model's means by heads and examples, and the references' by name and examples."""
        model = cells.over_seeds(rows[rows["metric"] == MODEL], [cells.HEADS, "n_points"])
        names = rows["metric"].str.removeprefix(PREFIX)
        beside = rows.assign(reference=names)[names.isin(self.references)]
        found = cells.over_seeds(beside, ["reference", "n_points"])
        return model, found.sort_values("reference", key=lambda name: name.map(self.references.index), kind="stable")


def final_rows(table: pd.DataFrame) -> pd.DataFrame:
    """All excess risks on unnamed streams at the end of training."""
    return cells.final(table, PREFIX)


def _lines(axes: Axes, model: pd.DataFrame, references: pd.DataFrame, styles: Styles) -> None:
    lines: list[tuple[pd.DataFrame, dict[str, Any]]] = []
    for text in in_order(model[cells.HEADS]):
        style = {"label": heads_label(text), "ms": 4, "lw": 1.8, "zorder": 3, **styles[heads_label(text)]}
        lines.append((model[model[cells.HEADS] == text], style))
    for name in dict.fromkeys(references["reference"]):
        style = {"label": estimator_label(name), "lw": 1.5, **panels.reference_style(name)}
        lines.append((references[references["reference"] == name], style))
    n_points = sorted(int(n) for n in model["n_points"].unique())
    # Curves over every prefix have too many places for bars, and stay linear.
    few = len(n_points) <= FEW
    log = few and is_wide([float(n) for n in n_points])
    for i, (line, style) in enumerate(lines):
        if few:
            panels.over(axes, panels.apart(line["n_points"], i, len(lines), n_points, log), line, **style)
        else:
            panels.band(axes, line["n_points"], line, alpha=0.12 if "marker" in style else 0.05, **style)
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    if few:
        axes.set_xticks(n_points, [str(n) for n in n_points])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("number of in-context examples n")


def _dots(axes: Axes, model: pd.DataFrame, references: pd.DataFrame, styles: Styles) -> None:
    order = in_order(model[cells.HEADS])
    for place, text in enumerate(order):
        label = heads_label(text)
        panels.over(axes, [place], model[model[cells.HEADS] == text], label=label, ls="", ms=6, **styles[label])
    for cell in references.itertuples():
        panels.level(axes, cell, label=estimator_label(cell.reference), **panels.reference_style(cell.reference))
    axes.set_xticks(
        range(len(order)), [heads_label(text).removesuffix(" heads").removesuffix(" head") for text in order]
    )
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_xlabel(f"heads in every layer (n = {int(model['n_points'].iloc[0])} examples)")
