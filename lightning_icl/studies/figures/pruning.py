"""Pruned models beside the full one, their controls, and models trained with as few heads."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.style import RISK
from lightning_icl.callbacks.head_pruning import VARIANTS
from lightning_icl.studies.figures import cells, panels
from lightning_icl.studies.figures.study_figure import StudyFigure
from lightning_icl.studies.names import few, heads_label
from lightning_icl.studies.table import head_list

MODELS = {
    "full": "full model",
    "paper": "pruned: all of layer 1,\ntop head of later layers",
    "prune_layer1_instead": "control: top head of layer 1,\nall of later layers",
    "random_head": "control: all of layer 1,\nrandom head of later layers",
    "least_important": "control: all of layer 1,\nleast important of later layers",
}
TREATMENT_STYLES = (  # colours of Okabe and Ito
    {"color": "#0072b2", "marker": "o"},
    {"color": "#e69f00", "marker": "s"},
    {"color": "#009e73", "marker": "^"},
    {"color": "#cc79a7", "marker": "v"},
)
TRAINED_MODELS = {
    "one_each": "trained: one head in every layer",
    "first": "trained: all heads in layer 1,\none in each later layer",
    "later": "trained: one head in layer 1,\nall in later layers",
}
TRAINED = {"color": "black", "marker": "*", "ms": 9}
SELF = "prune/as_is/full/excess_risk"


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

    def __init__(self, heads: int | None = None) -> None:
        self.heads = heads

    @property
    def name(self) -> str:
        return "pruning" + ("" if self.heads is None else f"_{self.heads}_heads")

    title = "Pruned models, their controls, and fewer heads from the start"

    def draw(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        found = self._cases(table, ratio=False), self._cases(table, ratio=True)
        figures = [
            _figure(cases, self.title, ratio) for cases, ratio in zip(found, (False, True), strict=True) if cases
        ]
        return list(zip(("", "_ratio"), figures, strict=False))

    def caption(self, table: pd.DataFrame) -> str:
        cases = self._cases(table, ratio=False)
        counts = [n for case in cases for cell in (case.treated, case.trained) for n in cell["n"]]
        pruned = few(sorted({heads_label(case.heads) for case in cases}))
        return cells.caption(
            f"Excess risk on held-out prompts, in squared label units, of the model with {pruned} in every layer when "
            "only some are kept (which ones is chosen on other prompts), by what is done after pruning; black stars: "
            "models trained from scratch with these heads.",
            "The second figure has ratios to the full model under the same treatment: geometric means, paired by seed; "
            "the lines are the bounds that a reproduction is held to (pruned at most 1.1, prune-layer-1 control at "
            "least 2)." * bool(self._cases(table, ratio=True)),
            cells.seeds_said(counts),
            cells.missing_said(self._rows(table, "excess_risk")),
        )

    def _rows(self, table: pd.DataFrame, number: str) -> pd.DataFrame:
        """All models' rows of prune/<treatment>/<model>/<number>, with the columns treatment and model."""
        rows = cells.final(table, "prune/")
        parts = rows["metric"].str.extract(rf"^prune/(?P<treatment>\w+)/(?P<model>[^/]+)/{number}$")
        return rows.assign(**parts)[parts["treatment"].isin(VARIANTS)]

    def _cases(self, table: pd.DataFrame, ratio: bool) -> list[Case]:
        rows = cells.finite(self._rows(table, "ratio" if ratio else "excess_risk"))
        settings = cells.settings(table, pd.concat([rows, self._whole(table)]))
        cases = [self._case(title, found, ratio) for title, found in settings]
        return [case for case in cases if case]

    def _whole(self, table: pd.DataFrame) -> pd.DataFrame:
        """Risks of models as they were trained: on the prompts of HeadPruning, or if there are none in validation."""
        rows = cells.finite(cells.final(table, "excess_risk/transformer"))
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


def _rivals(whole: pd.DataFrame, heads: str) -> pd.DataFrame:
    """The rows of models that have fewer heads from the start, with what they are in "model"."""
    first, *later = head_list(heads)
    ones = (1,) * len(later)
    known = {(1, *later): "later", (first, *ones): "first", (1, *ones): "one_each"}
    known.pop((first, *later), None)  # with one layer alone, all heads in layer 1 is the full model
    return whole.assign(model=[known.get(head_list(text)) for text in whole[cells.HEADS]]).dropna(subset="model")


def _figure(cases: Sequence[Case], title: str, ratio: bool) -> Figure:
    known = MODELS | TRAINED_MODELS
    rows = _models(cases) + [name for name in TRAINED_MODELS if any(name in set(c.trained["model"]) for c in cases)]
    labels = [known.get(row, f"pruned: {row.replace('_', ' ')}") for row in rows]
    treatments = [name for name in VARIANTS if any(name in set(case.treated["treatment"]) for case in cases)]
    figure, axes = panels.panels(len(cases), 3.2, 1.0 + 0.36 * len(rows), legend=1.6, sharey=True)
    places = {name: 0.15 * (i - (len(treatments) - 1) / 2) for i, name in enumerate(treatments)}
    for panel, case in zip(axes, cases, strict=True):
        for (name, place), style in zip(places.items(), TREATMENT_STYLES, strict=False):
            treated = case.treated[case.treated["treatment"] == name]
            y = [rows.index(model) + place for model in treated["model"]]
            _dots(panel, y, treated, label=VARIANTS[name], ms=5, **style)
        y = [float(rows.index(model)) for model in case.trained["model"]]
        if y:
            _dots(panel, y, case.trained, label="trained from scratch", **TRAINED)
        for row in range(1, len(rows), 2):
            panel.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
        _axis(panel, case, ratio)
        panels.set_title(panel, case.title, 36)
        panel.set_yticks(range(len(rows)), labels, size=8)
        panel.set_ylim(len(rows) - 0.5, -0.5)
    panels.legend_below(figure, 3)
    figure.suptitle("Risk over that of the full model" if ratio else title, size=11)
    return figure


def _models(cases: Sequence[Case]) -> list[str]:
    """The known models first, in their order, then other strategies."""
    found = list(dict.fromkeys(model for case in cases for model in case.treated["model"]))
    return [model for model in MODELS if model in found] + [model for model in found if model not in MODELS]


def _dots(axes: Axes, y: Sequence[float], found: pd.DataFrame, **style: object) -> None:
    lengths = panels.bars(found)
    axes.errorbar(found["mean"], y, xerr=lengths, ls="", capsize=2, elinewidth=1, **style)  # type: ignore[arg-type]


def _axis(axes: Axes, case: Case, ratio: bool) -> None:
    limits = panels.risk_limits(pd.concat([case.treated, case.trained]))
    if not ratio:
        for mean in case.treated.query("treatment == 'as_is' and model == 'full'")["mean"]:
            axes.axvline(mean, color="#0072b2", lw=1, ls=":")
        panels.limit_risks(axes, limits, along="x")
        axes.set_xlabel(RISK, size=9)
        return
    for bound in (1.1, 2.0):
        axes.axvline(bound, color="0.4", lw=1, ls=":")
    panels.limit_risks(axes, (min(limits[0], 0.9), max(limits[1], 2.2), limits[2]), along="x")
    axes.set_xlabel("excess risk / that of the full model", size=9)
