"""What linear probes find of f layer by layer."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.probes import BESIDE, LEVEL, PROBE, risk_by_layer
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import heads_label, in_order


class Probes(StudyFigure):
    """Excess risk of the linear probe of the query's state for f by layer, a line for each head count.

    Beside it GD and preprocess-then-GD after layer - 1 steps; of the model with most heads the controls and the levels.
    One panel a setting.
    """

    name = "probes"
    title = "Linear probe of the query's state for f(x_q), layer by layer"
    needs = "LinearProbe"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        trained = [_trained(rows) for _, rows in settings]
        beside = [_beside(rows) for _, rows in settings]
        styles = cells.head_styles(pd.concat(trained)[cells.HEADS])
        limits = style.risk_limits(pd.concat(trained), pd.concat(beside))
        figure, axes = style.panels(len(settings), 3.7, 3.3, legend=2.6, sharey=True)
        for panel, (title, _), found, of_panel in zip(axes, settings, trained, beside, strict=True):
            lines = {
                f"probe, {heads_label(text)}": (
                    found[found[cells.HEADS] == text],
                    styles[heads_label(text)] | {"lw": 1.8, "zorder": 3},
                )
                for text in in_order(found[cells.HEADS])
            }
            risk_by_layer(panel, lines, of_panel, limits)
            style.panel_title(panel, title)
        style.legend(figure, "beside", order=[f"probe, {label}" for label in styles])
        style.title(figure, self.title)
        return [("", figure)]

    def caption(self, table: pd.DataFrame) -> str:
        settings = self._settings(table)
        most = {heads_label(_of_most_heads(rows)[cells.HEADS].iloc[0]) for _, rows in settings}
        return cells.caption(
            "Excess risk of a ridge probe that reads f(x_q) from the query token's state, fitted on other prompts than "
            "it is scored on, in squared label units. GD, and GD on the preprocessed examples: what they would "
            f"reach in layer - 1 steps. The controls and the lines across are those of the model with "
            f"{', '.join(sorted(most))}: the probe of an untrained network, the probe fitted to shuffled labels, and "
            "the risks of the model, ridge and Bayes on the same prompts.",
            cells.seeds_said([n for _, rows in settings for n in _trained(rows)["n"]]),
            "Numbers far above or below the probe's are arrows at the edge of their panel.",
        )

    def _settings(self, table: pd.DataFrame) -> list[cells.Setting]:
        """The rows about probes for f of each setting that has a probe of a trained model."""
        rows = cells.finite(cells.final(table, "probe/"))
        rows = cells.uniform_if_any(rows[rows["metric"].isin([PROBE, *BESIDE])])
        return [s for s in cells.settings(table, rows) if s.rows["metric"].eq(PROBE).any()]


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    return cells.over_seeds(rows[rows["metric"] == PROBE], [cells.HEADS, "layer"])


def _of_most_heads(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows[cells.HEADS] == in_order(rows[cells.HEADS])[-1]]


def _beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Controls, curves and levels of the model with most heads."""
    rows = _of_most_heads(rows[rows["metric"] != PROBE])
    across = rows["metric"].str.startswith(LEVEL)
    levels = cells.over_seeds(rows[across], ["metric"])
    return pd.concat([cells.over_seeds(rows[~across], ["metric", "layer"]), levels])
