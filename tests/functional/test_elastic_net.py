"""The elastic net and the adaptive lasso against scikit-learn, their objectives in numpy and coordinate descent."""

import math
import warnings

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem
from sklearn.linear_model import ElasticNet, Lasso

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError

all_cases = pytest.mark.parametrize("case", [*CASES, (3, 4, 12, "plain")], ids=str)


def sklearn_elastic_net(x, y, alpha, l1_ratio):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 1e-13 can lie below rounding
        return ElasticNet(alpha, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(x, y).coef_


def elastic_net_gap(x, y, w, alpha, l1_ratio):
    """Primal minus the Fenchel dual, whose conjugate of a |t| + b t^2 / 2 is max(|s| - a, 0)^2 / 2b."""
    n, a, b = len(y), alpha * l1_ratio, alpha * (1 - l1_ratio)
    residual = y - x @ w
    primal = residual @ residual / (2 * n) + a * np.abs(w).sum() + b * (w @ w) / 2
    conjugate = np.maximum(np.abs(x.T @ residual / n) - a, 0) ** 2 / (2 * b)
    return primal - (residual @ y / n - residual @ residual / (2 * n) - conjugate.sum())


@all_cases
@pytest.mark.parametrize("l1_ratio", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 100.0])
def test_elastic_net_equals_scikit_learns(case, alpha, l1_ratio):
    x, y = problem(*case)
    w = estimators.elastic_net(x, y, alpha, l1_ratio)
    assert_close(w, [sklearn_elastic_net(a, b, alpha, l1_ratio) for a, b in each(x, y)], atol=1e-6)


