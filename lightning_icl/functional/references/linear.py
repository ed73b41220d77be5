"""References with a closed form, or solved to a certificate."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    Fit,
    LinearReference,
    Reference,
    SearchedReference,
    Setting,
    constant,
    given,
    span,
    strengths,
)
from lightning_icl.functional.tasks import Law


class ZeroPredictor(LinearReference):
    """Predicts 0: its excess risk is the variance of the target."""

    name = "zero"

    def label(self, same: Sequence[Reference] = ()) -> str:
        return "zero predictor"

    def weights(self, problems: Problems) -> Fit:
        return torch.zeros_like(problems.by_size(problems.moments.moment))


class Averaging(LinearReference):
    """w_hat = X^T y / n (Garg et al. 2022)."""

    name = "averaging"

    def label(self, same: Sequence[Reference] = ()) -> str:
        return "averaging, X'y/n"

    def weights(self, problems: Problems) -> Fit:
        return problems.by_size(problems.moments.moment)


class LeastSquares(LinearReference):
    """Least squares of minimum norm."""

    name = "least_squares"

    def label(self, same: Sequence[Reference] = ()) -> str:
        return "least squares"

    def weights(self, problems: Problems) -> Fit:
        return least_squares_by_size(problems.x, problems)


class OracleLeastSquares(LinearReference):
    """Least squares on the true support of w, which it is told."""

    name = "oracle_support"

    def label(self, same: Sequence[Reference] = ()) -> str:
        return "least squares on the true support (oracle)"

    def check(self, case: Case) -> None:
        if not has_weights(case.task):
            law = type(case.task).__name__
            raise InputError(f"OracleLeastSquares needs a task with weights, which {law} has not: leave it out.")

    def weights(self, problems: Problems) -> Fit:
        assert problems.w is not None, "this task has no weights"
        return least_squares_by_size(problems.x * (problems.w != 0)[:, None], problems)


def has_weights(task: Law) -> bool:
    """Whether its prompts tell the weights behind them."""
    return task.sample(1, 1, 1, torch.Generator().manual_seed(0)).w is not None


def least_squares_by_size(x: Tensor, problems: Problems) -> Fit:
    """Least squares on ``x``, the problems' examples or some of their features, without squaring its condition."""
    if len(problems.sizes) == 1:
        return estimators.least_squares(x, problems.y)[:, None]
    return estimators.least_squares_prefixes(x, problems.y)


class PenalisedReference(SearchedReference):
    """One with a strength alpha, for each number of examples."""

    title: str
    setting_names = ("alpha",)

    def __init__(self, alpha: float | None = None) -> None:
        if alpha is not None and not 0 < alpha < float("inf"):
            raise InputError(f"alpha is {alpha}, but the strength of {type(self).__name__} must be a number above 0.")
        self.alpha = alpha
        self.origin = "given" if alpha is not None else "tuned"

    @property
    def key(self) -> str:
        return self.name if self.alpha is None else f"{self.name}_{self.alpha:g}"

    def label(self, same: Sequence[Reference] = ()) -> str:
        settings = self.settings(same)
        return self.title if settings is None else f"{self.title}, alpha {span(settings[0])} ({self.origin})"

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        if self.alpha is not None:
            return constant([self.alpha], tuning)
        return strengths(tuning)


class Ridge(PenalisedReference):
    """Minimises ||y - X w||^2 + alpha ||w||^2.

    Args:
        alpha: its strength; left out, sigma^2 / Var(w_j) where the task's law implies it, else tuned.
    """

    name, title = "ridge", "ridge"

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        if self.alpha is None and case.task.ridge_alpha is not None:
            return constant([case.task.ridge_alpha], tuning)
        # strengths() are of penalties beside a mean of squares; ridge's stands beside their sum.
        return super().candidates(case, tuning) * (1 if self.alpha is not None else tuning.sizes)

    def settle(self, case: Case, tuning: Problems) -> None:
        super().settle(case, tuning)
        if self.alpha is None and case.task.ridge_alpha is not None:
            self.origin = "from the law"

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        if not setting.any():  # noise-free, by its law
            return least_squares_by_size(problems.x, problems)
        return problems.by_size(estimators.ridge(problems.moments, problems.per_row(setting[0])))


class Lasso(PenalisedReference):
    """Minimises (1/2n) ||y - X w||^2 + alpha ||w||_1.

    Args:
        alpha: its strength; tuned if left out.
    """

    name, title = "lasso", "lasso"

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        return problems.by_size(estimators.lasso(problems.moments, problems.per_row(setting[0])))

    def fits(self, problems: Problems, candidates: Candidates) -> Iterator[Fit]:
        """One path of solutions serves all strengths."""
        alphas = torch.stack([problems.per_row(candidate[0]) for candidate in candidates])
        yield from problems.by_size(estimators.lasso_path_fit(problems.moments, alphas, relative_gap=1e-6).w)


class ElasticNet(PenalisedReference):
    """Minimises (1/2n) ||y - X w||^2 + alpha l1_ratio ||w||_1 + alpha (1 - l1_ratio)/2 ||w||^2 (scikit-learn's).

    Args:
        alpha: its strength; tuned if left out.
        l1_ratio: the lasso's part of the penalty.
    """

    name = "elastic_net"

    def __init__(self, alpha: float | None = None, l1_ratio: float = 0.5) -> None:
        super().__init__(alpha)
        if not 0 < l1_ratio <= 1:
            raise InputError(f"l1_ratio is {l1_ratio}, but it must lie above 0 and be at most 1; for 0 take Ridge.")
        self.l1_ratio = l1_ratio
        self.title = f"elastic net ({l1_ratio:g} of it lasso)"

    @property
    def key(self) -> str:
        return super().key + given("l1_ratio", self.l1_ratio, 0.5)

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        alpha = problems.per_row(setting[0])
        return problems.by_size(estimators.elastic_net(problems.moments, alpha, self.l1_ratio))


class AdaptiveLasso(PenalisedReference):
    """The lasso with penalty weights 1 / |w_pilot|^gamma, the pilot being ridge (Zou 2006).

    Args:
        alpha: its strength; tuned if left out.
        gamma: the power of the pilot's weights.
        pilot_alpha: the pilot's strength, in ridge's units.
    """

    name, title = "adaptive_lasso", "adaptive lasso"

    def __init__(self, alpha: float | None = None, gamma: float = 1.0, pilot_alpha: float = 1.0) -> None:
        super().__init__(alpha)
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma is {gamma}, but it must be a finite number above 0; for 0 take Lasso.")
        if not 0 <= pilot_alpha < float("inf"):
            raise InputError(f"pilot_alpha is {pilot_alpha}, but it must be a finite number that is 0 or larger.")
        self.gamma, self.pilot_alpha = gamma, pilot_alpha
        if gamma != 1:
            self.title = f"adaptive lasso (gamma {gamma:g})"

    @property
    def key(self) -> str:
        return super().key + given("gamma", self.gamma, 1.0) + given("pilot_alpha", self.pilot_alpha, 1.0)

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        alpha = problems.per_row(setting[0])
        fitted = estimators.adaptive_lasso(problems.moments, alpha, self.gamma, self.pilot_alpha)
        return problems.by_size(fitted)
