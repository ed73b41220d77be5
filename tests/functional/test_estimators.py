"""Predictions, and gradient descent against loops over single examples."""

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError

SUPPORTS, WEIGHTS = estimators.all_supports(3, 2), torch.eye(2, 3, dtype=torch.float64)
SEEING_EXAMPLES = {
    "averaging": estimators.averaging,
    "least squares": estimators.least_squares,
    "least squares, prefixes": estimators.least_squares_prefixes,
    "oracle": lambda x, y: estimators.oracle_least_squares(x, y, WEIGHTS == 0),
    "oracle, prefixes": lambda x, y: estimators.oracle_least_squares_prefixes(x, y, WEIGHTS == 0),
    "ridge": lambda x, y: estimators.ridge(x, y, 0.3),
    "ridge, prefixes": lambda x, y: estimators.ridge_prefixes(x, y, 0.3),
    "lasso": lambda x, y: estimators.lasso(x, y, 0.1),
    "lasso path": lambda x, y: estimators.lasso_path(x, y, [0.1, 0.01]),
    "elastic net": lambda x, y: estimators.elastic_net(x, y, 0.1, 0.5),
    "adaptive lasso": lambda x, y: estimators.adaptive_lasso(x, y, 0.1),
    "GD": lambda x, y: estimators.gradient_descent_path(x, y, 2, 0.1),
    "preprocess then GD": lambda x, y: estimators.preprocess_then_gd_path(x, y, 2, 0.1),
    "GD++": lambda x, y: estimators.gd_plus_plus_path(x, y, 2, 0.1, 0.1),
    "Newton": lambda x, y: estimators.newton_path(x, y, 2),
    "ISTA": lambda x, y: estimators.ista_path(x, y, 0.1, 2, 0.1),
    "FISTA": lambda x, y: estimators.fista_path(x, y, 0.1, 2, 0.1),
    "IHT": lambda x, y: estimators.iterative_hard_thresholding_path(x, y, 2, 2, 0.1),
    "OMP": lambda x, y: estimators.orthogonal_matching_pursuit(x, y, 2),
    "best subset": lambda x, y: estimators.best_subset(x, y, 2),
    "Gaussian posterior": lambda x, y: estimators.gaussian_posterior(x, y, SUPPORTS, 0.3),
    "sign posterior": lambda x, y: estimators.sign_posterior(x, y, SUPPORTS, 0.3),
    "pool posterior": lambda x, y: estimators.pool_posterior(x, y, WEIGHTS, 0.3),
    "neighbours": lambda x, y: estimators.nearest_neighbours(x, y, x),
    "neighbours, prefixes": lambda x, y: estimators.nearest_neighbours_prefixes(x, y, torch.cat([x, x[:, :1]], dim=1)),
    "prefix moments": estimators.prefix_moments,
    "inverse curvature": lambda x, y: estimators.inverse_curvature(x * y[..., None]),
}
all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def test_predictions_equal_a_loop_for_weights_and_for_paths():
    path, x_query = problem(4, 3, 5, "plain")[0], problem(3, 2, 5, "plain", seed=1)[0]
    expected = np.array([[[w @ q for q in queries] for w, queries in each(iterate, x_query)] for iterate in path])
    assert_close(estimators.predictions(path, x_query), expected)
    assert_close(estimators.predictions(path[0], x_query), expected[0])


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


@pytest.mark.parametrize("name", SEEING_EXAMPLES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "y"])
def test_a_value_that_is_not_finite_is_refused_with_its_prompt(name, value, where):
    x, y = problem(2, 5, 3, "plain")
    SEEING_EXAMPLES[name](x, y)
    (x[1, 2] if where == "x" else y[1])[0] = value
    with pytest.raises(InputError, match="prompt 1 of the batch, counted from 0, holds a value that is not finite"):
        SEEING_EXAMPLES[name](x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimators_answer_in_the_type_of_the_labels(dtype):
    x, y = (t.to(dtype) for t in problem(3, 12, 4, "plain"))
    answers = [
        estimators.gradient_descent_path(x, y, 2, torch.full((3,), 0.1)),
        estimators.preprocess_then_gd_path(x, y, 2, 0.1),
        estimators.inverse_curvature(x),
    ]
    assert {answer.dtype for answer in answers} == {dtype}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: estimators.gradient_descent_path(x, y, -1, 0.1), "n_steps is -1"),
        (lambda x, y: estimators.preprocess_then_gd_path(x, y, -2, 0.1), "n_steps is -2"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem(1, 3, 2, "plain"))
