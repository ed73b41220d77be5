"""References that know the law: posterior means, and the one that only looks at neighbours and knows nothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Case,
    LinearReference,
    Reference,
    Solver,
    whatever_the_settings,
)
from lightning_icl.functional.tasks import TaskPool


class Bayes(LinearReference):
    """The exact posterior mean of w under the law of the evaluated prompts: no predictor has a lower expected risk."""

    name, title = "bayes", "Bayes (exact posterior mean)"

    def check(self, case: Case) -> None:
        law = type(case.task).__name__
        if case.task.posterior_terms is None:
            raise InputError(
                f"Bayes needs an exact posterior, which this {law} has not in closed form: leave it out, or take Ridge "
                "or Lasso."
            )
        refuse_above_limit(case.task.posterior_terms, f"hypotheses behind the posterior of this {law}")

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(problems.by_size(self.case.task.posterior(problems.moments).mean))


class PoolPosterior(LinearReference):
    """The posterior mean under the finite pool of tasks that the model was trained on (dMMSE; Raventos et al. 2023)."""

    name, title = "pool_posterior", "posterior mean of the training pool (dMMSE)"

    def check(self, case: Case) -> None:
        if not isinstance(case.trained_on, TaskPool):
            law = type(case.trained_on).__name__
            raise InputError(f"PoolPosterior needs a model trained on a TaskPool, but data.task is a {law}.")

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(problems.by_size(self.case.trained_on.posterior(problems.moments).mean))


@dataclass(frozen=True)
class NearestNeighbours(Reference):
    """Mean label of the k nearest examples (Garg et al. 2022).

    Args:
        k: how many; all of them where there are fewer.
    """

    k: int = 3
    name = "nearest_neighbours"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is {self.k}, but there must be at least 1 neighbour.")

    @property
    def key(self) -> str:
        return f"{self.name}_{self.k}"

    @property
    def title(self) -> str:
        return f"{self.k} nearest neighbours"

    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        x, y, k = problems.x, problems.y, self.k
        if len(problems.sizes) == 1:
            return estimators.nearest_neighbours(x, y, problems.targets[:, 0], k, problems.point_mask)[:, None]
        # Those of no examples are not asked for.
        after = [torch.cat([at[:, :1], at], dim=1) for at in problems.targets.unbind(2)]
        return torch.stack([estimators.nearest_neighbours_prefixes(x, y, at, k)[:, 1:] for at in after], dim=2)
