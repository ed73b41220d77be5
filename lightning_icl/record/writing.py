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
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder is None:
        return
    found = context(trainer, trainer.datamodule, analysis)  # type: ignore[attr-defined]
    name = getattr(analysis, "name", type(analysis).__name__)
    measurement = Measurement(name, trained_steps(trainer, module), found, rows, plain(arrays))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        journal.append(folder / journal.NAME, line_of(measurement))
    except OSError as error:  # a full disk costs this measurement, and not the run
        rank_zero_warn(f"{name} at step {measurement.step} could not be written to {folder}: {error}")


def trained_steps(trainer: Trainer, module: ICLModule) -> int:
    """Optimizer steps behind the weights: of this fit, or of the checkpoint a standalone run has loaded."""
    return trainer.global_step if trainer.state.fn == "fit" else module.trained_steps
