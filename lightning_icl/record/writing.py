"""A measurement of a running trainer, appended to its run's record."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, Trainer
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
    note(trainer, line_of(Measurement(name, trained_steps(trainer, module), found, rows, plain(arrays))))


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
