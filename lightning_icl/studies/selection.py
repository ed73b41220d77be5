"""Numbers by seed, chosen from the rows of one setting of a study's table, of the last step each was measured at."""

import json

import numpy as np
import pandas as pd

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.table import head_list

Heads = tuple[int, ...]
PLACE = ["seed", "layer", "head", "n_points"]
ERRORS_WIDE = 2 * 1.96  # a 95 % interval over many prompts, in standard errors


def models(table: pd.DataFrame) -> list[Heads]:
    """The heads of each model, fewest in layer 1 first."""
    return sorted(map(head_list, table["model.heads"].dropna().unique()))


def uniform_models(table: pd.DataFrame) -> list[Heads]:
    """Those with the same number of heads in every layer."""
    return [heads for heads in models(table) if len(set(heads)) == 1]


def most_heads(table: pd.DataFrame) -> Heads:
    """The uniform model with most heads; () where there is no uniform one."""
    return max(uniform_models(table), default=())


def measured(table: pd.DataFrame, metric: str, heads: Heads | None = None, n_points: int | None = None) -> pd.DataFrame:
    """A metric's rows, of one model if told, at one number of examples or over all (None), on the first stream.

    What is not finite, as of a run that diverged, is no number. ``error`` is the standard error over prompts.
    """
    found = table.loc[table["metric"] == metric, ["trial", *PLACE, "stream", "model.heads", "value", "low", "high"]]
    found = _at(_at(found, "n_points", n_points), "stream", None)
    if heads is not None:
        found = found[found["model.heads"].eq(json.dumps(heads)).fillna(False)]
    again = found[found.duplicated(PLACE, keep=False)]
    if len(again):
        seed = again["seed"].iloc[0]
        trials = again["trial"][again["seed"] == seed].unique()
        raise InputError(
            f"{' and '.join(trials)} have {metric} of seed {seed} more than once in one setting, but seeds are the "
            "replications: each needs one trial."
        )
    value = found["value"].where(np.isfinite(found["value"]))
    return found.assign(value=value, error=(found["high"] - found["low"]) / ERRORS_WIDE)


def by_seed(
    table: pd.DataFrame,
    metric: str,
    heads: Heads | None = None,
    layer: int | None = None,
    n_points: int | None = None,
    column: str = "value",
) -> pd.Series:
    """A metric in one place, by seed: NaN for one of the table's seeds that has no number; empty where none has any.

    ``column`` "error" gives its standard errors over prompts instead.
    """
    found = _at(measured(table, metric, heads, n_points), "layer", layer).set_index("seed")[column]
    return found.reindex(sorted(table["seed"].dropna().unique())) if len(found) else found


def _at(rows: pd.DataFrame, column: str, value: int | None) -> pd.DataFrame:
    """The rows of one layer, number of examples or stream; None for those that are not about one."""
    return rows[rows[column].isna() if value is None else rows[column].eq(value).fillna(False)]
