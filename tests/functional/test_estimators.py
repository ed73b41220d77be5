"""Reference estimators against scikit-learn, numpy's solvers and loops written from PAPER.md section 7."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError

PLAIN = [(3, 12, 4, "plain"), (3, 4, 12, "plain"), (2, 1, 3, "plain"), (1, 5, 1, "plain"), (1, 1, 1, "plain")]
AWKWARD = [(2, 9, 4, kind) for kind in ("noiseless", "scaled features", "zero feature", "zero labels", "zero x")]
DUPLICATED = [(2, 9, 4, "duplicated feature"), (2, 3, 5, "duplicated feature"), (2, 6, 3, "duplicated point")]
UNIQUE, CASES = PLAIN + AWKWARD, PLAIN + AWKWARD + DUPLICATED  # UNIQUE: the lasso has one minimiser
all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def problem(batch, n, d, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    w = torch.randn(batch, d, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    if kind == "scaled features":
        x *= torch.logspace(-1, 1, d, dtype=torch.float64)
    elif kind == "zero feature":
        x[..., 1] = 0
    elif kind == "zero x":
        x[:1] = 0
    elif kind == "duplicated feature":
        x[..., -1] = x[..., 0]
    elif kind == "duplicated point":
        x[:, 1] = x[:, 0]
    y = (x @ w)[..., 0] + (0 if kind == "noiseless" else 0.5) * noise
    return x, 0 * y if kind == "zero labels" else y


def each(*tensors):
    """The prompts one by one, in numpy."""
    return zip(*(t.numpy() for t in tensors), strict=True)


def assert_close(actual, expected, atol=1e-9):
    np.testing.assert_allclose(actual, np.stack(expected), rtol=0, atol=atol)


# Least squares and ridge


@all_cases
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_ridge_equals_scikit_learn_and_the_normal_equations(case, alpha):
    x, y = problem(*case)
    w = estimators.ridge(x, y, alpha)
    assert_close(w, [Ridge(alpha, fit_intercept=False).fit(a, b).coef_ for a, b in each(x, y)])
    assert_close(w, [np.linalg.solve(a.T @ a + alpha * np.eye(case[2]), a.T @ b) for a, b in each(x, y)])


@all_cases
def test_least_squares_is_the_minimum_norm_solution(case):
    x, y = problem(*case)
    w = estimators.least_squares(x, y)
    assert_close(w, [np.linalg.lstsq(a, b, rcond=None)[0] for a, b in each(x, y)])
    assert_close(w, [np.linalg.pinv(a) @ b for a, b in each(x, y)])
    torch.testing.assert_close(estimators.ridge(x, y, 0.0), w, rtol=0, atol=0)


@all_cases
def test_oracle_least_squares_is_least_squares_on_the_supported_columns(case):
    x, y = problem(*case)
    support = torch.rand(x.shape[0], x.shape[2], generator=torch.Generator().manual_seed(1)) < 0.5
    support[0] = case[0] == 1  # a prompt with nothing to fit, or everything
    expected = np.zeros((x.shape[0], x.shape[2]))
    for b, (a, labels, kept) in enumerate(each(x, y, support)):
        expected[b, kept] = np.linalg.lstsq(a[:, kept], labels, rcond=None)[0]
    assert_close(estimators.oracle_least_squares(x, y, support), expected)


def test_the_oracle_recovers_noiseless_weights_from_fewer_points_than_dims():
    x, _ = problem(3, 4, 12, "plain")
    w = torch.zeros(3, 12, dtype=torch.float64)
    w[:, [1, 5, 7]] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert_close(estimators.oracle_least_squares(x, (x @ w[..., None])[..., 0], w != 0), w.numpy())


def test_predictions_equal_a_loop_for_weights_and_for_paths():
    path, x_query = problem(4, 3, 5, "plain")[0], problem(3, 2, 5, "plain", seed=1)[0]
    expected = np.array([[[w @ q for q in queries] for w, queries in each(iterate, x_query)] for iterate in path])
    assert_close(estimators.predictions(path, x_query), expected)
    assert_close(estimators.predictions(path[0], x_query), expected[0])


# Lasso


def lasso_objective(x, y, w, alpha):
    return ((y - x @ w) ** 2).sum() / (2 * len(y)) + alpha * np.abs(w).sum()


def sklearn_lasso(x, y, alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 1e-13 can lie below rounding
        return Lasso(alpha, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(x, y).coef_


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


@all_cases
@pytest.mark.parametrize("alpha", [1e-2, 0.2])
def test_lasso_satisfies_the_optimality_conditions(case, alpha):
    x, y = problem(*case)
    for a, b, w in each(x, y, estimators.lasso(x, y, alpha, relative_gap=1e-14)):
        correlation = a.T @ (b - a @ w) / len(b)
        assert np.abs(correlation).max() <= alpha + 1e-6
        np.testing.assert_allclose(correlation[w != 0], alpha * np.sign(w[w != 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 6])
def test_lasso_of_one_feature_is_soft_thresholding(n):
    x, y = problem(5, n, 1, "plain")
    moment, square = (x[..., 0] * y).mean(1).numpy(), x[..., 0].square().mean(1).numpy()
    expected = np.sign(moment) * np.maximum(np.abs(moment) - 0.3, 0) / square
    assert_close(estimators.lasso(x, y, 0.3, relative_gap=1e-14)[:, 0], expected, atol=1e-7)


def test_lasso_is_exactly_zero_from_the_largest_correlation_on():
    x, y = problem(1, 9, 4, "plain")
    largest = np.abs(x[0].numpy().T @ y[0].numpy()).max() / 9
    assert not estimators.lasso(x, y, float(largest) * 1.0001).any()
    assert (estimators.lasso(x, y, float(largest) * 0.99) != 0).sum() == 1


@all_cases
@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_duality_gap_bounds_the_suboptimality(case, alpha):
    x, y = problem(*case)
    best = [sklearn_lasso(a, b, alpha) for a, b in each(x, y)]
    direction = problem(x.shape[0], 1, x.shape[2], "plain", seed=3)[0][:, 0]
    for distance in (0.0, 1e-3, 0.1, 1.0, 10.0):
        w = torch.from_numpy(np.stack(best)) + distance * direction
        gaps = estimators.lasso_duality_gap(x, y, w, alpha)
        for a, b, ours, optimum, gap in zip(*(t.numpy() for t in (x, y, w)), best, gaps.tolist(), strict=True):
            excess = lasso_objective(a, b, ours, alpha) - lasso_objective(a, b, optimum, alpha)
            assert gap >= excess - 1e-11
            assert distance > 0 or gap <= 1e-8  # the bound closes at the optimum


def test_an_unconverged_lasso_warns():
    x, y = problem(2, 9, 4, "scaled features")
    above = r"2 of 2 lasso problems are above the relative duality gap 1e-12 after 3 iterations; the largest is \d"
    with pytest.warns(RuntimeWarning, match=above):
        estimators.lasso(x, y, 1e-3, relative_gap=1e-12, max_iterations=3)


@pytest.mark.parametrize("max_iterations", [5, 20, 21, 25])
def test_a_lasso_that_converges_in_its_last_iterations_does_not_warn(max_iterations):
    x, y = problem(1, 6, 1, "plain")  # one feature: the first step is exact; the test run turns warnings into errors
    w = estimators.lasso(x, y, 0.01, max_iterations=max_iterations)
    assert_close(w, [sklearn_lasso(x[0].numpy(), y[0].numpy(), 0.01)], atol=1e-7)


def test_lasso_does_not_answer_zero_where_the_labels_are_nan():
    x, y = problem(2, 9, 4, "plain")
    y[0, 0] = math.nan
    assert estimators.lasso(x, y, 1e-2)[0].isnan().all()
    assert estimators.lasso(x[:1], y[:1], 1e-2).isnan().all()


# Gradient descent


def stable_steps(x, y, power):
    """0.9 / lambda_max of each prompt's features x |r_hat|^power, in numpy; 1 where they are 0."""
    curvatures = []
    for a, b in each(x, y):
        features = a * np.abs(a.T @ b / len(b)) ** power
        curvatures.append(np.linalg.eigvalsh(features.T @ features / len(b)).max() / 0.9)
    return [1 / c if c > 0 else 1.0 for c in curvatures]


