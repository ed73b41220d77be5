"""Regression on squares and on polynomials of single features."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import check_at_least
from lightning_icl.functional.tasks.law import Inputs, Labels, Targets
from lightning_icl.functional.tasks.task import Task


@dataclass(frozen=True)
class QuadraticRegression(Task):
    """f(x) = sum_j w_j x_j^2 / sqrt 3 with w ~ N(0, I), as in the code of Garg et al. 2022.

    Since E x^4 = 3, the scaling gives E f^2 = n_dims for x ~ N(0, I), as in linear regression.
    """

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; there are no linear weights to return."""
        w = torch.randn(x.shape[0], self.n_dims, generator=generator, device=generator.device)
        return torch.einsum("bpd,bd->bp", x.square(), w) / 3**0.5, None


@dataclass(frozen=True)
class PolynomialRegression(Task):
    """f(x) = sum_j sum_k w_jk h_k(x_j) / sqrt(degree), k = 1 ... degree, with w ~ N(0, I).

    h_k are the Hermite polynomials orthonormal under N(0, 1) (probabilists' He_k / sqrt(k!)), so Var f = n_dims for
    x ~ N(0, I), as in linear regression, which is degree 1. Our choice: the literature has no one normalisation.

    Args:
        degree: highest power of a feature, at least 1. There are no products of two features.
    """

    degree: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, degree=self.degree)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; there are no linear weights to return."""
        w = torch.randn(x.shape[0], self.degree, self.n_dims, generator=generator, device=generator.device)
        return hermite_sum(x, w) / self.degree**0.5, None


def hermite_sum(x: Inputs, w: Float[Tensor, "batch degree dims"]) -> Labels:
    """sum_jk w_kj h_k(x_j), k = 1 ... degree, by h_(k+1)(x) = (x h_k(x) - sqrt(k) h_(k-1)(x)) / sqrt(k + 1)."""
    previous, current = torch.zeros_like(x), torch.ones_like(x)  # h_-1 and h_0
    total = torch.zeros_like(x[..., 0])
    for k in range(w.shape[1]):
        previous, current = current, (x * current - k**0.5 * previous) / (k + 1) ** 0.5
        total = total + torch.einsum("bpd,bd->bp", current, w[:, k])
    return total
