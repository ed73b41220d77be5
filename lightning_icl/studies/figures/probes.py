"""What linear probes find of f layer by layer."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.style import RISK
from lightning_icl.studies.figures import cells, panels
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import heads_label, in_order

PROBE = "probe/query/f/"
CONTROLS = {
    "untrained": ("probe, untrained network", {"color": "black", "marker": "D", "ls": ":"}),
    "shuffled": ("probe, shuffled labels", {"color": "0.55", "marker": "x", "ls": ":"}),
}
CURVES = {
    "gd": ("GD, layer - 1 steps", {"color": "#cc79a7", "marker": "s", "ls": "--"}),
    "preprocess_then_gd": ("preprocess + GD, layer - 1 steps", {"color": "#8b1a4a", "marker": "s", "ls": "--"}),
}
LEVELS = {
    "transformer": ("the model", {"color": "tab:red", "ls": "-"}),
    "ridge": ("ridge", panels.REFERENCES["ridge"]),
    "bayes": ("Bayes", panels.REFERENCES["bayes"]),
}


class Probes(StudyFigure):
    """Excess risk of the linear probe of the query's state for f by layer, a line for each head count.

    Beside it GD and preprocess-then-GD after layer - 1 steps; of the model with most heads the controls and the levels.
    One panel a setting.
    """

    name = "probes"
    title = "Linear probe of the query's state for f(x_q), layer by layer"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        styles = panels.head_styles(pd.concat([rows for _, rows in settings])[cells.HEADS])
        figure, axes = panels.panels(len(settings), 3.7, 3.3, legend=2.6)
        for panel, (title, rows) in zip(axes, settings, strict=True):
            trained = _trained(rows)
            order = in_order(trained[cells.HEADS])
            for i, text in enumerate(order):
                label = heads_label(text)
                line = trained[trained[cells.HEADS] == text]
                x = panels.apart(line["layer"], i, len(order), trained["layer"])
                panels.over(panel, x, line, label=f"probe, {label}", ms=5, lw=1.8, zorder=3, **styles[label])
            shown = _beside(panel, _of_most_heads(rows))
            panels.limit_risks(panel, panels.risk_limits(trained, shown))
            panels.set_title(panel, title)
            panel.set_xticks(range(int(rows["layer"].max()) + 1))
            panel.set_xlabel("layer (0 is the read-in)")
            panel.set_ylabel(RISK)
        panels.legend_beside(figure)
        figure.suptitle(self.title)
        return [("", figure)]

    def caption(self, table: pd.DataFrame) -> str:
        settings = self._settings(table)
        most = {heads_label(_of_most_heads(rows)[cells.HEADS].iloc[0]) for _, rows in settings}
        return cells.caption(
            "Excess risk of a ridge probe that reads f(x_q) from the query token's state, fitted on other prompts than "
            "it is scored on, in squared label units. Squares: what GD, and GD on the preprocessed examples, would "
            f"reach in layer - 1 steps. The controls and the lines across are those of the model with "
            f"{', '.join(sorted(most))}: the probe of an untrained network, the probe fitted to shuffled labels, and "
            "the risks of the model, ridge and Bayes on the same prompts.",
            cells.seeds_said([n for _, rows in settings for n in _trained(rows)["n"]]),
            "Numbers far above or below the probe's lie outside of the panels.",
        )

    def _settings(self, table: pd.DataFrame) -> list[cells.Setting]:
        """The rows about probes for f of each setting that has a probe of a trained model."""
        rows = cells.finite(cells.final(table, "probe/"))
        rows = rows[rows["metric"].str.match(rf"{PROBE}\w+/risk$|probe/(curve|level)/")]
        rows = cells.uniform_if_any(rows)
        return [s for s in cells.settings(table, rows) if s.rows["metric"].eq(f"{PROBE}trained/risk").any()]


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    return cells.over_seeds(rows[rows["metric"] == f"{PROBE}trained/risk"], [cells.HEADS, "layer"])


def _of_most_heads(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows[cells.HEADS] == in_order(rows[cells.HEADS])[-1]]


def _beside(axes: Axes, rows: pd.DataFrame) -> pd.DataFrame:
    """Draw controls, curves and levels, and return their cells."""
    known = [
        *((f"{PROBE}{name}/risk", *style) for name, style in CONTROLS.items()),
        *((f"probe/curve/{name}", *style) for name, style in CURVES.items()),
        *((f"probe/level/{name}", *style) for name, style in LEVELS.items()),
    ]
    shown = []
    for metric, label, style in known:
        level = metric.startswith("probe/level/")
        found = cells.over_seeds(rows[rows["metric"] == metric], ["metric"] if level else ["layer"])
        shown.append(found)
        if level:
            for cell in found.itertuples():
                panels.level(axes, cell, label=label, **style)
        elif len(found):
            panels.over(axes, found["layer"], found, label=label, ms=4, lw=1.2, **style)
    return pd.concat(shown)
