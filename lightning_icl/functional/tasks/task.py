"""What every task shares: features, a target function per prompt, labels."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.functional.estimators import Moments, Posterior
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks.configured import Configured, check_choice
from lightning_icl.functional.tasks.constant import Constant
from lightning_icl.functional.tasks.features import Rotation, haar_rotations, mixing_matrix
from lightning_icl.functional.tasks.laws import FeatureLaw, NoiseLaw, unit_variance
from lightning_icl.functional.tasks.spectrum import Spectrum


class Task(Configured):
    """A law of regression problems.

    A subclass says what the targets are (``sample_targets``); features and noise come from here:
    x = R diag(sqrt(variances)) L z with z of independent coordinates of zero mean and unit variance, and
    y = f(x) + noise_std * noise of unit variance. Var(x_j) = variances_j and corr(x_i, x_j) = correlation^|i - j|
    (AR(1)) before the rotation R. The constructor's signature is the configuration.

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

    n_dims: int

    def __init__(
        self,
        n_dims: int,
        noise_std: float | Sequence[float] = 0.0,
        correlation: float = 0.0,
        noise: NoiseLaw = "gaussian",
        noise_df: float = 5.0,
        features: FeatureLaw = "gaussian",
        feature_df: float = 5.0,
        spectrum: Spectrum | None = None,
        rotation: Rotation = "none",
    ) -> None:
        if n_dims < 1:
            raise InputError(f"n_dims is {n_dims}, but a task needs at least 1 dimension.")
        if not -1 < correlation < 1:
            raise InputError(f"correlation is {correlation}, but it must lie strictly between -1 and 1.")
        _check_noise_std(noise_std)
        check_choice("noise", noise, get_args(NoiseLaw))
        check_choice("features", features, get_args(FeatureLaw))
        check_choice("rotation", rotation, get_args(Rotation))
        for name, df in (("noise_df", noise_df), ("feature_df", feature_df)):
            if not 2 < df < float("inf"):
                raise InputError(f"{name} is {df}, but it must be a finite number above 2, else there is no variance.")
        self.n_dims = n_dims
        self.noise_std = list(noise_std) if isinstance(noise_std, Sequence) else noise_std
        self.correlation = correlation
        self.noise, self.noise_df = noise, noise_df
        self.features, self.feature_df = features, feature_df
        self.spectrum = spectrum
        self.rotation = rotation
        mixing = mixing_matrix(n_dims, correlation, spectrum, rotation)
        self._mixing = None if mixing is None else Constant(mixing)

    @abstractmethod
    def sample_targets(
        self, x: Float[Tensor, "batch points dims"], generator: Generator
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch dims"] | None]:
        """Draw one target function per prompt; return its noise-free values at x, and its weights if it is linear."""

    @property
    def ridge_alpha(self) -> float | None:
        """The ridge strength this law implies, or None where the law implies none and it must be tuned."""
        return None

    @property
    def posterior_terms(self) -> int | None:
        """How many hypotheses the exact posterior of w averages over, or None where it has no closed form."""
        return None

    def posterior(self, m: Moments) -> Posterior:
        """The exact posterior mean of w given the examples behind each row of ``m``, with the log evidence."""
        raise InputError(f"{self!r} has no exact posterior in closed form: use the lasso or ridge instead.")

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """That of x, in float64, or None where prompts differ in it."""
        if self._mixing is None:
            return torch.eye(self.n_dims, dtype=torch.float64)
        covariance = self._mixing.value @ self._mixing.value.T
        return None if self.rotation == "per_prompt" and not is_isotropic(covariance) else covariance

    def fresh(self) -> "Task":
        """The law that validation draws from: this one, but for a finite pool of tasks the law behind the pool."""
        return self

    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt:
        """Draw ``batch_size`` fresh prompts on the generator's device, in torch's default dtype."""
        x = self.sample_inputs(batch_size, n_points, n_queries, generator)
        f, w = self.sample_targets(x, generator)
        y = self.sample_labels(f, generator)
        return Prompt(
            x=x[:, :n_points],
            y=y[:, :n_points],
            x_query=x[:, n_points:],
            y_query=y[:, n_points:],
            f_query=f[:, n_points:],
            w=w,
            f=f[:, :n_points],
        )

    def sample_inputs(
        self, batch_size: int, n_points: int, n_queries: int, generator: Generator
    ) -> Float[Tensor, "batch points dims"]:
        """Draw the x of the examples and then of the queries, here by one law."""
        return self.sample_features(batch_size, n_points + n_queries, generator)

    def sample_features(
        self, batch_size: int, n_points: int, generator: Generator
    ) -> Float[Tensor, "batch points dims"]:
        """Draw independent x for each point; a fresh rotation is shared by the points of a prompt."""
        x = unit_variance(self.features, (batch_size, n_points, self.n_dims), generator, self.feature_df)
        if self._mixing is not None:
            x = x @ self._mixing.like(x).T
        if self.rotation == "per_prompt":
            x = x @ haar_rotations(batch_size, self.n_dims, generator).mT
        return x

    def sample_labels(self, f: Float[Tensor, "batch points"], generator: Generator) -> Float[Tensor, "batch points"]:
        """Draw y given its mean f."""
        noise = unit_variance(self.noise, f.shape, generator, self.noise_df)
        if not isinstance(self.noise_std, list):
            return f + self.noise_std * noise
        level = torch.randint(len(self.noise_std), (len(f), 1), generator=generator, device=f.device)
        return f + sum(std * (level == k) for k, std in enumerate(self.noise_std)) * noise

    def options(self) -> set[str]:
        """The options that ``shifted`` can change; those of its inner tasks too where it is made of tasks."""
        return self.option_names()

    def shifted(self, **changes: Any) -> "Task":
        """A new task that differs in these options of the constructor."""
        for name in changes:
            if name not in self.options():
                raise InputError(f"{type(self).__name__} has no option {name!r}; {did_you_mean(name, self.options())}")
        return self.rebuilt(**changes)

    def truncated(self, n_dims: int) -> "Task":
        """The same law in fewer dimensions, for curricula."""
        if n_dims > self.n_dims:
            raise InputError(f"n_dims is {n_dims}, but this task can be truncated to at most {self.n_dims} dimensions.")
        if self.rotation == "fixed":
            raise InputError(f"rotation is 'fixed', which mixes all dimensions, so they cannot be cut to {n_dims}.")
        return self.shifted(n_dims=n_dims)


def is_isotropic(covariance: Float[Tensor, "dims dims"]) -> bool:
    """Whether it is a multiple of the identity."""
    return torch.allclose(covariance, covariance[0, 0] * torch.eye(len(covariance), dtype=covariance.dtype))


def _check_noise_std(noise_std: float | Sequence[float]) -> None:
    levels = noise_std if isinstance(noise_std, Sequence) else [noise_std]
    if not levels:
        raise InputError("noise_std is [], but it must be a number or list at least one.")
    for level in levels:
        if not 0 <= level < float("inf"):
            raise InputError(f"noise_std is {level}, but it must be a finite number that is 0 or larger.")
