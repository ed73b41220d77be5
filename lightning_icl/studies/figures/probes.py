"""What linear probes find of f layer by layer, and what can be optimised on the first layer's output."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.p_probing import METRIC, TITLES, arm_styles, risk_by_depth
from lightning_icl.figures.probes import BESIDE, PROBE, risk_by_layer
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.cells import HEADS
from lightning_icl.studies.figures.study_figure import OverSeeds, panels
from lightning_icl.studies.names import heads_label, in_order
from lightning_icl.studies.table import analysed_on


class Probes(OverSeeds):
    """Excess risk of the linear probe of the query's state for f by layer, a line for each head count.

    Beside it GD and preprocess-then-GD after layer - 1 steps; of the model with most heads the controls and the levels.
    One panel a setting.

    Example:
        >>> from lightning_icl.studies.figures import Probes
        >>> Probes().title
        "Linear probe of the query's state for f(x_q), layer by layer"
    """

    name = "probes"
    title = "Linear probe of the query's state for f(x_q), layer by layer"
    needs = "LinearProbe"

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        rows = cells.final(table, "probe/")
        return cells.uniform_if_any(rows[rows["metric"].isin([PROBE, *BESIDE])])

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        probe, most = rows["metric"] == PROBE, in_order(rows[HEADS])[-1:]
        # A level has no layer: it holds in all.
        rows = rows[probe.any() & (probe | rows[HEADS].isin(most))].assign(layer=rows["layer"].fillna(0))
        return cells.over_seeds(rows, ["metric", HEADS, "layer"])

    def figure(self, found: pd.DataFrame) -> Figure:
        probe = found["metric"] == PROBE
        styles, limits = cells.head_styles(found[probe][HEADS]), style.risk_limits(found[probe], found[~probe])

        def draw(axes: Axes, shown: pd.DataFrame) -> None:
            of_probe = shown["metric"] == PROBE
            risk_by_layer(axes, cells.head_lines(shown[of_probe], styles, "probe, "), shown[~of_probe], limits)

        order = [f"probe, {label}" for label in styles]
        return panels(found, draw, self.title, 3.7, 3.3, "beside", order, room=2.6, sharey=True)

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        most = sorted({heads_label(text) for text in found[found["metric"] != PROBE][HEADS]})
        return [
            f"Excess risk, on {analysed_on(rows)}, of a ridge probe that reads f(x_q) from the query token's state, "
            "fitted on other prompts than it is scored on, in squared label units. GD, and GD on the preprocessed "
            "examples: what they would reach in layer - 1 steps. The controls and the lines across are those of the "
            f"model with {', '.join(most)}: the probe of an untrained network, the probe fitted to shuffled labels, "
            "and the risks of the model, ridge and Bayes on the same prompts.",
            cells.seeds_said(found),
            "Numbers far above or below the probe's are arrows at the edge of their panel.",
        ]


class PProbing(OverSeeds):
    """Excess risk that a simple optimiser reaches on each representation, by its depth; a line for each arm.

    A row of panels for each setting, a column for each optimiser.

    Example:
        >>> from lightning_icl.studies.figures import PProbing
        >>> PProbing().title
        "P-probing: what can be optimised on the first layer's output"
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
            f"tuned size. Excess risk on {analysed_on(rows)}, in squared label units; the lines are moved apart a "
            "little.",
            cells.seeds_said(found, paired=True),
            cells.missing_said(rows, "P-probing"),
        ]
