"""Closed-form linear probes: what a layer's state knows linearly, and how surely. PAPER.md section 6.

The samples are tokens, which come in prompts: tokens of one prompt share its examples and its weights, so the prompt is
the unit of every standard error.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt

# In units of the states' mean eigenvalue, two a decade: from what is no penalty in float64 to what leaves nothing of a
# probe of a thousand features.
STRENGTHS = tuple(10 ** (k / 2) for k in range(-16, 9))


class Estimate(NamedTuple):
    """A number found on a sample of prompts, with its standard error; NaN where it is not defined."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The normal 95 % interval."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


UNDEFINED = Estimate(float("nan"), float("nan"))


# Probes


class RidgeProbe(NamedTuple):
    """target = state @ weight + intercept."""

    weight: Float[Tensor, "features outputs"]
    intercept: Float[Tensor, " outputs"]

    def predict(self, states: Float[Tensor, "*samples features"]) -> Float[Tensor, "*samples outputs"]:
        """The probe's reading of each state, in float64."""
        return states.double() @ self.weight + self.intercept


class StateSpectrum(NamedTuple):
    """The states a probe is fitted on, S after centring, with S^T S = V diag(eigenvalues) V^T; float64.

    One such factorisation serves every target and every ridge strength.
    """

    centred: Float[Tensor, "samples features"]
    mean: Float[Tensor, " features"]
    eigenvalues: Float[Tensor, " features"]
    vectors: Float[Tensor, "features features"]

    @property
    def unit(self) -> float:
        """The mean eigenvalue, number of samples x mean variance of a feature; 1 where the states do not vary."""
        return float(self.eigenvalues.mean()) or 1.0

    def moment(self, targets: Float[Tensor, "samples outputs"]) -> Float[Tensor, "features outputs"]:
        """V^T S^T (targets - their mean)."""
        return self.vectors.T @ (self.centred.T @ (targets - targets.mean(dim=0)))

    def probe(self, targets: Float[Tensor, "samples outputs"], alpha: float | Float[Tensor, " outputs"]) -> RidgeProbe:
        """What ``ridge_probe`` finds on these states, with one strength for all outputs or one for each."""
        targets = targets.double()
        weight = self.vectors @ (self.moment(targets) / (self.eigenvalues[:, None] + alpha))
        return RidgeProbe(weight, targets.mean(dim=0) - self.mean @ weight)


def state_spectrum(states: Float[Tensor, "samples features"]) -> StateSpectrum:
    """The eigendecomposition of the centred states' Gram matrix."""
    mean = states.double().mean(dim=0)
    centred = states.double() - mean
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred)
    return StateSpectrum(centred, mean, eigenvalues.clamp(min=0), vectors)


def ridge_probe(
    states: Float[Tensor, "samples features"], targets: Float[Tensor, "samples outputs"], alpha: float
) -> RidgeProbe:
    """Minimises ||targets - states W - c||^2 + alpha ||W||^2 over W and the intercept c, in float64.

    Both norms are sums, over samples and over weights (scikit-learn's Ridge), and the intercept is not penalised: with
    S the centred states, W = V (diag(eigenvalues) + alpha)^-1 V^T S^T targets, and c makes the residuals' mean zero.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be above 0.")
    return state_spectrum(states).probe(targets, alpha)


def best_strengths(
    spectrum: StateSpectrum,
    targets: Float[Tensor, "samples outputs"],
    sizes: Sequence[int],
    states: Float[Tensor, "others features"],
    true: Float[Tensor, "others outputs"],
    strengths: Sequence[float] = STRENGTHS,
) -> Float[Tensor, " targets"]:
    """Each target's ridge strength: of ``strengths`` x ``spectrum.unit`` that of least squared error on other samples.

    The outputs are those of several targets side by side, ``sizes`` of each. ``targets`` belong to the samples of the
    spectrum; ``states`` and ``true`` are the other ones. Their error under W = V B is read off their second moments,
    ||T||^2 - 2 <B, Z^T T> + <B, Z^T Z B> with Z = states V and both sides centred at the fitted means, so that a
    strength costs no pass over the samples.
    """
    targets, rotated = targets.double(), (states.double() - spectrum.mean) @ spectrum.vectors
    moment, deviation = spectrum.moment(targets), true.double() - targets.mean(dim=0)
    power, cross, gram = deviation.square().sum(dim=0), rotated.T @ deviation, rotated.T @ rotated
    alphas = spectrum.unit * torch.tensor(strengths, dtype=power.dtype, device=power.device)
    errors = []
    for alpha in alphas:
        weight = moment / (spectrum.eigenvalues[:, None] + alpha)
        errors.append(power + (weight * (gram @ weight - 2 * cross)).sum(dim=0))
    return alphas[by_target(torch.stack(errors), sizes).argmin(dim=0)]


def by_target(values: Float[Tensor, "*rest outputs"], sizes: Sequence[int]) -> Float[Tensor, "*rest targets"]:
    """The sum over each target's outputs."""
    return torch.stack([part.sum(dim=-1) for part in values.split(list(sizes), dim=-1)], dim=-1)


