"""What every single task shares: the law of its features, a target function per prompt, the law of its noise."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import (
    InputError,
    check_between,
    check_choice,
    check_finite,
    check_not_negative,
    check_positive,
)
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks.features import (
    FeatureLaw,
    NoiseLaw,
    Rotation,
    haar_rotations,
    mixing_matrix,
    unit_variance,
)
from lightning_icl.functional.tasks.law import Constant, Inputs, Labels, Law, Weights
from lightning_icl.functional.tasks.spectrum import Spectrum

MOST_DIMS = 2**14  # whose covariance is 2 GB


@dataclass(frozen=True)
class Task(Law):
    """A law of regression problems whose targets a subclass says (``sample_targets``).

    Features and noise come from here: x = R diag(sqrt(variances)) L z with z of independent coordinates of zero mean
    and unit variance, and y = f(x) + noise_std * noise of unit variance. Var(x_j) = variances_j and
    corr(x_i, x_j) = correlation^|i - j| (AR(1)) before the rotation R.

    Args:
        n_dims: length of x.
        noise_std: standard deviation of the label noise, in label units, whatever its law; or a list, of which each
            prompt draws one uniformly (Bai et al. 2023).
        correlation: correlation of neighbouring features before the rotation, in (-1, 1).
        noise: law of the label noise.
        noise_df: degrees of freedom of Student t noise, above 2.
        features: law of the coordinates of z.
        feature_df: degrees of freedom of Student t features, above 2.
        spectrum: variances of the features before the rotation; none means 1 each.
        rotation: none, one fixed rotation for all prompts, or a fresh one for each prompt; uniform (Haar).
    """

    _: KW_ONLY
    noise_std: float | Sequence[float] = 0.0
    correlation: float = 0.0
    noise: NoiseLaw = "gaussian"
    noise_df: float = 5.0
    features: FeatureLaw = "gaussian"
    feature_df: float = 5.0
    spectrum: Spectrum | None = None
    rotation: Rotation = "none"

    def __post_init__(self) -> None:
        check_between(1, MOST_DIMS, n_dims=self.n_dims)
        check_finite(correlation=self.correlation)
        if not -1 < self.correlation < 1:
            raise InputError(f"correlation is {self.correlation}, but it must lie strictly between -1 and 1.")
        if isinstance(self.noise_std, str):  # a Sequence too
            check_not_negative(noise_std=self.noise_std)
        if isinstance(self.noise_std, Sequence):
            object.__setattr__(self, "noise_std", list(self.noise_std))  # a tuple is the same configuration
        if not self.noise_levels:
            raise InputError("noise_std is [], but it must be a number or list at least one.")
        for level in self.noise_levels:
            check_not_negative(noise_std=level)
        check_choice("noise", self.noise, get_args(NoiseLaw))
        check_choice("features", self.features, get_args(FeatureLaw))
        check_choice("rotation", self.rotation, get_args(Rotation))
        for name, df in (("noise_df", self.noise_df), ("feature_df", self.feature_df)):
            check_positive(**{name: df})
            if df <= 2:
                raise InputError(f"{name} is {df}, but it must be a finite number above 2, else there is no variance.")
        if self.spectrum is not None:
            self.spectrum.variances(self.n_dims)  # refuses what does not fit

    @property
    def noise_levels(self) -> list[float]:
        """The standard deviations a prompt's noise may have, equally likely."""
        return list(self.noise_std) if isinstance(self.noise_std, Sequence) else [self.noise_std]

    @cached_property
    def mixing(self) -> Constant | None:
        """The matrix A in x = A z before a rotation for each prompt, or None for the identity."""
        matrix = mixing_matrix(self.n_dims, self.correlation, self.spectrum, self.rotation)
        return None if matrix is None else Constant(matrix)

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """That of x, in float64, or None where prompts differ in it."""
        if self.mixing is None:
            return torch.eye(self.n_dims, dtype=torch.float64)
        covariance = self.mixing.value @ self.mixing.value.T
        return None if self.rotation == "per_prompt" and not is_isotropic(covariance) else covariance

    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt:
        x = self.sample_inputs(batch_size, n_points, n_queries, generator)
        f, w = self.sample_targets(x, generator)
        return split_prompt(x, self.sample_labels(f, generator), f, w, n_points)

    def sample_inputs(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Inputs:
        """Draw the x of the examples and then of the queries, here by one law."""
        return self.sample_features(batch_size, n_points + n_queries, generator)

    def sample_features(self, batch_size: int, n_points: int, generator: Generator) -> Inputs:
        """Draw independent x for each point; a fresh rotation is shared by the points of a prompt."""
        x = unit_variance(self.features, (batch_size, n_points, self.n_dims), generator, self.feature_df)
        if self.mixing is not None:
            x = x @ self.mixing.like(x).T
        if self.rotation == "per_prompt":
            x = x @ haar_rotations(batch_size, self.n_dims, generator).mT
        return x

    def sample_labels(self, f: Labels, generator: Generator) -> Labels:
        """Draw y given its mean f."""
        noise = unit_variance(self.noise, f.shape, generator, self.noise_df)
        if not isinstance(self.noise_std, Sequence):
            return f + self.noise_std * noise
        level = torch.randint(len(self.noise_std), (len(f), 1), generator=generator, device=f.device)
        return f + sum(std * (level == k) for k, std in enumerate(self.noise_std)) * noise

    def truncated(self, n_dims: int) -> Law:
        if n_dims > self.n_dims:
            raise InputError(f"n_dims is {n_dims}, but this task can be truncated to at most {self.n_dims} dimensions.")
        if self.rotation == "fixed":
            raise InputError(f"rotation is 'fixed', which mixes all dimensions, so they cannot be cut to {n_dims}.")
        return self.shifted(n_dims=n_dims)


def split_prompt(x: Inputs, y: Labels, f: Labels, w: Weights | None, n_points: int) -> Prompt:
    """The prompts whose first ``n_points`` points are examples and whose others are queries."""
    (x, x_query), (y, y_query), (f, f_query) = ((part[:, :n_points], part[:, n_points:]) for part in (x, y, f))
    return Prompt(x, y, x_query, y_query, f_query, w, f=f)


def is_isotropic(covariance: Float[Tensor, "dims dims"]) -> bool:
    """Whether it is a multiple of the identity."""
    return torch.allclose(covariance, covariance[0, 0] * torch.eye(len(covariance), dtype=covariance.dtype))
