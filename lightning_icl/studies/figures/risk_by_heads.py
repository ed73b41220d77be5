"""Excess risk of every head configuration."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.risk_by_points import MODEL, final_rows, references, zero
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import heads_label

BESIDE = ("ridge", "lasso", "bayes")


class RiskByHeads(StudyFigure):
    """Excess risk of every head configuration, a row each, on all validation prompts; one panel a setting."""

    name = "excess_risk_by_heads"
    title = "Excess risk by head configuration"
    needs = "ReferenceRisk"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        models, beside = zip(*(self._cells(rows) for _, rows in settings), strict=True)
        styles = cells.head_styles(pd.concat(models)[cells.HEADS])
        looks, order = style.estimator_styles(BESIDE), list(styles)
        limits = style.risk_limits(pd.concat(models), pd.concat(beside), zero(settings))
        figure, axes = style.panels(len(settings), 3.4, 1.3 + 0.3 * len(order), sharey=True, sharex=True)
        for panel, (title, _), model, of_panel in zip(axes, settings, models, beside, strict=True):
            for place, label in enumerate(order):
                of_label = model[model[cells.HEADS].map(heads_label) == label]
                style.over(panel, [place] * len(of_label), of_label, along="x", ls="", ms=6, **styles[label])
            for cell in of_panel.itertuples():
                name = style.estimator_label(cell.reference)
                style.level(panel, cell, limits, along="x", label=name, **looks[cell.reference])
            style.limit(panel, limits, along="x")
            style.panel_title(panel, title)
            panel.set_yticks(range(len(order)), order)
            panel.set_ylim(len(order) - 0.5, -0.5)
            panel.set_xlabel(style.RISK, size=9)
            panel.xaxis.set_tick_params(labelbottom=True)
        style.legend(figure, columns=3)
        style.title(figure, self.title)
        return [("", figure)]

    def caption(self, table: pd.DataFrame) -> str:
        settings = self._settings(table)
        rows = pd.concat([rows for _, rows in settings])
        return cells.caption(
            "Excess risk on all validation prompts, in squared label units, by the numbers of heads of the layers "
            "([8, 1]: eight in layer 1, one in layer 2; black where layers differ), with reference estimators (an "
            "arrow and its number where one lies outside of a panel).",
            cells.seeds_said([n for _, found in settings for n in self._cells(found)[0]["n"]], paired=True),
            cells.missing_said(rows[rows["metric"] == MODEL], "model"),
        )

    def _settings(self, table: pd.DataFrame) -> list[cells.Setting]:
        rows = final_rows(table)
        settings = cells.settings(table, rows[rows["n_points"].isna()])
        return [s for s in settings if len(cells.finite(s.rows[s.rows["metric"] == MODEL]))]

    def _cells(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        return cells.over_seeds(rows[rows["metric"] == MODEL], [cells.HEADS]), references(rows, BESIDE, ["reference"])
