"""The lasso, its path and its certificate against scikit-learn, closed forms and plain numpy."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from regression_cases import AWKWARD, CASES, PLAIN, assert_close, each, problem
from scipy.linalg import hadamard
from sklearn.linear_model import Lasso, LassoLars

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.lasso import fista, solved_on_support

UNIQUE = [*PLAIN, (3, 4, 12, "plain"), *AWKWARD]  # the lasso has one minimiser
ALPHAS = [1e-3, 1.0, 0.1, 1e-4, 0.01]
all_cases = pytest.mark.parametrize("case", [*CASES, (3, 4, 12, "plain")], ids=str)


def lasso_objective(x, y, w, alpha):
    return ((y - x @ w) ** 2).sum() / (2 * len(y)) + alpha * np.abs(w).sum()


def gap_by_hand(x, y, w, alpha):
    """Primal minus dual: max_theta (||y||^2 - ||y - theta||^2) / 2n with |x_j^T theta| / n <= alpha."""
    residual = y - x @ w
    theta = residual * min(1.0, alpha * len(y) / max(np.abs(x.T @ residual).max(), 1e-300))
    return lasso_objective(x, y, w, alpha) - ((y @ y) - ((y - theta) @ (y - theta))) / (2 * len(y))


def sklearn_lasso(x, y, alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 1e-13 can lie below rounding
        return Lasso(alpha, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(x, y).coef_


# Against other solvers


@all_cases
@pytest.mark.parametrize("alpha", [1e-2, 0.1, 0.5, 100.0])
def test_lasso_reaches_scikit_learns_minimum(case, alpha):
    x, y = problem(*case)
    for gap in (1e-8, 1e-13):
        w = estimators.lasso(x, y, alpha, relative_gap=gap)
        for a, b, ours in each(x, y, w):
            lowest = lasso_objective(a, b, sklearn_lasso(a, b, alpha), alpha)
            assert lasso_objective(a, b, ours, alpha) - lowest <= gap * (b @ b) / (2 * len(b)) + 1e-12


@pytest.mark.parametrize("case", UNIQUE, ids=str)
@pytest.mark.parametrize("alpha", [0.05, 0.5, 100.0])
def test_lasso_weights_equal_scikit_learns_where_unique(case, alpha):
    x, y = problem(*case)
    w = estimators.lasso(x, y, alpha, relative_gap=1e-14)
    assert_close(w, [sklearn_lasso(a, b, alpha) for a, b in each(x, y)], atol=1e-6)
    assert_close(w, [LassoLars(alpha, fit_intercept=False).fit(a, b).coef_ for a, b in each(x, y)], atol=1e-6)


@pytest.mark.parametrize("case", UNIQUE, ids=str)
def test_the_path_equals_lars_at_every_strength(case):
    x, y = problem(*case)
    path = estimators.lasso_path(x, y, ALPHAS)
    assert path.shape == (5, case[0], case[2])
    for alpha, w in zip(ALPHAS, path, strict=True):
        assert_close(w, [LassoLars(alpha, fit_intercept=False).fit(a, b).coef_ for a, b in each(x, y)], atol=1e-7)
        assert_close(w, estimators.lasso(x, y, alpha).numpy())


@all_cases
@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 0.2])
def test_lasso_satisfies_the_optimality_conditions(case, alpha):
    x, y = problem(*case)
    for a, b, w in each(x, y, estimators.lasso(x, y, alpha, relative_gap=1e-14)):
        correlation = a.T @ (b - a @ w) / len(b)
        assert np.abs(correlation).max() <= alpha + 1e-9
        np.testing.assert_allclose(correlation[w != 0], alpha * np.sign(w[w != 0]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [1, 6])
def test_lasso_of_one_feature_is_soft_thresholding(n):
    x, y = problem(5, n, 1, "plain")
    moment, square = (x[..., 0] * y).mean(1).numpy(), x[..., 0].square().mean(1).numpy()
    expected = np.sign(moment) * np.maximum(np.abs(moment) - 0.3, 0) / square
    assert_close(estimators.lasso(x, y, 0.3)[:, 0], expected)


@pytest.mark.parametrize("signs", [[1] * 16, [1, -1, 0, 2] * 4])
def test_lasso_of_orthogonal_features_is_soft_thresholding_also_where_all_join_at_once(signs):
    x = torch.tensor(hadamard(16), dtype=torch.float64)[None]
    w = torch.tensor([signs], dtype=torch.float64)
    for alpha, ours in zip(ALPHAS, estimators.lasso_path(x, w @ x[0].T, ALPHAS), strict=True):
        assert_close(ours, (w.sign() * (w.abs() - alpha).clamp(min=0)).numpy(), atol=1e-12)


def test_lasso_is_exactly_zero_from_the_largest_correlation_on():
    x, y = problem(1, 9, 4, "plain")
    largest = np.abs(x[0].numpy().T @ y[0].numpy()).max() / 9
    assert not estimators.lasso(x, y, float(largest) * 1.0001).any()
    assert (estimators.lasso(x, y, float(largest) * 0.9999) != 0).sum() == 1


# The certificate


@all_cases
def test_every_answer_carries_the_gap_that_numpy_finds(case):
    x, y = problem(*case)
    fit = estimators.lasso_path_fit(estimators.moments(x, y), ALPHAS)
    for alpha, weights, gaps in zip(ALPHAS, fit.w, fit.gap, strict=True):
        by_hand = np.array([gap_by_hand(a, b, w, alpha) for a, b, w in each(x, y, weights)])
        assert_close(gaps, by_hand, atol=1e-12)
        assert (by_hand <= 1e-8 * (y.numpy() ** 2).mean(1) / 2 + 1e-13).all()


@all_cases
@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_duality_gap_bounds_the_suboptimality(case, alpha):
    x, y = problem(*case)
    best = [sklearn_lasso(a, b, alpha) for a, b in each(x, y)]
    direction = problem(x.shape[0], 1, x.shape[2], "plain", seed=3)[0][:, 0]
    alphas = torch.full((len(x),), alpha, dtype=torch.float64)
    for distance in (0.0, 1e-3, 0.1, 1.0, 10.0):
        w = torch.from_numpy(np.stack(best)) + distance * direction
        gaps = estimators.lasso_duality_gap(x, y, w, alpha)
        from_moments = estimators.lasso_duality_gap(estimators.moments(x, y), w, alphas)
        torch.testing.assert_close(from_moments, gaps, rtol=1e-9, atol=1e-12)
        for a, b, ours, optimum, gap in zip(*(t.numpy() for t in (x, y, w)), best, gaps.tolist(), strict=True):
            excess = lasso_objective(a, b, ours, alpha) - lasso_objective(a, b, optimum, alpha)
            assert gap >= excess - 1e-11
            assert gap == pytest.approx(gap_by_hand(a, b, ours, alpha), rel=1e-9, abs=1e-11)
            assert distance > 0 or gap <= 1e-8  # the bound closes at the optimum


def test_the_duality_gap_of_float32_examples_is_that_of_their_values_in_float64():
    """1e-8 is below float32's rounding, which is no reason for a gap: that of the rounded weights is one."""
    x, y = (t.float() for t in problem(3, 40, 8, "plain"))
    w = estimators.lasso(estimators.moments(x, y), 0.1)
    limits = 1e-8 * y.double().square().mean(1) / 2
    for weights, certified in ((w, True), (w.float(), False)):
        gaps = estimators.lasso_duality_gap(x, y, weights, 0.1)
        hand = [gap_by_hand(*of_one, 0.1) for of_one in each(x.double(), y.double(), weights.double())]
        assert_close(gaps, hand, atol=1e-13, rtol=1e-5)
        assert (gaps <= limits).all() == certified


