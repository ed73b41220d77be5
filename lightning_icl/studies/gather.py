"""From the folders of finished runs to the tidy table of a study, and the table's files."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from pyarrow import csv

from lightning_icl.functional.errors import InputError
from lightning_icl.record import journal
from lightning_icl.record.loading import read_config, read_record
from lightning_icl.record.rows import Row, frame
from lightning_icl.studies.configs import config_values, n_parameters
from lightning_icl.studies.names import few
from lightning_icl.studies.table import KEYS, config_columns

ORDER = ["trial", "step", "metric", "stream", "layer", "head", "n_points"]


class Trial(NamedTuple):
    """One trial's part of the table: its config keys as on the command line, and (step, row) of every number."""

    name: str
    seed: int | None
    config: dict[str, Any]
    rows: list[tuple[int, Row]]


def gather(runs: Sequence[Path]) -> pd.DataFrame:
    """The table of finished runs and P-probings, in an order that is always the same.

    Config keys that no run gives a value are no columns; numbers stay numbers in a column of numbers alone. Besides
    what was measured a run has run/parameters, the size of its model (missing where the config does not say n_dims),
    and run/steps. Raises InputError for a folder that is no run's.
    """
    return table_of([read_trial(folder) for folder in runs])


def read_trial(folder: Path) -> Trial:
    """A run's rows, or those of a folder that ``lightning-icl p_probe`` wrote."""
    measurements, events, _ = read_record(folder)
    name = folder.absolute().name
    probed = [found for found in measurements if found.context["command"] == "p_probe"]
    if probed:  # which has no config of its own, but what its models' runs share
        config = dict(probed[-1].context["models"])
        return Trial(name, config.pop("seed", None), config, [(probed[-1].step, row) for row in probed[-1].rows])
    config = read_config(folder)
    rows = []
    for found in (found for found in measurements if found.context["command"] == "fit"):
        first = next((law["stream"] for law in found.context.get("law", ())), None)
        rows += [(found.step, row._replace(stream=None) if row.stream == first else row) for row in found.rows]
    steps = max([0, *(event["steps"] for event in events if "steps" in event), *(step for step, _ in rows)])
    rows += [(steps, Row("run/parameters", n_parameters(config))), (steps, Row("run/steps", steps))]
    return Trial(name, config.get("seed_everything"), config_values(config), rows)


def damage(folder: Path) -> str | None:
    """What is wrong with the record of a folder, in words; None where nothing is, or where there is none yet."""
    path = folder / journal.NAME
    if not path.is_file():
        old = (folder / "results.json").is_file()
        return "it is a run of an older version; delete its folder, and the study runs it again" if old else None
    lines, damaged = journal.read(path)
    if not lines:
        return f"its {path.name} is {'unreadable' if damaged else 'empty'}"
    which = f"line{'s' * (len(damaged) > 1)} {few(map(str, damaged))}"
    return f"{which} of its {path.name} cannot be read; the others stand" if damaged else None


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of different trials as one, with the order and the types of columns of one that is gathered."""
    configs: list[tuple[str, dict[str, Any]]] = []
    for table in tables:
        of_trials = table.drop_duplicates("trial").set_index("trial")[config_columns(table)].astype(object)
        configs += of_trials.where(of_trials.notna(), None).to_dict("index").items()
    return _assembled(pd.concat([table[list(KEYS)] for table in tables], ignore_index=True), configs)


def write_table(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Write results.parquet, which keeps the types, and results.csv with the same numbers; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "results.partial"  # so that a kill leaves the old files or the new ones
    table.to_parquet(partial, index=False)
    partial.replace(folder / "results.parquet")
    # As pandas' to_csv, ten times as fast, with the shortest digits that give each number back.
    csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), partial)
    partial.replace(folder / "results.csv")
    return table


def read_table(folder: Path) -> pd.DataFrame:
    """The table that ``write_table`` wrote; raises InputError where there is none or it is damaged."""
    path = folder / "results.parquet"
    if not path.is_file():
        raise InputError(f"{folder} has no {path.name}.")
    try:
        table = pd.read_parquet(path)
        return table[[*KEYS, *config_columns(table)]]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} is no table; delete it, and it is made anew from the runs that are there.") from error


def table_of(trials: Sequence[Trial]) -> pd.DataFrame:
    """The table of trials that were read."""
    if not trials:
        raise InputError("there are no folders, but a table needs at least one.")
    leading = [(trial.name, trial.seed, step) for trial in trials for step, _ in trial.rows]
    types = {"trial": "str", "seed": "Int64", "step": "Int64"}
    rows = frame(row for trial in trials for _, row in trial.rows)
    rows = pd.concat([pd.DataFrame(leading, columns=list(types)).astype(types), rows], axis=1)
    return _assembled(rows[list(KEYS)], [(trial.name, trial.config) for trial in trials])


def _assembled(rows: pd.DataFrame, configs: Sequence[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """The rows beside the config of each one's trial, in order."""
    names = Counter(name for name, _ in configs)
    if twice := [name for name, number in names.items() if number > 1]:
        raise InputError(f"the trial {twice[0]} is there {names[twice[0]]} times; give each folder a name of its own.")
    which = pd.Index(names).get_indexer(rows["trial"])
    keys = sorted({key for _, config in configs for key, value in config.items() if value is not None})
    columns = {key: _column([config.get(key) for _, config in configs]).take(which) for key in keys}
    table = pd.concat([rows, pd.DataFrame(columns)], axis=1)
    return table.sort_values(ORDER, na_position="first", kind="stable", ignore_index=True)


def _column(values: Sequence[Any]) -> Any:
    """The values of a config key as an array: truth values, whole numbers, numbers, or else all as text."""
    kinds, missing = {type(value) for value in values if value is not None}, None in values
    if kinds in ({bool}, {int}):
        return pd.array(values) if missing else pd.Series(values).array
    if kinds and kinds <= {int, float}:
        return pd.array(values, "float64")
    return pd.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], "str")
