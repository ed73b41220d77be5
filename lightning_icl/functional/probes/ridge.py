"""Ridge regression of targets on states: one factorisation of the states for all targets and all strengths."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError

__all__ = [
    "STRENGTHS",
    "RidgeProbe",
    "StateSpectrum",
    "best_probe",
    "by_target",
    "check_strength",
    "ridge_probe",
    "state_spectrum",
]

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


def state_spectrum(states: Float[Tensor, "samples features"]) -> StateSpectrum:
    """The eigendecomposition of the centred states' Gram matrix.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import state_spectrum
        >>> state_spectrum(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).eigenvalues
        tensor([0., 2.], dtype=torch.float64)
    """
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

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import ridge_probe
        >>> states, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [1.0]])
        >>> probe = ridge_probe(states, targets, alpha=2.0)  # S^T S = 2, S^T targets = 2
        >>> probe.weight.item(), probe.intercept.item()
        (0.5, 2.0)
    """
    check_strength(alpha)
    spectrum, targets = state_spectrum(states), targets.double()
    moment = spectrum.vectors.T @ (spectrum.centred.T @ (targets - targets.mean(dim=0)))
    weight = spectrum.vectors @ (moment / (spectrum.eigenvalues[:, None] + alpha))
    return RidgeProbe(weight, targets.mean(dim=0) - spectrum.mean @ weight)


def check_strength(alpha: float) -> None:
    """Refuse a ridge strength that is not above 0."""
    if not 0 < alpha < float("inf"):
        raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be a finite number above 0.")


def best_probe(
    spectrum: StateSpectrum,
    targets: Float[Tensor, "samples outputs"],
    sizes: Sequence[int],
    others: Float[Tensor, "others features"],
    true: Float[Tensor, "others outputs"],
    alphas: Sequence[float] | None = None,
) -> tuple[RidgeProbe, Float[Tensor, " targets"]]:
    """The ``ridge_probe`` of several targets, each at the strength of least squared error on other samples; and those.

    The outputs are those of the targets side by side, ``sizes`` of each: ``targets`` of the samples of the spectrum,
    ``true`` of the ``others``. Strengths are of ``alphas``, STRENGTHS x ``spectrum.unit`` if left out. The error under
    W = V B is read off second moments, ||T||^2 - 2 <B, Z^T T> + <B, Z^T Z B> with Z = others V and both sides centred
    at the fitted means, so that a strength costs no pass over the samples.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import best_probe, state_spectrum
        >>> states = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> targets = states[:, :1]  # known exactly, so that the weakest penalty is best
        >>> probe, alpha = best_probe(state_spectrum(states), targets, [1], states, targets, [0.01, 1.0])
        >>> alpha
        tensor([0.0100], dtype=torch.float64)
    """
    mean = targets.double().mean(dim=0)
    moment = spectrum.vectors.T @ (spectrum.centred.T @ (targets.double() - mean))
    rotated, deviation = (others.double() - spectrum.mean) @ spectrum.vectors, true.double() - mean
    power, cross, gram = deviation.square().sum(dim=0), rotated.T @ deviation, rotated.T @ rotated
    tried = power.new_tensor([c * spectrum.unit for c in STRENGTHS] if alphas is None else alphas)
    errors = []
    for alpha in tried:
        weight = moment / (spectrum.eigenvalues[:, None] + alpha)
        errors.append(by_target(power + (weight * (gram @ weight - 2 * cross)).sum(dim=0), sizes))
    chosen = tried[torch.stack(errors).argmin(dim=0)]
    by_output = chosen.repeat_interleave(torch.tensor(sizes, device=chosen.device))
    weight = spectrum.vectors @ (moment / (spectrum.eigenvalues[:, None] + by_output))
    return RidgeProbe(weight, mean - spectrum.mean @ weight), chosen


def by_target(values: Float[Tensor, "*rest outputs"], sizes: Sequence[int]) -> Float[Tensor, "*rest targets"]:
    """The sum over each target's outputs.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import by_target
        >>> by_target(torch.tensor([1.0, 2.0, 3.0]), sizes=[1, 2])
        tensor([1., 5.])
    """
    return torch.stack([part.sum(dim=-1) for part in values.split(list(sizes), dim=-1)], dim=-1)