def shuffled_prompts(
    targets: Float[Tensor, "batch tokens outputs"], generator: Generator
) -> Float[Tensor, "batch tokens outputs"]:
    """The shuffled-label control: each prompt's targets given to another, along a random cycle (CPU generator)."""
    cycle = torch.randperm(targets.shape[0], generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return targets[order.to(targets.device)]


# Targets


def descent_paths(prompt: Prompt, n_steps: int) -> dict[str, Float[Tensor, "iterates batch dims"]]:
    """w_hat of GD ("gd") and P-GD ("preprocess_then_gd") after 0 .. n_steps steps from all examples of each prompt.

    Steps are 1/lambda_max of the examples of that prompt, for P-GD of its preprocessed examples; PAPER.md section 7.
    """
    x, y = prompt.x.double(), prompt.y.double()
    paths = {}
    for name, power in (("gd", 0.0), ("preprocess_then_gd", 1.0)):
        step_size = estimators.inverse_curvature(estimators.preprocessed(x, x, y, power))
        paths[name] = estimators.preprocess_then_gd_path(x, y, n_steps, step_size, power)
    return paths


def algorithm_weights(prompt: Prompt, n_steps: int) -> dict[str, Float[Tensor, "batch dims"]]:
    """w_hat of least squares and of GD_t and P-GD_t, t = 1 .. n_steps, as in ``descent_paths``."""
    weights = {"least_squares": estimators.least_squares(prompt.x.double(), prompt.y.double())}
    for name, path in descent_paths(prompt, n_steps).items():
        weights |= {f"{name}_{t}": w_hat for t, w_hat in enumerate(path) if t}
    return weights


def probe_targets(
    prompt: Prompt,
    x: Float[Tensor, "batch tokens dims"],
    f: Float[Tensor, "batch tokens"] | None,
    algorithms: Mapping[str, Float[Tensor, "batch dims"]],
) -> dict[str, Float[Tensor, "batch tokens outputs"]]:
    """What the states of tokens at ``x`` may know, by name, in float64.

    "f" is the noise-free target there, if it is told; "preprocessed" R_hat x and "r_hat" X^T y / n, R_hat = diag(r_hat)
    (PAPER.md section 7, here with its sign); where the task has weights, "w" and "support", 1 where w is not 0; then
    <w_hat, x> for each of ``algorithms``. n counts padded examples too, so use unpadded prompts.
    """
    x = x.double()
    r_hat = torch.einsum("bpd,bp->bd", prompt.x.double(), prompt.y.double()) / prompt.x.shape[1]
    targets = {} if f is None else {"f": f.double()[..., None]}
    of_prompt = {"r_hat": r_hat}
    if prompt.w is not None:
        of_prompt = {"w": prompt.w.double(), "support": (prompt.w != 0).double(), **of_prompt}
    targets |= {name: value[:, None].expand_as(x) for name, value in of_prompt.items()}
    targets["preprocessed"] = x * r_hat[:, None]
    return targets | {name: (x * w_hat[:, None]).sum(dim=-1, keepdim=True) for name, w_hat in algorithms.items()}


# Scores


def deviations(targets: Float[Tensor, "batch tokens outputs"]) -> Float[Tensor, " batch"]:
    """Squared distance (summed over outputs, averaged over tokens) of each prompt's targets from the overall mean.

    Their mean is the variance that R^2 divides by. Exactly 0 where the targets are constant up to rounding.
    """
    targets = targets.double()
    size = targets.square().sum(dim=-1).mean()
    spread = (targets - targets.mean(dim=(0, 1))).square().sum(dim=-1).mean(dim=1)
    return torch.where(spread.mean() > 1e-20 * size, spread, 0.0)


def mean_estimate(values: Float[Tensor, " batch"]) -> Estimate:
    """The mean over prompts; for squared errors of f, the excess risk."""
    return Estimate(float(values.mean()), _standard_error(values - values.mean()))


def explained_share(errors: Float[Tensor, " batch"], deviation: Float[Tensor, " batch"]) -> Estimate:
    """R^2 = 1 - mean squared error / variance of the targets, both summed over outputs.

    ``errors`` are each prompt's squared errors, ``deviation`` its ``deviations``. The standard error is that of a ratio
    of two means over the same prompts, by linearisation. Undefined where the targets do not vary.
    """
    return _ratio_of_means(deviation - errors, deviation)


def selectivity(
    errors: Float[Tensor, " batch"], control_errors: Float[Tensor, " batch"], deviation: Float[Tensor, " batch"]
) -> Estimate:
    """R^2 of a probe minus that of its control, paired: both are scored on the same prompts."""
    return _ratio_of_means(control_errors - errors, deviation)


def area_under_roc(
    scores: Float[Tensor, "batch tokens outputs"], positive: Bool[Tensor, "batch tokens outputs"]
) -> Estimate:
    """AUC: how often a positive scores above a negative, equal scores counting half, all tokens and outputs pooled.

    Each score's part is the share of the other class on its right side (DeLong et al. 1988); the standard error is of
    their sums over each prompt (Obuchowski 1997). Undefined where one class is empty.
    """
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return UNDEFINED
    part = _shares_beaten(scores.flatten(), positive.flatten()).view_as(scores)
    area = part[positive].mean()
    weight = positive.to(scores) / n_positive + (~positive).to(scores) / n_negative
    by_prompt = ((part - area) * weight).sum(dim=(1, 2))
    return Estimate(float(area), _standard_error(len(scores) * by_prompt))


def _shares_beaten(scores: Float[Tensor, " samples"], positive: Bool[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Of each positive the share of the negatives below it, of each negative the share of the positives above it.

    Equal scores count half. One sort serves both.
    """
    values, order = scores.sort()
    _, group = values.unique_consecutive(return_inverse=True)
    classes = torch.stack([~positive, positive])[:, order].to(scores)
    counts = classes.new_zeros(2, int(group[-1]) + 1).index_add_(1, group, classes)
    negatives, positives = ((counts.cumsum(dim=1) - counts / 2) / counts.sum(dim=1, keepdim=True))[:, group]
    shares = torch.where(positive[order], negatives, 1 - positives)
    return torch.empty_like(shares).scatter_(0, order, shares)


def _ratio_of_means(numerator: Float[Tensor, " batch"], denominator: Float[Tensor, " batch"]) -> Estimate:
    if denominator.mean() == 0:
        return UNDEFINED
    ratio = numerator.mean() / denominator.mean()
    return Estimate(float(ratio), _standard_error((numerator - ratio * denominator) / denominator.mean()))


def _standard_error(centred: Float[Tensor, " batch"]) -> float:
    """Of a mean, from deviations that sum to zero; NaN for a single prompt."""
    n = len(centred)
    return float((centred.square().sum() / (n - 1) / n).sqrt()) if n > 1 else float("nan")
