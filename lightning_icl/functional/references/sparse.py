"""References that know how many weights are non-zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.references.iterative import Iterative, Steps, unit_steps
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    LinearReference,
    Reference,
    Setting,
    Solver,
    least_to_most,
    on_paths,
    unless,
    whatever_the_settings,
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


class Subset(LinearReference):
    """Least squares on a number of features that it chooses."""

    setting_names = ("features",)
    sparsity: int | None

    @property
    def title(self) -> str:
        return f"{self.name.replace('_', ' ')}, s features"

    @property
    def key(self) -> str:
        return self.name if self.sparsity is None else f"{self.name}_{self.sparsity}"

    def label(self, same: Sequence[Reference] = ()) -> str:
        if not len(setting := self.side_by_side(same)):
            return self.title
        size = least_to_most(setting[0])
        return f"{self.name.replace('_', ' ')}, {size} {'feature' if size == '1' else 'features'}"

    def check(self, case: Case) -> None:
        law_sparsity(case.task, self.sparsity, type(self).__name__)

    def candidates(self, tuning: Problems) -> list[Candidates]:
        return [[law_sparsity(self.case.task, self.sparsity, type(self).__name__)]]


@dataclass(frozen=True)
class BestSubset(Subset):
    """Least squares on the support of the given size that fits best, of all there are.

    Args:
        sparsity: size of the support; left out, the law's.
    """

    sparsity: int | None = None
    name = "best_subset"

    def check(self, case: Case) -> None:
        size = law_sparsity(case.task, self.sparsity, "BestSubset")
        refuse_above_limit(comb(case.task.n_dims, size), f"supports of {size} among {case.task.n_dims} features")

    def solver(self, problems: Problems) -> Solver:
        size = law_sparsity(self.case.task, self.sparsity, "BestSubset")
        return whatever_the_settings(problems.by_size(estimators.best_subset(problems.moments, size)))


@dataclass(frozen=True)
class OrthogonalMatchingPursuit(Subset):
    """Least squares on features added one at a time, each the most correlated with the residual.

    Args:
        sparsity: how many features; left out, the law's, and tuned where the law has none.
    """

    sparsity: int | None = None
    name = "orthogonal_matching_pursuit"

    def check(self, case: Case) -> None:
        if self.sparsity is not None or support_size(case.task) is not None:
            super().check(case)

    def candidates(self, tuning: Problems) -> list[Candidates]:
        task = self.case.task
        is_tuned = self.sparsity is None and support_size(task) is None
        return [range(task.n_dims + 1)] if is_tuned else super().candidates(tuning)

    def solver(self, problems: Problems) -> Solver:
        return on_paths(problems, lambda most: estimators.orthogonal_matching_pursuit(problems.moments, most))


@dataclass(frozen=True)
class IterativeHardThresholding(Iterative):
    """Gradient descent that keeps the s largest weights after each step (Blumensath & Davies 2009), steps 1/lambda_max.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        sparsity: how many weights are kept; left out, the law's.
        max_steps: where the search for the best number of steps ends.
    """

    steps: Steps = "best"
    sparsity: int | None = None
    max_steps: int = 100
    name, setting_names = "iterative_hard_thresholding", ("steps",)

    @property
    def title(self) -> str:
        return "iterative hard thresholding" + ("" if self.sparsity is None else f" to {self.sparsity}")

    @property
    def variant(self) -> str:
        return unless(None, "sparsity", self.sparsity)

    def check(self, case: Case) -> None:
        law_sparsity(case.task, self.sparsity, "IterativeHardThresholding")

    def candidates(self, tuning: Problems) -> list[Candidates]:
        return [self.step_counts()]

    def solver(self, problems: Problems) -> Solver:
        kept = law_sparsity(self.case.task, self.sparsity, "IterativeHardThresholding")
        m, step = problems.moments, unit_steps(problems.eigenbasis())
        return on_paths(problems, lambda n: estimators.iterative_hard_thresholding_path(m, kept, n, step))

    def words(self, setting: Setting) -> str:
        return " of 1/λmax"
