"""The reference estimators of one task, their settings fixed from its law or on separate prompts."""

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import excess_risk, squared_errors

Setting = TypeVar("Setting")


MAX_STEPS = 200  # of gradient descent, when its best number is sought


class ReferenceSettings(NamedTuple):
    """What the reference estimators need besides the data.

    ``ridge_alpha`` comes from the task's law where it implies one; the rest is tuned. ``gd_steps`` and
    ``preprocess_then_gd_steps`` are the numbers of steps with the lowest excess risk on the tuning prompts,
    ``depth`` the number of layers of the model they are compared with.
    """

    ridge_alpha: float
    lasso_alpha: float
    depth: int
    gd_steps: int
    preprocess_then_gd_steps: int


def tuned_settings(
    tuning: Prompt, depth: int, ridge_alpha: float | None = None, max_steps: int = MAX_STEPS
) -> ReferenceSettings:
    """Choose every free setting by its excess risk on ``tuning``, prompts that are never evaluated on.

    Strengths are sought on a logarithmic grid, four values a decade over four decades, below the strength at
    which the median prompt's lasso solution vanishes; step numbers among 0 .. ``max_steps``.
    """
    tuning = tuning.double()
    x, y = tuning.x, tuning.y
    largest = (torch.einsum("bpd,bp->bd", x, y) / x.shape[1]).abs().amax(-1).median().clamp(min=1e-12)
    grid = [float(largest) * 10 ** (-k / 4) for k in range(17)]
    if ridge_alpha is None:
        ridge_alpha = _best(grid, [estimators.ridge(x, y, alpha * x.shape[1]) for alpha in grid], tuning) * x.shape[1]
    lasso_fits = [torch.zeros_like(x[:, 0])]
    for alpha in grid:  # from strong to weak, each from the last solution
        lasso_fits.append(estimators.lasso(x, y, alpha, relative_gap=1e-6, start=lasso_fits[-1]))
    steps = list(range(max_steps + 1))
    return ReferenceSettings(
        ridge_alpha=ridge_alpha,
        lasso_alpha=_best(grid, lasso_fits[1:], tuning),
        depth=depth,
        gd_steps=_best(steps, list(gd_path(tuning, max_steps, power=0.0)), tuning),
        preprocess_then_gd_steps=_best(steps, list(gd_path(tuning, max_steps, power=1.0)), tuning),
    )


def _best(settings: list[Setting], fits: list[Tensor], prompt: Prompt) -> Setting:
    risks = [float(excess_risk(estimators.predictions(w_hat, prompt.x_query), prompt.f_query)) for w_hat in fits]
    return settings[risks.index(min(risks))]


def gd_path(prompt: Prompt, n_steps: int, power: float) -> Float[Tensor, "iterates batch dims"]:
    """Preprocess-then-GD (power 1) or GD (power 0) with each prompt's own step size, 1 / lambda_max of its features."""
    step_size = estimators.inverse_curvature(estimators.preprocessed(prompt.x, prompt.x, prompt.y, power))
    return estimators.preprocess_then_gd_path(prompt.x, prompt.y, n_steps, step_size, power)


def reference_weights(prompt: Prompt, settings: ReferenceSettings) -> dict[str, Float[Tensor, "batch dims"]]:
    """w_hat of every reference estimator, in float64.

    ``oracle_support`` is there only where the task has weights: it is told their support.
    """
    prompt = prompt.double()
    x, y = prompt.x, prompt.y
    depth = settings.depth
    gd = gd_path(prompt, max(depth, settings.gd_steps), power=0.0)
    preprocess_then_gd = gd_path(prompt, max(depth, settings.preprocess_then_gd_steps), power=1.0)
    weights = {
        "zero": torch.zeros_like(x[:, 0]),
        "least_squares": estimators.least_squares(x, y),
        "ridge": estimators.ridge(x, y, settings.ridge_alpha),
        "lasso": estimators.lasso(x, y, settings.lasso_alpha),
        "gd_at_depth": gd[depth],
        "gd_best": gd[settings.gd_steps],
        "preprocess_then_gd_at_depth": preprocess_then_gd[depth],
        "preprocess_then_gd_best": preprocess_then_gd[settings.preprocess_then_gd_steps],
    }
    if prompt.w is not None:
        weights["oracle_support"] = estimators.oracle_least_squares(x, y, prompt.w != 0)
    return weights


def reference_predictions(prompt: Prompt, settings: ReferenceSettings) -> dict[str, Float[Tensor, "batch queries"]]:
    """The prediction of every reference estimator at the queries, in float64."""
    x_query = prompt.x_query.double()
    return {name: estimators.predictions(w, x_query) for name, w in reference_weights(prompt, settings).items()}


def reference_errors(prompt: Prompt, settings: ReferenceSettings) -> dict[str, Float[Tensor, " batch"]]:
    """Squared error of each prompt under every reference estimator, averaged over its queries."""
    return {name: squared_errors(p, prompt.f_query) for name, p in reference_predictions(prompt, settings).items()}
