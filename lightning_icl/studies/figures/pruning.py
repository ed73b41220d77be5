"""Pruned models beside the full one, their controls, and models trained with as few heads."""

import re
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.figures import style
from lightning_icl.figures.pruning import TREATMENTS, model_labels, pruned_panel
from lightning_icl.studies.figures import cells
from lightning_icl.studies.figures.cells import HEADS
from lightning_icl.studies.figures.study_figure import OverSeeds, panels
from lightning_icl.studies.names import few, heads_label, in_order
from lightning_icl.studies.table import analysed_on, head_list, uniform_heads

TRAINED = {
    "one_each": "trained: one head in every layer",
    "first": "trained: all heads in layer 1, one in each later layer",
    "later": "trained: one head in layer 1, all in later layers",
}
BOUNDS = (1.1, 2.0)  # our bounds of a reproduction: of the pruned model's ratio and of the layer-1 control's
METRIC = rf"prune/(?P<treatment>{'|'.join(TREATMENTS)})/(?P<model>[^/]+)/(?P<number>excess_risk|ratio)"


class Pruning(OverSeeds):
    """Excess risk of the full and the pruned model and of the controls, by treatment; one panel a setting.

    Below them, models trained from scratch with one head in every layer, with all heads in layer 1 and one in each
    later layer, and the other way round. A second figure has the ratios to the full model, paired by seed.

    Args:
        heads: which model is pruned: the one with so many heads in every layer, unless told the one with most.

    Example:
        >>> from lightning_icl.studies.figures import Pruning
        >>> Pruning(heads=8).title
        'Pruned models, their controls, and fewer heads from the start'
    """

    name = "pruning"
    title = "Pruned models, their controls, and fewer heads from the start"
    needs = "HeadPruning"

    def __init__(self, heads: int | None = None) -> None:
        self.heads = heads
        self.name = "pruning" + ("" if heads is None else f"_{heads}_heads")

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """With columns treatment, model and number; "trained" are risks of models as they were trained.

        Those are on the prompts of HeadPruning, or if there are none in validation.
        """
        rows = style.parts(cells.final(table, "prune/"), METRIC)
        whole = cells.finite(rows[rows["metric"] == "prune/as_is/full/excess_risk"])
        risks = cells.finite(cells.final(table, f"val/excess_risk/{style.MODEL}"))
        risks = risks[risks["n_points"].isna() & ~risks["trial"].isin(whole["trial"])]
        return pd.concat([rows, pd.concat([whole, risks]).assign(treatment="trained", model=None)])

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        whole, pruned = rows[rows["treatment"] == "trained"], rows[rows["treatment"] != "trained"]
        known = {text: uniform_heads(text) or 0 for text in pruned[HEADS].unique()}
        asked = [text for text, h in known.items() if (h > 1 if self.heads is None else h == self.heads)]
        if not asked:
            return rows[:0]
        heads = in_order(asked)[-1]
        first, *later = head_list(heads)
        ones = (1,) * len(later)
        fewer = {(1, *later): "later", (first, *ones): "first", (1, *ones): "one_each"}
        fewer.pop((first, *later), None)  # with one layer alone, all heads in layer 1 is the full model
        full = whole[whole[HEADS] == heads].set_index("seed")["value"]
        trained = whole.assign(model=[fewer.get(head_list(text)) for text in whole[HEADS]]).dropna(subset="model")
        found = []
        for number, shown in pruned[pruned[HEADS] == heads].groupby("number"):
            ratio = number == "ratio"
            beside = trained.assign(value=trained["value"] / trained["seed"].map(full)) if ratio else trained
            shown = pd.concat([shown, beside.assign(number=number)])
            found.append(cells.over_seeds(shown, ["number", "treatment", "model", HEADS], log=ratio))
        return pd.concat(found)

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        # Settings differ in how many heads their strategies keep, which a run's notes say last.
        labels = model_labels(self.rows(table).dropna(subset="model"))
        labels = {model: re.sub(r" \(\d+( heads)?\)$", "", label) for model, label in labels.items()} | TRAINED
        suffixes = {"excess_risk": "", "ratio": "_ratio"}
        by_number = self.found(table).groupby("number")
        return [(suffixes[number], self.figure(found, labels)) for number, found in by_number]

    def figure(self, found: pd.DataFrame, labels: Mapping[str, str] = TRAINED) -> Figure:
        ratio = "ratio" in set(found["number"])
        labels = {model: label for model, label in labels.items() if model in set(found["model"])}
        low, high, log = style.risk_limits(found)
        limits = style.Limits(min(low, 0.9), max(high, 2.2), log) if ratio else style.Limits(low, high, log)

        def draw(axes: Axes, shown: pd.DataFrame) -> None:
            trained, treated = shown[shown["treatment"] == "trained"], shown[shown["treatment"] != "trained"]
            full = treated.query("treatment == 'as_is' and model == 'full'")["mean"].tolist()
            pruned_panel(axes, treated, trained, labels, limits, BOUNDS if ratio else full, "trained from scratch")
            axes.set_xlabel("excess risk / that of the full model" if ratio else style.RISK, size=9)

        title, height = "Risk over that of the full model" if ratio else self.title, 0.8 + 0.5 * len(labels)
        return panels(found, draw, title, 3.0, height, room=1.6, sharey=True, sharex=True)

    def sentences(self, rows: pd.DataFrame, found: pd.DataFrame) -> list[str]:
        pruned = few(sorted({heads_label(text) for text in found[found["treatment"] != "trained"][HEADS]}))
        return [
            f"Excess risk on held-out {analysed_on(rows)}, in squared label units, of the model with {pruned} "
            "in every layer when "
            "only some are kept (which ones is chosen on other prompts), by what is done after pruning; black stars: "
            "models trained from scratch with these heads. Dotted: the full model.",
            "The second figure has ratios to the full model under the same treatment: geometric means, paired by seed; "
            "the lines are the bounds that a reproduction is held to (pruned at most 1.1, prune-layer-1 control at "
            "least 2)." * ("ratio" in set(found["number"])),
            cells.seeds_said(found),
            cells.missing_said(rows[rows["number"] == "excess_risk"]),
        ]
