"""Rank correlation against scipy, and its bootstrap against a loop."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from lightning_icl.functional.agreement import average_ranks, rank_agreement, rank_correlation
from lightning_icl.functional.risk import bootstrap_weights


def drawn(*shape, seed=0, ties=False):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * values).round() if ties else values


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (4, 9)])
def test_ranks_and_correlation_are_scipy_s(shape, ties):
    first, second = drawn(*shape, ties=ties), drawn(*shape, seed=1, ties=ties)
    np.testing.assert_allclose(average_ranks(first), rankdata(first.numpy(), axis=-1), atol=1e-12)
    found = rank_correlation(first, second).reshape(-1)
    pairs = zip(first.reshape(-1, shape[-1]).numpy(), second.reshape(-1, shape[-1]).numpy(), strict=True)
    for rho, (a, b) in zip(found, pairs, strict=True):
        varied = len(set(a)) > 1 and len(set(b)) > 1
        expected = spearmanr(a, b).statistic if varied else math.nan
        assert rho.item() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_score_that_is_the_same_for_all_heads_agrees_with_nothing():
    assert rank_correlation(torch.ones(4), torch.arange(4.0)).isnan()


def test_agreement_equals_a_loop_over_resampled_prompts():
    heads, n = [3, 0, 1, 4], 30
    first = drawn(8, n) + torch.arange(8.0, dtype=torch.float64)[:, None]
    second = drawn(8, n, seed=1) + torch.tensor([3.0, 1, 0, 5, 4, 2, 7, 6], dtype=torch.float64)[:, None]
    weights = bootstrap_weights(n, 60, torch.Generator().manual_seed(0))
    found = rank_agreement(first, second, heads, weights)
    for rho, interval, columns in (
        (found.overall, found.interval, slice(0, 8)),
        (found.by_layer[0], found.by_layer_interval[:, 0], slice(0, 3)),
        (found.by_layer[3], found.by_layer_interval[:, 3], slice(4, 8)),
    ):
        a, b = first[columns].numpy(), second[columns].numpy()
        expected = spearmanr(a.mean(1), b.mean(1)).statistic
        resampled = []
        for draw in (weights * n).round().int().numpy():
            rows = np.repeat(np.arange(n), draw)
            resampled.append(spearmanr(a[:, rows].mean(1), b[:, rows].mean(1)).statistic)
        half = np.quantile(np.abs(np.array(resampled) - expected), 0.95)
        assert rho.item() == pytest.approx(expected, abs=1e-10)
        assert interval.tolist() == pytest.approx([max(expected - half, -1), min(expected + half, 1)], abs=1e-10)
    assert found.by_layer[1:3].isnan().all()  # no head, and one head


def test_a_score_agrees_with_itself_and_not_with_its_opposite():
    values = drawn(6, 20)
    weights = bootstrap_weights(20, 50, torch.Generator().manual_seed(0))
    assert rank_agreement(values, values, [6], weights).interval.tolist() == pytest.approx([1, 1])
    assert rank_agreement(values, -values, [6], weights).overall.item() == pytest.approx(-1)
