"""The tidy table of a study: what its columns mean, and how rows are chosen.

One row for each number that a trial measured while training, with the columns of ``lightning_icl.record.rows.Row``
(``stream`` is missing for the first validation stream), and:

- trial: the name of the run's folder; seed: its ``seed_everything``; step: optimizer steps behind the number;
- one column for each config key (``model.heads``, ``data.task.noise_std``, ... as on the command line; lists and
  mappings as JSON text, such as "[8, 8]"; ``data.task`` is the class's name), and ``depth``, the number of layers.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

MISSING = "run/missing"  # the one row, without a number, of a trial that has not finished
KEYS = ("trial", "seed", "step", "metric", "stream", "layer", "head", "n_points", "value", "low", "high", "note")


def config_columns(table: pd.DataFrame) -> list[str]:
    """The columns that are config keys."""
    return [column for column in table.columns if column not in KEYS]


def varied(table: pd.DataFrame) -> list[str]:
    """The config keys that differ between the trials.

    Where tasks of several classes are compared, an option that only some of them have does not count by that alone.
    """
    several_tasks = "data.task" in table and table["data.task"].nunique() > 1
    return [
        column
        for column in config_columns(table)
        if table[column].nunique(dropna=several_tasks and column.startswith("data.task.")) > 1
    ]


def last_step(table: pd.DataFrame) -> pd.DataFrame:
    """Of each trial and metric, the rows of the last step it was measured at."""
    last = table.groupby(["trial", "metric"])["step"].transform("max")
    return table[table["step"] == last]


def analysed_on(table: pd.DataFrame) -> str:
    """The prompts that heads, pruned models and probes are measured on: "prompts of 16 examples".

    They come from the first validation stream, at its largest number of examples.
    """
    n_points, validation = (
        table[key].dropna().unique().tolist() if key in table else [] for key in ("data.n_points", "data.validation")
    )
    if len(n_points) != 1 or set(validation) - {"{}"}:
        return "prompts with the most examples"
    return f"prompts of {np.max(json.loads(str(n_points[0]))):.0f} examples"


def head_list(text: str) -> tuple[int, ...]:
    """The numbers of heads by layer that a cell of ``model.heads`` holds: "[8, 8]" -> (8, 8)."""
    return tuple(json.loads(text))


def uniform_heads(text: str) -> int | None:
    """h of a model with h heads in every layer; None where the layers differ."""
    heads = set(head_list(text))
    return heads.pop() if len(heads) == 1 else None


def by_setting(
    table: pd.DataFrame, rows: pd.DataFrame | None = None, apart_from: Sequence[str] = ()
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Rows of the table (all, unless told) cut into the study's settings: what its models vary besides their heads.

    ``apart_from`` are further keys that do not part a setting, such as what a figure has on an axis.
    """
    rows = table if rows is None else rows
    trials = table.drop_duplicates("trial")
    models = trials[trials["model.heads"].notna()]  # P-probing's trials have fewer keys
    keys = [key for key in varied(models if len(models) else trials) if key not in ("model.heads", *apart_from)]
    if not keys or rows.empty:
        return [({}, rows)]
    groups = rows.groupby(keys, dropna=False, sort=True)
    return [(dict(zip(keys, values, strict=True)), found) for values, found in groups]
