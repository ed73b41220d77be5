"""The loggers of a command line's run, made so that all they write lies in its folder."""

import csv
import inspect
import os
import pydoc
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_icl.functional.errors import InputError
from lightning_icl.record.folder import RUNS

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
TABLE = "metrics.csv"  # CSVLogger's file


def logger_configs(trainer: Namespace) -> list[Namespace]:
    """What trainer.logger says, one entry a logger; TensorBoard unless told."""
    if trainer.logger in (None, True):
        options = Namespace(save_dir=str(_root(trainer)), name=RUNS, default_hp_metric=False)
        return [Namespace(class_path=TENSORBOARD, init_args=options)]
    return trainer.logger if isinstance(trainer.logger, list) else [trainer.logger] if trainer.logger else []


def place(configs: Sequence[Namespace], trainer: Namespace) -> tuple[Path, str | None]:
    """The folder of all runs, which a TensorBoard or CSV logger may name, and the run's name in it where one says so."""
    for config in configs:
        if _is_local(config):
            options = config.init_args
            version = options.get("version")
            runs = Path(os.path.expandvars(options.save_dir), options.get("name") or "").expanduser().absolute()
            return runs, f"version_{version}" if isinstance(version, int) else version
    return _root(trainer) / RUNS, None


def _root(trainer: Namespace) -> Path:
    return Path(trainer.default_root_dir or "").absolute()


def _is_local(config: Namespace) -> bool:
    return issubclass(class_of(config), (TensorBoardLogger, CSVLogger)) and "://" not in config.init_args.save_dir


def class_of(config: Namespace) -> type:
    """The class that a part of the config names."""
    found = pydoc.locate(config.class_path)
    assert isinstance(found, type)  # the parser has found it before
    return found


def loggers_in(folder: Path | None, configs: Sequence[Namespace], resumed_from: Path | None) -> list[Logger]:
    """The loggers, writing into the run's folder; as configured where there is none, in processes that log nothing.

    Where the run goes on from a checkpoint, they forget what they hold of later steps.
    """
    rows, first = [], None
    if folder is not None:
        if resumed_from is not None:
            first = first_step_again(resumed_from)
            rows = _rows(folder / TABLE, before=first)  # read first, as CSVLogger begins its file anew
        configs = [_moved(config, folder, first) for config in configs]
    parser = ArgumentParser()
    parser.add_argument("--loggers", type=list[Logger])
    try:
        loggers = parser.instantiate_classes(Namespace(loggers=list(configs))).loggers
    except ModuleNotFoundError as error:  # Lightning has a logger for each of several services, none of them installed
        raise InputError(f"trainer.logger: {error}") from error
    for logger in loggers:
        for row in rows if isinstance(logger, CSVLogger) else ():
            logger.log_metrics(row, int(row.pop("step")))
    return loggers


def _moved(config: Namespace, folder: Path, purge_step: int | None) -> Namespace:
    """The logger in the run's folder, unless it was told another place that is not for this to choose."""
    config, kind = config.clone(), class_of(config)
    options = config.init_args = config.get("init_args", Namespace())
    if _is_local(config):
        options.update(Namespace(save_dir=str(folder.parent), name="", version=folder.name))
    else:  # Weights & Biases would write into the working folder, MLflow into ./mlruns
        default = getattr(inspect.signature(kind).parameters.get("save_dir"), "default", None)
        if isinstance(default, str) and options.get("save_dir", default) == default:
            options.save_dir = str(folder / default)
    if issubclass(kind, TensorBoardLogger) and purge_step is not None:
        config.dict_kwargs = {**(config.get("dict_kwargs") or {}), "purge_step": purge_step}
    return config


def first_step_again(checkpoint: Path) -> int:
    """The first step whose points a run that goes on from the checkpoint logs itself.

    A checkpoint saved after its step's validation has all of that step behind it. One saved before has the validation
    still to come, and an earlier one maybe in the files; so that step is logged again as a whole.
    """
    saved = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)
    step = saved["global_step"]
    return step + (saved.get("lightning_icl", {}).get("validated_at", step) == step)


def _rows(table: Path, before: int) -> list[dict[str, float]]:
    if not table.exists():
        return []
    rows = csv.DictReader(table.read_text().splitlines())
    found = ({key: float(value) for key, value in row.items() if value} for row in rows)
    return [row for row in found if row["step"] < before]
