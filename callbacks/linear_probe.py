"""What each layer's state knows, read out linearly."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    check_at_least,
    chunks,
    datamodule,
    log_scalars,
    save_figure,
)
from lightning_icl.functional import estimators, probes
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import excess_risk, mean_and_standard_error
from lightning_icl.module import ICLModule


class LinearProbe(Analysis):
    """Closed-form ridge probes of the query's state after the read-in (layer 0) and after each layer.

    Fitted on one set of prompts, scored on another, with the shuffled-label control (each prompt's targets given to
    another while fitting). Targets: f_query (<w, x_q>), w, and preprocessed_query (R_hat x_q). Logs
    probe/<target>/layer{l}, the squared error on fresh prompts (for f_query an excess risk),
    probe/r2/<target>/layer{l}, and probe/shuffled/<target>/layer{l}, the control's squared error.
    Figure: linear_probe, with GD and preprocess-then-GD after l - 1 steps. Definitions: PAPER.md section 6.

    Args:
        n_prompts: number of prompts to fit on, and again as many to score on.
        alpha: ridge strength, multiplying the sum of squared weights against the sum of squared errors.
        chunk_size: prompts in one forward pass.
        every_n_validations: run at every n-th validation.
    """

    def __init__(
        self, n_prompts: int = 1024, alpha: float = 1.0, chunk_size: int = 512, every_n_validations: int = 1
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least("n_prompts", n_prompts, 2)
        check_at_least("chunk_size", chunk_size, 1)
        if not 0 < alpha < float("inf"):
            raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be a finite number above 0.")
        self.n_prompts, self.alpha, self.chunk_size = n_prompts, alpha, chunk_size
        self.risks: dict[str, list[tuple[float, float]]] = {}
        self.r2: dict[str, list[float]] = {}

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        data = datamodule(trainer)
        fit, score = (data.held_out(f"probe_{name}", self.n_prompts, module.device) for name in ("fit", "score"))
        fit_states, score_states = (self._query_states(module, prompt) for prompt in (fit, score))
        with torch.autocast(module.device.type, enabled=False):
            self._probe(fit, fit_states, score, score_states)
            self._curves = _gd_curves(score, len(module.transformer.heads))
        log_scalars(module, self._scalars())
        save_figure(trainer, "linear_probe", figures.probe_curves(self.risks, self.r2, self._curves))

    def _query_states(self, module: ICLModule, prompt: Prompt) -> list[Tensor]:
        by_chunk = [module.output(part).query_states for part in chunks(prompt, self.chunk_size)]
        return [torch.cat(layer) for layer in zip(*by_chunk, strict=True)]

    def _probe(self, fit: Prompt, fit_states: list[Tensor], score: Prompt, score_states: list[Tensor]) -> None:
        fit_targets, score_targets = probes.probe_targets(fit), probes.probe_targets(score)
        self.risks, self.r2 = {}, {}
        for name, target in fit_targets.items():
            shuffled = probes.shuffled_prompts(target, torch.Generator().manual_seed(0))
            for labels, key in ((target, name), (shuffled, f"shuffled/{name}")):
                errors = [
                    probes.probe_errors(states, labels, fresh, score_targets[name], self.alpha)
                    for states, fresh in zip(fit_states, score_states, strict=True)
                ]
                summary = [mean_and_standard_error(e) for e in errors]
                self.risks[key] = [(float(mean), float(error)) for mean, error in summary]
                if key == name:
                    self.r2[name] = [probes.explained_share(e, score_targets[name]) for e in errors]

    def _scalars(self) -> dict[str, float]:
        risks = {f"probe/{k}/layer{i}": risk for k, values in self.risks.items() for i, (risk, _) in enumerate(values)}
        return risks | {f"probe/r2/{k}/layer{i}": r2 for k, values in self.r2.items() for i, r2 in enumerate(values)}

    def summary(self) -> list[str]:
        if not self.risks:
            return []
        risks = ", ".join(f"{i}: {risk:.3g}" for i, (risk, _) in enumerate(self.risks["f_query"]))
        return [
            "Excess risk of a linear probe of the query's state for f(x_q), by layer (0 is the read-in):",
            f"  {risks}",
        ]


def _gd_curves(prompt: Prompt, depth: int) -> dict[str, list[float]]:
    """Excess risk of GD and preprocess-then-GD after 0 .. depth - 1 steps of 1/lambda_max, beside layers 1 .. depth."""
    prompt = prompt.double()
    curves = {}
    for name, power in (("GD", 0.0), ("preprocess + GD", 1.0)):
        step_size = estimators.inverse_curvature(estimators.preprocessed(prompt.x, prompt.x, prompt.y, power))
        w_hat = estimators.preprocess_then_gd_path(prompt.x, prompt.y, depth - 1, step_size, power)
        path = estimators.predictions(w_hat, prompt.x_query)
        curves[name] = [float(excess_risk(p, prompt.f_query)) for p in path]
    return curves
