"""Excess risk of head configurations beside reference estimators."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.risks import by_points
from lightning_icl.figures.style import MODEL, Limits, Style, estimator_label, estimator_styles
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.cells import HEADS
from lightning_icl.studies.figures.study_figure import OverSeeds, panels

PREFIX = "val/excess_risk/"
Lines = dict[str, tuple[pd.DataFrame, Style]]  # by label the cells and how they are drawn


class _Risks(OverSeeds):
    """Of models by their heads, and of references that all models of one seed share; a setting needs a model."""

    needs = "ReferenceRisk"
    references: Sequence[str]

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.assign(estimator=rows["metric"].str.removeprefix(PREFIX))
        rows = rows[rows["estimator"].isin([MODEL, "zero", *self.references])]
        of_model = rows["estimator"] == MODEL
        rows = rows.assign(**{HEADS: rows[HEADS].where(of_model, "")})
        return cells.over_seeds(rows if of_model.any() else rows[:0], ["estimator", HEADS, "n_points"])

    def figure(self, found: pd.DataFrame) -> Figure:
        model, beside = found[found["estimator"] == MODEL], found[found["estimator"].isin(self.references)]
        # The zero predictor's risk where it is largest: the axes go no higher for a reference.
        limits = style.risk_limits(model, beside, found[found["estimator"] == "zero"]["mean"].max())
        styles, looks = cells.head_styles(model[HEADS]), estimator_styles(self.references)

        def draw(axes: Axes, shown: pd.DataFrame) -> None:
            lines = cells.head_lines(shown[shown["estimator"] == MODEL], styles)
            known = {name: shown[shown["estimator"] == name] for name in self.references}
            known = {estimator_label(n): (line, looks[n] | {"marker": ""}) for n, line in known.items() if len(line)}
            if shown["n_points"].nunique() > 1:
                by_points(axes, lines | known, limits)
                axes.set_ylabel(style.RISK)
            else:
                _dots(axes, lines, known, list(styles), limits, int(shown["n_points"].iloc[0]))

        order = [*styles, *map(estimator_label, self.references)]
        if (found["n_points"] > 0).all():
            return panels(found, draw, self.title, 3.7, 3.3, "beside", order, room=2.4, sharey=True)
        return panels(found, draw, self.title, 3.4, 1.3 + 0.3 * len(styles), order=order, sharey=True, sharex=True)


class RiskByPoints(_Risks):
    """Excess risk against the number of examples n, a line for each head count, with reference estimators.

    One panel a setting. Where all prompts have equally many examples, the axis has the head counts instead.

    Args:
        references: the estimators beside the model, by their keys in ReferenceRisk; those that a study lacks are not
            drawn.

    Example:
        >>> from lightning_icl.studies.figures import RiskByPoints
        >>> RiskByPoints(references=["ridge", "lasso"]).title
        'Excess risk by heads and number of examples'
    """

    name = "excess_risk_by_examples"
    title = "Excess risk by heads and number of examples"
    on_axis = ("data.n_points",)

    def __init__(
        self,
        references: Sequence[str] = (
            "ridge", "lasso", "gd_at_depth", "preprocess_then_gd_at_depth", "bayes", "oracle_support",
        ),
    ) -> None:  # fmt: skip
        self.references = list(references)

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        rows = cells.final(table, PREFIX)
        return rows[rows["n_points"].notna()]

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        return super().cells(cells.uniform_if_any(rows))

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        drawn = cells.uniform_if_any(rows)
        return [
            "Excess risk of trained transformers on held-out prompts, in squared label units, and of reference "
            "estimators on the same prompts.",
            cells.seeds_said(found, paired=True),
            "The lines are moved apart a little. What lies above the zero predictor or far below the models is an "
            "arrow at the edge of its panel.",
            "Models whose layers differ in their number of heads are not drawn." * (len(drawn) < len(rows)),
            cells.missing_said(drawn[drawn["metric"] == PREFIX + MODEL], "model"),
        ]


class RiskByHeads(_Risks):
    """Excess risk of every head configuration, a row each, on all validation prompts; one panel a setting.

    Example:
        >>> from lightning_icl.studies.figures import RiskByHeads
        >>> RiskByHeads().title
        'Excess risk by head configuration'
    """

    name = "excess_risk_by_heads"
    title = "Excess risk by head configuration"
    references = ("ridge", "lasso", "bayes")

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        rows = cells.final(table, PREFIX)
        return rows[rows["n_points"].isna()].assign(n_points=0)  # of all prompts, whatever their number

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        return [
            "Excess risk on all validation prompts, in squared label units, by the numbers of heads of the layers "
            "([8, 1]: eight in layer 1, one in layer 2; black where layers differ), with reference estimators (an "
            "arrow and its number where one lies outside of a panel).",
            cells.seeds_said(found, paired=True),
            cells.missing_said(rows[rows["metric"] == PREFIX + MODEL], "model"),
        ]


def _dots(axes: Axes, heads: Lines, beside: Lines, order: Sequence[str], limits: Limits, n_points: int) -> None:
    """A dot a head configuration, beside one another at one number of examples, or else one below the other."""
    along = "y" if n_points else "x"
    for label, (cell, look) in heads.items():
        said = label if n_points else None  # in rows they have their names at the left
        style.over(axes, [order.index(label)], cell, along, label=said, **(look | {"ls": "", "ms": 6}))
    for label, (found, look) in beside.items():
        style.level(axes, next(found.itertuples()), limits, along, label=label, **look)
    style.limit(axes, limits, along)
    if n_points:
        axes.set_xticks(range(len(order)), [label.partition(" head")[0] for label in order])
        axes.set(xlim=(-0.5, len(order) - 0.5), xlabel=f"heads in every layer (n = {n_points} examples)")
        axes.set_ylabel(style.RISK)
    else:
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlabel(style.RISK, size=9)
