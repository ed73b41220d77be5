"""Excess risk against the number of examples."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.risks import by_points
from lightning_icl.figures.style import Limits, Style, estimator_label, estimator_styles
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import heads_label, in_order

PREFIX = "val/excess_risk/"
MODEL = f"{PREFIX}{style.MODEL}"


class RiskByPoints(StudyFigure):
    """Excess risk against the number of examples n, a line for each head count, with reference estimators.

    One panel a setting. Where all prompts have equally many examples, the axis has the head counts instead.

    Args:
        references: the estimators beside the model, by their keys in ReferenceRisk; those that a study lacks are not
            drawn.
    """

    name = "excess_risk_by_examples"
    title = "Excess risk by heads and number of examples"
    needs = "ReferenceRisk"

    def __init__(
        self,
        references: Sequence[str] = (
            "ridge", "lasso", "gd_at_depth", "preprocess_then_gd_at_depth", "bayes", "oracle_support",
        ),
    ) -> None:  # fmt: skip
        self.references = list(references)

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        models, beside = zip(*(self._cells(rows) for _, rows in settings), strict=True)
        styles = cells.head_styles(pd.concat(models)[cells.HEADS])
        looks = estimator_styles(self.references)
        limits = style.risk_limits(pd.concat(models), pd.concat(beside), zero(settings))
        figure, axes = style.panels(len(settings), 3.7, 3.3, legend=2.4, sharey=True)
        for panel, (title, _), model, of_panel in zip(axes, settings, models, beside, strict=True):
            draw = _lines if model["n_points"].nunique() > 1 else _dots
            draw(panel, model, of_panel, styles, looks, limits)
            style.panel_title(panel, title)
            panel.set_ylabel(style.RISK)
        style.legend(figure, "beside", order=[*styles, *map(estimator_label, self.references)])
        style.title(figure, self.title)
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
            "The lines are moved apart a little. What lies above the zero predictor or far below the models is an "
            "arrow at the edge of its panel.",
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
        return model, references(rows, self.references, ["reference", "n_points"])


def final_rows(table: pd.DataFrame) -> pd.DataFrame:
    """All excess risks on unnamed streams at the end of training."""
    return cells.final(table, PREFIX)


def references(rows: pd.DataFrame, names: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Cells of these estimators, called "reference", in order."""
    found = rows["metric"].str.removeprefix(PREFIX)
    means = cells.over_seeds(rows.assign(reference=found)[found.isin(names)], by)
    return means.sort_values("reference", key=lambda name: name.map(list(names).index), kind="stable")


def zero(settings: Sequence[cells.Setting]) -> float:
    """The zero predictor's risk where it is largest: the axes go no higher for a reference."""
    means = [references(rows, ["zero"], ["reference"])["mean"] for _, rows in settings]
    return float(pd.concat(means).max())


def _lines(
    axes: Axes, model: pd.DataFrame, beside: pd.DataFrame, styles: Mapping[str, Style], looks: Mapping[str, Style],
    limits: Limits,
) -> None:  # fmt: skip
    lines: dict[str, tuple[pd.DataFrame, Style]] = {}
    for text in in_order(model[cells.HEADS]):
        label = heads_label(text)
        lines[label] = model[model[cells.HEADS] == text], {"lw": 1.8} | styles[label]
    for name in dict.fromkeys(beside["reference"]):
        look = {key: value for key, value in looks[name].items() if key != "marker"}
        lines[estimator_label(name)] = beside[beside["reference"] == name], {"lw": 1.5} | look
    by_points(axes, lines, limits)


def _dots(
    axes: Axes, model: pd.DataFrame, beside: pd.DataFrame, styles: Mapping[str, Style], looks: Mapping[str, Style],
    limits: Limits,
) -> None:  # fmt: skip
    order = in_order(model[cells.HEADS])
    for place, text in enumerate(order):
        label = heads_label(text)
        of_heads = model[model[cells.HEADS] == text]
        style.over(axes, [place], of_heads, label=label, **(styles[label] | {"ls": "", "ms": 6}))
    for cell in beside.itertuples():
        style.level(axes, cell, limits, label=estimator_label(cell.reference), **looks[cell.reference])
    style.limit(axes, limits)
    axes.set_xticks(range(len(order)), [heads_label(text).partition(" head")[0] for text in order])
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_xlabel(f"heads in every layer (n = {int(model['n_points'].iloc[0])} examples)")
