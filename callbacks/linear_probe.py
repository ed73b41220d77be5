"""What each layer's states know, read out linearly."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    check_at_least,
    datamodule,
    log_scalars,
    progress,
    save_figure,
)
from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import Estimate, descent_paths, mean_estimate
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import Case, Ridge, default_bayes, whole_prompts
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import Task
from lightning_icl.instruments.probing import Probe, ProbeTable, Token, probe_layers, untrained_like
from lightning_icl.module import ICLModule

CURVES = {"gd": "GD", "preprocess_then_gd": "preprocess + GD"}
TOLD = ("w", "support", "r_hat", "preprocessed", "ridge")  # targets of the closing table besides f


class LinearProbe(Analysis):
    """Closed-form ridge probes of the states after the read-in (layer 0) and after each layer, with controls.

    Fitted on one set of prompts, their strength chosen on a second, scored on a third. What is probed for, where and
    beside which controls: ``lightning_icl.instruments.probing.probe_layers``; the untrained network has the model's
    architecture and weights of a fixed seed.

    Logs, of the query's state, with the targets f_query, w, support, r_hat, preprocessed_query (R_hat x_q),
    least_squares, ridge, gd_{t} and preprocess_then_gd_{t} (the algorithms' predictions at x_q; t = 1 .. depth):

    - probe/<target>/layer{l}: squared error on fresh prompts, for f_query the excess risk;
    - probe/r2/<target>/layer{l}: R^2;
    - probe/shuffled/<target>/layer{l}, probe/untrained/<target>/layer{l}: the squared error of the controls;
    - probe/selectivity/<target>/layer{l}: R^2 minus that on the untrained network;
    - probe/auc/support/layer{l}: how well the support is told, 1/2 by chance;

    and of the context's states, with f_context and preprocessed_context for the token's own x, probe/context/<target>,
    probe/context/r2/<target>, probe/context/selectivity/<target> and probe/context/auc/support. What is constant has no
    R^2 and is left out. results.json has all of it with standard errors and strengths.

    Figures: linear_probe, the excess risk of the probe for f(x_q) with GD and preprocess-then-GD after l - 1 steps,
    ridge, Bayes where its posterior can be computed, and the model itself; probe_map, R^2 of every target and layer.

    Args:
        n_prompts: number of prompts to fit on, and again as many to choose the strength on and to score on.
        alpha: a fixed ridge strength, multiplying the sum of squared weights against the sum of squared errors; chosen
            for each target and layer if left out.
        context_points: examples of a prompt, spread evenly, whose tokens are probed.
        chunk_size: prompts in one forward pass.
        every_n_validations: run at every n-th validation.
    """

    def __init__(
        self,
        n_prompts: int = 1024,
        alpha: float | None = None,
        context_points: int = 8,
        chunk_size: int = 512,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least("n_prompts", n_prompts, 2)
        check_at_least("context_points", context_points, 1)
        check_at_least("chunk_size", chunk_size, 1)
        if alpha is not None and not 0 < alpha < float("inf"):
            raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be a finite number above 0.")
        self.n_prompts, self.alpha, self.context_points, self.chunk_size = n_prompts, alpha, context_points, chunk_size
        self.table = ProbeTable(())
        self.levels: dict[str, Estimate] = {}

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        data, transformer = datamodule(trainer), module.transformer
        fit, choose, score = (
            data.held_out(f"probe_{name}", self.n_prompts, module.device) for name in ("fit", "choose", "score")
        )
        task = data.streams[0].task
        self.table = probe_layers(
            transformer,
            task,
            fit,
            choose,
            score,
            untrained_like(transformer),
            self.alpha,
            self.context_points,
            self.chunk_size,
            lambda items, description: progress(trainer, items, description),
        )
        predicted = torch.cat([module(part) for part in score.chunks(self.chunk_size)])
        self.levels = {"transformer": mean_estimate(squared_errors(predicted, score.f_query))}
        with torch.autocast(module.device.type, enabled=False):
            self.levels |= _reference_levels(task, fit, score)
            self.curves = _gd_curves(score, len(transformer.heads))
        log_scalars(module, _scalars(self.table.rows))
        save_figure(trainer, "linear_probe", figures.probe_risks(self.table.by_layer("f"), self.curves, self.levels))
        save_figure(trainer, "probe_map", figures.probe_map(self.table))

    def record(self) -> dict[str, Any]:
        return {"probes": self.table.rows, "levels": self.levels, "curves": self.curves}

    def summary(self) -> list[str]:
        if not self.table.rows:
            return []
        risks = ", ".join(f"{row.layer}: {row.trained.risk.value:.3g}" for row in self.table.by_layer("f"))
        return [
            "Excess risk of a linear probe of the query's state for f(x_q), by layer (0 is the read-in):",
            f"  {risks}",
            "What else the query's state knows: R^2 where it is highest, and above the untrained network's there:",
            *(_best_layer(self.table.by_layer(target)) for target in TOLD if target in self.table.targets()),
        ]


def _best_layer(rows: list[Probe]) -> str:
    name, known = _key(rows[0].target, "query"), [row for row in rows if math.isfinite(row.trained.r2.value)]
    if not known:
        return f"  {name}: constant on these prompts"
    best = max(known, key=lambda row: row.trained.r2.value)
    assert best.over_untrained is not None
    auc = "" if best.trained.auc is None else f"; AUC {_with_error(best.trained.auc)}"
    if best.trained.r2.value <= 2 * best.trained.r2.standard_error:
        return f"  {name}: not above 0 in any layer, {_with_error(best.trained.r2)} at most{auc}"
    return f"  {name}: {_with_error(best.trained.r2)} in layer {best.layer}, {_with_error(best.over_untrained)}{auc}"


def _with_error(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} +- {estimate.standard_error:.2g}"


def _key(target: str, token: Token) -> str:
    """A target's name in the logs, where those of the token's own x say which token."""
    return f"{target}_{token}" if target in ("f", "preprocessed") else target


def _scalars(rows: Iterable[Probe]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for row in rows:
        place = f"{_key(row.target, row.token)}/layer{row.layer}"
        of_token = "probe" if row.token == "query" else "probe/context"
        assert row.untrained is not None
        assert row.over_untrained is not None
        scalars[f"{of_token}/{place}"] = row.trained.risk.value
        scalars[f"{of_token}/r2/{place}"] = row.trained.r2.value
        scalars[f"{of_token}/selectivity/{place}"] = row.over_untrained.value
        if row.trained.auc is not None:
            scalars[f"{of_token}/auc/{place}"] = row.trained.auc.value
        if row.token == "query":
            scalars[f"probe/shuffled/{place}"] = row.shuffled.risk.value
            scalars[f"probe/untrained/{place}"] = row.untrained.risk.value
    return scalars


def _reference_levels(task: Task, fit: Prompt, score: Prompt) -> dict[str, Estimate]:
    """The excess risk of ridge and, where its posterior is quick to compute, of Bayes."""
    levels = {}
    for reference in [Ridge(), *default_bayes(task)]:
        settled = reference.settled(Case(task, task, 1), whole_prompts(fit))
        levels[reference.key] = mean_estimate(settled.errors(whole_prompts(score))[:, 0])
    return levels


def _gd_curves(prompt: Prompt, depth: int) -> dict[str, list[Estimate]]:
    """Excess risk of GD and preprocess-then-GD after 0 .. depth - 1 steps of 1/lambda_max, beside layers 1 .. depth."""
    curves = {}
    for name, w_hat in descent_paths(prompt, depth - 1).items():
        path = estimators.predictions(w_hat, prompt.x_query.double())
        curves[CURVES[name]] = [mean_estimate(squared_errors(p, prompt.f_query)) for p in path]
    return curves
