"""What is lost when heads are pruned."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.figures import style

TREATMENTS = {
    "as_is": ("masked as is", {"color": style.BLUE, "marker": "o"}),
    "read_out": ("read-out refitted", {"color": style.ORANGE, "marker": "s"}),
    "rescaled": ("kept heads rescaled", {"color": style.GREEN, "marker": "^"}),
    "fine_tuned": ("fine-tuned", {"color": style.PURPLE, "marker": "v"}),
}
CONTROLS = ("prune_layer1_instead", "random_head", "least_important")
MAX_COLUMNS = 24  # of an allocation whose numbers can still be read
RISKS = r"prune/(?P<treatment>\w+)/(?P<model>[^/]+)/excess_risk"


def pruning_risks(rows: pd.DataFrame) -> Figure:
    """Full model, pruned models and controls, a row each, under every treatment; other models below them.

    From prune/<treatment>/<model>/excess_risk, with the model in words as note, and prune/as_is/paper/rank.
    """
    found = style.cells(rows, RISKS)
    treated, beside = found[found["treatment"].isin(TREATMENTS)], found[found["treatment"] == "checkpoint"]
    labels = model_labels(pd.concat([treated, beside]))
    for row in rows[rows["metric"] == "prune/as_is/paper/rank"].itertuples():
        labels["paper"] += f"; rank {row.note} random choices, 1 is best"
    figure, (axes,) = style.panels(1, 6.3, 0.8 + 0.5 * len(labels))
    full = treated.query("treatment == 'as_is' and model == 'full'")["mean"].tolist()
    pruned_panel(axes, treated, beside, labels, style.risk_limits(pd.concat([treated, beside])), full, "another model")
    axes.set_xlabel(f"{style.RISK}, bars: 95 % intervals", size=9)
    style.legend(figure, columns=3)
    style.title(figure, "What pruning heads costs (dotted: the full model)")
    return figure


def model_labels(found: pd.DataFrame) -> dict[str, str]:
    """Models in words, in the order of their rows: the note of their first row that has one, or else their name."""
    noted = found.dropna(subset="note").drop_duplicates("model").set_index("model")["note"]
    return {model: noted.get(model, model.replace("_", " ")) for model in found["model"].unique()}


def pruned_panel(
    axes: Axes, treated: pd.DataFrame, beside: pd.DataFrame, labels: Mapping[str, str], limits: style.Limits,
    lines: Sequence[float], beside_label: str,
) -> None:  # fmt: skip
    """Cells by treatment and model, a row for each of ``labels``; those ``beside`` were treated in no way."""
    rows = {model: i for i, model in enumerate(labels)}
    treatments = {name: found for name in TREATMENTS if len(found := treated[treated["treatment"] == name])}
    for i, (name, found) in enumerate(treatments.items()):
        places = found["model"].map(rows) + 0.16 * (i - (len(treatments) - 1) / 2)
        style.over(axes, places, found, "x", ls="", ms=5, label=TREATMENTS[name][0], **TREATMENTS[name][1])
    if len(beside):
        star = {"marker": "*", "ms": 9, "color": "black"}
        style.over(axes, beside["model"].map(rows), beside, "x", ls="", label=beside_label, **star)
    for line in lines:
        axes.axvline(line, color="0.4", lw=1, ls=":")
    for row in range(1, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    axes.set_yticks(range(len(rows)), [textwrap.fill(label, 33) for label in labels.values()], size=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    style.limit(axes, limits, "x")


def greedy_path(rows: pd.DataFrame) -> Figure:
    """Excess risk against the number of heads left, with the other strategies, over the heads left in each layer.

    From prune/greedy_path/heads_<n>/excess_risk and n_heads, prune/<strategy>/n_heads and prune/as_is/.../excess_risk.
    """
    cells = style.cells(rows, r"prune/greedy_path/heads_(?P<left>\d+)/(?P<number>excess_risk|n_heads)")
    cells = cells.astype({"left": int}).sort_values("left", ascending=False)
    path, allocation = cells[cells["number"] == "excess_risk"], cells[cells["layer"].notna()]
    total = path["left"].max()
    table = allocation.pivot(index="layer", columns="left", values="mean")[path["left"]]
    figure = Figure(figsize=(style.WIDTH, 4.6 + 0.3 * len(table)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 0.5 + 0.3 * len(table)])
    style.band(above, total - path["left"], path, color=style.BLUE, marker="o", ms=3, label="greedy removal")
    above.axhline(path["mean"].iloc[0], color="0.4", lw=1, ls=":", label="full model")
    marked = _strategies(rows)
    # Those with as many heads stand beside each other.
    places = total - marked["n_heads"] + max(0.25, 0.012 * total) * marked.groupby("n_heads").cumcount()
    for i, label in enumerate(marked["label"]):
        look = style.look(i + 1) | {"ls": "", "ms": 6, "label": textwrap.fill(label, 60)}
        style.over(above, places.iloc[[i]], marked.iloc[[i]], **look)
    style.limit(above, style.risk_limits(pd.concat([path, marked])))
    above.set_ylabel(style.RISK_WITH_BARS.replace("bars", "band and bars"), size=9)
    values = table.to_numpy(dtype=float)
    texts = {place: f"{value:.0f}" for place, value in np.ndenumerate(values) if values.shape[1] <= MAX_COLUMNS}
    style.heat_map(below, values, texts, missing="white")
    below.set_yticks(range(len(table)), [f"layer {layer}" for layer in table.index], size=9)
    below.set_xlim(-0.5, max([total - 1, *places]) + 0.5)  # a strategy may leave none
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.xaxis.set_major_formatter(lambda removed, _: f"{total - removed:.0f}")
    below.set_xlabel("heads left, removed one at a time, the cheapest first", size=9)
    style.legend(figure, columns=1, order=["greedy removal", "full model"])
    style.title(figure, "How few heads will do; below, how many are left in each layer")
    return figure


def _strategies(rows: pd.DataFrame) -> pd.DataFrame:
    """As-is cells of every strategy but greedy removal, with the columns n_heads and label."""
    n_heads = style.parts(rows[rows["layer"].isna()], "prune/(?P<model>[^/]+)/n_heads").set_index("model")["value"]
    found = style.cells(rows, RISKS.replace(r"(?P<treatment>\w+)", "as_is"))
    labels = model_labels(found)
    others = ~found["model"].isin(["full", *CONTROLS]) & ~found["model"].str.startswith("greedy")
    found = found[others & found["model"].isin(n_heads.index)]
    return found.assign(n_heads=found["model"].map(n_heads), label=found["model"].map(labels))