def gd_by_hand(x, y, n_steps, step_size):
    """w_0 = 0, w_{t+1} = w_t - (step_size / n) sum_i (<w_t, x_i> - y_i) x_i, for one prompt."""
    path = [np.zeros(x.shape[1])]
    for _ in range(n_steps):
        gradient = sum((path[-1] @ row - label) * row for row, label in zip(x, y, strict=True)) / len(y)
        path.append(path[-1] - step_size * gradient)
    return path


@all_cases
@pytest.mark.parametrize("n_steps", [0, 1, 7])
def test_gradient_descent_equals_a_loop_and_is_power_zero(case, n_steps):
    x, y = problem(*case)
    step = min(stable_steps(x, y, 0))
    path = estimators.gradient_descent_path(x, y, n_steps, step)
    assert path.shape == (n_steps + 1, case[0], case[2])
    assert_close(path.transpose(0, 1), [gd_by_hand(a, b, n_steps, step) for a, b in each(x, y)])
    without_weights = estimators.preprocess_then_gd_path(x, y, n_steps, step, power=0.0)
    torch.testing.assert_close(without_weights, path, rtol=0, atol=0)


@all_cases
def test_gradient_descent_equals_its_closed_form(case):
    """w_t = V diag((1 - (1 - step s^2 / n)^t) / s) U^T y from the singular values s of X."""
    x, y = problem(*case)
    path = estimators.gradient_descent_path(x, y, 30, estimators.inverse_curvature(x))
    for b, (a, labels) in enumerate(each(x, y)):
        u, s, vh = np.linalg.svd(a, full_matrices=False)
        curvature = s**2 / max(s.max() ** 2, 1e-300)  # step * s^2 / n
        for t in (1, 2, 30):
            shrunk = np.divide(1 - (1 - curvature) ** t, s, out=np.zeros_like(s), where=s > 1e-10)
            assert_close(path[t, b], vh.T @ (shrunk * (u.T @ labels)))


