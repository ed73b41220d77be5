"""Paths of iterates against loops over examples, literal transformations of tokens, and closed forms."""

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import (
    eigenbasis,
    feature_scale,
    fista_path,
    gd_plus_plus_path,
    gradient_descent_path,
    inverse_curvature,
    ista_path,
    lasso,
    least_squares,
    moments,
    newton_path,
    over_prefixes,
    predictions,
    preprocess_then_gd_path,
    preprocessed,
    ridge,
)

all_cases = pytest.mark.parametrize("case", CASES, ids=str)


# Prefixes, and step sizes of each row


@pytest.mark.parametrize(
    "path",
    [
        lambda *problems: gradient_descent_path(*problems, 4, 0.1),
        lambda *problems: preprocess_then_gd_path(*problems, 4, 0.1, 0.5),
        lambda *problems: ista_path(*problems, 0.1, 4, 0.1),
        lambda *problems: fista_path(*problems, 0.1, 4, 0.1),
        lambda *problems: gd_plus_plus_path(*problems, 4, 0.1, 0.05),
        lambda *problems: newton_path(*problems, 4),
    ],
    ids=["gd", "preprocess", "ista", "fista", "gd++", "newton"],
)
def test_every_prefix_descends_as_if_it_were_the_prompt(path):
    x, y = problem(3, 7, 5, "plain")
    together = over_prefixes(path, x, y)
    for k in range(1, 8):
        assert_close(together[..., k - 1, :], path(x[:, :k], y[:, :k]).numpy())


def test_paths_and_fits_in_the_eigenbasis_are_those_of_its_moments():
    m = moments(*problem(3, 7, 5, "plain"))
    for estimate in (
        lambda problems: gd_plus_plus_path(problems, 4, 0.1, 0.05),
        lambda problems: newton_path(problems, 4),
        lambda problems: ridge(problems, 0.3),
    ):
        assert_close(estimate(eigenbasis(m)), estimate(m).numpy())


@pytest.mark.parametrize(
    "path",
    [
        lambda x, y, value: gradient_descent_path(x, y, 4, value),
        lambda x, y, value: preprocess_then_gd_path(x, y, 4, value),
        lambda x, y, value: ista_path(x, y, 0.1, 4, value),
        lambda x, y, value: ista_path(x, y, value, 4, 0.1),
        lambda x, y, value: fista_path(x, y, 0.1, 4, value),
        lambda x, y, value: fista_path(x, y, value, 4, 0.1),
        lambda x, y, value: gd_plus_plus_path(x, y, 4, value, 0.05),
        lambda x, y, value: gd_plus_plus_path(x, y, 4, 0.1, value),
    ],
)
def test_each_prompt_has_its_own_step_size_and_strength(path):
    x, y = problem(3, 9, 4, "plain")
    values = [0.0, 0.1, 0.2]
    together = path(x, y, torch.tensor(values, dtype=torch.float64))
    for b, value in enumerate(values):
        assert_close(together[:, b], path(x[b : b + 1], y[b : b + 1], value)[:, 0].numpy(), atol=1e-12)


@all_cases
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_inverse_curvature_of_rescaled_moments_is_that_of_the_preprocessed_examples(case, power):
    x, y = problem(*case)
    m = moments(x, y)
    norms = [np.linalg.norm(features, 2) ** 2 / len(features) for features in preprocessed(x, x, y, power).numpy()]
    expected = [1 / norm if norm > 0 else 0.0 for norm in norms]
    assert_close(inverse_curvature(m.rescaled(feature_scale(m, power))), expected, atol=1e-9, rtol=1e-9)
    assert_close(inverse_curvature(preprocessed(x, x, y, power)), expected, atol=1e-9, rtol=1e-9)


# ISTA and FISTA


def proximal_by_hand(x, y, alpha, n_steps, step, momentum):
    """Each weight by its own scalar minimisation of the quadratic model plus alpha |w|."""
    path, ahead, tau = [np.zeros(x.shape[1])], np.zeros(x.shape[1]), 1.0
    for _ in range(n_steps):
        gradient = sum((row @ ahead - label) * row for row, label in zip(x, y, strict=True)) / len(y)
        w = ahead - step * gradient
        w = np.array([max(v - step * alpha, 0) if v > 0 else min(v + step * alpha, 0) for v in w])
        tau_next = (1 + np.sqrt(1 + 4 * tau**2)) / 2 if momentum else 1.0
        ahead = w + (tau - 1) / tau_next * (w - path[-1])
        tau = tau_next
        path.append(w)
    return path


