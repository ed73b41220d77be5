"""Supports against itertools, and the best subset against numpy's lstsq on every support."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import least_squares, over_prefixes, prefix_moments
from lightning_icl.functional.estimators.subsets import (
    all_supports,
    best_subset,
    group_supports,
    ridge_on_supports,
)


def problems_of(cases, largest):
    return [(case, s) for case in cases for s in range(1, min(case[2], largest) + 1)]


@pytest.mark.parametrize(("d", "s"), [(1, 1), (5, 1), (5, 2), (5, 5), (7, 3), (9, 4), (16, 4)])
def test_all_supports_are_the_combinations_in_lexicographic_order(d, s):
    supports = all_supports(d, s)
    assert supports.tolist() == [list(chosen) for chosen in combinations(range(d), s)]
    assert supports.dtype == torch.int64


@pytest.mark.parametrize(("d", "size", "n"), [(6, 2, 1), (6, 2, 2), (8, 2, 4), (12, 3, 2), (4, 1, 2), (4, 4, 1)])
def test_group_supports_are_the_unions_of_groups(d, size, n):
    groups = [list(range(first, first + size)) for first in range(0, d, size)]
    assert group_supports(d, size, n).tolist() == [[*chain(*chosen)] for chosen in combinations(groups, n)]


@pytest.mark.parametrize(("case", "sparsity"), problems_of(CASES, 4), ids=str)
def test_best_subset_equals_lstsq_on_every_support(case, sparsity):
    x, y = problem(*case)
    for a, labels, w in each(x, y, best_subset(x, y, sparsity)):
        residuals, norms = [], []
        for chosen in map(list, combinations(range(case[2]), sparsity)):
            fitted = np.linalg.lstsq(a[:, chosen], labels, rcond=None)[0]
            residuals.append(((labels - a[:, chosen] @ fitted) ** 2).sum())
            norms.append((fitted**2).sum())
        residual = ((labels - a @ w) ** 2).sum()
        scale = max((labels**2).sum(), 1e-300)
        assert (w != 0).sum() <= sparsity
        assert residual <= min(residuals) + 1e-9 * scale
        tied = [norm for norm, other in zip(norms, residuals, strict=True) if other <= min(residuals) + 1e-13 * scale]
        assert abs((w**2).sum() - min(tied)) <= 1e-6 * max(1, min(tied))


def test_a_subset_of_all_features_is_least_squares():
    for case in CASES:
        x, y = problem(*case)
        assert_close(best_subset(x, y, case[2]), least_squares(x, y).numpy(), atol=1e-7)


@pytest.mark.parametrize("block", [1, 5, 64, 10**6])
def test_every_prefix_is_fitted_as_if_it_were_the_prompt_whatever_the_block(block):
    x, y = problem(3, 7, 5, "plain")
    together = over_prefixes(lambda m: best_subset(m, 2, block), x, y)
    for k in range(1, 8):
        assert_close(together[:, k - 1], best_subset(x[:, :k], y[:, :k], 2).numpy())


def test_ridge_on_supports_equals_numpy():
    x, y = problem(4, 6, 5, "plain")
    supports = torch.tensor([[0, 3, 1], [4, 2, 3], [2, 0, 4]])
    gram = (x.mT @ x + 0.3 * torch.eye(5, dtype=torch.float64)).permute(1, 2, 0).contiguous()
    fits = ridge_on_supports(gram, torch.einsum("bpd,bp->db", x, y), supports)
    for i, (a, labels) in enumerate(each(x, y)):
        for j, chosen in enumerate(supports.tolist()):
            matrix, target = a[:, chosen].T @ a[:, chosen] + 0.3 * np.eye(3), a[:, chosen].T @ labels
            weights = np.linalg.solve(matrix, target)
            assert_close(fits.weights[:, j, i], weights)
            assert fits.explained[j, i].item() == pytest.approx(target @ weights, abs=1e-10)
            assert fits.log_det[j, i].item() == pytest.approx(np.linalg.slogdet(matrix)[1], abs=1e-10)


def test_answers_come_in_the_type_of_the_labels():
    x, y = (t.float() for t in problem(2, 6, 4, "plain"))
    assert best_subset(x, y, 2).dtype == torch.float32


def test_prefixes_of_one_point_have_no_answer_beyond_the_span():
    x, y = problem(2, 3, 4, "plain")
    first = best_subset(prefix_moments(x, y), 1)[::3]  # one point, one feature: the largest |x_j|
    expected = np.zeros((2, 4))
    for b, (a, labels) in enumerate(each(x, y)):
        j = np.abs(a[0]).argmax()
        expected[b, j] = labels[0] / a[0, j]
    assert_close(first, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: all_supports(4, 0), "sparsity is 0"),
        (lambda: all_supports(4, 5), "sparsity is 5"),
        (lambda: all_supports(64, 8), "4,426,165,368 supports of 8 among 64 features.*lasso"),
        (lambda: group_supports(8, 3, 1), "group_size is 3"),
        (lambda: group_supports(8, 0, 1), "group_size is 0"),
        (lambda: group_supports(8, 2, 5), "n_groups is 5"),
        (lambda: best_subset(*problem(1, 3, 100, "plain"), 6), "supports of 6 among 100"),
        (lambda: best_subset(*problem(1, 3, 2, "plain"), 3), "sparsity is 3"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
