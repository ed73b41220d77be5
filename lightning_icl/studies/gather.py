"""From the folders of finished runs to the tidy table of a study, and the table's files.

table = gather([Path("study/trials/a"), Path("study/trials/b")])
write_table(table, Path("study"))
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import torch
from pyarrow import csv

from lightning_icl.functional.errors import InputError
from lightning_icl.record.loading import read_config, read_record
from lightning_icl.record.rows import COLUMNS, TYPES, Measurement, Row
from lightning_icl.studies.table import KEYS, config_columns
from lightning_icl.transformer import Transformer

MODEL_OPTIONS = frozenset(signature(Transformer).parameters)
# Of the trainer what its weights and measurements depend on, and not where it runs (devices, strategy), what it writes
# (loggers, checkpoints, default_root_dir) or what it shows. Callbacks are its analyses, long lists of options.
TRAINER_KEYS = (
    *("max_steps", "max_epochs", "max_time", "limit_train_batches", "overfit_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision", "deterministic"),
    *("val_check_interval", "check_val_every_n_epoch", "limit_val_batches"),
)
ORDER = ["trial", "step", "metric", "stream", "layer", "head", "n_points"]
KINDS = TYPES | {"trial": "str", "seed": "Int64", "step": "Int64"}


class Trial(NamedTuple):
    """One trial's part of the table.

    Attributes:
        config: its config keys as on the command line.
        rows: (step, row) of every number.
        damaged: the numbers of the lines of its record that could not be read.
    """

    name: str
    seed: int | None
    config: dict[str, Any]
    rows: list[tuple[int, Row]]
    damaged: list[int]


def gather(runs: Sequence[Path]) -> pd.DataFrame:
    """The table of finished runs and P-probings, in an order that is always the same.

    A run's folder has config.yaml and record.jsonl; what it measured while training is kept, at all its steps. The
    config columns are all keys under model and data and the trainer's TRAINER_KEYS, but for keys that no run gives a
    value; numbers stay numbers in a column of numbers alone. Besides what was measured a run has run/parameters, the
    size of its model (missing where the config does not say n_dims), and run/steps. Raises InputError for a folder that
    is no such run.
    """
    return table_of([read_trial(folder) for folder in runs])


def read_trial(folder: Path) -> Trial:
    """A run's rows, or those of a folder that ``lightning-icl p_probe`` wrote."""
    measurements, events, damaged = read_record(folder)
    name = folder.absolute().name
    probed = [found for found in measurements if found.context["command"] == "p_probe"]
    if probed:  # which has no config of its own, but what its models' runs share
        config = dict(probed[-1].context["models"])
        return Trial(name, config.pop("seed", None), config, [(probed[-1].step, r) for r in probed[-1].rows], damaged)
    config = read_config(folder)
    rows = [(found.step, row) for found in measurements if found.context["command"] == "fit" for row in _rows(found)]
    steps = max([0, *(event["steps"] for event in events if "steps" in event), *(step for step, _ in rows)])
    rows += [(steps, Row("run/parameters", n_parameters(config))), (steps, Row("run/steps", steps))]
    return Trial(name, config.get("seed_everything"), config_values(config), rows, damaged)


def _rows(found: Measurement) -> list[Row]:
    """The rows of a measurement; those on its first stream without the stream's name."""
    first = next((law["stream"] for law in found.context.get("law", ())), None)
    return [row._replace(stream=None) if row.stream == first else row for row in found.rows]


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of different trials as one, with the order and the types of columns of one that is gathered."""
    configs = [
        (trial, {key: None if pd.isna(value) else value for key, value in config.items()})
        for table in tables
        for trial, config in zip(*_by_trial(table), strict=True)
    ]
    return _assembled(pd.concat([table[list(KEYS)] for table in tables], ignore_index=True), configs)


def write_table(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Write results.parquet, which keeps the types, and results.csv with the same numbers; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "results.parquet", lambda path: table.to_parquet(path, index=False))
    # As pandas' to_csv, ten times as fast, with the shortest digits that give each number back.
    rows = pa.Table.from_pandas(table, preserve_index=False)
    _write_whole(folder / "results.csv", lambda path: csv.write_csv(rows, path))
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


def config_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a config, as one would type them: data.task is the class's name, data.task.noise_std a value.

    Lists and mappings are JSON text. Besides there is depth, the number of layers, which only model.heads tells.
    """
    trainer = config.get("trainer") or {}
    kept = {f"trainer.{key}": trainer[key] for key in TRAINER_KEYS if key in trainer}
    kept |= {f"{part}.{key}": value for part in ("model", "data") for key, value in config[part].items()}
    flat = {key: value for prefix, nested in kept.items() for key, value in _flat(prefix, nested)}
    return flat | {"depth": len(config["model"]["heads"])}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case {"class_path": str(path)}:
            yield prefix, path.rpartition(".")[2]
            for key, nested in {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}.items():
                yield from _flat(f"{prefix}.{key}", nested)
        case dict() | list():
            yield prefix, json.dumps(value)
        case _:
            yield prefix, value


def n_parameters(config: Mapping[str, Any]) -> int | None:
    """Parameters of the model of a config; None where its task does not say n_dims."""
    n_dims = _n_dims(config["data"]["task"])
    if n_dims is None:
        return None
    options = {key: value for key, value in config["model"].items() if key in MODEL_OPTIONS}
    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        transformer = Transformer(**{**options, "n_dims": n_dims})
    return sum(parameter.numel() for parameter in transformer.parameters())


def _n_dims(task: Any) -> int | None:
    """The first n_dims in a task's config; that of a pool or of a mixture is its tasks'."""
    if isinstance(task, dict) and isinstance(task.get("n_dims"), int):
        return task["n_dims"]
    nested = task.values() if isinstance(task, dict) else task if isinstance(task, list) else ()
    return next((found for found in map(_n_dims, nested) if found is not None), None)


def table_of(trials: Sequence[Trial]) -> pd.DataFrame:
    """The table of trials that were read."""
    if not trials:
        raise InputError("there are no folders, but a table needs at least one.")
    numbers = [(trial.name, trial.seed, step, row) for trial in trials for step, row in trial.rows]
    columns = dict(zip(("trial", "seed", "step"), zip(*(number[:3] for number in numbers), strict=True), strict=True))
    columns |= zip(COLUMNS, zip(*(row for *_, row in numbers), strict=True), strict=True)
    rows = pd.DataFrame({key: pd.array(columns[key], KINDS[key]) for key in KEYS})
    return _assembled(rows, [(trial.name, trial.config) for trial in trials])


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


def _by_trial(table: pd.DataFrame) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of a table's trials and their configs."""
    first = table.drop_duplicates("trial")
    return first["trial"].tolist(), first[config_columns(table)].to_dict("records")


def _column(values: Sequence[Any]) -> Any:
    """The values of a config key as an array: truth values, whole numbers, numbers, or else all as text."""
    given, missing = [value for value in values if value is not None], None in values
    kinds = {type(value) for value in given}
    if kinds == {bool}:
        return pd.array(values, "boolean" if missing else "bool")
    if kinds == {int}:
        return pd.array(values, "Int64" if missing else "int64")
    if kinds and kinds <= {int, float}:
        return pd.array(values, "float64")
    return pd.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], "str")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.replace(path)
