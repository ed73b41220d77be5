"""The record of a run that a trainer is making."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_icl.module import ICLModule
from lightning_icl.record import journal
from lightning_icl.record.context import context
from lightning_icl.record.folder import run_folder
from lightning_icl.record.loading import line_of
from lightning_icl.record.rows import Measurement, Row, plain


def record_rows(
    trainer: Trainer,
    module: ICLModule,
    analysis: Callback,
    rows: Sequence[Row],
    arrays: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Append what an analysis found, at the present step, with what it was found on."""
    found = context(trainer, trainer.datamodule, analysis)  # type: ignore[attr-defined]
    name = getattr(analysis, "name", type(analysis).__name__)
    note(trainer, plain(line_of(Measurement(name, trained_steps(trainer, module), found, rows, arrays))))


def note(trainer: Trainer, line: Mapping[str, Any]) -> None:
    """Append a line to the run's record, on rank 0; a full disk costs the line, and not the run."""
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        journal.append(folder / journal.NAME, dict(line))
    except OSError as error:
        what = f"{line['analysis']} at step {line['step']}" if "analysis" in line else f"that the run {line['event']}"
        rank_zero_warn(f"{what} could not be written to {folder}: {error}")


def trained_steps(trainer: Trainer, module: ICLModule) -> int:
    """Optimizer steps behind the weights: of this fit, or of the checkpoint a standalone run has loaded."""
    return trainer.global_step if trainer.state.fn == "fit" else module.trained_steps


def go_on(trainer: Trainer, module: ICLModule) -> None:
    """Take back what a fit that goes on from a checkpoint had measured after it.

    All, where it starts anew because it was killed before its first checkpoint.
    In a folder of its own it brings along what was measured before.
    """
    folder = run_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    path = folder / journal.NAME
    if trainer.ckpt_path is None or not module.trained_steps:  # BatchSizeFinder's own checkpoint is of step 0
        known = [line["context"]["command"] for line in journal.read(path).lines if "rows" in line]
        if trainer.global_step == 0 and "fit" in known:
            note(trainer, {"event": "resumed", "kept_to": -1, "step": 0})
        return
    before = Path(trainer.ckpt_path).absolute().parent.parent / journal.NAME
    if before.is_file() and not (path.exists() and before.samefile(path)):
        for line in journal.in_force(journal.read(before).lines):
            if "rows" in line and line["context"]["command"] == "fit":
                note(trainer, line)
    # What is recorded between validations (PruningSchedule's cuts) may lie after the last of them, for good.
    step = module.trained_steps
    note(trainer, {"event": "resumed", "kept_to": step if module.validated_at == step else step - 1, "step": step})


def ended_by(trainer: Trainer) -> str:
    """What ended a fit."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if 0 < trainer.max_steps <= trainer.global_step:
        return "max_steps"
    left = [c.time_remaining() for c in callbacks if isinstance(c, Timer)]  # None of one without a limit
    if any(seconds is not None and seconds <= 0 for seconds in left):
        return "max_time"
    if trainer.should_stop and any(isinstance(c, EarlyStopping) and c.stopping_reason_message for c in callbacks):
        return "EarlyStopping"
    return "should_stop" if trainer.should_stop else "max_epochs"