@all_cases
def test_gradient_descent_descends_to_least_squares(case):
    x, y = problem(*case)
    path = estimators.gradient_descent_path(x, y, 50, estimators.inverse_curvature(x))
    losses = (y - torch.einsum("bpd,tbd->tbp", x, path)).square().sum(-1)
    lowest = (y - torch.einsum("bpd,bd->bp", x, estimators.least_squares(x, y))).square().sum(-1)
    assert (losses.diff(dim=0) <= 1e-12).all()
    assert (losses[-1] >= lowest - 1e-12).all()


@all_cases
@pytest.mark.parametrize("per_prompt", [True, False])
def test_preprocess_then_gd_predicts_what_section_7_predicts(case, per_prompt):
    """In the transformed coordinates, with r_hat's sign: yhat = <w_t, R_hat x_q>."""
    x, y = problem(*case)
    x_query = problem(case[0], 3, case[2], "plain", seed=1)[0]
    steps = stable_steps(x, y, 1) if per_prompt else [min(stable_steps(x, y, 1))] * case[0]
    step_size = torch.tensor(steps, dtype=torch.float64) if per_prompt else steps[0]
    ours = estimators.predictions(estimators.preprocess_then_gd_path(x, y, 6, step_size), x_query)
    for b, (a, labels, queries) in enumerate(each(x, y, x_query)):
        r_hat = sum(row * label for row, label in zip(a, labels, strict=True)) / len(labels)
        by_hand = gd_by_hand(a * r_hat, labels, 6, steps[b])
        assert_close(ours[:, b], [[w @ (r_hat * q) for q in queries] for w in by_hand])


