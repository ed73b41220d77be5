"""Variances of the features along their principal axes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError, check_at_least, check_finite, check_positive


class Spectrum(ABC):
    """The variance of each feature before rotation."""

    @abstractmethod
    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        """The ``n_dims`` variances, in float64."""


@dataclass(frozen=True)
class Flat(Spectrum):
    """The same variance everywhere: features on another scale (von Oswald et al. 2023 use 1/12).

    Args:
        variance: of each feature, above 0.

    Example:
        >>> from lightning_icl import Flat
        >>> Flat(variance=0.5).variances(3)
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        check_positive(variance=self.variance)

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        return torch.full((n_dims,), self.variance, dtype=torch.float64)


@dataclass(frozen=True)
class Spiked(Spectrum):
    """A few large variances before unit ones (the spiked model of Johnstone 2001).

    Args:
        n_spikes: number of large variances, 1 to n_dims; they come first.
        spike: the large variance, above 0.

    Example:
        >>> from lightning_icl import Spiked
        >>> Spiked(n_spikes=1, spike=10.0).variances(3)
        tensor([10.,  1.,  1.], dtype=torch.float64)
    """

    n_spikes: int = 1
    spike: float = 10.0

    def __post_init__(self) -> None:
        check_at_least(1, n_spikes=self.n_spikes)
        check_positive(spike=self.spike)

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        if self.n_spikes > n_dims:
            raise InputError(f"n_spikes is {self.n_spikes}, but it must be at most n_dims, which is {n_dims}.")
        variances = torch.ones(n_dims, dtype=torch.float64)
        variances[: self.n_spikes] = self.spike
        return variances


@dataclass(frozen=True)
class PowerLaw(Spectrum):
    """Variances j^-exponent, j = 1 ... n_dims: the capacity condition of kernel and scaling-law studies.

    Args:
        exponent: 0 is flat; the larger, the faster the decay.

    Example:
        >>> from lightning_icl import PowerLaw
        >>> PowerLaw(exponent=1.0).variances(3)
        tensor([1.0000, 0.5000, 0.3333], dtype=torch.float64)
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        check_finite(exponent=self.exponent)

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        return torch.arange(1, n_dims + 1, dtype=torch.float64) ** -self.exponent


@dataclass(frozen=True)
class Eigenvalues(Spectrum):
    """Variances as listed (Ahn et al. 2023 use 1, 1, 0.5, 0.25, 1 with a rotation).

    Args:
        values: one variance for each dimension, above 0.

    Example:
        >>> from lightning_icl import Eigenvalues
        >>> Eigenvalues(values=[1.0, 0.5, 0.25]).variances(3)
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", list(self.values))  # a tuple is the same configuration
        for value in self.values:
            check_positive(**{"a value of values": value})

    def variances(self, n_dims: int) -> Float[Tensor, " dims"]:
        if len(self.values) != n_dims:
            raise InputError(f"values lists {len(self.values)} variances, but it must list n_dims, which is {n_dims}.")
        return torch.tensor(self.values, dtype=torch.float64)