def test_an_unconverged_lasso_warns():
    x, y = problem(2, 9, 4, "scaled features")
    above = r"2 of 2 lasso problems are above the relative duality gap 1e-12 after 3 iterations; the largest is \d"
    with pytest.warns(RuntimeWarning, match=above):
        estimators.lasso(x, y, 1e-3, relative_gap=1e-12, max_iterations=3)


@pytest.mark.parametrize("max_iterations", [1, 2, 50])
def test_a_lasso_that_converges_in_its_last_iterations_does_not_warn(max_iterations):
    x, y = problem(1, 6, 1, "plain")  # one feature is one pivot; the test run turns warnings into errors
    w = estimators.lasso(x, y, 0.01, max_iterations=max_iterations)
    assert_close(w, [sklearn_lasso(x[0].numpy(), y[0].numpy(), 0.01)], atol=1e-7)


def test_lasso_does_not_answer_zero_where_the_moments_are_nan():
    m = estimators.moments(*problem(2, 9, 4, "plain"))
    alone = estimators.lasso(m.rows(slice(1, 2)), 1e-2)
    m.moment[0], m.power[0] = math.nan, math.nan
    with pytest.warns(RuntimeWarning, match="1 of 2 lasso problems are above the relative duality gap"):
        together = estimators.lasso(m, 1e-2)
    assert together[0].isnan().all()
    assert_close(together[1:], alone.numpy())


