"""Rows of the table as what a figure shows, averaged over seeds, and the sentences that say how."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from lightning_icl.figures.style import MARKERS, Style, ordered_colours
from lightning_icl.studies.names import heads_label, in_order
from lightning_icl.studies.statistics import SeedInterval, seed_interval
from lightning_icl.studies.table import last_step, uniform_heads

HEADS = "model.heads"


def final(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """The rows of the metrics whose names begin so, on the first stream, each trial's last."""
    return last_step(table[table["metric"].str.startswith(prefix) & table["stream"].isna()])


def uniform_if_any(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of models with as many heads in every layer; all, where there is no such model."""
    uniform = rows[HEADS].isin([text for text in rows[HEADS].dropna().unique() if uniform_heads(text) is not None])
    return rows[uniform] if uniform.any() else rows


def finite(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a number."""
    return rows[np.isfinite(rows["value"].astype(float))]


def over_seeds(rows: pd.DataFrame, by: Sequence[str], log: bool = False) -> pd.DataFrame:
    """The interval over seeds of each group: the columns ``by``, then mean, low, high, n.

    Numbers of one seed, such as a reference's beside each model, are averaged first. Of ratios (``log``) it is the
    geometric mean.
    """
    means = finite(rows).groupby([*by, "seed"])["value"].mean()
    found = [(*place, *seed_interval(of.tolist(), log=log)) for place, of in means.groupby(level=list(by))]
    return pd.DataFrame(found, columns=[*by, *SeedInterval._fields])


def head_styles(texts: Iterable[str]) -> dict[str, Style]:
    """Colour and marker of each head configuration's label, in order: by h, then black where layers differ."""
    h = {heads_label(text): uniform_heads(text) for text in in_order(texts)}
    colours, markers = iter(ordered_colours(len(h) - list(h.values()).count(None))), itertools.cycle(MARKERS)
    return {
        label: {"color": next(colours), "marker": next(markers)} if n else {"color": "black", "marker": "D"}
        for label, n in h.items()
    }


def head_lines(
    found: pd.DataFrame, styles: Mapping[str, Style], prefix: str = ""
) -> dict[str, tuple[pd.DataFrame, Style]]:
    """The cells of each head configuration and how they are drawn, in front, by its label."""
    return {
        prefix + heads_label(text): (found[found[HEADS] == text], styles[heads_label(text)] | {"lw": 1.8, "zorder": 3})
        for text in in_order(found[HEADS])
    }


PAIRED = " Numbers of one seed share their prompts, so they differ more surely than overlapping intervals suggest."


def seeds_said(found: pd.DataFrame, paired: bool = False) -> str:
    """How the intervals of these cells were made, for a caption; ``paired``: numbers of one seed vary together."""
    low, high = found["n"].min(), found["n"].max()
    if high == 1:
        return "Every number is of one seed, so there are no intervals."
    seeds = f"{low} to {high} seeds" if low < high else f"{high} seeds"
    alone = " (no interval where there is one)" if low == 1 else ""
    return f"Intervals are 95 % ones of the mean (Student's t) over {seeds}{alone}." + PAIRED * paired


def missing_said(rows: pd.DataFrame, what: str = "trial") -> str:
    """How many trials have no finite number among these rows, for a caption."""
    missing = rows[~np.isfinite(rows["value"].astype(float))]["trial"].nunique()
    return f"Left out: {missing} {what}{'s' * (missing != 1)} without a finite number." * bool(missing)
