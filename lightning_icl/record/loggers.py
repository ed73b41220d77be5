"""The loggers of a command line's run, made so that all they write lies in its folder."""

import csv
import inspect
import pydoc
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_icl.functional.errors import InputError
from lightning_icl.record.folder import RUNS

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
TABLE = "metrics.csv"  # CSVLogger's file
NAMES = {"WandbLogger": "name", "MLFlowLogger": "run_name"}  # which option calls a run something in a service
TRAINING = ("train/", "curriculum/", "prune/schedule/")  # what is logged as a step is made


def logger_configs(trainer: Namespace) -> list[Namespace]:
    """What trainer.logger says, one entry a logger; TensorBoard unless told."""
    if trainer.logger in (None, True):
        options = Namespace(save_dir=str(_root(trainer)), name=RUNS)
        return [Namespace(class_path=TENSORBOARD, init_args=options)]
    return trainer.logger if isinstance(trainer.logger, list) else [trainer.logger] if trainer.logger else []


def place(configs: Sequence[Namespace], trainer: Namespace) -> tuple[Path, str | None]:
    """The folder of all runs, which a TensorBoard or CSV logger may name, and the run's name in it where one does."""
    for config in configs:
        if _is_local(config):
            options = config.init_args
            version = options.get("version")
            runs = Path(options.save_dir, options.get("name") or "").absolute()
            return runs, f"version_{version}" if isinstance(version, int) else version
    return _root(trainer) / RUNS, None


def forget_version(configs: Sequence[Namespace]) -> None:
    """Leave out the name that TensorBoard and CSV loggers give a run which has another."""
    for config in configs:
        if _is_local(config):
            config.init_args.version = None


def _root(trainer: Namespace) -> Path:
    return Path(trainer.default_root_dir or "").absolute()


def _is_local(config: Namespace) -> bool:
    return issubclass(class_of(config), (TensorBoardLogger, CSVLogger)) and "://" not in config.init_args.save_dir


def class_of(config: Namespace) -> type:
    """The class that a part of the config names."""
    found = pydoc.locate(config.class_path)
    assert isinstance(found, type)  # the parser has found it before
    return found


def loggers_in(
    folder: Path | None,
    configs: Sequence[Namespace],
    fits: bool,
    since: tuple[int, bool] | None = None,
    name: str | None = None,
) -> list[Logger]:
    """The loggers, writing into the run's folder; as configured where there is none, in processes that log nothing.

    A service is told the run's ``name``, where it has one and its logger was not given another.

    They take back what a fit will log again that goes on from a checkpoint, or starts anew where a run that was killed
    has left none.
    """
    # Before the loggers are made: CSVLogger begins its file anew, and TensorBoard forgets the step as a whole.
    first, points, rows = None, {}, _rows(folder / TABLE) if folder is not None else []
    if folder is not None and fits:
        step, whole = since or (-1, True)  # see checkpoint.step_of
        first = step + 1 if whole else step
        points = {} if whole else _training_points(folder, step)
        rows = [row for row in rows if row["step"] < first or (not whole and _of_training(row, step))]
    parser = ArgumentParser()
    parser.add_argument("--loggers", type=list[Logger])
    moved = [config if folder is None else _moved(config, folder, first, name) for config in configs]
    try:
        loggers = parser.instantiate_classes(Namespace(loggers=moved)).loggers
    except ValueError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):  # of the service's package, which is the user's to install
            raise InputError(f"trainer.logger: {error.__cause__}") from error
        raise
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and points:
            logger.log_metrics(points, first)
        for row in rows if isinstance(logger, CSVLogger) else ():
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
        if rows:
            logger.save()  # at once: CSVLogger has deleted its file, and another kill may come
    return loggers


def _moved(config: Namespace, folder: Path, purge_step: int | None, name: str | None) -> Namespace:
    """The logger in the run's folder, unless it was told another place that is not for this to choose."""
    config, kind = config.clone(), class_of(config)
    options = config.init_args = config.get("init_args", Namespace())
    if _is_local(config):
        options.update(Namespace(save_dir=str(folder.parent), name="", version=folder.name))
    else:  # Weights & Biases would write into the working folder, MLflow into ./mlruns
        default = getattr(inspect.signature(kind).parameters.get("save_dir"), "default", None)
        if isinstance(default, str) and options.get("save_dir", default) == default:
            options.save_dir = str(folder / default)
        option = NAMES.get(kind.__name__)
        if name and option and options.get(option) is None:
            options[option] = name
    if issubclass(kind, TensorBoardLogger):
        options.default_hp_metric = False  # a placeholder; Recorder fills HPARAMS
        if purge_step is not None:
            config.dict_kwargs = {**(config.get("dict_kwargs") or {}), "purge_step": purge_step}
    return config


def _training_points(folder: Path, step: int) -> dict[str, float]:
    """What TensorBoard has of a step's training, which comes before a checkpoint of the step and is not made again."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(TRAINING)]
    return {tag: event.value for tag in tags for event in events.Scalars(tag) if event.step == step}


def _of_training(row: Mapping[str, float], step: int) -> bool:
    return row["step"] == step and any(key.startswith(TRAINING) for key in row)


def _rows(table: Path) -> list[dict[str, float]]:
    rows = csv.DictReader(table.read_text().splitlines()) if table.exists() else ()
    return [{key: float(value) for key, value in row.items() if value} for row in rows]
