"""Draws of mean 0 and variance 1, for features and for label noise; how such features become correlated ones."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.tasks.spectrum import Spectrum

FeatureLaw = Literal["gaussian", "uniform", "rademacher", "student_t"]
NoiseLaw = Literal["gaussian", "laplace", "student_t"]
Rotation = Literal["none", "fixed", "per_prompt"]
ROTATION_SEED = 0


def unit_variance(law: FeatureLaw | NoiseLaw, shape: Sequence[int], generator: Generator, df: float) -> Tensor:
    """Independent draws of mean 0 and variance 1; ``df`` > 2 are the degrees of freedom of Student's t.

    Excess kurtosis: gaussian 0, uniform (on +-sqrt 3) -6/5, rademacher (+-1) -2, laplace 3, student_t 6 / (df - 4)
    where df > 4, else infinite.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.tasks.features import unit_variance
        >>> draws = unit_variance("rademacher", (1000,), torch.Generator().manual_seed(0), df=5.0)
        >>> draws.unique()
        tensor([-1.,  1.])
    """
    size, device = tuple(shape), generator.device
    match law:
        case "gaussian":
            return torch.randn(size, generator=generator, device=device)
        case "uniform":
            return 3**0.5 * (2 * torch.rand(size, generator=generator, device=device) - 1)
        case "rademacher":
            return 2.0 * torch.randint(2, size, generator=generator, device=device) - 1
        case "laplace":  # the difference of two exponentials
            first, second = torch.empty(2, *size, device=device).exponential_(generator=generator)
            return (first - second) / 2**0.5
        case "student_t":
            return _student_t(size, generator, df)


def _student_t(shape: Sequence[int], generator: Generator, df: float) -> Tensor:
    """Student's t over its standard deviation, by the polar method of Bailey (Math. Comp. 62, 1994).

    t = sqrt(df (u^(-2/df) - 1)) cos(2 pi v) with u, v uniform, and Var t = df / (df - 2).
    """
    # float64, because the smallest u that can be drawn is where the tail is cut off.
    u, v = torch.rand(2, *shape, generator=generator, device=generator.device, dtype=torch.float64)
    radius = ((df - 2) * torch.expm1(-2 / df * torch.log1p(-u))).sqrt()
    return (radius * (2 * math.pi * v).cos()).to(torch.get_default_dtype())


def mixing_matrix(
    n_dims: int, correlation: float, spectrum: Spectrum | None, rotation: Rotation
) -> Float[Tensor, "dims dims"] | None:
    """The matrix A = R diag(sqrt(variances)) L that turns unit-variance z into x = A z, or None for the identity.

    L is the AR(1) factor, so that before the rotation R the variances are the spectrum's and the correlations
    correlation^|i - j|. R is one Haar rotation if ``rotation`` is "fixed", else left out. In float64 on the CPU, where
    a seed means the same for every device that computes later.

    Example:
        >>> from lightning_icl.functional.tasks.features import mixing_matrix
        >>> a = mixing_matrix(2, correlation=0.6, spectrum=None, rotation="none")
        >>> a @ a.T  # the covariance of x = A z
        tensor([[1.0000, 0.6000],
                [0.6000, 1.0000]], dtype=torch.float64)
    """
    if correlation == 0 and spectrum is None and rotation != "fixed":
        return None
    matrix = ar1_factor(n_dims, correlation)
    if spectrum is not None:
        matrix = spectrum.variances(n_dims).sqrt()[:, None] * matrix
    if rotation == "fixed":
        matrix = haar_rotations(1, n_dims, torch.Generator().manual_seed(ROTATION_SEED), torch.float64)[0] @ matrix
    return matrix


def ar1_factor(n_dims: int, correlation: float) -> Float[Tensor, "dims dims"]:
    """Cholesky factor L of Sigma_ij = rho^|i - j|: L_i0 = rho^i, L_ij = rho^(i - j) sqrt(1 - rho^2) for 0 < j <= i.

    Example:
        >>> from lightning_icl.functional.tasks.features import ar1_factor
        >>> ar1_factor(2, 0.6)
        tensor([[1.0000, 0.0000],
                [0.6000, 0.8000]], dtype=torch.float64)
    """
    index = torch.arange(n_dims)
    factor = (torch.tensor(correlation, dtype=torch.float64) ** (index[:, None] - index).clamp(min=0)).tril()
    factor[:, 1:] *= (1 - correlation**2) ** 0.5
    return factor


def haar_rotations(
    n: int, n_dims: int, generator: Generator, dtype: torch.dtype | None = None
) -> Float[Tensor, "n dims dims"]:
    """Orthogonal matrices uniform in Haar's sense: Q of a gaussian matrix, signed so that R's diagonal is positive.

    Without the signs the law depends on the QR routine (Mezzadri 2007).

    Example:
        >>> import torch
        >>> from lightning_icl.functional.tasks.features import haar_rotations
        >>> (q,) = haar_rotations(1, 3, torch.Generator().manual_seed(0))
        >>> torch.allclose(q @ q.T, torch.eye(3), atol=1e-6)
        True
    """
    gaussian = torch.randn(n, n_dims, n_dims, generator=generator, device=generator.device, dtype=dtype)
    q, r = torch.linalg.qr(gaussian)
    return torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None] * q
