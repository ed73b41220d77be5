"""Variances of the features along their principal axes."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks.configured import Configured


class Spectrum(Configured):
    """The variance of each feature before rotation."""

    @abstractmethod
    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        """The ``n_dims`` variances, in float64."""


class Flat(Spectrum):
    """The same variance everywhere: features on another scale (von Oswald et al. 2023 use 1/12).

    Args:
        variance: of each feature, above 0.
    """

    def __init__(self, variance: float = 1.0) -> None:
        _check_positive("variance", variance)
        self.variance = variance

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        return torch.full((n_dims,), self.variance, dtype=torch.float64)


class Spiked(Spectrum):
    """A few large variances before unit ones (the spiked model of Johnstone 2001).

    Args:
        n_spikes: number of large variances, 1 to n_dims; they come first.
        spike: the large variance, above 0.
    """

    def __init__(self, n_spikes: int = 1, spike: float = 10.0) -> None:
        if n_spikes < 1:
            raise InputError(f"n_spikes is {n_spikes}, but it must be at least 1.")
        _check_positive("spike", spike)
        self.n_spikes = n_spikes
        self.spike = spike

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        if self.n_spikes > n_dims:
            raise InputError(f"n_spikes is {self.n_spikes}, but it must be at most n_dims, which is {n_dims}.")
        variances = torch.ones(n_dims, dtype=torch.float64)
        variances[: self.n_spikes] = self.spike
        return variances


class PowerLaw(Spectrum):
    """Variances j^-exponent, j = 1 ... n_dims: the capacity condition of kernel and scaling-law studies.

    Args:
        exponent: 0 is flat; the larger, the faster the decay.
    """

    def __init__(self, exponent: float = 1.0) -> None:
        if not math.isfinite(exponent):
            raise InputError(f"exponent is {exponent}, but it must be a finite number.")
        self.exponent = exponent

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        return torch.arange(1, n_dims + 1, dtype=torch.float64) ** -self.exponent


class Eigenvalues(Spectrum):
    """Variances as listed (Ahn et al. 2023 use 1, 1, 0.5, 0.25, 1 with a rotation).

    Args:
        values: one variance for each dimension, above 0.
    """

    def __init__(self, values: Sequence[float]) -> None:
        for value in values:
            _check_positive("a value of values", value)
        self.values = list(values)

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        if len(self.values) != n_dims:
            raise InputError(f"values lists {len(self.values)} variances, but it must list n_dims, which is {n_dims}.")
        return torch.tensor(self.values, dtype=torch.float64)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(f"{name} is {value}, but it must be a finite number above 0.")
