"""Predictions and references to a file."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_icl.callbacks.analysis import all_ranks, icl_module
from lightning_icl.callbacks.reference_risk import ReferenceRisk
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import whole_prompts
from lightning_icl.record.folder import run_folder


class PredictionWriter(Callback):
    """Writes what ``predict`` computes to one NumPy file.

    Its arrays: x, y, f, x_query, y_query, f_query and, for tasks with weights, w, as in Prompt; n_points (prompts,);
    transformer and each reference estimator by name, (prompts, queries). Where prompts have different numbers of
    examples, x, y and f are padded with NaN. All ranks' prompts are in it, in the order of the stream.

    Args:
        filename: name of the file in the run's folder.

    Example:
        It is there without being named; its options are

        .. code-block:: yaml

            predictions: {filename: of_the_model.npz}
    """

    def __init__(self, filename: str = "predictions.npz") -> None:
        if not filename:
            raise InputError("filename is '', but predictions need a name, such as predictions.npz.")
        self.filename = filename

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [c for c in trainer.callbacks if isinstance(c, ReferenceRisk)]  # type: ignore[attr-defined]
        self._references = found[0] if found else ReferenceRisk()
        self._batches: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Prompt, batch_idx: int, *_: Any
    ) -> None:
        references = self._references.tuned(trainer, icl_module(pl_module), batch.x.shape[1])
        with torch.autocast(pl_module.device.type, enabled=False):
            problems = whole_prompts(batch)
            predictions = {"transformer": outputs} | {r.key: r.predictions(problems)[:, 0] for r in references}
        n_points = torch.full((batch.x.shape[0],), batch.x.shape[1], device=pl_module.device)
        prompt = {name: field for name, field in batch._asdict().items() if field is not None}
        mine = {**prompt, "n_points": n_points, **predictions}
        self._batches.append({name: all_ranks(pl_module, values).cpu() for name, values in mine.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)  # a collective: every rank asks
        if not trainer.is_global_zero or folder is None:
            return
        largest_n = max(batch["x"].shape[1] for batch in self._batches)
        columns: dict[str, Any] = {
            name: torch.cat([_padded(name, batch[name], largest_n) for batch in self._batches]).numpy()
            for name in self._batches[0]
        }
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / self.filename, **columns)
        rank_zero_info(f"Predictions of {len(columns['transformer'])} prompts are in {folder / self.filename}")


def _padded(name: str, values: Tensor, n_points: int) -> Tensor:
    if name not in ("x", "y", "f"):
        return values
    missing = n_points - values.shape[1]
    padding = (0, 0, 0, missing) if name == "x" else (0, missing)
    return torch.nn.functional.pad(values, padding, value=torch.nan)
