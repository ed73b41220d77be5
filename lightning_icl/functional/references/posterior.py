"""References that know the law: posterior means, and the one that only looks at neighbours and knows nothing."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import Case, Fit, LinearReference, Reference, in_parts
from lightning_icl.functional.tasks import Law, TaskPool


class Bayes(LinearReference):
    """The exact posterior mean of w under the law of the evaluated prompts: no predictor has a lower expected risk."""

    name = "bayes"
    _task: Law | None = None

    def label(self, same: Sequence[Reference] = ()) -> str:
        return "Bayes (exact posterior mean)"

    def check(self, case: Case) -> None:
        if case.task.posterior_terms is None:
            raise InputError(
                f"Bayes needs an exact posterior, which this {type(case.task).__name__} has not in closed form: "
                "leave it out, or take Ridge or Lasso."
            )
        hypotheses = f"hypotheses behind the posterior of this {type(case.task).__name__}"
        refuse_above_limit(case.task.posterior_terms, hypotheses)

    def settle(self, case: Case, tuning: Problems) -> None:
        self._task = case.task

    def weights(self, problems: Problems) -> Fit:
        assert self._task is not None, "settle a reference before asking for its weights"
        return problems.by_size(self._task.posterior(problems.moments).mean)


class PoolPosterior(LinearReference):
    """The posterior mean under the finite pool of tasks that the model was trained on (dMMSE; Raventos et al. 2023)."""

    name = "pool_posterior"
    _pool: TaskPool | None = None

    def label(self, same: Sequence[Reference] = ()) -> str:
        return "posterior mean of the training pool (dMMSE)"

    def check(self, case: Case) -> None:
        if not isinstance(case.trained_on, TaskPool):
            law = type(case.trained_on).__name__
            raise InputError(f"PoolPosterior needs a model trained on a TaskPool, but data.task is a {law}.")

    def settle(self, case: Case, tuning: Problems) -> None:
        assert isinstance(case.trained_on, TaskPool)
        self._pool = case.trained_on

    def weights(self, problems: Problems) -> Fit:
        assert self._pool is not None, "settle a reference before asking for its weights"
        return problems.by_size(self._pool.posterior(problems.moments).mean)


class NearestNeighbours(Reference):
    """Mean label of the k nearest examples (Garg et al. 2022).

    Args:
        k: how many; all of them where there are fewer.
    """

    name = "nearest_neighbours"

    def __init__(self, k: int = 3) -> None:
        if k < 1:
            raise InputError(f"k is {k}, but there must be at least 1 neighbour.")
        self.k = k

    @property
    def key(self) -> str:
        return f"{self.name}_{self.k}"

    def label(self, same: Sequence[Reference] = ()) -> str:
        return f"{self.k} nearest neighbours"

    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        return torch.cat([self._predictions(part) for part in in_parts(problems)])

    def _predictions(self, part: Problems) -> Float[Tensor, "batch sizes queries"]:
        by_size = [
            estimators.nearest_neighbours(part.x[:, :n], part.y[:, :n], part.targets[:, i], self.k)
            for i, n in enumerate(part.sizes.tolist())
        ]
        return torch.stack(by_size, dim=1)
