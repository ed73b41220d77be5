"""Linear regression with dense or sparse weights: y = <w, x> + noise."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks.task import Task

WeightLaw = Literal["gaussian", "sign", "unit_norm", "scaled"]


class SparseLinearRegression(Task):
    """Targets <w, x> with ``sparsity`` non-zero weights, their support uniform without replacement.

    The non-zero weights are N(0, 1) ("gaussian"), +-1 ("sign"), uniform on the unit sphere ("unit_norm") or
    N(0, 1/sparsity) ("scaled"). PAPER.md section 2.

    Args:
        n_dims: length of x.
        sparsity: number of non-zero weights, 1 to n_dims.
        noise_std: standard deviation of the label noise, in label units.
        correlation: AR(1) correlation of neighbouring features, in (-1, 1); 0 is isotropic.
        weight_law: law of the non-zero weights.
    """

    def __init__(
        self,
        n_dims: int,
        sparsity: int,
        noise_std: float = 0.0,
        correlation: float = 0.0,
        weight_law: WeightLaw = "gaussian",
    ) -> None:
        super().__init__(n_dims, noise_std, correlation)
        if not 1 <= sparsity <= n_dims:
            raise InputError(f"sparsity is {sparsity}, but it must lie between 1 and n_dims, which is {n_dims}.")
        if weight_law not in get_args(WeightLaw):
            raise InputError(f"weight_law is {weight_law!r}, but it must be one of {', '.join(get_args(WeightLaw))}.")
        self.sparsity = sparsity
        self.weight_law = weight_law

    @property
    def weight_variance(self) -> float:
        """Var(w_j) of one weight, zeros included: sparsity / n_dims times the second moment of a non-zero one."""
        second_moment = 1.0 if self.weight_law in ("gaussian", "sign") else 1 / self.sparsity
        return self.sparsity / self.n_dims * second_moment

    @property
    def ridge_alpha(self) -> float:
        """sigma^2 / Var(w_j), the strength of the best linear-in-y estimator for this law (isotropic prior)."""
        return self.noise_std**2 / self.weight_variance

    def sample_targets(
        self, x: Float[Tensor, "batch points dims"], generator: Generator
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch dims"]]:
        """Draw w for each prompt; return <w, x> and w."""
        w = self.sample_weights(x.shape[0], generator)
        return torch.einsum("bpd,bd->bp", x, w), w

    def sample_weights(self, batch_size: int, generator: Generator) -> Float[Tensor, "batch dims"]:
        """Draw the task weights of each prompt."""
        shape, device = (batch_size, self.n_dims), generator.device
        values = torch.randn(shape, generator=generator, device=device)
        if self.weight_law == "sign":
            values = torch.where(values < 0, -1.0, 1.0)
        # Sorting i.i.d. uniforms gives a uniform permutation, and where it falls below `sparsity` a uniform support.
        permutation = torch.rand(shape, generator=generator, device=device).argsort(dim=-1)
        w = torch.where(permutation < self.sparsity, values, 0.0)
        if self.weight_law == "unit_norm":
            w = w / torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        return w / self.sparsity**0.5 if self.weight_law == "scaled" else w


class LinearRegression(SparseLinearRegression):
    """Targets <w, x> with every weight drawn: SparseLinearRegression with sparsity = n_dims.

    Args:
        n_dims: length of x.
        noise_std: standard deviation of the label noise, in label units.
        correlation: AR(1) correlation of neighbouring features, in (-1, 1); 0 is isotropic.
        weight_law: law of the weights.
    """

    def __init__(
        self, n_dims: int, noise_std: float = 0.0, correlation: float = 0.0, weight_law: WeightLaw = "gaussian"
    ) -> None:
        super().__init__(n_dims, n_dims, noise_std, correlation, weight_law)
