"""What can be told of a run before it is made, so that what cannot work leaves nothing behind."""

import os
import re
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_icl.callbacks.analysis import Analysis
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError, check_at_least, check_not_negative
from lightning_icl.module import ICLModule
from lightning_icl.network import check_remade


def check_run(trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
    """Raise InputError for what ``setup`` would refuse: each part's word on the others, in Lightning's order."""
    for name in ("max_steps", "max_epochs", "limit_train_batches") if stage == "fit" else ():
        if getattr(trainer, name) == 0:
            raise InputError(f"trainer.{name} is 0, but a fit without a step trains nothing; to measure use validate.")
    check_at_least(0, **{"trainer.log_every_n_steps": trainer.log_every_n_steps})  # type: ignore[attr-defined]
    for name in ("dirpath", "filename"):
        if any(getattr(callback, name, None) == "" for callback in trainer.checkpoint_callbacks):
            raise InputError(f"checkpoint.{name} is '', but it must be a name; null is Lightning's own.")
    if trainer.gradient_clip_val is not None:
        check_not_negative(**{"trainer.gradient_clip_val": trainer.gradient_clip_val})
    data.check_run(trainer, module, stage)
    module.check_run(trainer, data, stage)
    if stage == "fit":
        check_remade(module.network)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        check = getattr(callback, "check_run", None)
        if check and not (isinstance(callback, Analysis) and callback.lacks(module)):
            check(trainer, module, data, stage)


def expanded(name: str, path: str) -> str:
    """The path with ~ and variables as a shell has them; a config file is read by none, and a logger would."""
    whole = os.path.expandvars(os.path.expanduser(path))
    if missing := re.search(r"\$(\w+|\{\w+\})", whole):
        raise InputError(f"{name} is {path}, but the variable {missing[1].strip('{}')} is not set.")
    if whole.startswith("~"):
        raise InputError(f"{name} is {path}, but it is not known where the home folder is: HOME is not set.")
    return whole


def check_writable(said: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written into; ``said`` is the beginning of the sentence."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{said}, but {there} is a file; name another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{said}, but {there} cannot be written to; name another folder.")
