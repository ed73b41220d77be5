"""Sparse recovery: the weights of one known design, prompt after prompt."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import MOST_SEED, InputError, check_between, check_choice
from lightning_icl.functional.tasks.law import Constant, Inputs, Law
from lightning_icl.functional.tasks.linear import SparseLinearRegression

Design = Literal["fixed", "fresh"]
DESIGN_ROWS = 1024  # drawn at once, so that row i does not depend on the number of examples


@dataclass(frozen=True)
class SparseRecovery(SparseLinearRegression):
    """y = A w + noise with sparse w and, if ``design`` is "fixed", the same rows of A in every prompt.

    The setting in which LISTA learns a solver for one A (Liu et al. 2024, arXiv 2410.13981). A has independent rows of
    the features' law, not normalised. Only the examples are fixed; queries are drawn for each prompt. With "fresh" this
    is SparseLinearRegression.

    Args:
        design: one design for all prompts, or a fresh one for each.
        design_seed: which fixed design.

    Example:
        >>> import torch
        >>> from lightning_icl import SparseRecovery
        >>> task = SparseRecovery(n_dims=8, sparsity=2, noise_std=0.1)
        >>> prompt = task.sample(2, n_points=5, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(prompt.x[0], prompt.x[1]), torch.equal(prompt.w[0], prompt.w[1])
        (True, False)
    """

    design: Design = "fixed"
    design_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("design", self.design, get_args(Design))
        check_between(0, MOST_SEED, design_seed=self.design_seed)
        if self.design == "fixed" and self.rotation == "per_prompt":
            raise InputError("rotation is 'per_prompt', but a fixed design has the same rows in every prompt.")

    @cached_property
    def rows(self) -> Constant:
        """The rows of the fixed design."""
        generator = torch.Generator().manual_seed(self.design_seed)
        return Constant(self.sample_features(1, DESIGN_ROWS, generator)[0])

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """As for every task, where the design is fresh; the rows of a fixed one are no draws."""
        return super().covariance if self.design == "fresh" else None

    def sample_inputs(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Inputs:
        """The first ``n_points`` rows of the design, then fresh queries."""
        if self.design == "fresh":
            return super().sample_inputs(batch_size, n_points, n_queries, generator)
        if n_points > DESIGN_ROWS:
            raise InputError(f"n_points is {n_points}, but a fixed design has {DESIGN_ROWS} rows.")
        queries = self.sample_features(batch_size, n_queries, generator)
        return torch.cat([self.rows.like(queries)[:n_points].expand(batch_size, -1, -1), queries], dim=1)

    def truncated(self, n_dims: int) -> Law:
        """As for every task, where the design is fresh."""
        if self.design == "fixed":
            raise InputError(
                f"design is 'fixed', which has all {self.n_dims} dimensions; they cannot be cut to {n_dims}."
            )
        return super().truncated(n_dims)