@all_cases
@pytest.mark.parametrize("l1_ratio", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("alpha", [1e-4, 0.1])
def test_elastic_net_is_certified_and_optimal(case, alpha, l1_ratio):
    x, y = problem(*case)
    fit = estimators.elastic_net_fit(estimators.moments(x, y), alpha, l1_ratio)
    for a, b, w, gap in zip(*(t.numpy() for t in (x, y, fit.w)), fit.gap.tolist(), strict=True):
        allowed = 1e-8 * (b @ b) / (2 * len(b)) + 1e-14
        assert gap <= allowed
        assert abs(elastic_net_gap(a, b, w, alpha, l1_ratio)) <= allowed
        slope = a.T @ (b - a @ w) / len(b) - alpha * (1 - l1_ratio) * w
        assert np.abs(slope).max() <= alpha * l1_ratio + 1e-9
        np.testing.assert_allclose(slope[w != 0], alpha * l1_ratio * np.sign(w[w != 0]), rtol=0, atol=1e-9)


@all_cases
def test_elastic_net_shares_its_weight_among_equal_features_and_ends_at_lasso_and_ridge(case):
    x, y = problem(*case)
    w = estimators.elastic_net(x, y, 0.1, 0.5)
    if case[3] == "duplicated feature":
        assert_close(w[:, 0], w[:, -1].numpy())
    assert torch.equal(estimators.elastic_net(x, y, 0.1, 1.0), estimators.lasso(x, y, 0.1))
    nearly_ridge = estimators.elastic_net(x, y, 0.1, 1e-9)
    assert_close(nearly_ridge, estimators.ridge(x, y, 0.1 * case[1]).numpy(), atol=1e-6)


@all_cases
def test_adaptive_lasso_equals_scikit_learns_lasso_on_rescaled_features(case):
    x, y = problem(*case)
    for alpha, gamma, pilot_alpha in ((1e-3, 1.0, 1.0), (0.05, 1.0, 0.1), (0.05, 0.5, 3.0), (0.3, 2.0, 1.0)):
        w = estimators.adaptive_lasso(x, y, alpha, gamma, pilot_alpha)
        for a, b, ours in each(x, y, w):
            pilot = np.linalg.solve(a.T @ a + pilot_alpha * np.eye(case[2]), a.T @ b)
            scale = np.abs(pilot) ** gamma
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = Lasso(alpha, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(a * scale, b).coef_ * scale
            np.testing.assert_allclose(a @ ours, a @ theirs, rtol=0, atol=1e-6)
            # The conditions of (1/2n) ||y - X w||^2 + alpha sum_j |w_j| / |p_j|^gamma, multiplied by |p_j|^gamma:
            slope = scale * (a.T @ (b - a @ ours)) / len(b)
            assert (np.abs(slope) <= alpha + 1e-9).all()
            np.testing.assert_allclose(slope[ours != 0], alpha * np.sign(ours[ours != 0]), rtol=0, atol=1e-8)
            assert not ours[pilot == 0].any()


def test_the_adaptive_lasso_of_least_squares_is_zous():
    """Orthonormal features have the closed form sign(p) (|p| - alpha / |p|^gamma)_+ (Zou 2006, section 3)."""
    x = torch.linalg.qr(problem(1, 9, 4, "plain")[0])[0] * 3  # X^T X / n = I
    y = problem(1, 9, 4, "plain")[1]
    pilot = (x.mT @ y[..., None])[..., 0] / 9
    for gamma in (0.5, 1.0, 2.0):
        expected = pilot.sign() * (pilot.abs() - 0.01 / pilot.abs() ** gamma).clamp(min=0)
        assert_close(estimators.adaptive_lasso(x, y, 0.01, gamma, pilot_alpha=0.0), expected.numpy())


def test_the_adaptive_lasso_keeps_large_weights_nearly_whole_where_the_lasso_shrinks_them():
    x, _ = problem(20, 200, 6, "plain")
    w = torch.tensor([3.0, -2.0, 0, 0, 0, 0], dtype=torch.float64).expand(20, 6)
    y = torch.einsum("bpd,bd->bp", x, w) + 0.1 * problem(20, 200, 1, "plain", seed=9)[0][..., 0]
    lasso_error, adaptive_error = (
        (w_hat - w).square().sum(-1) for w_hat in (estimators.lasso(x, y, 0.1), estimators.adaptive_lasso(x, y, 0.1))
    )
    assert (adaptive_error < lasso_error / 2).all()
    assert torch.equal(estimators.adaptive_lasso(x, y, 0.1) != 0, w != 0)


@all_cases
@pytest.mark.parametrize(
    "fit",
    [
        lambda m, alpha: estimators.elastic_net(m, alpha, 0.7),
        lambda m, alpha: estimators.adaptive_lasso(m, alpha, 1.0, 0.5),
    ],
    ids=["elastic net", "adaptive lasso"],
)
def test_rows_with_their_own_strength_and_prefixes_are_fitted_as_if_alone(case, fit):
    x, y = problem(*case)
    strengths = torch.logspace(-3, 0, case[0], dtype=torch.float64)
    together = estimators.over_prefixes(lambda m: fit(m, strengths.repeat_interleave(case[1])), x, y)
    for b, alpha in enumerate(strengths.tolist()):
        for k in range(1, case[1] + 1):
            alone = fit(estimators.moments(x[b : b + 1, :k], y[b : b + 1, :k]), alpha)
            fitted = [(x[b, :k] @ w).numpy() for w in (together[b, k - 1], alone[0])]
            assert_close(fitted[0], fitted[1], atol=1e-7)


def test_float32_problems_are_solved_in_float64():
    x, y = (t.float() for t in problem(3, 12, 4, "plain"))
    for fit in (
        lambda a, b: estimators.elastic_net(a, b, 0.1, 0.5),
        lambda a, b: estimators.adaptive_lasso(a, b, 0.1),
    ):
        assert fit(x, y).dtype == torch.float32
        assert torch.equal(fit(x, y), fit(x.double(), y.double()).float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: estimators.elastic_net(x, y, 0.1, 0.0), "l1_ratio is 0.0, but it must lie above 0"),
        (lambda x, y: estimators.elastic_net(x, y, 0.1, 1.5), "l1_ratio is 1.5"),
        (lambda x, y: estimators.elastic_net(x, y, 0.1, math.nan), "l1_ratio is nan"),
        (lambda x, y: estimators.elastic_net(x, y, -1.0, 0.5), "alpha is -1.0"),
        (lambda x, y: estimators.adaptive_lasso(x, y, 0.0), "alpha is 0.0"),
        (lambda x, y: estimators.adaptive_lasso(x, y, 0.1, gamma=0.0), "gamma is 0.0"),
        (lambda x, y: estimators.adaptive_lasso(x, y, 0.1, gamma=math.nan), "gamma is nan"),
        (lambda x, y: estimators.adaptive_lasso(x, y, 0.1, pilot_alpha=-1.0), "alpha is -1.0, but the ridge strength"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem(1, 3, 2, "plain"))
