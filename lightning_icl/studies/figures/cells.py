"""Rows of the table as what a figure shows: cut into settings, and averaged over seeds."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lightning_icl.figures.style import MARKERS, Style, ordered_colours
from lightning_icl.studies.names import heads_label, in_order, setting_text
from lightning_icl.studies.statistics import SeedInterval, seed_interval
from lightning_icl.studies.table import last_step, uniform_heads, varied

HEADS = "model.heads"


class Setting(NamedTuple):
    """The rows of one setting, and the setting in words; "" where a study has only one."""

    title: str
    rows: pd.DataFrame


def final(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """The rows of the metrics whose names begin so, on the first stream, each trial's last, with the column "h"."""
    return last_step(with_h(table[table["metric"].str.startswith(prefix) & table["stream"].isna()]))


def with_h(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column "h", the number of heads where all layers have as many."""
    known = table[HEADS].dropna().unique()  # few texts in many rows
    return table.assign(h=table[HEADS].map({text: uniform_heads(text) for text in known}).astype("Int64"))


def uniform_if_any(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of models with as many heads in every layer; all, where there is no such model."""
    uniform = rows["h"].notna()
    return rows[uniform] if uniform.any() else rows


def setting_keys(table: pd.DataFrame) -> list[str]:
    """What a study varies besides heads."""
    trials = table.drop_duplicates("trial")
    if trials[HEADS].notna().any():  # P-probing's have fewer keys
        trials = trials[trials[HEADS].notna()]
    return [key for key in varied(trials) if key not in (HEADS, "h")]


def settings(table: pd.DataFrame, rows: pd.DataFrame, apart_from: Sequence[str] = ()) -> list[Setting]:
    """Some rows of the table cut into the study's settings; ``apart_from`` are keys that a figure has on an axis."""
    keys = [key for key in setting_keys(table) if key not in apart_from]
    if not keys or rows.empty:
        return [Setting("", rows)] if len(rows) else []
    groups = rows.groupby(keys, dropna=False, sort=True)
    return [Setting(setting_text(dict(zip(keys, values, strict=True))), found) for values, found in groups]


def finite(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a number."""
    return rows[np.isfinite(rows["value"].astype(float))]


def over_seeds(rows: pd.DataFrame, by: Sequence[str], log: bool = False) -> pd.DataFrame:
    """The interval over seeds of each group: the columns ``by``, then mean, low, high, n.

    Numbers of one seed, such as a reference's beside each model, are averaged first. Of ratios (``log``) it is the
    geometric mean.
    """
    means = finite(rows).groupby([*by, "seed"], sort=True)["value"].mean()
    of_seeds: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for (*place, _), mean in means.items():
        of_seeds[tuple(place)].append(mean)
    found = [(*place, *seed_interval(values, log=log)) for place, values in of_seeds.items()]
    return pd.DataFrame(found, columns=[*by, *SeedInterval._fields])


def head_styles(texts: Iterable[str]) -> dict[str, Style]:
    """Colour and marker of each head configuration's label, in order: by h, then black where layers differ."""
    labels = {heads_label(text): uniform_heads(text) for text in in_order(texts)}
    uniform = [label for label, h in labels.items() if h is not None]
    looks = zip(ordered_colours(len(uniform)), MARKERS * len(uniform), strict=False)
    styles = {label: {"color": c, "marker": m} for label, (c, m) in zip(uniform, looks, strict=False)}
    return {label: styles.get(label, {"color": "black", "marker": "D"}) for label in labels}


PAIRED = " Numbers of one seed share their prompts, so they differ more surely than overlapping intervals suggest."


def seeds_said(counts: Sequence[int], paired: bool = False) -> str:
    """How the intervals were made, for a caption; ``counts`` are the numbers of seeds behind the numbers shown.

    ``paired`` warns that numbers of one seed vary together.
    """
    if len(counts) == 0:
        return ""
    low, high = min(counts), max(counts)
    if high == 1:
        return "Every number is of one seed, so there are no intervals."
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    alone = " (no interval where there is one)" if low == 1 else ""
    return f"Bars and bands: 95 % intervals of the mean (Student's t) over {seeds}{alone}." + PAIRED * paired


def missing_said(rows: pd.DataFrame, what: str = "trial") -> str:
    """How many trials have no finite number among these rows, for a caption."""
    missing = rows[~np.isfinite(rows["value"].astype(float))]["trial"].nunique()
    trials = f"{missing} {what}s" if missing != 1 else f"1 {what}"
    return f"Left out: {trials} without a finite number." if missing else ""


def caption(*parts: str) -> str:
    """Sentences, those that are not empty."""
    return " ".join(part for part in parts if part)
