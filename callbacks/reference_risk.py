"""The model's excess risk beside that of the reference estimators."""

from collections import defaultdict
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    all_ranks,
    check_at_least,
    datamodule,
    icl_module,
    log_scalars,
    save_figure,
)
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import MAX_STEPS, ReferenceSettings, reference_errors, tuned_settings
from lightning_icl.functional.risk import mean_and_standard_error, squared_errors
from lightning_icl.module import ICLModule


class ReferenceRisk(Analysis):
    """Scores the reference estimators on the very prompts the model is validated on.

    Logs val/excess_risk/<name> for zero, least_squares, ridge, lasso, gd_at_depth, gd_best,
    preprocess_then_gd_at_depth, preprocess_then_gd_best and, for tasks with weights, oracle_support (told the support);
    test/excess_risk/<name> in ``test``. Figure: excess_risk. TensorBoard's CUSTOM SCALARS tab overlays them all.

    Ridge's strength follows from the task's law where it implies one. The lasso's, the best numbers of GD steps and a
    ridge strength that no law implies are tuned on separate prompts, for each number of examples. GD steps are
    1 / lambda_max of each prompt's own (preprocessed) covariance; "at_depth" takes one step per layer.

    Args:
        tuning_prompts: number of separate prompts the free settings are tuned on.
        every_n_validations: run at every n-th validation.
    """

    def __init__(self, tuning_prompts: int = 512, every_n_validations: int = 1) -> None:
        super().__init__(every_n_validations)
        check_at_least("tuning_prompts", tuning_prompts, 1)
        self.tuning_prompts = tuning_prompts
        self._reset()

    def _reset(self) -> None:
        self._settings: dict[int, ReferenceSettings] = {}
        # Validation replays its prompts, so each batch's references are computed once.
        self._references: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._errors: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
        self.risks: dict[int, dict[str, tuple[float, float]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._reset()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                layout = {"excess risk": {"model and references": ["Multiline", ["val/excess_risk/.*"]]}}
                logger.experiment.add_custom_scalars(layout)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Prompt, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking:
            self._score(trainer, icl_module(pl_module), "val", outputs.prediction, batch, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Prompt, batch_idx: int, *_: Any
    ) -> None:
        self._score(trainer, icl_module(pl_module), "test", outputs.prediction, batch, batch_idx)

    def _score(
        self, trainer: Trainer, module: ICLModule, stage: str, prediction: Tensor, prompt: Prompt, batch_idx: int
    ) -> None:
        n_points = prompt.x.shape[1]
        with torch.autocast(module.device.type, enabled=False):
            if (stage, batch_idx) not in self._references:
                settings = self.settings(trainer, module, n_points)
                self._references[stage, batch_idx] = reference_errors(prompt, settings)
            errors = {"transformer": squared_errors(prediction, prompt.f_query)}
        self._errors[n_points].append(errors | self._references[stage, batch_idx])

    def settings(self, trainer: Trainer, module: ICLModule, n_points: int) -> ReferenceSettings:
        """The references' settings for prompts with ``n_points`` examples."""
        if n_points not in self._settings:
            data = datamodule(trainer)
            tuning = data.held_out("reference_tuning", self.tuning_prompts, module.device, n_points)
            self._settings[n_points] = tuned_settings(tuning, len(module.transformer.heads), data.task.ridge_alpha)
        return self._settings[n_points]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._errors.clear()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, icl_module(pl_module), "test")
        self._errors.clear()

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        self._report(trainer, module, "val")

    def _report(self, trainer: Trainer, module: ICLModule, stage: str) -> None:
        self.stage = {"val": "validation", "test": "test"}[stage]
        by_n = {n: _joined(batches, module) for n, batches in sorted(self._errors.items())}
        everywhere = _joined(list(by_n.values()))
        log_scalars(module, {f"{stage}/excess_risk/{k}": e.mean() for k, e in everywhere.items() if k != "transformer"})
        self.risks = {n: {name: _risk(e) for name, e in errors.items()} for n, errors in by_n.items()}
        self.overall = {name: _risk(e) for name, e in everywhere.items()}
        figure = (
            figures.risk_by_estimator(next(iter(self.risks.values())), self.labels())
            if len(self.risks) == 1
            else figures.risk_by_points(self.risks, self.labels())
        )
        save_figure(trainer, "excess_risk", figure)

    def labels(self) -> dict[str, str]:
        """What each estimator is called in figures and tables."""
        depths = {s.depth for s in self._settings.values()}
        gd = _numbers({s.gd_steps for s in self._settings.values()})
        preprocessed = _numbers({s.preprocess_then_gd_steps for s in self._settings.values()})
        return {
            "transformer": "transformer",
            "zero": "zero predictor",
            "least_squares": "least squares",
            "ridge": "ridge",
            "lasso": "lasso",
            "gd_at_depth": f"GD, {_numbers(depths)} steps (= layers)",
            "gd_best": f"GD, {gd} steps (best up to {MAX_STEPS})",
            "preprocess_then_gd_at_depth": f"preprocess + GD, {_numbers(depths)} steps (= layers)",
            "preprocess_then_gd_best": f"preprocess + GD, {preprocessed} steps (best up to {MAX_STEPS})",
            "oracle_support": "least squares on the true support (oracle)",
        }

    def summary(self) -> list[str]:
        if not self.risks:
            return []
        labels = self.labels()
        width = max(len(labels[name]) for name in self.overall)
        rows = sorted(self.overall.items(), key=lambda item: item[1][0])
        lines = [f"Excess risk on {self.stage} prompts ({_numbers(set(self.risks))} examples each), lowest first:"]
        for name, (risk, error) in rows:
            mark = "  <- the model" if name == "transformer" else ""
            lines.append(f"  {labels[name]:<{width}}  {risk:10.4g} +- {error:.2g}{mark}")
        return lines


def _joined(batches: list[dict[str, Tensor]], module: ICLModule | None = None) -> dict[str, Tensor]:
    """Per-prompt errors of all batches, and of all ranks where ``module`` is given."""
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return joined if module is None else {name: all_ranks(module, errors) for name, errors in joined.items()}


def _risk(errors: Tensor) -> tuple[float, float]:
    mean, error = mean_and_standard_error(errors)
    return float(mean), float(error)


def _numbers(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)}-{max(values)}"
