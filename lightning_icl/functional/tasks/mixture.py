"""A mixture of tasks."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import Moments, Posterior, mixed
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks.law import Inputs, Law, Targets


@dataclass(frozen=True)
class Mixture(Law):
    """Each prompt is drawn from one of several tasks.

    Every task draws a whole batch, of which each prompt keeps one: shapes stay static and nothing waits for the device,
    at the price of sampling as many times as there are tasks. Prompts carry w only if each task's do.

    Its posterior is exact where each part has one and the x of all parts are of one law, so that p(X) cancels.
    ``ridge_alpha`` is left to be tuned.

    Args:
        tasks: the tasks, of equal n_dims.
        weights: how likely each is, up to a common factor; none means equally.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Mixture, SparseLinearRegression
        >>> task = Mixture(tasks=[SparseLinearRegression(n_dims=8, sparsity=1), LinearRegression(n_dims=8)])
        >>> prompt = task.sample(100, n_points=5, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> (prompt.w != 0).sum(dim=1).unique()  # numbers of non-zero weights
        tensor([1, 8])
    """

    n_dims: int = field(init=False)
    tasks: Sequence[Law]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError("tasks is [], but a mixture needs at least one task.")
        dims = [task.n_dims for task in self.tasks]
        if len(set(dims)) > 1:
            raise InputError(f"tasks have n_dims {dims}, but the tasks of a mixture need the same.")
        weights = [1.0] * len(self.tasks) if self.weights is None else list(self.weights)
        if len(weights) != len(self.tasks):
            raise InputError(f"weights lists {len(weights)} numbers, but there are {len(self.tasks)} tasks.")
        if not all(0 <= weight < float("inf") for weight in weights) or sum(weights) == 0:
            raise InputError(f"weights is {weights}, but they must be finite, 0 or larger, and not all 0.")
        object.__setattr__(self, "n_dims", dims[0])
        object.__setattr__(self, "tasks", list(self.tasks))

    def __repr__(self) -> str:
        """With the weights that sum to 1, however they were given."""
        return f"{type(self).__name__}(n_dims={self.n_dims}, tasks={self.tasks}, weights={self.shares})"

    @property
    def shares(self) -> list[float]:
        """How likely each task is: the weights over their sum."""
        weights = [1.0] * len(self.tasks) if self.weights is None else self.weights
        return [weight / sum(weights) for weight in weights]

    @property
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """That of all its tasks, if it is the same."""
        first, *others = (task.covariance for task in self.tasks)
        all_equal = first is not None and all(other is not None and torch.allclose(first, other) for other in others)
        return first if all_equal else None

    @cached_property
    def parts(self) -> list[tuple[Law, float]]:
        """The laws that a prompt can be of and how likely each is; of a mixture inside, its own parts."""
        drawn = [(task, share) for task, share in zip(self.tasks, self.shares, strict=True) if share > 0]
        inner = [(task.parts if isinstance(task, Mixture) else [(task, 1.0)], share) for task, share in drawn]
        return [(part, share * of_inner) for parts, share in inner for part, of_inner in parts]

    @cached_property
    def one_law_of_x(self) -> bool:
        """Whether x does not tell its parts apart, told by drawing: one seed gives all of them the same x."""
        prompts = [part.sample(2, 4, 2, torch.Generator().manual_seed(0)) for part, _ in self.parts]
        x = [torch.cat([prompt.x, prompt.x_query], dim=1) for prompt in prompts]
        return all(torch.equal(x[0], other) for other in x)

    @property
    def posterior_terms(self) -> int | None:
        """The sum of its parts'; None where one has none, or where x tells them apart."""
        terms = [part.posterior_terms for part, _ in self.parts]
        known = [n for n in terms if n is not None]
        return sum(known) if len(known) == len(terms) and self.one_law_of_x else None

    def posterior(self, m: Moments) -> Posterior:
        """E[w | X, y]: the parts' posterior means, weighted by how likely each part is times its evidence p(y | X)."""
        if not self.one_law_of_x:
            raise InputError(
                f"{self!r} has no exact posterior in closed form, as x alone may tell its tasks apart: use the lasso "
                "or ridge instead."
            )
        if self.posterior_terms is None:
            return super().posterior(m)
        refuse_above_limit(self.posterior_terms, "hypotheses behind the posterior of this law")
        return mixed([part.posterior(m) for part, _ in self.parts], [share for _, share in self.parts])

    def fresh(self) -> Law:
        """The mixture of the tasks' fresh laws."""
        fresh = [task.fresh() for task in self.tasks]
        return self if all(map(operator.is_, fresh, self.tasks)) else replace(self, tasks=fresh)

    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt:
        choice = self._sample_choice(batch_size, generator)
        prompts = (task.sample(batch_size, n_points, n_queries, generator) for task in self.tasks)
        return Prompt._make(_chosen(choice, prompts))

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw a task and one of its target functions for each prompt, whatever the law of x."""
        choice = self._sample_choice(len(x), generator)
        f, w = _chosen(choice, (task.sample_targets(x, generator) for task in self.tasks))
        assert f is not None
        return f, w

    def _sample_choice(self, batch_size: int, generator: Generator) -> Tensor:
        """The index of each prompt's task, shape (batch,): into which stretch of the shares a uniform falls."""
        uniform = torch.rand(batch_size, generator=generator, device=generator.device)
        ends = accumulate(self.shares[:-1])
        return sum((uniform >= end for end in ends), torch.zeros_like(uniform, dtype=torch.long))

    def truncated(self, n_dims: int) -> Law:
        """The mixture of the truncated tasks."""
        return replace(self, tasks=[task.truncated(n_dims) for task in self.tasks])


def _chosen(choice: Tensor, draws: Iterable[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Of each prompt the tensors of the draw it chose; None where a draw has none. Holds two draws at a time."""
    chosen: list[Tensor | None] = []
    for k, draw in enumerate(draws):
        here = choice == k
        chosen = [
            None if new is None or old is None else torch.where(here.view(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(draw, chosen or draw, strict=True)
        ]
    return chosen
