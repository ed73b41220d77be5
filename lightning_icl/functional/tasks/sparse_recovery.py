"""Sparse recovery: the weights of one known design, prompt after prompt."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks.configured import check_choice
from lightning_icl.functional.tasks.constant import Constant
from lightning_icl.functional.tasks.linear import SparseLinearRegression
from lightning_icl.functional.tasks.task import Task

Design = Literal["fixed", "fresh"]
DESIGN_ROWS = 1024  # drawn at once, so that row i does not depend on the number of examples


class SparseRecovery(SparseLinearRegression):
    """y = A w + noise with sparse w and, if ``design`` is "fixed", the same rows of A in every prompt.

    The setting in which LISTA learns a solver for one A (Liu et al. 2024, arXiv 2410.13981). A has independent rows of
    the features' law, not normalised. Only the examples are fixed; queries are drawn for each prompt. With "fresh" this
    is SparseLinearRegression.

    Args:
        n_dims: length of x.
        sparsity: number of non-zero weights, 1 to n_dims.
        design: one design for all prompts, or a fresh one for each.
        design_seed: which fixed design.
    """

    def __init__(
        self, n_dims: int, sparsity: int, design: Design = "fixed", design_seed: int = 0, **options: Any
    ) -> None:
        super().__init__(n_dims, sparsity, **options)
        check_choice("design", design, get_args(Design))
        if design == "fixed" and self.rotation == "per_prompt":
            raise InputError("rotation is 'per_prompt', but a fixed design has the same rows in every prompt.")
        self.design = design
        self.design_seed = design_seed
        generator = torch.Generator().manual_seed(design_seed)
        self._rows = Constant(self.sample_features(1, DESIGN_ROWS, generator)[0]) if design == "fixed" else None

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """As for every task, where the design is fresh; the rows of a fixed one are no draws."""
        return super().covariance if self.design == "fresh" else None

    def sample_inputs(
        self, batch_size: int, n_points: int, n_queries: int, generator: Generator
    ) -> Float[Tensor, "batch points dims"]:
        """The first ``n_points`` rows of the design, then fresh queries."""
        if self._rows is None:
            return super().sample_inputs(batch_size, n_points, n_queries, generator)
        if n_points > DESIGN_ROWS:
            raise InputError(f"n_points is {n_points}, but a fixed design has {DESIGN_ROWS} rows.")
        queries = self.sample_features(batch_size, n_queries, generator)
        return torch.cat([self._rows.like(queries)[:n_points].expand(batch_size, -1, -1), queries], dim=1)

    def truncated(self, n_dims: int) -> Task:
        """As for every task, where the design is fresh."""
        if self.design == "fixed":
            raise InputError(
                f"design is 'fixed', which has all {self.n_dims} dimensions; they cannot be cut to {n_dims}."
            )
        return super().truncated(n_dims)
