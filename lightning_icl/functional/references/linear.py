"""References with a closed form, or solved to a certificate; those that know the law; and the nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError, check_at_least, check_not_negative, check_positive
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    Fit,
    Fits,
    LinearReference,
    Reference,
    Settings,
    Solver,
    on_paths,
    one_by_one,
    strengths,
    whatever_the_settings,
)
from lightning_icl.functional.tasks import Law, TaskPool

__all__ = [
    "AdaptiveLasso", "Averaging", "Bayes", "BestSubset", "ElasticNet", "Lasso", "LeastSquares", "NearestNeighbours",
    "OracleLeastSquares", "OrthogonalMatchingPursuit", "Penalised", "PoolPosterior", "Ridge", "ZeroPredictor",
    "has_weights",
]  # fmt: skip


class ZeroPredictor(LinearReference):
    """Predicts 0: its excess risk is the variance of the target.

    Example:
        >>> from lightning_icl.functional.references import ZeroPredictor
        >>> ZeroPredictor().key
        'zero'
    """

    name, in_words = "zero", "zero predictor"

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(problems.x.new_zeros(*problems.f.shape[:2], problems.x.shape[2]))


class Averaging(LinearReference):
    """w_hat = X^T y / n: least squares if X^T X / n were the identity (Garg et al. 2022).

    Example:
        >>> from lightning_icl.functional.references import Averaging
        >>> Averaging().key
        'averaging'
    """

    name, in_words = "averaging", "averaging, X'y/n"

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(problems.by_size(estimators.averaging(problems.moments)))


class LeastSquares(LinearReference):
    """Minimises ||y - X w||^2; of several minimisers the one of smallest norm.

    Example:
        >>> from lightning_icl.functional.references import LeastSquares
        >>> LeastSquares().key
        'least_squares'
    """

    name, in_words = "least_squares", "least squares"

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(least_squares(problems))


class OracleLeastSquares(LinearReference):
    """Minimises ||y - X w||^2 over w on the true support, which it is told: an oracle.

    Example:
        >>> from lightning_icl.functional.references import OracleLeastSquares
        >>> OracleLeastSquares().key
        'oracle_support'
    """

    name, in_words = "oracle_support", "least squares on the true support (oracle)"

    def check(self, case: Case) -> None:
        if not has_weights(case.task):
            law = type(case.task).__name__
            raise InputError(f"OracleLeastSquares needs a task with weights, which {law} has not: leave it out.")

    def solver(self, problems: Problems) -> Solver:
        assert problems.w is not None, "this task has no weights"
        x, y, support = problems.x, problems.y, problems.w != 0
        if len(problems.sizes) == 1:
            return whatever_the_settings(estimators.oracle_least_squares(x, y, support)[:, None])
        return whatever_the_settings(estimators.oracle_least_squares_prefixes(x, y, support))


def has_weights(task: Law) -> bool:
    """Whether its prompts tell the weights behind them.

    Example:
        >>> from lightning_icl import DecisionTree, LinearRegression
        >>> from lightning_icl.functional.references import has_weights
        >>> has_weights(LinearRegression(n_dims=3)), has_weights(DecisionTree(n_dims=3))
        (True, False)
    """
    return task.sample(1, 1, 1, torch.Generator().manual_seed(0)).w is not None


def least_squares(problems: Problems) -> Fit:
    """From the examples themselves, which does not square their condition as the moments would."""
    if len(problems.sizes) == 1:
        return estimators.least_squares(problems.x, problems.y)[:, None]
    return estimators.least_squares_prefixes(problems.x, problems.y)


@dataclass(frozen=True)
class Penalised(LinearReference):
    """One with a strength, for each number of examples.

    Args:
        alpha: its strength; tuned if left out.
    """

    alpha: float | None = None
    main, setting_names = "alpha", ("alpha",)

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_positive(alpha=self.alpha)

    @property
    def origin(self) -> str:
        """Where the strength comes from, for the label."""
        return "tuned" if self.alpha is None else "given"

    def label(self, same: Sequence[Reference] = ()) -> str:
        known = self.settings_in_words(same)
        others = "".join(f", {name} {words}" for name, words in known.items() if name != "alpha")
        return f"{self.title}, alpha {known['alpha']} ({self.origin}){others}" if known else self.title

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        if name != "alpha":
            return super().candidates(name, tuning)
        return strengths(tuning) if self.alpha is None else [self.alpha]


class Ridge(Penalised):
    """Minimises ||y - X w||^2 + alpha ||w||^2.

    Args:
        alpha: its strength; left out, sigma^2 / Var(w_j) where the task's law implies it, else tuned.

    Example:
        >>> from lightning_icl.functional.references import Ridge
        >>> Ridge().key, Ridge(alpha=0.5).key
        ('ridge', 'ridge_0.5')
    """

    name, in_words = "ridge", "ridge"

    @property
    def origin(self) -> str:
        if self.alpha is None and self.case.task.ridge_alpha is not None:
            return "from the law"
        return super().origin

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        if name != "alpha":
            return super().candidates(name, tuning)
        known = self.case.task.ridge_alpha if self.alpha is None else self.alpha
        # strengths() are of penalties beside a mean of squares; ridge's stands beside their sum.
        return strengths(tuning) * tuning.sizes if known is None else [known]

    def solver(self, problems: Problems) -> Solver:
        if self.origin == "from the law" and self.case.task.ridge_alpha == 0:
            return whatever_the_settings(least_squares(problems))
        return one_by_one(problems, lambda alpha: estimators.ridge(problems.moments, alpha))


class Lasso(Penalised):
    """Minimises (1/2n) ||y - X w||^2 + alpha ||w||_1.

    Example:
        >>> from lightning_icl.functional.references import Lasso
        >>> Lasso(alpha=0.1).key, Lasso().key
        ('lasso_0.1', 'lasso')
    """

    name, in_words = "lasso", "lasso"

    def solver(self, problems: Problems) -> Solver:
        def weights(settings: Settings) -> Fits:
            gap = 1e-8 if len(settings) == 1 else 1e-6  # of several, only the best is of interest
            fit = estimators.lasso_path_fit(problems.moments, problems.per_row(settings[:, 0]), relative_gap=gap)
            return problems.by_size(fit.w)

        return weights


@dataclass(frozen=True)
class ElasticNet(Penalised):
    """Minimises (1/2n) ||y - X w||^2 + alpha l1_ratio ||w||_1 + alpha (1 - l1_ratio)/2 ||w||^2 (scikit-learn's).

    Args:
        l1_ratio: the lasso's part of the penalty.

    Example:
        >>> from lightning_icl.functional.references import ElasticNet
        >>> ElasticNet(l1_ratio=0.8).key
        'elastic_net_l1_ratio_0.8'
    """

    l1_ratio: float = 0.5
    name, in_words = "elastic_net", "elastic net ({l1_ratio:g} of it lasso)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(l1_ratio=self.l1_ratio)
        if not 0 < (ratio := self.l1_ratio) <= 1:
            raise InputError(f"l1_ratio is {ratio}, but it must lie above 0 and be at most 1; for 0 take Ridge.")

    def solver(self, problems: Problems) -> Solver:
        m, ratio = problems.moments, self.l1_ratio
        return one_by_one(problems, lambda alpha: estimators.elastic_net(m, alpha, ratio))


@dataclass(frozen=True)
class AdaptiveLasso(Penalised):
    """Minimises (1/2n) ||y - X w||^2 + alpha sum_j |w_j| / |p_j|^gamma, the pilot p being ridge (Zou 2006).

    Args:
        gamma: the power of the pilot's weights.
        pilot_alpha: the pilot's strength, in ridge's units; above 0, as prompts may have fewer examples than
            dimensions.

    Example:
        >>> from lightning_icl.functional.references import AdaptiveLasso
        >>> AdaptiveLasso(gamma=2.0).key
        'adaptive_lasso_gamma_2'
    """

    gamma: float = 1.0
    pilot_alpha: float = 1.0
    name, in_words = "adaptive_lasso", "adaptive lasso"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(gamma=self.gamma, pilot_alpha=self.pilot_alpha)

    @property
    def title(self) -> str:
        return super().title + ("" if self.gamma == 1 else f" (gamma {self.gamma:g})")

    def solver(self, problems: Problems) -> Solver:
        m, power, pilot = problems.moments, self.gamma, self.pilot_alpha
        return one_by_one(problems, lambda alpha: estimators.adaptive_lasso(m, alpha, power, pilot))


def law_sparsity(task: Law, asked_for: int | None, name: str) -> int:
    """The number of non-zero weights: as given, or that of the task's law, where it has one."""
    sparsity: int | None = getattr(task, "support_size", None) if asked_for is None else asked_for
    if sparsity is None:
        raise InputError(f"{name} needs a sparsity: {type(task).__name__} implies none, so set its option sparsity.")
    check_at_least(1, sparsity=sparsity)
    if sparsity > task.n_dims:
        raise InputError(
            f"sparsity of {name} is {sparsity}, but it must lie between 1 and n_dims, which is {task.n_dims}."
        )
    return sparsity


@dataclass(frozen=True)
class Subset(LinearReference):
    """Least squares on features that it chooses.

    Args:
        sparsity: how many; left out, the law's.
    """

    sparsity: int | None = None
    main, setting_names = "sparsity", ("features",)

    def label(self, same: Sequence[Reference] = ()) -> str:
        size = self.settings_in_words(same).get("features", "s")
        return f"{self.title}, {size} {'feature' if size == '1' else 'features'}"

    def check(self, case: Case) -> None:
        law_sparsity(case.task, self.sparsity, type(self).__name__)

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        return [law_sparsity(self.case.task, self.sparsity, type(self).__name__)]


class BestSubset(Subset):
    """Minimises ||y - X w||^2 over all w with ``sparsity`` non-zeros, by trying every support.

    Example:
        >>> from lightning_icl.functional.references import BestSubset
        >>> BestSubset(sparsity=3).key, BestSubset().key
        ('best_subset_3', 'best_subset')
    """

    name, in_words = "best_subset", "best subset"

    def check(self, case: Case) -> None:
        size = law_sparsity(case.task, self.sparsity, "BestSubset")
        refuse_above_limit(comb(case.task.n_dims, size), f"supports of {size} among {case.task.n_dims} features")

    def solver(self, problems: Problems) -> Solver:
        size = law_sparsity(self.case.task, self.sparsity, "BestSubset")
        return whatever_the_settings(problems.by_size(estimators.best_subset(problems.moments, size)))


class OrthogonalMatchingPursuit(Subset):
    """Least squares on features added one at a time, each that with the largest |<x_j, residual>|.

    Args:
        sparsity: how many features; left out, the law's, and tuned where the law has none.

    Example:
        >>> from lightning_icl.functional.references import OrthogonalMatchingPursuit
        >>> OrthogonalMatchingPursuit(sparsity=3).key
        'orthogonal_matching_pursuit_3'
    """

    name, in_words = "orthogonal_matching_pursuit", "orthogonal matching pursuit"

    def check(self, case: Case) -> None:
        if self.sparsity is not None or hasattr(case.task, "support_size"):
            super().check(case)

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        task = self.case.task
        if self.sparsity is None and not hasattr(task, "support_size"):
            return range(task.n_dims + 1)
        return super().candidates(name, tuning)

    def solver(self, problems: Problems) -> Solver:
        return on_paths(problems, lambda most: estimators.orthogonal_matching_pursuit(problems.moments, most))


class Bayes(LinearReference):
    """E[w | X, y] under the law of the evaluated prompts, exactly: no predictor has a lower expected risk.

    The average over the law's hypotheses (supports, signs, noise levels) of each one's posterior mean, weighted by its
    evidence p(y | X).

    Example:
        >>> from lightning_icl.functional.references import Bayes
        >>> Bayes().key
        'bayes'
    """

    name, in_words = "bayes", "Bayes (exact posterior mean)"

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
    """E[w | X, y] under the finite pool of tasks the model was trained on (dMMSE; Raventos et al. 2023).

    sum_k w_k p(y | X, w_k) / sum_k p(y | X, w_k) over the tasks w_k of the pool.

    Example:
        >>> from lightning_icl.functional.references import PoolPosterior
        >>> PoolPosterior().key
        'pool_posterior'
    """

    name, in_words = "pool_posterior", "posterior mean of the training pool (dMMSE)"

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

    Example:
        >>> from lightning_icl.functional.references import NearestNeighbours
        >>> NearestNeighbours(k=5).key
        'nearest_neighbours_5'
    """

    k: int = 3
    name, in_words, main = "nearest_neighbours", "{k} nearest neighbours", "k"

    def __post_init__(self) -> None:
        check_at_least(1, k=self.k)

    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        x, y, k = problems.x, problems.y, self.k
        if len(problems.sizes) == 1:
            return estimators.nearest_neighbours(x, y, problems.targets[:, 0], k, problems.point_mask)[:, None]
        # Those of no examples are not asked for.
        after = [torch.cat([at[:, :1], at], dim=1) for at in problems.targets.unbind(2)]
        return torch.stack([estimators.nearest_neighbours_prefixes(x, y, at, k)[:, 1:] for at in after], dim=2)