@all_cases
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_preprocess_then_gd_is_gd_with_a_preconditioner(case, power):
    """In the original coordinates: w <- w - step |R_hat|^(2 power) X^T (X w - y) / n."""
    x, y = problem(*case)
    step = min(stable_steps(x, y, power))
    path = estimators.preprocess_then_gd_path(x, y, 5, step, power)
    for b, (a, labels) in enumerate(each(x, y)):
        preconditioner, w = np.abs(a.T @ labels / len(labels)) ** (2 * power), np.zeros(case[2])
        for t in range(6):
            assert_close(path[t, b], w)
            w = w - step * preconditioner * (a.T @ (a @ w - labels)) / len(labels)


def test_each_prompt_descends_with_its_own_step_size():
    x, y = problem(3, 9, 4, "plain")
    steps = [0.0, 0.1, 0.3]
    together = estimators.gradient_descent_path(x, y, 4, torch.tensor(steps, dtype=torch.float64))
    for b, step in enumerate(steps):
        assert_close(together[:, b], estimators.gradient_descent_path(x, y, 4, step)[:, b].numpy(), atol=1e-12)
    assert not together[:, 0].any()


@all_cases
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_preprocessing_multiplies_each_feature_by_its_correlation(case, power):
    x, y = problem(*case)
    queries = problem(case[0], 2, case[2], "plain", seed=1)[0]
    scales = []
    for a, labels in each(x, y):
        sums = [sum(a[i, j] * labels[i] for i in range(len(labels))) for j in range(case[2])]
        scales.append([abs(total / len(labels)) ** power for total in sums])
    assert_close(estimators.feature_scale(x, y, power), scales)
    expected = [[q * scale for q in rows] for rows, scale in zip(queries.numpy(), np.array(scales), strict=True)]
    assert_close(estimators.preprocessed(queries, x, y, power), expected)


@all_cases
def test_inverse_curvature_equals_numpy(case):
    x, _ = problem(*case)
    largest = [np.linalg.eigvalsh(a.T @ a / len(a)).max() for a in x.numpy()]
    assert_close(estimators.inverse_curvature(x), [1 / value if value > 0 else 0.0 for value in largest])


# Arguments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimators_answer_in_the_type_of_the_labels(dtype):
    x, y = (t.to(dtype) for t in problem(3, 12, 4, "plain"))
    answers = [
        estimators.ridge(x, y, 1.0),
        estimators.least_squares(x, y),
        estimators.oracle_least_squares(x, y, torch.ones(3, 4).bool()),
        estimators.lasso(x, y, 0.1),
        estimators.gradient_descent_path(x, y, 2, torch.full((3,), 0.1)),
        estimators.preprocess_then_gd_path(x, y, 2, 0.1),
        estimators.inverse_curvature(x),
    ]
    assert {answer.dtype for answer in answers} == {dtype}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: estimators.ridge(x, y, -1.0), "alpha is -1.0"),
        (lambda x, y: estimators.ridge(x, y, math.nan), "alpha is nan"),
        (lambda x, y: estimators.lasso(x, y, 0.0), "alpha is 0.0"),
        (lambda x, y: estimators.lasso(x, y, -0.5), "alpha is -0.5"),
        (lambda x, y: estimators.lasso(x, y, math.nan), "alpha is nan"),
        (lambda x, y: estimators.gradient_descent_path(x, y, -1, 0.1), "n_steps is -1"),
        (lambda x, y: estimators.preprocess_then_gd_path(x, y, -2, 0.1), "n_steps is -2"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem(1, 3, 2, "plain"))
