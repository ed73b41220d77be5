"""References that know how many weights are non-zero."""

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.references.iterative import Descent, IterativeReference, PathOfRows, Steps
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    Fit,
    Reference,
    SearchedReference,
    Setting,
    constant,
    given,
    span,
)
from lightning_icl.functional.tasks import Law


def support_size(task: Law) -> int | None:
    """The number of non-zero weights under the task's law, where it has one."""
    size = getattr(task, "support_size", None)
    return None if size is None else int(size)


def law_sparsity(task: Law, asked_for: int | None, name: str) -> int:
    """The number of non-zero weights: as given, or that of the task's law."""
    sparsity = support_size(task) if asked_for is None else asked_for
    if sparsity is None:
        raise InputError(f"{name} needs a sparsity: {type(task).__name__} implies none, so set its option sparsity.")
    if not 1 <= sparsity <= task.n_dims:
        raise InputError(
            f"sparsity of {name} is {sparsity}, but it must lie between 1 and n_dims, which is {task.n_dims}."
        )
    return sparsity


class SubsetReference(SearchedReference):
    """Least squares on a number of features that it chooses."""

    setting_names = ("features",)

    def __init__(self, sparsity: int | None = None) -> None:
        self.sparsity = sparsity

    @property
    def key(self) -> str:
        return self.name if self.sparsity is None else f"{self.name}_{self.sparsity}"

    def label(self, same: Sequence[Reference] = ()) -> str:
        settings = self.settings(same)
        size = "s" if settings is None else span(settings[0])
        return f"{self.name.replace('_', ' ')}, {size} {'feature' if size == '1' else 'features'}"

    def check(self, case: Case) -> None:
        law_sparsity(case.task, self.sparsity, type(self).__name__)

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        return constant([law_sparsity(case.task, self.sparsity, type(self).__name__)], tuning)


class BestSubset(SubsetReference):
    """Least squares on the support of the given size that fits best, of all there are.

    Args:
        sparsity: size of the support; left out, the law's.
    """

    name = "best_subset"

    def check(self, case: Case) -> None:
        super().check(case)
        size = law_sparsity(case.task, self.sparsity, "BestSubset")
        refuse_above_limit(comb(case.task.n_dims, size), f"supports of {size} among {case.task.n_dims} features")

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        return problems.by_size(estimators.best_subset(problems.moments, int(setting[0, 0])))


class OrthogonalMatchingPursuit(SubsetReference):
    """Least squares on features added one at a time, each the most correlated with the residual.

    Args:
        sparsity: how many features; left out, the law's, and tuned where the law has none.
    """

    name = "orthogonal_matching_pursuit"

    def check(self, case: Case) -> None:
        if not self._is_tuned(case.task):
            super().check(case)

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        if self._is_tuned(case.task):
            return constant(range(case.task.n_dims + 1), tuning)
        return super().candidates(case, tuning)

    def _is_tuned(self, task: Law) -> bool:
        return self.sparsity is None and support_size(task) is None

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        n_features = setting[0].long()
        path = problems.by_size(estimators.orthogonal_matching_pursuit(problems.moments, int(n_features.max())))
        return path[n_features, :, torch.arange(len(n_features), device=path.device)].transpose(0, 1)


class IterativeHardThresholding(IterativeReference):
    """Gradient descent that keeps the s largest weights after each step (Blumensath & Davies 2009), steps 1/lambda_max.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        sparsity: how many weights are kept; left out, the law's.
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "iterative_hard_thresholding", "iterative hard thresholding"

    def __init__(self, steps: Steps = "best", sparsity: int | None = None, max_steps: int = 100) -> None:
        super().__init__(steps, max_steps)
        self.sparsity = sparsity
        if sparsity is not None:
            self.title = f"{self.title} to {sparsity}"
        self._kept = 0

    def check(self, case: Case) -> None:
        law_sparsity(case.task, self.sparsity, "IterativeHardThresholding")

    @property
    def key(self) -> str:
        return super().key + given("sparsity", self.sparsity, None)

    def settle(self, case: Case, tuning: Problems) -> None:
        self._kept = law_sparsity(case.task, self.sparsity, "IterativeHardThresholding")
        super().settle(case, tuning)

    def others(self, case: Case, tuning: Problems) -> Candidates:
        return tuning.x.new_zeros(1, 0, len(tuning.sizes))

    def path(self, descent: Descent, n_steps: int, parameters: list[Tensor]) -> PathOfRows:
        return estimators.iterative_hard_thresholding_path(descent.problems, self._kept, n_steps, descent.unit_step)

    def in_words(self, setting: Setting) -> str:
        return " of 1/λmax"
