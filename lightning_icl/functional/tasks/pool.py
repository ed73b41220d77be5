"""A finite pool of training tasks."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import Moments, Posterior, mixed, pool_posterior
from lightning_icl.functional.tasks.constant import Constant
from lightning_icl.functional.tasks.linear import LinearTask
from lightning_icl.functional.tasks.task import Task


class TaskPool(Task):
    """Each prompt takes its weights from a pool of ``n_tasks`` drawn once from a linear task (Raventos et al. 2023).

    Uniformly and with replacement, so that prompts stay independent. Features and noise are the inner task's. With few
    tasks a model can memorise the pool; ``fresh`` is the inner task, on which that does not help.

    Args:
        task: the linear task whose law the pool's weights are drawn from.
        n_tasks: size of the pool.
        pool_seed: which pool.
    """

    def __init__(self, task: Task, n_tasks: int, pool_seed: int = 0) -> None:
        if not isinstance(task, LinearTask):
            raise InputError(f"task is {type(task).__name__}, but a pool holds the weights of a linear task.")
        if n_tasks < 1:
            raise InputError(f"n_tasks is {n_tasks}, but it must be at least 1.")
        self.n_dims = task.n_dims
        self.task = task
        self.n_tasks = n_tasks
        self.pool_seed = pool_seed
        self._pool = Constant(task.sample_weights(n_tasks, torch.Generator().manual_seed(pool_seed)))

    @property
    def pool(self) -> Float[Tensor, "tasks dims"]:
        """The weights that prompts take theirs from, on the CPU."""
        return self._pool.value

    @property
    def ridge_alpha(self) -> float | None:
        """That of the law behind the pool."""
        return self.task.ridge_alpha

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """That of the law behind the pool."""
        return self.task.covariance

    @property
    def posterior_terms(self) -> int | None:
        """Tasks of the pool, times noise levels; None where the noise is not Gaussian."""
        return None if self.task.noise != "gaussian" else self.n_tasks * len(self.task.noise_levels)

    def posterior(self, m: Moments) -> Posterior:
        """The posterior mean under the pool (dMMSE)."""
        if self.posterior_terms is None:
            return super().posterior(m)
        by_level = [pool_posterior(m, self._pool.like(m.gram), std) for std in self.task.noise_levels]
        return mixed(by_level, [1.0] * len(by_level))

    def fresh(self) -> Task:
        """The inner task."""
        return self.task

    def sample_targets(
        self, x: Float[Tensor, "batch points dims"], generator: Generator
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch dims"]]:
        """Take w from the pool for each prompt; return <w, x> and w."""
        w = self._pool.like(x)[torch.randint(self.n_tasks, (len(x),), generator=generator, device=x.device)]
        return torch.einsum("bpd,bd->bp", x, w), w

    def sample_inputs(
        self, batch_size: int, n_points: int, n_queries: int, generator: Generator
    ) -> Float[Tensor, "batch points dims"]:
        return self.task.sample_inputs(batch_size, n_points, n_queries, generator)

    def sample_features(
        self, batch_size: int, n_points: int, generator: Generator
    ) -> Float[Tensor, "batch points dims"]:
        return self.task.sample_features(batch_size, n_points, generator)

    def sample_labels(self, f: Float[Tensor, "batch points"], generator: Generator) -> Float[Tensor, "batch points"]:
        return self.task.sample_labels(f, generator)

    def options(self) -> set[str]:
        return self.option_names() | self.task.options()

    def rebuilt(self, **changes: Any) -> "TaskPool":
        """Options that the pool does not have are the inner task's; they leave its weights alone unless they say how
        weights are drawn."""
        inner = {name: changes.pop(name) for name in changes.keys() - self.option_names()}
        task = changes.pop("task", self.task)
        return super().rebuilt(task=task.rebuilt(**inner), **changes)

    def truncated(self, n_dims: int) -> Task:
        """Refused."""
        raise InputError(f"the tasks of a pool have all {self.n_dims} dimensions; they cannot be cut to {n_dims}.")