# Hard problems


@pytest.mark.parametrize(
    "features",
    [
        lambda x: x * torch.logspace(-3, 3, 10, dtype=torch.float64),
        lambda x: torch.cat([x[..., :5], -x[..., :5]], dim=-1),
        lambda x: torch.cat([x[..., :5], x[..., :5] + 1e-3 * x[..., 5:]], dim=-1),
        lambda x: x[..., :3] @ x[:, :3],
        lambda x: x.sign(),
        lambda x: torch.linspace(-1, 1, x.shape[1], dtype=torch.float64)[:, None] ** torch.arange(10) + 0 * x,
        lambda x: 1e-6 * x,
        lambda x: 1e4 * x,
    ],
    ids=["badly scaled", "mirrored", "nearly equal", "low rank", "signs", "powers", "small", "large"],
)
@pytest.mark.parametrize("n_points", [3, 10, 30])
def test_hard_problems_are_solved_at_every_strength(features, n_points):
    x, y = problem(4, n_points, 10, "plain")
    x = features(x)
    path = estimators.lasso_path(x, y, ALPHAS)  # a gap left open would warn, which fails the test
    for alpha, weights in zip(ALPHAS, path, strict=True):
        for a, b, w in each(x, y, weights):
            assert gap_by_hand(a, b, w, alpha) <= 1.1e-8 * (b @ b) / (2 * len(b))


@pytest.mark.parametrize("case", UNIQUE, ids=str)
@pytest.mark.parametrize("found", ["nothing", "wrong weights", "a wrong support"])
def test_a_homotopy_that_went_astray_is_made_good(case, found, monkeypatch):
    """By the linear system on its support where that is right, else by FISTA."""
    x, y = problem(*case)
    expected = [sklearn_lasso(a, b, 0.1) for a, b in each(x, y)]
    answer = torch.from_numpy(np.stack(expected)).clone()
    if found == "nothing":
        answer.zero_()
    elif found == "wrong weights":
        answer *= 1.3
    else:
        answer[:, 0] += 0.2
    module = sys.modules["lightning_icl.functional.estimators.lasso"]
    monkeypatch.setattr(module, "lasso_homotopy", lambda m, alphas, max_pivots: answer[None])
    assert_close(estimators.lasso(x, y, 0.1, relative_gap=1e-14), expected, atol=1e-6)


