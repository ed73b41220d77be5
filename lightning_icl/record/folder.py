"""Where a run's files lie, whatever its loggers."""

from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

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


def next_version(runs: Path) -> Path:
    """The next free version_N in the folder of all runs, and made, so that two that start at once never share one."""
    runs.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name[8:]) for path in runs.glob("version_*") if path.name[8:].isdigit()]
    number = max(taken, default=-1) + 1
    while True:
        try:
            (folder := runs / f"version_{number}").mkdir()
            return folder
        except FileExistsError:
            number += 1
