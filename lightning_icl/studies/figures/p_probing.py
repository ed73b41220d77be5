"""What can be optimised on the first layer's output."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.p_probing import TITLES
from lightning_icl.callbacks.figures.style import RISK
from lightning_icl.studies.figures import cells, panels
from lightning_icl.studies.figures.study_figure import StudyFigure

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "raw": ("the examples as they are, x", {"color": "#d55e00", "ls": "--"}),
    "r_hat": ("preprocessed exactly, R̂ x", {"color": "#8b1a4a", "ls": "--"}),
    "r_hat_power": ("|r̂|^p x", {"color": "#cc79a7", "ls": "-."}),
    "gd_plus_plus": ("GD++, (I - \N{GREEK SMALL LETTER GAMMA}C) x", {"color": "#e69f00", "ls": "-."}),
    "untrained": ("layer 1 of an untrained network", {"color": "0.55", "ls": ":"}),
}


class PProbing(StudyFigure):
    """Excess risk that a simple optimiser reaches on each representation, by its depth; a line for each arm.

    A row of panels for each setting, a column for each optimiser.
    """

    name = "p_probing"
    title = "P-probing: what can be optimised on the first layer's output"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        settings = self._settings(table)
        if not settings:
            return []
        found = [(title, _cells(rows)) for title, rows in settings]
        every = pd.concat([rows for _, rows in found])
        optimisers = [name for name in TITLES if name in set(every["optimiser"])]
        styles = _styles(every["arm"])
        figure = Figure(figsize=(3.2 + 3.6 * len(optimisers), 0.6 + 3.2 * len(found)), layout="constrained")
        grid = figure.subplots(len(found), len(optimisers), squeeze=False, sharey="row")
        for row, (title, risks) in zip(grid, found, strict=True):
            limits = panels.risk_limits(risks)
            for panel, optimiser in zip(row, optimisers, strict=True):
                _lines(panel, risks[risks["optimiser"] == optimiser], styles)
                panels.limit_risks(panel, limits)
                how, depth = TITLES[optimiser]
                panel.set_title("\n".join(filter(None, [title, how])), size=9)
                panel.set_xlabel(depth)
            row[0].set_ylabel(RISK)
        panels.legend_beside(figure)
        figure.suptitle(self.title)
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
    parts = rows["metric"].str.extract(r"^p_probing/(?P<optimiser>\w+)/(?P<steps>\d+)/(?P<arm>.+)$")
    named = rows.join(parts.astype({"steps": int}))
    return cells.over_seeds(named, ["optimiser", "steps", "arm"])


def _styles(arms: pd.Series) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label and style of each arm: the trained models' first, by their heads."""
    heads = sorted(int(arm.removeprefix("heads_")) for arm in set(arms) if arm.startswith("heads_"))
    colours = panels.ordered_colours(len(heads))
    styles = {
        f"heads_{h}": (f"layer 1 with {h} head{'s' * (h != 1)}", {"color": colour, "ls": "-", "lw": 2, "zorder": 3})
        for h, colour in zip(heads, colours, strict=True)
    }
    styles |= {arm: style for arm, style in ARMS.items() if arm in set(arms)}
    return styles | {arm: (arm.replace("_", " "), panels.OTHER) for arm in sorted(set(arms)) if arm not in styles}


def _lines(axes: Axes, risks: pd.DataFrame, styles: dict[str, tuple[str, dict[str, Any]]]) -> None:
    for i, (arm, (label, style)) in enumerate(styles.items()):
        line = risks[risks["arm"] == arm].sort_values("steps")
        if len(line):
            x = panels.apart(line["steps"], i, len(styles), risks["steps"])
            panels.over(axes, x, line, label=label, marker="os"[arm in ARMS], ms=4, **style)
    axes.set_xticks(range(1, int(risks["steps"].max()) + 1))
    axes.set_xlim(0.7, risks["steps"].max() + 0.3)
