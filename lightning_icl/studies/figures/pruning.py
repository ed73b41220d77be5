"""Pruned models beside the full one, their controls, and models trained with as few heads."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.pruning import TREATMENTS, model_labels, pruned_panel
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import few, heads_label
from lightning_icl.studies.table import head_list

TRAINED = {
    "one_each": "trained: one head in every layer",
    "first": "trained: all heads in layer 1, one in each later layer",
    "later": "trained: one head in layer 1, all in later layers",
}
SELF = "prune/as_is/full/excess_risk"
BOUNDS = (1.1, 2.0)  # PAPER.md section 8: of the pruned model's ratio and of the layer-1 control's


class Case(NamedTuple):
    """One setting: the pruned model's heads, its cells by treatment and model, those of models trained with fewer."""

    title: str
    heads: str
    treated: pd.DataFrame
    trained: pd.DataFrame


class Pruning(StudyFigure):
    """Excess risk of the full and the pruned model and of the controls, by treatment; one panel a setting.

    Below them, models trained from scratch with one head in every layer, with all heads in layer 1 and one in each
    later layer, and the other way round. A second figure has the ratios to the full model, paired by seed.

    Args:
        heads: which model is pruned: the one with so many heads in every layer, unless told the one with most.
    """

    needs = "HeadPruning"

    def __init__(self, heads: int | None = None) -> None:
        self.heads = heads

    @property
    def name(self) -> str:
        return "pruning" + ("" if self.heads is None else f"_{self.heads}_heads")

    title = "Pruned models, their controls, and fewer heads from the start"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        rows = self._rows(table, "excess_risk")
        # Settings differ in how many heads their strategies keep, which a run's notes say last.
        labels = {model: re.sub(r" \(\d+( heads)?\)$", "", label) for model, label in model_labels(rows).items()}
        found = {"": self._cases(table, ratio=False), "_ratio": self._cases(table, ratio=True)}
        return [(suffix, self._figure(cases, labels, suffix == "_ratio")) for suffix, cases in found.items() if cases]

    def caption(self, table: pd.DataFrame) -> str:
        cases = self._cases(table, ratio=False)
        counts = [n for case in cases for cell in (case.treated, case.trained) for n in cell["n"]]
        pruned = few(sorted({heads_label(case.heads) for case in cases}))
        return cells.caption(
            f"Excess risk on held-out prompts, in squared label units, of the model with {pruned} in every layer when "
            "only some are kept (which ones is chosen on other prompts), by what is done after pruning; black stars: "
            "models trained from scratch with these heads. Dotted: the full model.",
            "The second figure has ratios to the full model under the same treatment: geometric means, paired by seed; "
            "the lines are the bounds that a reproduction is held to (pruned at most 1.1, prune-layer-1 control at "
            "least 2)." * bool(self._cases(table, ratio=True)),
            cells.seeds_said(counts),
            cells.missing_said(self._rows(table, "excess_risk")),
        )

    def _rows(self, table: pd.DataFrame, number: str) -> pd.DataFrame:
        """All models' rows of prune/<treatment>/<model>/<number>, with the columns treatment and model."""
        treatments = "|".join(TREATMENTS)
        return style.parts(
            cells.final(table, "prune/"), rf"prune/(?P<treatment>{treatments})/(?P<model>[^/]+)/{number}"
        )

    def _cases(self, table: pd.DataFrame, ratio: bool) -> list[Case]:
        rows = cells.finite(self._rows(table, "ratio" if ratio else "excess_risk"))
        settings = cells.settings(table, pd.concat([rows, self._whole(table)]))
        cases = [self._case(title, found, ratio) for title, found in settings]
        return [case for case in cases if case]

    def _whole(self, table: pd.DataFrame) -> pd.DataFrame:
        """Risks of models as they were trained: on the prompts of HeadPruning, or if there are none in validation."""
        rows = cells.finite(cells.final(table, "val/excess_risk/transformer"))
        rows = rows[rows["n_points"].isna()]
        pruned = cells.finite(cells.final(table[table["metric"] == SELF], SELF))
        rows = rows[~rows["trial"].isin(pruned["trial"])]
        return pd.concat([pruned, rows]).assign(treatment="trained")

    def _case(self, title: str, rows: pd.DataFrame, ratio: bool) -> Case | None:
        whole, pruned = rows[rows["treatment"] == "trained"], rows[rows["treatment"] != "trained"]
        pruned = pruned[pruned["h"].gt(1) if self.heads is None else pruned["h"].eq(self.heads)]
        if pruned.empty:
            return None
        heads = pruned.loc[pruned["h"].astype(int).idxmax(), cells.HEADS]
        pruned = pruned[pruned[cells.HEADS] == heads]
        if ratio:
            full = whole[whole[cells.HEADS] == heads].set_index("seed")["value"]
            whole = whole.assign(value=whole["value"] / whole["seed"].map(full))
        return Case(
            title,
            heads,
            cells.over_seeds(pruned, ["treatment", "model"], log=ratio),
            cells.over_seeds(_rivals(whole, heads), ["model"], log=ratio),
        )

    def _figure(self, cases: Sequence[Case], labels: dict[str, str], ratio: bool) -> Figure:
        every = pd.concat([cell for case in cases for cell in (case.treated, case.trained)])
        rows = {model: label for model, label in (labels | TRAINED).items() if model in set(every["model"])}
        low, high, log = style.risk_limits(every)
        limits = style.Limits(min(low, 0.9), max(high, 2.2), log) if ratio else style.Limits(low, high, log)
        figure, axes = style.panels(len(cases), 3.0, 0.8 + 0.5 * len(rows), legend=1.6, sharey=True, sharex=True)
        for panel, case in zip(axes, cases, strict=True):
            full = case.treated.query("treatment == 'as_is' and model == 'full'")["mean"].tolist()
            lines = BOUNDS if ratio else full
            pruned_panel(panel, case.treated, case.trained, rows, limits, lines, "trained from scratch")
            panel.set_xlabel("excess risk / that of the full model" if ratio else style.RISK, size=9)
            panel.xaxis.set_tick_params(labelbottom=True)
            style.panel_title(panel, case.title, 36)
        style.legend(figure, columns=3)
        style.title(figure, "Risk over that of the full model" if ratio else self.title)
        return figure


def _rivals(whole: pd.DataFrame, heads: str) -> pd.DataFrame:
    """The rows of models that have fewer heads from the start, with what they are in "model"."""
    first, *later = head_list(heads)
    ones = (1,) * len(later)
    known = {(1, *later): "later", (first, *ones): "first", (1, *ones): "one_each"}
    known.pop((first, *later), None)  # with one layer alone, all heads in layer 1 is the full model
    return whole.assign(model=[known.get(head_list(text)) for text in whole[cells.HEADS]]).dropna(subset="model")
