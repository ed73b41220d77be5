"""Least squares, ridge and averaging, from all examples and every prefix, against scikit-learn and numpy."""

import math
import sys

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem
from sklearn.linear_model import Ridge

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError

CASES = [*CASES, (3, 4, 12, "plain"), (2, 20, 4, "scaled features"), (2, 1, 1, "zero labels")]
all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def supports(x):
    """A random support for each prompt, of different sizes; all of the first prompt's or nothing."""
    support = torch.rand(x.shape[0], x.shape[2], generator=torch.Generator().manual_seed(1)) < 0.5
    support[0] = x.shape[0] == 1
    return support


def by_prefix(fit, *arrays):
    """fit(x_k, y_k, ...) for the first k examples of each prompt, in numpy."""
    return [[fit(x[:k], y[:k], *rest) for k in range(1, len(x) + 1)] for x, y, *rest in each(*arrays)]


def assert_relatively_close(actual, expected, tolerance):
    """Every w_hat to ``tolerance`` of its own length."""
    expected = np.asarray(expected)
    error = np.linalg.norm(actual.numpy() - expected, axis=-1)
    assert (error <= tolerance * np.linalg.norm(expected, axis=-1) + 1e-13).all(), error.max()


# All examples


@all_cases
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_ridge_equals_scikit_learn_and_the_normal_equations(case, alpha):
    x, y = problem(*case)
    w = estimators.ridge(x, y, alpha)
    assert_close(w, [Ridge(alpha, fit_intercept=False).fit(a, b).coef_ for a, b in each(x, y)])
    assert_close(w, [np.linalg.solve(a.T @ a + alpha * np.eye(case[2]), a.T @ b) for a, b in each(x, y)])
    assert_close(estimators.ridge(estimators.moments(x, y), alpha), w.numpy())


@all_cases
def test_least_squares_is_the_minimum_norm_solution(case):
    x, y = problem(*case)
    w = estimators.least_squares(x, y)
    assert_close(w, [np.linalg.lstsq(a, b, rcond=None)[0] for a, b in each(x, y)])
    assert_close(w, [np.linalg.pinv(a) @ b for a, b in each(x, y)])
    torch.testing.assert_close(estimators.ridge(x, y, 0.0), w, rtol=0, atol=0)
    assert_close(estimators.ridge(estimators.moments(x, y), 0.0), w.numpy(), atol=1e-8)


@all_cases
def test_ridge_of_moments_tends_to_least_squares_as_its_strength_vanishes(case):
    x, y = problem(*case)
    m = estimators.moments(x, y)
    for alpha in (1e-9, 1e-12, 1e-15, 1e-300):
        assert_close(estimators.ridge(m, alpha), estimators.ridge(x, y, alpha).numpy(), atol=1e-7)


@all_cases
def test_oracle_least_squares_is_least_squares_on_the_supported_columns(case):
    x, y = problem(*case)
    support = supports(x)
    expected = np.zeros((x.shape[0], x.shape[2]))
    for b, (a, labels, kept) in enumerate(each(x, y, support)):
        expected[b, kept] = np.linalg.lstsq(a[:, kept], labels, rcond=None)[0]
    assert_close(estimators.oracle_least_squares(x, y, support), expected)


def test_the_oracle_recovers_noiseless_weights_from_fewer_points_than_dims():
    x, _ = problem(3, 4, 12, "plain")
    w = torch.zeros(3, 12, dtype=torch.float64)
    w[:, [1, 5, 7]] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = (x @ w[..., None])[..., 0]
    assert_close(estimators.oracle_least_squares(x, y, w != 0), w.numpy())
    assert_close(estimators.oracle_least_squares_prefixes(x, y, w != 0)[:, 2:], w[:, None].expand(-1, 2, -1).numpy())


@all_cases
def test_averaging_is_the_mean_of_labelled_features(case):
    x, y = problem(*case)
    expected = [sum(row * label for row, label in zip(a, b, strict=True)) / len(b) for a, b in each(x, y)]
    assert_close(estimators.averaging(x, y), expected)
    over_prefixes = estimators.over_prefixes(estimators.averaging, x, y)
    assert_close(over_prefixes, by_prefix(lambda a, b: a.T @ b / len(b), x, y))


# Every prefix


@all_cases
@pytest.mark.parametrize("alpha", [1e-12, 1e-6, 1e-3, 0.25, 100.0])
def test_ridge_of_every_prefix_equals_scikit_learns(case, alpha):
    x, y = problem(*case)
    w = estimators.ridge_prefixes(x, y, alpha)
    assert_close(w, by_prefix(lambda a, b: Ridge(alpha, fit_intercept=False, solver="svd").fit(a, b).coef_, x, y))


