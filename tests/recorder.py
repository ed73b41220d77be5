"""Callbacks the subprocess tests name in their configs."""

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback


class Recorder(Callback):
    """Keeps every training batch's features, and writes each to FOLDER/STEP-PART.pt where a folder is given."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.batches: dict[tuple[int, int], torch.Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        part = (batch_idx % trainer.accumulate_grad_batches) * trainer.world_size + trainer.global_rank
        self.batches[step, part] = batch.x.clone()
        if self.folder:
            Path(self.folder).mkdir(exist_ok=True)
            torch.save(batch.x, Path(self.folder) / f"{step}-{part}.pt")


class Killer(Callback):
    """Kills its own process, without warning, once ``step`` optimizer steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Signal(Callback):
    """Sends its own process a signal once ``step`` optimizer steps are done, on one rank."""

    def __init__(self, step: int, name: str, rank: int = 0) -> None:
        self.step, self.name, self.rank = step, name, rank

    def on_train_batch_end(self, trainer, *_):
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), getattr(signal, self.name))


class Dated(Callback):
    """Has a state of the kind that callbacks come to have: a date, and a number of numpy's."""

    def state_dict(self):
        return {"began": datetime(2026, 1, 1, tzinfo=UTC), "best": np.float64(0.5)}
