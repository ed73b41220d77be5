"""What can be optimised on the first layer's output."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.p_probing import METRIC, TITLES, arm_styles, risk_by_depth
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import StudyFigure


class PProbing(StudyFigure):
    """Excess risk that a simple optimiser reaches on each representation, by its depth; a line for each arm.

    A row of panels for each setting, a column for each optimiser.
    """

    name = "p_probing"
    title = "P-probing: what can be optimised on the first layer's output"
    needs = "p_probe (p_probing in the study file)"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        found = [(title, _cells(rows)) for title, rows in settings]
        every = pd.concat([rows for _, rows in found])
        optimisers = [name for name in TITLES if name in set(every["optimiser"])]
        styles, limits = arm_styles(every["arm"]), style.risk_limits(every)
        size = 3.2 + 3.6 * len(optimisers), 0.6 + 3.2 * len(found)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(found), len(optimisers), squeeze=False, sharey=True)
        for row, (title, risks) in zip(grid, found, strict=True):
            for panel, optimiser in zip(row, optimisers, strict=True):
                risk_by_depth(panel, optimiser, risks[risks["optimiser"] == optimiser], styles, limits)
                panel.set_title("\n".join(filter(None, [title, TITLES[optimiser][0]])), size=9)
            row[0].set_ylabel(style.RISK)
        style.legend(figure, "beside", order=[label for label, _ in styles.values()])
        style.title(figure, self.title)
        return [("", figure)]

    def caption(self, table: pd.DataFrame) -> str:
        counts = [n for _, rows in self._settings(table) for n in _cells(rows)["n"]]
        return cells.caption(
            "Layer 1 of the trained models is frozen; on its output, and on other representations of the examples, a "
            "simple optimiser is trained anew: single-head linear attention, or a linear map and gradient steps of "
            "tuned size. Excess risk in squared label units; the lines are moved apart a little.",
            cells.seeds_said(counts, paired=True),
            cells.missing_said(cells.final(table, "p_probing/"), "P-probing"),
        )

    def _settings(self, table: pd.DataFrame) -> list[cells.Setting]:
        return cells.settings(table, cells.finite(cells.final(table, "p_probing/")))


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Means by optimiser, depth of the optimiser, and arm."""
    return cells.over_seeds(style.parts(rows, METRIC), ["optimiser", "steps", "arm"])
