"""What every task shares: features, a target function per prompt, label noise."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt


class Task(ABC):
    """A law of regression problems.

    A subclass says what the targets are (``sample_targets``); features and noise come from here:
    x ~ N(0, Sigma) with Sigma_ij = correlation^|i - j| (AR(1); 0 is isotropic), y = f(x) + noise_std * N(0, 1).
    The constructor's signature is the configuration.

    Args:
        n_dims: length of x.
        noise_std: standard deviation of the label noise, in label units.
        correlation: correlation of neighbouring features, in (-1, 1).
    """

    def __init__(self, n_dims: int, noise_std: float = 0.0, correlation: float = 0.0) -> None:
        if n_dims < 1:
            raise InputError(f"n_dims is {n_dims}, but a task needs at least 1 dimension.")
        if not 0 <= noise_std < float("inf"):
            raise InputError(f"noise_std is {noise_std}, but it must be a finite number that is 0 or larger.")
        if not -1 < correlation < 1:
            raise InputError(f"correlation is {correlation}, but it must lie strictly between -1 and 1.")
        self.n_dims = n_dims
        self.noise_std = noise_std
        self.correlation = correlation

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    @abstractmethod
    def sample_targets(
        self, x: Float[Tensor, "batch points dims"], generator: Generator
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch dims"] | None]:
        """Draw one target function per prompt; return its noise-free values at x, and its weights if it is linear."""

    @property
    def ridge_alpha(self) -> float | None:
        """The ridge strength this law implies, or None where the law implies none and it must be tuned."""
        return None

    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt:
        """Draw ``batch_size`` fresh prompts on the generator's device, in torch's default dtype."""
        x = self.sample_features(batch_size, n_points + n_queries, generator)
        f, w = self.sample_targets(x, generator)
        y = f + self.noise_std * torch.randn(f.shape, generator=generator, device=generator.device)
        return Prompt(
            x=x[:, :n_points],
            y=y[:, :n_points],
            x_query=x[:, n_points:],
            y_query=y[:, n_points:],
            f_query=f[:, n_points:],
            w=w,
            f=f[:, :n_points],
        )

    def sample_features(
        self, batch_size: int, n_points: int, generator: Generator
    ) -> Float[Tensor, "batch points dims"]:
        """Draw x ~ N(0, Sigma)."""
        x = torch.randn(batch_size, n_points, self.n_dims, generator=generator, device=generator.device)
        return x if self.correlation == 0 else x @ ar1_factor(self.n_dims, self.correlation, x.device).to(x.dtype).T


def ar1_factor(n_dims: int, correlation: float, device: torch.device | str = "cpu") -> Float[Tensor, "dims dims"]:
    """Cholesky factor L of Sigma_ij = rho^|i - j|: L_i0 = rho^i, L_ij = rho^(i - j) sqrt(1 - rho^2) for 0 < j <= i."""
    index = torch.arange(n_dims, device=device)
    factor = (
        torch.full((), correlation, dtype=torch.float64, device=device) ** (index[:, None] - index).clamp(min=0)
    ).tril()
    factor[:, 1:] *= (1 - correlation**2) ** 0.5
    return factor