@all_cases
@pytest.mark.parametrize(("path", "momentum"), [(ista_path, False), (fista_path, True)])
@pytest.mark.parametrize("n_steps", [0, 8])
def test_proximal_paths_equal_a_loop(case, path, momentum, n_steps):
    x, y = problem(*case)
    steps = inverse_curvature(x)
    hand = [proximal_by_hand(a, b, 0.2, n_steps, s, momentum) for a, b, s in each(x, y, steps)]
    assert_close(path(x, y, 0.2, n_steps, steps).transpose(0, 1), hand)


@all_cases
@pytest.mark.parametrize(("path", "n_steps"), [(ista_path, 6000), (fista_path, 1500)])
def test_proximal_paths_end_at_the_lasso(case, path, n_steps):
    """In what they explain, and in their norm: with duplicated features the weights are not unique."""
    x, y = problem(*case)
    last, best = path(x, y, 0.2, n_steps, inverse_curvature(x))[-1], lasso(x, y, 0.2, relative_gap=1e-12)
    assert_close(last.abs().sum(-1), best.abs().sum(-1).numpy(), atol=1e-5)
    assert_close(torch.einsum("bpd,bd->bp", x, last), torch.einsum("bpd,bd->bp", x, best).numpy(), atol=1e-5)


@all_cases
def test_the_lasso_objective_falls_along_ista_and_by_beck_and_teboulles_bound_along_fista(case):
    x, y = problem(*case)
    step, best = inverse_curvature(x), lasso(x, y, 0.1, relative_gap=1e-12)

    def objective(w):
        return (y - torch.einsum("bpd,...bd->...bp", x, w)).square().mean(-1) / 2 + 0.1 * w.abs().sum(-1)

    t = torch.arange(1, 41)[:, None]
    distance = best.square().sum(-1) / step.where(step > 0, 1.0)
    slow, fast = objective(ista_path(x, y, 0.1, 40, step)), objective(fista_path(x, y, 0.1, 40, step))
    assert (slow.diff(dim=0) <= 1e-12).all()
    assert (slow[1:] - objective(best) <= distance / (2 * t) + 1e-10).all()
    assert (fast[1:] - objective(best) <= 2 * distance / (t + 1) ** 2 + 1e-10).all()


def test_ista_without_penalty_is_gradient_descent():
    x, y = problem(3, 9, 4, "plain")
    assert_close(ista_path(x, y, 0.0, 6, 0.1), gradient_descent_path(x, y, 6, 0.1).numpy(), atol=1e-12)


# GD++


def tokens_by_hand(x, y, queries, n_steps, step, gamma):
    """Every layer updates inputs and label slots of all tokens from what they were; minus the query's slot is read."""
    x, queries, n = x.copy(), queries.copy(), len(y)
    slot, query_slot, answers = y.copy(), np.zeros(len(queries)), [np.zeros(len(queries))]
    for _ in range(n_steps):
        slot, query_slot = slot - step / n * (x @ x.T) @ slot, query_slot - step / n * (queries @ x.T) @ slot
        curvature = x.T @ x / n
        x, queries = x - gamma * x @ curvature, queries - gamma * queries @ curvature
        answers.append(-query_slot)
    return answers


