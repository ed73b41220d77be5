"""Where a run's files lie, whatever its loggers."""

import os
from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_icl.checkpoint import run_of
from lightning_icl.functional.errors import InputError

CONFIG = "config.yaml"  # in a run's folder
RUNS = "lightning_logs"  # the folder of all runs, where no logger has another
CHOSEN = "_run_folder"  # among a trainer's own attributes, so that it goes with it to the processes that it spawns
AGREED: WeakKeyDictionary[Trainer, Path | None] = WeakKeyDictionary()


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the trainer's run; None where nothing is to be written (fast_dev_run).

    It is the folder that was set, or where the trainer's TensorBoard or CSV logger writes, or else a new
    default_root_dir/lightning_logs/version_N. Every process is given rank 0's answer, so all of them have to make the
    first call (in ``setup``, say), and together.
    """
    if trainer not in AGREED:
        AGREED[trainer] = trainer.strategy.broadcast(_chosen(trainer) if trainer.is_global_zero else None)
    return AGREED[trainer]


def set_run_folder(trainer: Trainer, folder: Path) -> None:
    """Have a trainer's run lie in this folder; said on rank 0, before it runs."""
    vars(trainer)[CHOSEN] = folder


def _chosen(trainer: Trainer) -> Path | None:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if CHOSEN in vars(trainer):
        return vars(trainer)[CHOSEN]
    for logger in trainer.loggers:
        if isinstance(logger, (TensorBoardLogger, CSVLogger)):
            return Path(logger.log_dir)
    return next_version(Path(trainer.default_root_dir, RUNS))


def next_version(runs: Path, name: str = "version") -> Path:
    """The next free NAME_N in a folder, and made, so that two that start at once never share one."""
    runs.mkdir(parents=True, exist_ok=True)
    taken = [path.name.removeprefix(f"{name}_") for path in runs.glob(f"{name}_*")]
    number = max((int(number) for number in taken if number.isdigit()), default=-1) + 1
    while True:
        try:
            (folder := runs / f"{name}_{number}").mkdir()
            return folder
        except FileExistsError:
            number += 1


def config_of(ckpt_path: str | Path) -> Path:
    """The config a checkpoint was trained with: RUN/config.yaml, or config.yaml beside the checkpoint."""
    if "://" in str(ckpt_path):
        raise InputError(f"ckpt_path is {ckpt_path}, but its config is looked for on this machine alone; name it.")
    if not Path(ckpt_path).is_file():
        raise InputError(f"ckpt_path is {ckpt_path}, but there is no such file.")
    found = run_of(ckpt_path) / CONFIG
    if not found.is_file():
        raise InputError(
            f"there is no config of {ckpt_path} at {found}; name the config it was trained with: --config."
        )
    return found


def analysed_run(ckpt_path: str) -> Path | None:
    """RUN of RUN/checkpoints/NAME.ckpt, where that is a run's folder into which analyses of it can be written."""
    folder = Path(ckpt_path).absolute().parent
    run = folder.parent
    is_run = folder.name == "checkpoints" and (run / CONFIG).is_file()
    return run if is_run and os.access(run, os.W_OK | os.X_OK) else None