@pytest.mark.parametrize("case", UNIQUE, ids=str)
def test_the_fallbacks_alone_reach_scikit_learns_weights(case):
    x, y = problem(*case)
    m, alpha = estimators.moments(x, y), torch.full((case[0],), 0.1, dtype=torch.float64)
    expected = np.stack([sklearn_lasso(a, b, 0.1) for a, b in each(x, y)])
    rough = torch.from_numpy(expected) * 1.1
    assert_close(solved_on_support(m, rough, alpha), expected, atol=1e-7)
    assert_close(fista(m, 0 * rough, alpha, relative_gap=1e-14, max_iterations=5000), expected, atol=1e-6)


# Rows, prefixes, types


@all_cases
def test_each_problem_has_its_own_strength(case):
    x, y = problem(*case)
    strengths = torch.logspace(-3, 0, case[0], dtype=torch.float64)
    together = estimators.lasso(x, y, strengths)
    m = estimators.moments(x, y)
    grid = torch.stack([strengths, strengths.flip(0)])
    for b, alpha in enumerate(strengths.tolist()):
        assert_close(together[b : b + 1], estimators.lasso(x[b : b + 1], y[b : b + 1], alpha).numpy(), atol=1e-12)
    assert_close(estimators.lasso_path_fit(m, grid).w[0], together.numpy(), atol=1e-12)
    assert_close(estimators.lasso_path_fit(m, grid).w[1], estimators.lasso(x, y, strengths.flip(0)).numpy(), atol=1e-12)


@all_cases
def test_every_prefix_equals_its_own_fit(case):
    x, y = problem(*case)
    alone = [estimators.lasso_path(x[:, :k], y[:, :k], ALPHAS) for k in range(1, case[1] + 1)]
    together = estimators.over_prefixes(lambda m: estimators.lasso_path_fit(m, ALPHAS).w, x, y)
    fitted = torch.einsum("bpd,abkd->abkp", x, together)  # the fit is unique where the weights are not
    assert_close(fitted, torch.einsum("bpd,abkd->abkp", x, torch.stack(alone, dim=2)).numpy(), atol=1e-7)
    one = estimators.over_prefixes(lambda m: estimators.lasso(m, 0.1), x, y)
    assert_close(one, together[2].numpy(), atol=1e-9)


@all_cases
def test_a_start_that_is_solved_stands_and_any_other_is_solved(case):
    x, y = problem(*case)
    solved = estimators.lasso(x, y, 0.1)
    nearby = solved * (1 + 1e-6)  # within the gap asked for below
    assert torch.equal(estimators.lasso(x, y, 0.1, relative_gap=1e-4, start=nearby), nearby)
    far = torch.full_like(solved, 3.0)
    far[-1] = solved[-1]
    assert_close(estimators.lasso(x, y, 0.1, start=far), solved.numpy(), atol=1e-12)


def test_float32_problems_are_solved_in_float64():
    x, y = (t.float() for t in problem(3, 12, 4, "plain"))
    answer = estimators.lasso(x, y, 0.01)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, estimators.lasso(x.double(), y.double(), 0.01).float())
    assert estimators.lasso_path(x, y, [0.1, 0.01]).dtype == torch.float32
    fit = estimators.lasso_fit(estimators.moments(x, y), 0.01)
    assert fit.w.dtype == fit.gap.dtype == torch.float64


@pytest.mark.parametrize("alpha", [0.0, -0.5, math.nan, math.inf])
def test_a_strength_that_cannot_be_is_named(alpha):
    x, y = problem(2, 3, 2, "plain")
    message = f"alpha is {alpha}, but the lasso needs a finite strength above 0; use least_squares for 0."
    for call in (
        lambda: estimators.lasso(x, y, alpha),
        lambda: estimators.lasso(x, y, torch.tensor([1.0, alpha])),
        lambda: estimators.lasso_path(x, y, [1.0, alpha]),
        lambda: estimators.lasso_fit(estimators.moments(x, y), alpha),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == message
