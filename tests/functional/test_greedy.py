"""Orthogonal matching pursuit against scikit-learn, iterative hard thresholding against a loop."""

import warnings

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem, sparse_problem
from sklearn.linear_model import orthogonal_mp

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import (
    all_supports,
    inverse_curvature,
    iterative_hard_thresholding_path,
    least_squares,
    orthogonal_matching_pursuit,
    over_prefixes,
)

all_cases = pytest.mark.parametrize("case", CASES, ids=str)
UNEQUAL = [case for case in CASES if case[3] != "duplicated feature"]  # equal weights compete for the last place


def normal(generator, shape):
    return torch.randn(shape, generator=generator)


def sklearn_path(x, y, n_nonzero):
    """scikit-learn's path, whose last iterate is repeated where it stops early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when it stops early
        path = orthogonal_mp(x, y, n_nonzero_coefs=n_nonzero, return_path=True).reshape(x.shape[1], -1).T
    path = np.concatenate([np.zeros((1, x.shape[1])), path])
    return np.concatenate([path, np.repeat(path[-1:], max(0, n_nonzero + 1 - len(path)), 0)])


# Orthogonal matching pursuit


@all_cases
def test_orthogonal_matching_pursuit_equals_scikit_learn_until_the_labels_are_explained(case):
    x, y = problem(*case)
    ours = orthogonal_matching_pursuit(x, y, case[2])
    for b, (a, labels) in enumerate(each(x, y)):
        for count, expected in enumerate(sklearn_path(a, labels, case[2])):
            # Where nothing is left to explain, scikit-learn picks features by their rounding errors: compare the fits.
            assert_close(a @ ours[count, b].numpy(), a @ expected, atol=1e-7)
            if count == 0 or np.linalg.norm(labels - a @ ours[count - 1, b].numpy()) > 1e-6:
                assert_close(ours[count, b], expected, atol=1e-7)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 20), (20, 20)])
def test_orthogonal_matching_pursuit_equals_scikit_learn_on_sparse_problems(n, d):
    x, y, _ = sparse_problem(40, n, all_supports(d, 3), 0.3, normal)
    x = x * torch.linspace(0.5, 2, d)  # features of unequal norm are compared as they are
    ours = orthogonal_matching_pursuit(x, y, 5)
    assert_close(ours.transpose(0, 1), [sklearn_path(a, labels, 5) for a, labels in each(x, y)], atol=1e-8)


@all_cases
def test_the_residual_is_orthogonal_to_the_chosen_features_and_never_grows(case):
    x, y = problem(*case)
    path = orthogonal_matching_pursuit(x, y, case[2])
    residual = y - torch.einsum("bpd,tbd->tbp", x, path)
    correlation = torch.einsum("bpd,tbp->tbd", x, residual)
    assert not (correlation * (path != 0)).abs().gt(1e-8).any()
    assert ((path != 0).sum(-1) <= torch.arange(case[2] + 1)[:, None]).all()
    assert (residual.square().sum(-1).diff(dim=0) <= 1e-10).all()


@all_cases
def test_with_every_feature_it_explains_what_least_squares_explains(case):
    x, y = problem(*case)
    last = orthogonal_matching_pursuit(x, y, case[2])[-1]
    fits = [torch.einsum("bpd,bd->bp", x, w) for w in (last, least_squares(x, y))]
    assert_close(fits[0], fits[1].numpy(), atol=1e-7)


def test_of_equal_features_the_first_is_chosen_and_the_other_never():
    x, y = problem(20, 9, 4, "duplicated feature")
    path = orthogonal_matching_pursuit(x, y, 4)
    assert not path[..., 3].any()
    assert path[-1, :, 0].all()


def test_without_noise_the_path_ends_at_the_weights_and_stays():
    x, y, w = sparse_problem(30, 30, all_supports(8, 2), 0.0, normal)
    path = orthogonal_matching_pursuit(x, y, 6)
    found = (path[2] - w).abs().amax(1) < 1e-9
    assert found.sum() >= 25
    assert (path[3:, found] == path[2, found]).all()


@pytest.mark.parametrize("n_nonzero", [0, 2])
def test_every_prefix_is_pursued_as_if_it_were_the_prompt(n_nonzero):
    x, y = problem(3, 7, 5, "plain")
    together = over_prefixes(lambda m: orthogonal_matching_pursuit(m, n_nonzero), x, y)
    for k in range(1, 8):
        assert_close(together[..., k - 1, :], orthogonal_matching_pursuit(x[:, :k], y[:, :k], n_nonzero).numpy())


# Iterative hard thresholding


def thresholding_by_hand(x, y, sparsity, n_steps, step_size):
    path = [np.zeros(x.shape[1])]
    for _ in range(n_steps):
        w = path[-1] - step_size * x.T @ (x @ path[-1] - y) / len(y)
        w[np.argsort(-np.abs(w), kind="stable")[sparsity:]] = 0
        path.append(w)
    return path


@pytest.mark.parametrize("case", UNEQUAL, ids=str)
@pytest.mark.parametrize("per_prompt", [True, False])
def test_iterative_hard_thresholding_equals_a_loop(case, per_prompt):
    x, y = problem(*case)
    for sparsity in {1, (case[2] + 1) // 2, case[2]}:
        steps = inverse_curvature(x) if per_prompt else torch.full_like(y[:, 0], inverse_curvature(x).min())
        path = iterative_hard_thresholding_path(x, y, sparsity, 9, steps if per_prompt else steps[0].item())
        hand = [thresholding_by_hand(a, labels, sparsity, 9, s) for a, labels, s in each(x, y, steps)]
        assert_close(path.transpose(0, 1), hand)


@all_cases
def test_iterative_hard_thresholding_never_loses_ground(case):
    x, y = problem(*case)
    path = iterative_hard_thresholding_path(x, y, 1, 30, inverse_curvature(x))
    loss = (y - torch.einsum("bpd,tbd->tbp", x, path)).square().sum(-1)
    assert (loss.diff(dim=0) <= 1e-10).all()
    assert ((path != 0).sum(-1) <= 1).all()


def test_without_noise_iterative_hard_thresholding_finds_the_weights():
    x, y, w = sparse_problem(30, 60, all_supports(8, 2), 0.0, normal)
    last = iterative_hard_thresholding_path(x, y, 2, 300, inverse_curvature(x))[-1]
    assert ((last - w).abs().amax(1) < 1e-6).sum() >= 28


def test_every_prefix_is_thresholded_as_if_it_were_the_prompt():
    x, y = problem(3, 7, 5, "plain")
    together = over_prefixes(lambda m: iterative_hard_thresholding_path(m, 2, 4, 0.1), x, y)
    for k in range(1, 8):
        assert_close(together[..., k - 1, :], iterative_hard_thresholding_path(x[:, :k], y[:, :k], 2, 4, 0.1).numpy())


def test_answers_come_in_the_type_of_the_labels():
    x, y = (t.float() for t in problem(2, 6, 4, "plain"))
    assert orthogonal_matching_pursuit(x, y, 2).dtype == torch.float32
    assert iterative_hard_thresholding_path(x, y, 2, 3, inverse_curvature(x)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: orthogonal_matching_pursuit(x, y, 3), "n_nonzero is 3.*between 0 and 2"),
        (lambda x, y: orthogonal_matching_pursuit(x, y, -1), "n_nonzero is -1"),
        (lambda x, y: iterative_hard_thresholding_path(x, y, 0, 3, 0.1), "sparsity is 0"),
        (lambda x, y: iterative_hard_thresholding_path(x, y, 3, 3, 0.1), "sparsity is 3"),
        (lambda x, y: iterative_hard_thresholding_path(x, y, 1, -1, 0.1), "n_steps is -1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem(1, 3, 2, "plain"))
