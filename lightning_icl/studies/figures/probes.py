"""What linear probes find of f layer by layer."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.probes import BESIDE, PROBE, risk_by_layer
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.cells import HEADS
from lightning_icl.studies.figures.study_figure import OverSeeds, panels
from lightning_icl.studies.names import heads_label, in_order


class Probes(OverSeeds):
    """Excess risk of the linear probe of the query's state for f by layer, a line for each head count.

    Beside it GD and preprocess-then-GD after layer - 1 steps; of the model with most heads the controls and the levels.
    One panel a setting.
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
            "Excess risk of a ridge probe that reads f(x_q) from the query token's state, fitted on other prompts than "
            "it is scored on, in squared label units. GD, and GD on the preprocessed examples: what they would reach "
            f"in layer - 1 steps. The controls and the lines across are those of the model with {', '.join(most)}: the "
            "probe of an untrained network, the probe fitted to shuffled labels, and the risks of the model, ridge and "
            "Bayes on the same prompts.",
            cells.seeds_said(found),
            "Numbers far above or below the probe's are arrows at the edge of their panel.",
        ]
