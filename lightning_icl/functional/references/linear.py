"""References with a closed form, or solved to a certificate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    Fit,
    LinearReference,
    Reference,
    Solver,
    least_to_most,
    strengths,
    unless,
    whatever_the_settings,
)
from lightning_icl.functional.tasks import Law


class ZeroPredictor(LinearReference):
    """Predicts 0: its excess risk is the variance of the target."""

    name, title = "zero", "zero predictor"

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(problems.x.new_zeros(*problems.f.shape[:2], problems.x.shape[2]))


class Averaging(LinearReference):
    """w_hat = X^T y / n (Garg et al. 2022)."""

    name, title = "averaging", "averaging, X'y/n"

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(problems.by_size(estimators.averaging(problems.moments)))


class LeastSquares(LinearReference):
    """Least squares of minimum norm."""

    name, title = "least_squares", "least squares"

    def solver(self, problems: Problems) -> Solver:
        return whatever_the_settings(least_squares(problems))


class OracleLeastSquares(LinearReference):
    """Least squares on the true support of w, which it is told."""

    name, title = "oracle_support", "least squares on the true support (oracle)"

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
    """Whether its prompts tell the weights behind them."""
    return task.sample(1, 1, 1, torch.Generator().manual_seed(0)).w is not None


def least_squares(problems: Problems) -> Fit:
    """From the examples themselves, which does not square their condition as the moments would."""
    if len(problems.sizes) == 1:
        return estimators.least_squares(problems.x, problems.y)[:, None]
    return estimators.least_squares_prefixes(problems.x, problems.y)


class Penalised(LinearReference):
    """One with a strength alpha, for each number of examples."""

    setting_names = ("alpha",)
    alpha: float | None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            name = type(self).__name__
            raise InputError(f"alpha is {self.alpha}, but the strength of {name} must be a number above 0.")

    @property
    def key(self) -> str:
        return self.name if self.alpha is None else f"{self.name}_{self.alpha:g}"

    @property
    def origin(self) -> str:
        """Where the strength comes from, for the label."""
        return "tuned" if self.alpha is None else "given"

    def label(self, same: Sequence[Reference] = ()) -> str:
        setting = self.side_by_side(same)
        return f"{self.title}, alpha {least_to_most(setting[0])} ({self.origin})" if len(setting) else self.title

    def candidates(self, tuning: Problems) -> list[Candidates]:
        return [strengths(tuning) if self.alpha is None else [self.alpha]]


@dataclass(frozen=True)
class Ridge(Penalised):
    """Minimises ||y - X w||^2 + alpha ||w||^2.

    Args:
        alpha: its strength; left out, sigma^2 / Var(w_j) where the task's law implies it, else tuned.
    """

    alpha: float | None = None
    name, title = "ridge", "ridge"

    @property
    def origin(self) -> str:
        return "from the law" if self.alpha is None and self.case.task.ridge_alpha is not None else super().origin

    def candidates(self, tuning: Problems) -> list[Candidates]:
        known = self.case.task.ridge_alpha if self.alpha is None else self.alpha
        # strengths() are of penalties beside a mean of squares; ridge's stands beside their sum.
        return [strengths(tuning) * tuning.sizes if known is None else [known]]

    def solver(self, problems: Problems) -> Solver:
        def weights(settings: torch.Tensor) -> torch.Tensor:
            if not settings.any():  # noise-free, by its law
                return whatever_the_settings(least_squares(problems))(settings)
            alphas = problems.per_row(settings[:, 0])
            return problems.by_size(torch.stack([estimators.ridge(problems.moments, alpha) for alpha in alphas]))

        return weights


@dataclass(frozen=True)
class Lasso(Penalised):
    """Minimises (1/2n) ||y - X w||^2 + alpha ||w||_1.

    Args:
        alpha: its strength; tuned if left out.
    """

    alpha: float | None = None
    name, title = "lasso", "lasso"

    def solver(self, problems: Problems) -> Solver:
        def weights(settings: torch.Tensor) -> torch.Tensor:
            gap = 1e-8 if len(settings) == 1 else 1e-6  # of several, only the best is of interest
            fit = estimators.lasso_path_fit(problems.moments, problems.per_row(settings[:, 0]), relative_gap=gap)
            return problems.by_size(fit.w)

        return weights


@dataclass(frozen=True)
class ElasticNet(Penalised):
    """Minimises (1/2n) ||y - X w||^2 + alpha l1_ratio ||w||_1 + alpha (1 - l1_ratio)/2 ||w||^2 (scikit-learn's).

    Args:
        alpha: its strength; tuned if left out.
        l1_ratio: the lasso's part of the penalty.
    """

    alpha: float | None = None
    l1_ratio: float = 0.5
    name = "elastic_net"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < (ratio := self.l1_ratio) <= 1:
            raise InputError(f"l1_ratio is {ratio}, but it must lie above 0 and be at most 1; for 0 take Ridge.")

    @property
    def title(self) -> str:
        return f"elastic net ({self.l1_ratio:g} of it lasso)"

    @property
    def key(self) -> str:
        return super().key + unless(0.5, "l1_ratio", self.l1_ratio)

    def solver(self, problems: Problems) -> Solver:
        def weights(settings: torch.Tensor) -> torch.Tensor:
            m, alphas = problems.moments, problems.per_row(settings[:, 0])
            return problems.by_size(torch.stack([estimators.elastic_net(m, a, self.l1_ratio) for a in alphas]))

        return weights


@dataclass(frozen=True)
class AdaptiveLasso(Penalised):
    """The lasso with penalty weights 1 / |w_pilot|^gamma, the pilot being ridge (Zou 2006).

    Args:
        alpha: its strength; tuned if left out.
        gamma: the power of the pilot's weights.
        pilot_alpha: the pilot's strength, in ridge's units.
    """

    alpha: float | None = None
    gamma: float = 1.0
    pilot_alpha: float = 1.0
    name = "adaptive_lasso"

    def __post_init__(self) -> None:
        super().__post_init__()
        gamma, pilot = self.gamma, self.pilot_alpha
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma is {gamma}, but it must be a finite number above 0; for 0 take Lasso.")
        if not 0 <= pilot < float("inf"):
            raise InputError(f"pilot_alpha is {pilot}, but it must be a finite number that is 0 or larger.")

    @property
    def title(self) -> str:
        return "adaptive lasso" if self.gamma == 1 else f"adaptive lasso (gamma {self.gamma:g})"

    @property
    def key(self) -> str:
        return super().key + unless(1.0, "gamma", self.gamma) + unless(1.0, "pilot_alpha", self.pilot_alpha)

    def solver(self, problems: Problems) -> Solver:
        def weights(settings: torch.Tensor) -> torch.Tensor:
            m, power, pilot = problems.moments, self.gamma, self.pilot_alpha
            alphas = problems.per_row(settings[:, 0])
            return problems.by_size(torch.stack([estimators.adaptive_lasso(m, a, power, pilot) for a in alphas]))

        return weights
