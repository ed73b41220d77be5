"""What goes to a run's loggers, at the optimizer step it belongs to."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch.utils.tensorboard.summary import hparams


def logs_this_step(trainer: Trainer) -> bool:
    """Whether a batch has just ended an optimizer step that is logged, one of ``trainer.log_every_n_steps``."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0 and not trainer.fit_loop._should_accumulate()


def log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int) -> None:
    """Numbers by tag, to every logger. (``self.log`` would put validation one step early, and standalone ones at 0.)"""
    if scalars and trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(scalars), step)


def log_picture(trainer: Trainer, name: str, pixels: NDArray[np.uint8], step: int) -> None:
    """A picture (height, width, 3), to every logger that takes pictures: TensorBoard, Weights & Biases, MLflow."""
    for logger in trainer.loggers:
        taker: Any = logger
        experiment: Any = getattr(taker, "experiment", None)
        if hasattr(experiment, "add_image"):
            experiment.add_image(f"figures/{name}", pixels, step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            taker.log_image(key=f"figures/{name}", images=[pixels], step=step)
        elif hasattr(experiment, "log_image") and hasattr(logger, "run_id"):
            experiment.log_image(taker.run_id, pixels, artifact_file=f"figures/{name}.png")


def log_text(trainer: Trainer, name: str, markdown: str, step: int) -> None:
    """A text, to TensorBoard's TEXT."""
    for experiment in _tensorboards(trainer):
        experiment.add_text(name, markdown, step)


def log_layout(trainer: Trainer, layout: Mapping[str, Any]) -> None:
    """What TensorBoard's CUSTOM SCALARS draws together, as ``SummaryWriter.add_custom_scalars`` takes it."""
    for experiment in _tensorboards(trainer):
        experiment.add_custom_scalars(layout)


def log_hparams(trainer: Trainer, options: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """A row of TensorBoard's HPARAMS: options, beside scalars that are logged already under these tags."""
    for experiment in _tensorboards(trainer):
        for part in hparams(dict(options), dict(metrics)):
            experiment._get_file_writer().add_summary(part)


def _tensorboards(trainer: Trainer) -> list[Any]:
    """The TensorBoard writers; on rank 0 alone."""
    found = [getattr(logger, "experiment", None) for logger in trainer.loggers if trainer.is_global_zero]
    return [experiment for experiment in found if hasattr(experiment, "add_custom_scalars")]


def flush(trainer: Trainer) -> None:
    """Have all that was logged written, so that a kill takes nothing that a checkpoint has behind it."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.save()
        for experiment in _tensorboards(trainer):
            experiment.flush()