@all_cases
def test_least_squares_of_every_prefix_equals_numpys(case):
    x, y = problem(*case)
    expected = by_prefix(lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0], x, y)
    assert_close(estimators.least_squares_prefixes(x, y), expected)
    assert_close(estimators.ridge_prefixes(x, y, 0.0), expected)


@all_cases
def test_oracle_least_squares_of_every_prefix_equals_numpys(case):
    x, y = problem(*case)
    support = supports(x)

    def fit(a, b, kept):
        w = np.zeros(len(kept))
        w[kept] = np.linalg.lstsq(a[:, kept], b, rcond=None)[0]
        return w

    assert_close(estimators.oracle_least_squares_prefixes(x, y, support), by_prefix(fit, x, y, support))


@pytest.mark.parametrize("log_condition", [2, 4, 5, 6, 8])
def test_prefixes_keep_their_digits_on_ill_conditioned_features(log_condition):
    x, y = problem(4, 20, 6, "plain")
    x = torch.linalg.qr(x)[0] * torch.logspace(0, -log_condition, 6, dtype=torch.float64)
    least_squares = by_prefix(lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0], x, y)
    assert_relatively_close(estimators.least_squares_prefixes(x, y), least_squares, 1e-14 * 10 ** (log_condition + 2))
    for alpha in (1e-16, 1e-10, 1e-7, 1e-5, 1.0):
        ridge = by_prefix(
            lambda a, b, alpha=alpha: Ridge(alpha, fit_intercept=False, solver="svd").fit(a, b).coef_, x, y
        )
        assert_relatively_close(estimators.ridge_prefixes(x, y, alpha), ridge, 1e-7)


def test_a_prompt_that_needs_care_does_not_change_the_others():
    x, y = problem(3, 20, 4, "plain")
    alone = estimators.least_squares_prefixes(x, y)
    x = torch.cat([x, x[:1]])
    y = torch.cat([y, y[:1]])
    x[3, :, 1] = x[3, :, 0]
    together = estimators.least_squares_prefixes(x, y)
    assert_close(together[:3], alone.numpy(), atol=1e-12)
    assert_close(together[3:], by_prefix(lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0], x[3:], y[3:]))


@all_cases
def test_each_prompt_has_its_own_ridge_strength(case):
    x, y = problem(*case)
    strengths = torch.tensor([0.0, 1e-9, 2.0][: case[0]], dtype=torch.float64)
    together = [estimators.ridge(x, y, strengths), estimators.ridge_prefixes(x, y, strengths)]
    from_moments = estimators.ridge(estimators.moments(x, y), strengths)
    for b, alpha in enumerate(strengths.tolist()):
        here = slice(b, b + 1)
        assert_close(together[0][here], estimators.ridge(x[here], y[here], alpha).numpy(), atol=1e-12)
        assert_close(together[1][here], estimators.ridge_prefixes(x[here], y[here], alpha).numpy(), atol=1e-9)
        assert_close(from_moments[here], estimators.ridge(x[here], y[here], alpha).numpy(), atol=1e-7)


def test_many_prompts_are_taken_in_parts(monkeypatch):

    x, y = problem(5, 6, 3, "plain")
    whole = estimators.ridge_prefixes(x, y, 1e-12)
    monkeypatch.setattr(sys.modules[estimators.ridge_prefixes.__module__], "ENTRIES_AT_ONCE", 2 * 6 * 6 * 3)
    assert_close(estimators.ridge_prefixes(x, y, 1e-12), whole.numpy(), atol=1e-13)


# Arguments


@pytest.mark.parametrize("kind", ["plain", "duplicated feature"])
def test_float32_examples_are_fitted_in_float64(kind):
    x, y = (t.float() for t in problem(3, 12, 4, kind))
    support = torch.tensor([True, False, True, True]).expand(3, 4)
    for fit in (
        estimators.averaging,
        estimators.least_squares,
        estimators.least_squares_prefixes,
        lambda a, b: estimators.ridge(a, b, 0.1),
        lambda a, b: estimators.ridge_prefixes(a, b, 0.1),
        lambda a, b: estimators.ridge_prefixes(a, b, 0.0),
        lambda a, b: estimators.oracle_least_squares(a, b, support),
        lambda a, b: estimators.oracle_least_squares_prefixes(a, b, support),
    ):
        answer = fit(x, y)
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer, fit(x.double(), y.double()).float())


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_a_ridge_strength_that_cannot_be_is_named(alpha):
    x, y = problem(2, 3, 2, "plain")
    m = estimators.moments(x, y)
    for fit in (
        lambda strength: estimators.ridge(x, y, strength),
        lambda strength: estimators.ridge_prefixes(x, y, strength),
        lambda strength: estimators.ridge(m, strength),
    ):
        for strength in (alpha, torch.tensor([1.0, alpha])):
            with pytest.raises(InputError, match=f"alpha is {alpha}, but the ridge strength must be a finite number"):
                fit(strength)
