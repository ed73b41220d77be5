"""Closed-form linear probes: what a layer's state knows linearly. PAPER.md section 6."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt


class RidgeProbe(NamedTuple):
    """target = state @ weight + intercept."""

    weight: Float[Tensor, "features outputs"]
    intercept: Float[Tensor, " outputs"]

    def predict(self, states: Float[Tensor, "samples features"]) -> Float[Tensor, "samples outputs"]:
        """The probe's reading of each state, in float64."""
        return states.double() @ self.weight + self.intercept


def ridge_probe(
    states: Float[Tensor, "samples features"], targets: Float[Tensor, "samples outputs"], alpha: float
) -> RidgeProbe:
    """Minimises ||targets - states W - c||^2 + alpha ||W||^2 over W and the intercept c, in float64.

    The intercept is not penalised (scikit-learn's Ridge): both sides are centred, W solves
    (S^T S + alpha I) W = S^T T, and c makes the residuals' mean zero.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be above 0.")
    states, targets = states.double(), targets.double()
    mean_state, mean_target = states.mean(dim=0), targets.mean(dim=0)
    centred = states - mean_state
    gram = centred.T @ centred + alpha * torch.eye(states.shape[1], dtype=states.dtype, device=states.device)
    weight = torch.linalg.solve(gram, centred.T @ (targets - mean_target))
    return RidgeProbe(weight, mean_target - mean_state @ weight)


def probe_targets(prompt: Prompt) -> dict[str, Float[Tensor, "batch queries outputs"]]:
    """What a query's state may know: f(x_q), and for tasks with weights w itself; and R_hat x_q.

    f_query is <w, x_q> where the task is linear. R_hat = diag(X^T y / n), PAPER.md section 7 (here with its sign);
    n counts padded examples too, so use unpadded prompts.
    """
    n_queries = prompt.x_query.shape[1]
    correlation = torch.einsum("bpd,bp->bd", prompt.x, prompt.y) / prompt.x.shape[1]
    targets = {"f_query": prompt.f_query[..., None], "preprocessed_query": prompt.x_query * correlation[:, None]}
    if prompt.w is not None:
        targets["w"] = prompt.w[:, None].expand(-1, n_queries, -1)
    return targets


def probe_errors(
    fit_states: Float[Tensor, "fit_batch queries features"],
    fit_targets: Float[Tensor, "fit_batch queries outputs"],
    states: Float[Tensor, "batch queries features"],
    targets: Float[Tensor, "batch queries outputs"],
    alpha: float,
) -> Float[Tensor, " batch"]:
    """Squared error (summed over outputs, averaged over queries) of each prompt under a probe fitted on others."""
    probe = ridge_probe(fit_states.flatten(0, 1), fit_targets.flatten(0, 1), alpha)
    predicted = probe.predict(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    return (predicted - targets.double()).square().sum(dim=-1).mean(dim=-1)


def explained_share(errors: Float[Tensor, " batch"], targets: Float[Tensor, "batch queries outputs"]) -> float:
    """R^2: 1 - mean squared error / variance of the targets (summed over outputs)."""
    targets = targets.double().flatten(0, 1)
    return float(1 - errors.mean() / targets.var(dim=0, correction=0).sum())


def shuffled_prompts(
    targets: Float[Tensor, "batch queries outputs"], generator: Generator
) -> Float[Tensor, "batch queries outputs"]:
    """The shuffled-label control: each prompt's targets given to another, along a random cycle (CPU generator)."""
    cycle = torch.randperm(targets.shape[0], generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return targets[order.to(targets.device)]
