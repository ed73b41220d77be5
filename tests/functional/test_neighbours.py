"""k nearest neighbours against scikit-learn."""

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem
from sklearn.neighbors import KNeighborsRegressor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import neighbours
from lightning_icl.functional.estimators.neighbours import nearest_neighbours, nearest_neighbours_prefixes

WITHOUT_TIES = [case for case in CASES if case[3] not in ("duplicated point", "zero x")]
distinct_points = pytest.mark.parametrize("case", WITHOUT_TIES, ids=str)


def by_scikit_learn(x, y, queries, k):
    return KNeighborsRegressor(min(k, len(y)), algorithm="brute").fit(x, y).predict(queries)


@distinct_points
@pytest.mark.parametrize("k", [1, 3, 20])
def test_nearest_neighbours_equal_scikit_learn(case, k):
    x, y = problem(*case)
    queries = problem(case[0], 6, case[2], "plain", seed=1)[0]
    hand = [by_scikit_learn(a, labels, q, k) for a, labels, q in each(x, y, queries)]
    assert_close(nearest_neighbours(x, y, queries, k), hand)


@distinct_points
@pytest.mark.parametrize("k", [1, 3, 20])
def test_prefixes_of_nearest_neighbours_equal_scikit_learn(case, k):
    x, y = problem(*case)
    targets = problem(case[0], case[1] + 1, case[2], "plain", seed=1)[0]
    ours = nearest_neighbours_prefixes(x, y, targets, k)
    assert ours.shape == (case[0], case[1] + 1)
    assert not ours[:, 0].any()
    for b, (a, labels, rows) in enumerate(each(x, y, targets)):
        for i in range(1, case[1] + 1):
            assert_close(ours[b, i], by_scikit_learn(a[:i], labels[:i], rows[i : i + 1], k)[0])


@distinct_points
@pytest.mark.parametrize("held", [0.0, float("nan")])
def test_padding_is_no_neighbour_whatever_it_holds(case, held):
    """Queries are near 0, where padding lies; each prompt has its own number of examples."""
    x, y = problem(*case)
    queries = 0.1 * problem(case[0], 6, case[2], "plain", seed=1)[0]
    mask = torch.zeros(case[0], case[1] + 5, dtype=torch.bool)
    wide_x, wide_y = (torch.full((*mask.shape, *t.shape[2:]), held, dtype=t.dtype) for t in (x, y))
    for b in range(case[0]):
        n = max(1, case[1] - b)
        wide_x[b, :n], wide_y[b, :n], mask[b, :n] = x[b, :n], y[b, :n], True
    ours = nearest_neighbours(wide_x, wide_y, queries, 3, mask)
    for b, (a, labels, q) in enumerate(each(x, y, queries)):
        n = max(1, case[1] - b)
        assert_close(ours[b], by_scikit_learn(a[:n], labels[:n], q, 3))


def test_of_equally_near_examples_the_earlier_counts():
    x = torch.tensor([[[1.0], [-1.0], [1.0], [3.0]]])
    y = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    at = torch.zeros(1, 1, 1)
    assert [nearest_neighbours(x, y, at, k).item() for k in (1, 2, 3, 4)] == pytest.approx([1, 1.5, 7 / 3, 15 / 4])


def test_prompts_in_parts_give_the_same_answer(monkeypatch):
    x, y = problem(5, 7, 3, "plain")
    targets = problem(5, 8, 3, "plain", seed=1)[0]
    whole = nearest_neighbours_prefixes(x, y, targets, 3)
    for at_once in (1, 130):
        monkeypatch.setattr(neighbours, "DISTANCES_AT_ONCE", at_once)
        assert_close(nearest_neighbours_prefixes(x, y, targets, 3), whole.numpy(), atol=0)


def test_answers_come_in_the_type_of_the_labels():
    x, y = (t.float() for t in problem(2, 6, 4, "plain"))
    assert nearest_neighbours(x, y, x, 3).dtype == torch.float32
    np.testing.assert_array_equal(nearest_neighbours(x, y, x, 1), y)  # each example is nearest to itself


def test_no_neighbours_are_too_few():
    x, y = problem(1, 3, 2, "plain")
    with pytest.raises(InputError, match="k is 0"):
        nearest_neighbours(x, y, x, 0)
