"""What can be optimised on the first layer's output."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.p_probing import METRIC, TITLES, arm_styles, risk_by_depth
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import OverSeeds


class PProbing(OverSeeds):
    """Excess risk that a simple optimiser reaches on each representation, by its depth; a line for each arm.

    A row of panels for each setting, a column for each optimiser.
    """

    name = "p_probing"
    title = "P-probing: what can be optimised on the first layer's output"
    needs = "p_probe (p_probing in the study file)"

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        return cells.final(table, "p_probing/")

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        return cells.over_seeds(style.parts(rows, METRIC), ["optimiser", "steps", "arm"])

    def figure(self, found: pd.DataFrame) -> Figure:
        optimisers = [name for name in TITLES if name in set(found["optimiser"])]
        styles, limits = arm_styles(found["arm"]), style.risk_limits(found)
        down, across = found["setting"].nunique(), len(optimisers)
        figure = Figure(figsize=(3.2 + 3.6 * across, 0.6 + 3.2 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for row, (setting, risks) in zip(grid, found.groupby("setting", sort=False), strict=True):
            for panel, optimiser in zip(row, optimisers, strict=True):
                risk_by_depth(panel, optimiser, risks[risks["optimiser"] == optimiser], styles, limits)
                panel.set_title("\n".join(filter(None, [setting, TITLES[optimiser][0]])), size=9)
            row[0].set_ylabel(style.RISK)
        style.legend(figure, "beside", order=[label for label, _ in styles.values()])
        style.title(figure, self.title)
        return figure

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        return [
            "Layer 1 of the trained models is frozen; on its output, and on other representations of the examples, a "
            "simple optimiser is trained anew: single-head linear attention, or a linear map and gradient steps of "
            "tuned size. Excess risk in squared label units; the lines are moved apart a little.",
            cells.seeds_said(found, paired=True),
            cells.missing_said(rows, "P-probing"),
        ]
