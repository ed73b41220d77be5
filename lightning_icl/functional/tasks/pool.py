"""A finite pool of training tasks."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import MOST_SEED, InputError, check_at_least, check_between
from lightning_icl.functional.estimators import Moments, Posterior, mixed, pool_posterior
from lightning_icl.functional.memory import check_memory
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks.law import Constant, Inputs, Law, Targets
from lightning_icl.functional.tasks.linear import LinearTask
from lightning_icl.functional.tasks.task import split_prompt


@dataclass(frozen=True)
class TaskPool(Law):
    """Each prompt takes its weights from a pool of ``n_tasks`` drawn once from a linear task (Raventos et al. 2023).

    Uniformly and with replacement, so that prompts stay independent. Features and noise are the inner task's, and so
    are ``ridge_alpha`` and ``covariance``. With few tasks a model can memorise the pool; ``fresh`` is the inner task,
    on which that does not help. A shift of the inner task leaves the pool alone unless it says how weights are drawn.

    Args:
        task: the linear task whose law the pool's weights are drawn from.
        n_tasks: size of the pool.
        pool_seed: which pool.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, TaskPool
        >>> task = TaskPool(task=LinearRegression(n_dims=4, noise_std=0.5), n_tasks=2)
        >>> prompt = task.sample(100, n_points=5, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> len(prompt.w.unique(dim=0)), type(task.fresh()).__name__
        (2, 'LinearRegression')
    """

    n_dims: int = field(init=False)
    if TYPE_CHECKING:
        task: LinearTask
    else:
        task: Law  # any, so that the command line lets us say what is wrong with one that is not linear
    n_tasks: int
    pool_seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.task, LinearTask):
            raise InputError(f"task is {type(self.task).__name__}, but a pool holds the weights of a linear task.")
        check_at_least(1, n_tasks=self.n_tasks)
        check_between(0, MOST_SEED, pool_seed=self.pool_seed)
        check_memory(f"a pool whose n_tasks is {self.n_tasks:,}", self.n_tasks * self.task.n_dims)
        object.__setattr__(self, "n_dims", self.task.n_dims)

    @cached_property
    def weights(self) -> Constant:
        """The ``pool``, wherever it is needed."""
        return Constant(self.task.sample_weights(self.n_tasks, torch.Generator().manual_seed(self.pool_seed)))

    @property
    def pool(self) -> Float[Tensor, "tasks dims"]:
        """The weights that prompts take theirs from, on the CPU."""
        return self.weights.value

    @property
    def ridge_alpha(self) -> float | None:
        return self.task.ridge_alpha

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        return self.task.covariance

    @property
    def posterior_terms(self) -> int | None:
        """Tasks of the pool, times noise levels; None where the noise is not Gaussian."""
        return None if self.task.noise != "gaussian" else self.n_tasks * len(self.task.noise_levels)

    def posterior(self, m: Moments) -> Posterior:
        """The posterior mean under the pool (dMMSE)."""
        if self.posterior_terms is None:
            return super().posterior(m)
        by_level = [pool_posterior(m, self.weights.like(m.gram), std) for std in self.task.noise_levels]
        return mixed(by_level, [1.0] * len(by_level))

    def fresh(self) -> LinearTask:
        """The inner task."""
        return self.task

    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt:
        x = self.task.sample_inputs(batch_size, n_points, n_queries, generator)
        f, w = self.sample_targets(x, generator)
        return split_prompt(x, self.task.sample_labels(f, generator), f, w, n_points)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Take w from the pool for each prompt; return <w, x> and w."""
        w = self.weights.like(x)[torch.randint(self.n_tasks, (len(x),), generator=generator, device=x.device)]
        return torch.einsum("bpd,bd->bp", x, w), w

    def truncated(self, n_dims: int) -> Law:
        """Refused."""
        raise InputError(f"the tasks of a pool have all {self.n_dims} dimensions; they cannot be cut to {n_dims}.")
