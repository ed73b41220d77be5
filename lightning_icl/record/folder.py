"""Where a run's files lie, whatever its logger."""

from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer

FOLDERS: WeakKeyDictionary[Trainer, Path | None] = WeakKeyDictionary()


def set_run_folder(trainer: Trainer, folder: Path) -> None:
    """Have a trainer's run lie in this folder."""
    FOLDERS[trainer] = folder


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the trainer's run; None where nothing is to be written (fast_dev_run)."""
    return FOLDERS.get(trainer)
