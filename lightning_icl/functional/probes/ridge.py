"""Ridge regression of targets on states: one factorisation of the states for all targets and all strengths."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError

# In units of the states' mean eigenvalue, two a decade: from what is no penalty in float64 to what leaves nothing of a
# probe of a thousand features.
STRENGTHS = tuple(10 ** (k / 2) for k in range(-16, 9))


class RidgeProbe(NamedTuple):
    """target = state @ weight + intercept."""

    weight: Float[Tensor, "features outputs"]
    intercept: Float[Tensor, " outputs"]

    def predict(self, states: Float[Tensor, "*samples features"]) -> Float[Tensor, "*samples outputs"]:
        """The probe's reading of each state, in float64."""
        return states.double() @ self.weight + self.intercept


class RotatedStates(NamedTuple):
    """Other states less the mean of those a spectrum is of, times its vectors: Z, and Z^T Z; float64."""

    states: Float[Tensor, "others features"]
    gram: Float[Tensor, "features features"]


class StateSpectrum(NamedTuple):
    """The states a probe is fitted on, S after centring, with S^T S = V diag(eigenvalues) V^T; float64."""

    centred: Float[Tensor, "samples features"]
    mean: Float[Tensor, " features"]
    eigenvalues: Float[Tensor, " features"]
    vectors: Float[Tensor, "features features"]

    @property
    def unit(self) -> float:
        """The mean eigenvalue, number of samples x mean variance of a feature; 1 where the states do not vary."""
        return float(self.eigenvalues.mean()) or 1.0

    def probes(self, targets: Float[Tensor, "samples outputs"]) -> "RidgeProbes":
        """The probes for targets of these samples, at any strength."""
        mean = targets.double().mean(dim=0)
        return RidgeProbes(self, mean, self.vectors.T @ (self.centred.T @ (targets.double() - mean)))

    def rotated(self, states: Float[Tensor, "others features"]) -> RotatedStates:
        """The states of other samples, on which to choose a strength."""
        rotated = (states.double() - self.mean) @ self.vectors
        return RotatedStates(rotated, rotated.T @ rotated)


class RidgeProbes(NamedTuple):
    """All that the probes for some targets need to know of them: their mean and V^T S^T (targets - their mean)."""

    spectrum: StateSpectrum
    mean: Float[Tensor, " outputs"]
    moment: Float[Tensor, "features outputs"]

    def at(self, alpha: float | Float[Tensor, " outputs"]) -> RidgeProbe:
        """What ``ridge_probe`` finds, with one strength for all outputs or one for each."""
        weight = self.spectrum.vectors @ (self.moment / (self.spectrum.eigenvalues[:, None] + alpha))
        return RidgeProbe(weight, self.mean - self.spectrum.mean @ weight)


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
    check_strength(alpha)
    return state_spectrum(states).probes(targets).at(alpha)


def check_strength(alpha: float) -> None:
    """Refuse a ridge strength that is not above 0."""
    if not 0 < alpha < float("inf"):
        raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be a finite number above 0.")


def best_strengths(
    probes: RidgeProbes,
    sizes: Sequence[int],
    others: RotatedStates,
    true: Float[Tensor, "others outputs"],
    strengths: Sequence[float] = STRENGTHS,
) -> Float[Tensor, " targets"]:
    """Each target's ridge strength: of ``strengths`` x ``spectrum.unit`` that of least squared error on other samples.

    The outputs are those of several targets side by side, ``sizes`` of each; ``true`` are those of the ``others``.
    Their error under W = V B is read off their second moments, ||T||^2 - 2 <B, Z^T T> + <B, Z^T Z B> with Z the others'
    rotated states and T centred at the fitted mean, so that a strength costs no pass over the samples.
    """
    deviation = true.double() - probes.mean
    power, cross = deviation.square().sum(dim=0), others.states.T @ deviation
    alphas = probes.spectrum.unit * torch.tensor(strengths, dtype=power.dtype, device=power.device)
    errors = []
    for alpha in alphas:
        weight = probes.moment / (probes.spectrum.eigenvalues[:, None] + alpha)
        errors.append(power + (weight * (others.gram @ weight - 2 * cross)).sum(dim=0))
    return alphas[by_target(torch.stack(errors), sizes).argmin(dim=0)]


def by_target(values: Float[Tensor, "*rest outputs"], sizes: Sequence[int]) -> Float[Tensor, "*rest targets"]:
    """The sum over each target's outputs."""
    return torch.stack([part.sum(dim=-1) for part in values.split(list(sizes), dim=-1)], dim=-1)