@all_cases
@pytest.mark.parametrize("relative_gamma", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("n_steps", [0, 1, 6])
def test_gd_plus_plus_predicts_what_transformed_tokens_predict(case, relative_gamma, n_steps):
    x, y = problem(*case)
    queries = problem(case[0], 3, case[2], "plain", seed=1)[0]
    step = inverse_curvature(x)
    ours = predictions(gd_plus_plus_path(x, y, n_steps, 1.5 * step, relative_gamma * step), queries)
    hand = [
        tokens_by_hand(a, labels, q, n_steps, 1.5 * s, relative_gamma * s)
        for a, labels, q, s in each(x, y, queries, step)
    ]
    assert_close(ours.transpose(0, 1), hand)


@all_cases
def test_an_eigenbasis_holds_the_problem(case):
    m = moments(*problem(*case))
    curvature, moment, vectors, _ = eigenbasis(m)
    assert_close((vectors * curvature[:, None]) @ vectors.mT, m.gram.numpy(), atol=1e-12)
    assert_close((vectors @ moment[..., None])[..., 0], m.moment.numpy(), atol=1e-12)


def test_gd_plus_plus_without_transformation_is_gradient_descent():
    x, y = problem(3, 9, 4, "plain")
    assert_close(gd_plus_plus_path(x, y, 6, 0.1, 0.0), gradient_descent_path(x, y, 6, 0.1).numpy(), atol=1e-12)


def test_gd_plus_plus_is_ahead_of_gradient_descent_on_unequal_curvature():
    """Both at their largest safe step: the flattened spectrum lets the slow directions catch up."""
    x, y = problem(20, 40, 5, "scaled features")
    curvature = np.array([np.linalg.eigvalsh(a.T @ a / 40)[-1] for a in x.numpy()])
    shrinkage = torch.from_numpy(1 / (3 * curvature))  # flattest at the top: d/dl of l (1 - gamma l)^2 is 0
    step = torch.from_numpy(1 / (curvature * (2 / 3) ** 2))
    losses = [
        (y - torch.einsum("bpd,bd->bp", x, path[-1])).square().mean(-1)
        for path in (
            gd_plus_plus_path(x, y, 20, step, shrinkage),
            gradient_descent_path(x, y, 20, inverse_curvature(x)),
        )
    ]
    assert (losses[0] < losses[1]).all()


# Newton's iteration


@all_cases
def test_newtons_path_equals_the_matrix_iteration(case):
    x, y = problem(*case)
    path = newton_path(x, y, 6)
    for b, (a, labels) in enumerate(each(x, y)):
        s = a.T @ a
        inverse = s / max(np.linalg.eigvalsh(s)[-1], 1e-300) ** 2 if s.any() else 0 * s
        for t in range(7):
            assert_close(path[t, b], inverse @ a.T @ labels)
            inverse = 2 * inverse - inverse @ s @ inverse


@all_cases
def test_newtons_iteration_ends_at_least_squares_and_stays(case):
    x, y = problem(*case)
    path = newton_path(x, y, 200)
    for t in (50, 100, 200):
        assert_close(path[t], least_squares(x, y).numpy(), atol=1e-7)


def test_newtons_error_squares_with_each_step():
    x, y = problem(1, 30, 1, "plain")
    x = torch.cat([x, 0.3 * problem(1, 30, 1, "plain", seed=5)[0]], 2)
    best, error = least_squares(x, y), []
    eigenvalues = np.linalg.eigvalsh((x.mT @ x)[0].numpy())
    for w in newton_path(x, y, 8):
        error.append((torch.linalg.eigh(x.mT @ x)[1].mT @ (w - best)[..., None])[0, 0].abs().item())
    ratio = 1 - (eigenvalues[0] / eigenvalues[1]) ** 2
    assert_close(error, error[0] * ratio ** (2.0 ** np.arange(9) - 1), atol=1e-10)


def test_answers_come_in_the_type_of_the_labels():
    x, y = (t.float() for t in problem(2, 6, 4, "plain"))
    paths = [
        ista_path(x, y, 0.1, 3, inverse_curvature(x)),
        fista_path(x, y, 0.1, 3, 0.1),
        gd_plus_plus_path(x, y, 3, 0.1, 0.1),
        newton_path(x, y, 3),
    ]
    assert {path.dtype for path in paths} == {torch.float32}
    assert {path.shape for path in paths} == {(4, 2, 4)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ista_path(x, y, 0.1, -1, 0.1), "n_steps is -1"),
        (lambda x, y: fista_path(x, y, 0.1, -1, 0.1), "n_steps is -1"),
        (lambda x, y: gd_plus_plus_path(x, y, -1, 0.1, 0.1), "n_steps is -1"),
        (lambda x, y: newton_path(x, y, -1), "n_steps is -1"),
        (lambda x, y: ista_path(x, y, -0.1, 3, 0.1), "alpha is -0.1"),
        (lambda x, y: fista_path(x, y, float("nan"), 3, 0.1), "alpha is nan"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem(1, 3, 2, "plain"))
