"""Excess risk of every head configuration."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.style import RISK
from lightning_icl.studies.figures import cells, panels
from lightning_icl.studies.figures.risk_by_points import MODEL, PREFIX, final_rows
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import estimator_label, heads_label, in_order

BESIDE = ("ridge", "lasso", "bayes")


class RiskByHeads(StudyFigure):
    """Excess risk of every head configuration, a row each, on all validation prompts; one panel a setting."""

    name = "excess_risk_by_heads"
    title = "Excess risk by head configuration"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        models = [self._model(rows) for _, rows in settings]
        beside = [self._references(rows) for _, rows in settings]
        order = list(dict.fromkeys(heads_label(text) for text in in_order(pd.concat(models)[cells.HEADS])))
        styles = panels.head_styles(pd.concat(models)[cells.HEADS])
        limits = panels.risk_limits(pd.concat(models), pd.concat(beside))
        figure, axes = panels.panels(len(settings), 3.4, 1.1 + 0.3 * len(order), legend=1.0, sharey=True, sharex=True)
        for panel, (title, _), model, references in zip(axes, settings, models, beside, strict=True):
            for text, cell in zip(model[cells.HEADS], model.itertuples(), strict=True):
                label = heads_label(text)
                lengths = panels.bars(model.loc[[cell.Index]])
                panel.errorbar(cell.mean, order.index(label), xerr=lengths, capsize=3, ms=6, **styles[label])
            for cell in references.itertuples():
                style = panels.reference_style(cell.reference)
                panels.level(panel, cell, along="y", label=estimator_label(cell.reference), **style)
            panels.limit_risks(panel, limits, along="x")
            panels.set_title(panel, title)
            panel.set_yticks(range(len(order)), order)
            panel.set_ylim(len(order) - 0.5, -0.5)
            panel.set_xlabel(RISK, size=9)
            panel.xaxis.set_tick_params(labelbottom=True)
        panels.legend_below(figure, 3)
        figure.suptitle(self.title)
        return [("", figure)]

    def caption(self, table: pd.DataFrame) -> str:
        settings = self._settings(table)
        rows = pd.concat([rows for _, rows in settings])
        return cells.caption(
            "Excess risk on all validation prompts, in squared label units, by the numbers of heads of the layers "
            "([8, 1]: eight in layer 1, one in layer 2; black where layers differ), with reference estimators.",
            cells.seeds_said([n for _, found in settings for n in self._model(found)["n"]], paired=True),
            cells.missing_said(rows[rows["metric"] == MODEL], "model"),
        )

    def _settings(self, table: pd.DataFrame) -> list[cells.Setting]:
        rows = final_rows(table)
        settings = cells.settings(table, rows[rows["n_points"].isna()])
        return [s for s in settings if len(cells.finite(s.rows[s.rows["metric"] == MODEL]))]

    def _model(self, rows: pd.DataFrame) -> pd.DataFrame:
        return cells.over_seeds(rows[rows["metric"] == MODEL], [cells.HEADS])

    def _references(self, rows: pd.DataFrame) -> pd.DataFrame:
        names = rows["metric"].str.removeprefix(PREFIX)
        return cells.over_seeds(rows.assign(reference=names)[names.isin(BESIDE)], ["reference"])
