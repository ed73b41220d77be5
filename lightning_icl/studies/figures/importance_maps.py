"""Which heads matter, over seeds."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.heads import CELL, SCORES, importance_panel, score_label, unit_of
from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import heads_label, in_order, slug

AROUND = 0.6  # inches of a map's title and ticks


class ImportanceMaps(StudyFigure):
    """Layer by head maps of importance, averaged over seeds; a figure for each setting, a map for each configuration.

    Heads of one layer are exchangeable between seeds, so each seed's are sorted by importance within their layer
    before the average.

    Args:
        score: which of HeadImportance's scores, such as leave_one_out, leave_one_in, gradient, leave_one_out_mean.
    """

    needs = "HeadImportance"

    def __init__(self, score: str = "leave_one_out") -> None:
        self.score = checked_score(score)

    @property
    def name(self) -> str:
        return "head_importance" + ("" if self.score == "leave_one_out" else f"_{self.score}")

    @property
    def title(self) -> str:
        return f"What each head is worth ({score_label(self.score)})"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        return [
            ("_" * bool(title) + slug(title), self._figure(maps, ", ".join(filter(None, [self.title, title]))))
            for title, maps in self._maps(table)
        ]

    def caption(self, table: pd.DataFrame) -> str:
        counts = [n for _, maps in self._maps(table) for found in maps.values() for n in found["n"]]
        what = {
            "leave_one_out": "Rise of the excess risk when a head is removed",
            "leave_one_in": "Fall of the excess risk when a head is the only one of its layer",
            "gradient": "Mean size of the loss's derivative by a head's mask",
        }[next(name for name in SCORES if self.score.startswith(name))]
        interval = "± half a 95 % interval (Student's t)" if max(counts) > 1 else "of one seed, without intervals"
        seeds = f"{max(counts)} seeds" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} seeds"
        return cells.caption(
            f"{what}, in squared label units: mean {interval}.",
            f"{seeds}." * (max(counts) > 1),
            "Heads of one layer are exchangeable between seeds, so each seed's are first sorted by importance: column "
            "1 is each seed's most important head of the layer. Sorting alone makes equal heads differ by their noise.",
            "Each map has colours of its own, up to its largest number.",
            cells.missing_said(self._rows(table)),
        )

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        metric = f"heads/{self.score}/importance"
        return cells.final(table[(table["metric"] == metric) & table["n_points"].isna()], metric)

    def _maps(self, table: pd.DataFrame) -> list[tuple[str, dict[str, pd.DataFrame]]]:
        """Of each setting, the cells of every head configuration by layer and rank, which stands for the head."""
        rows = cells.finite(self._rows(table))
        rank = rows.groupby(["trial", "layer"])["value"].rank(ascending=False, method="first").astype("Int64")
        return [
            (title, {text: cells.over_seeds(found[found[cells.HEADS] == text], ["layer", "head"]) for text in texts})
            for title, found in cells.settings(table, rows.assign(head=rank))
            for texts in [in_order(found[cells.HEADS])]
        ]

    def _figure(self, maps: dict[str, pd.DataFrame], words: str) -> Figure:
        """One map below another, the same rank in the same column, all cells of one size."""
        widest = max(int(found["head"].max()) for found in maps.values())
        heights = [AROUND + CELL[1] * int(found["layer"].max()) for found in maps.values()]
        size = max(style.WIDTH, 1.0 + CELL[0] * widest), sum(heights) + 0.8
        figure = Figure(figsize=size, layout="constrained")
        power, unit = unit_of(pd.concat(maps.values()))
        every = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights).flat
        for axes, (text, found) in zip(every, maps.items(), strict=True):
            n_layers = int(found["layer"].max())
            importance_panel(axes, found, (n_layers, widest), power)
            axes.set_xlabel("")
            axes.set_yticks(range(n_layers), [f"layer {layer + 1}" for layer in range(n_layers)], size=9)
            axes.set_title(heads_label(text), size=9)
        axes.set_xlabel("head, by rank within its layer and seed", size=9)
        style.title(figure, f"{words},\nin {unit}")
        return figure


def checked_score(score: str) -> str:
    """The name of one of HeadImportance's scores, such as leave_one_out or leave_one_out_mean."""
    if not score.startswith(tuple(SCORES)):
        raise InputError(
            f"score is {score!r}, but HeadImportance knows none of that name: " + did_you_mean(score, SCORES)
        )
    return score
