"""Prompts that grow while the model trains."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_icl.callbacks.analysis import check_at_least, datamodule
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.curriculum import Sizes, growing_dims, growing_points
from lightning_icl.functional.errors import InputError
from lightning_icl.loggers import log_scalars, logs_this_step


class Curriculum(Callback):
    """Trains on small prompts first: fewer dimensions, fewer examples, or both (Garg et al. 2022).

    Both start small and grow in steps up to the task's n_dims and the data's n_points. The dimensions not yet in use
    and the examples after those in use are zero, the latter masked too, so that shapes never change. Validation is at
    full size throughout. Sizes depend on the optimizer step alone, so a resumed run goes on exactly.
    Logs curriculum/dims and curriculum/points, whichever grow, every ``trainer.log_every_n_steps`` steps.

    Garg et al. grow 20 dimensions from 5 by 1 and 41 points (the query among them) from 11 by 2, every 2,000 steps:
    dims_start 5, points_start 10, points_step 2, with n_points 40.

    Args:
        dims_start: dimensions in use at the start; none means all of them, always.
        dims_step: how many are added at a time.
        points_start: examples in use at the start; none means all of them, always.
        points_step: how many are added at a time.
        every: optimizer steps between one addition and the next.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - {class_path: Curriculum, init_args: {dims_start: 5, points_start: 10, points_step: 2}}
    """

    def __init__(
        self,
        dims_start: int | None = None,
        dims_step: int = 1,
        points_start: int | None = None,
        points_step: int = 2,
        every: int = 2000,
    ) -> None:
        if dims_start is None and points_start is None:
            raise InputError("Curriculum has nothing to grow: set dims_start, points_start or both.")
        starts = {"dims_start": dims_start, "points_start": points_start}
        check_at_least(1, **{name: start for name, start in starts.items() if start is not None})
        check_at_least(1, dims_step=dims_step, points_step=points_step, every=every)
        self.dims_start, self.dims_step = dims_start, dims_step
        self.points_start, self.points_step, self.every = points_start, points_step, every

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the schedule to the data module, which applies it to the training stream."""
        if stage == "fit":
            self.check_run(trainer, pl_module, datamodule(trainer), stage)
            datamodule(trainer).curriculum = self.sizes(datamodule(trainer))

    def check_run(self, trainer: Trainer, module: LightningModule, data: PromptDataModule, stage: str) -> None:
        """Refuse what the task and the prompts cannot grow from."""
        if stage == "fit" and sum(isinstance(c, Curriculum) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise InputError("trainer.callbacks has two Curriculum callbacks, but dims and points grow in one.")
        if stage == "fit":
            self.sizes(data)

    def sizes(self, data: PromptDataModule) -> Sizes:
        """The schedule of this data's training stream."""
        return Sizes(
            growing_dims(self.dims_start, self.dims_step, self.every, data.task),
            growing_points(self.points_start, self.points_step, self.every, (data.smallest_n, data.largest_n)),
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if logs_this_step(trainer):
            sizes = datamodule(trainer).curriculum._asdict().items()
            now = {f"curriculum/{name}": float(g.at(trainer.global_step - 1)) for name, g in sizes if g is not None}
            log_scalars(trainer, now, trainer.global_step)
