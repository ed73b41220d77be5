"""Head masks spelled out by hand, importance against plain loops and planted cases."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from lightning_icl.functional.heads import (
    DRAWS,
    full_mask,
    importance_scores,
    layer_ablation_masks,
    leave_one_in_masks,
    single_removals,
)
from lightning_icl.functional.risk import bootstrap_weights

NAN = math.nan
RAGGED = torch.tensor([[0.2, 0.5, -0.1], [-0.3, NAN, NAN], [0.1, 0.7, NAN]])  # raw importance of heads [3, 1, 2]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Masks


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ([3, 1, 2], [[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
        ([1, 2], [[1, 0], [1, 1]]),
        ([2], [[1, 1]]),
        ([1, 1], [[1], [1]]),
    ],
)
def test_full_mask_by_hand(heads, expected):
    assert full_mask(heads).tolist() == expected


def test_leave_one_out_masks_by_hand():
    assert single_removals(full_mask([3, 1, 2])).tolist() == [
        [[0, 1, 1], [1, 0, 0], [1, 1, 0]],
        [[1, 0, 1], [1, 0, 0], [1, 1, 0]],
        [[1, 1, 0], [1, 0, 0], [1, 1, 0]],
        [[1, 1, 1], [0, 0, 0], [1, 1, 0]],
        [[1, 1, 1], [1, 0, 0], [0, 1, 0]],
        [[1, 1, 1], [1, 0, 0], [1, 0, 0]],
    ]
    assert single_removals(full_mask([1])).tolist() == [[[0]]]


def test_leave_one_in_masks_by_hand():
    assert layer_ablation_masks([2, 0, 1]).tolist() == [
        [[0, 0], [0, 0], [1, 0]],
        [[1, 1], [0, 0], [1, 0]],
        [[1, 1], [0, 0], [0, 0]],
    ]
    assert leave_one_in_masks([2, 0, 1]).tolist() == [
        [[1, 0], [0, 0], [1, 0]],
        [[0, 1], [0, 0], [1, 0]],
        [[1, 1], [0, 0], [1, 0]],
    ]
    assert leave_one_in_masks([1]).tolist() == [[[1]]]


# Importance


def importance_by_hand(full, ablated, heads):
    """The formulas of importance in plain loops; by layer: raw, standard errors, shares, effective heads, top share."""
    n, costs, rows = len(full), iter(ablated.tolist()), []
    for n_heads in heads:
        cost = [[a - f for a, f in zip(next(costs), full.tolist(), strict=True)] for _ in range(n_heads)]
        total, total_error = mean_and_error([sum(c[b] for c in cost) for b in range(n)])
        raw, error = zip(*map(mean_and_error, cost), strict=True)
        positive = [max(r, 0.0) for r in raw]
        if total > t.ppf(0.975, n - 1) * total_error and sum(positive) > 0:
            share = [p / sum(positive) for p in positive]
            effective, top = math.exp(-sum(s * math.log(s) for s in share if s > 0)), max(share)
        else:
            share, effective, top = [NAN] * n_heads, NAN, NAN
        rows.append((raw, error, share, effective, top))
    return rows


def mean_and_error(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def planted(heads, costs, n=40, seed=0):
    """Errors of the full model and of each ablation, whose mean costs are ``costs``."""
    full = torch.rand(n, generator=generator(seed), dtype=torch.float64)
    noise = torch.randn(sum(heads), n, generator=generator(seed + 1), dtype=torch.float64)
    return full, full + torch.tensor(costs, dtype=torch.float64)[:, None] + noise - noise.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize(
    ("heads", "costs"),
    [
        ([3, 1, 2], [2.0, 1.0, 3.0, 4.0, -1.0, 9.0]),
        ([3, 1, 2], [5.0, -0.1, 0.0, -4.0, 0.01, 0.01]),  # one head; harmful; within noise
        ([2, 2], [30.0, 20.0, -9.0, 1.0]),
        ([1], [3.0]),
        ([4], [8.0, 8.0, 8.0, 8.0]),
    ],
)
def test_head_importance_equals_plain_loops(heads, costs, n):
    full, ablated = planted(heads, costs, n)
    ours = importance_scores(ablated - full, heads)
    for layer, by_hand in enumerate(importance_by_hand(full, ablated, heads)):
        for table, expected in zip((ours.raw.value, ours.raw.error, ours.share.value), by_hand, strict=False):
            padded = [*expected, *[NAN] * (max(heads) - len(expected))]
            np.testing.assert_allclose(table[layer], padded, rtol=0, atol=1e-10)  # NaN equals NaN here
        np.testing.assert_allclose(ours.effective_heads.value[layer], by_hand[3], atol=1e-10)
        np.testing.assert_allclose(ours.top_share.value[layer], by_hand[4], atol=1e-10)


def test_a_dead_head_scores_exactly_zero():
    full, ablated = planted([2, 2], [1.0, 1.0, 5.0, 5.0])
    ablated[1] = full
    ours = importance_scores(ablated - full, [2, 2])
    assert ours.raw.value[0, 1] == ours.raw.error[0, 1] == ours.share.value[0, 1] == 0
    assert ours.share.value[0, 0] == ours.top_share.value[0] == 1
    assert ours.effective_heads.value[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n_heads", [1, 2, 8])
def test_equal_heads_are_all_effective(n_heads):
    full = torch.rand(6, generator=generator(), dtype=torch.float64)
    ours = importance_scores(full + torch.full((n_heads, 6), 0.25, dtype=torch.float64) - full, [n_heads])
    assert ours.effective_heads.value.item() == pytest.approx(n_heads, abs=1e-9)
    assert ours.top_share.value.item() == pytest.approx(1 / n_heads, abs=1e-9)


@pytest.mark.parametrize("costs", [[0.0, 0.0], [0.01, 0.01], [-3.0, -2.0], [-3.0, 1.0]])
def test_a_layer_within_noise_or_harmful_has_no_shares(costs):
    full, ablated = planted([2, 1], [*costs, 5.0])
    ours = importance_scores(ablated - full, [2, 1])
    assert ours.share.value[0].isnan().all()
    assert ours.effective_heads.value.isnan().tolist() == ours.top_share.value.isnan().tolist() == [True, False]
    torch.testing.assert_close(ours.raw.value[0], torch.tensor(costs).double(), rtol=0, atol=1e-6)


def test_a_model_of_dead_heads_has_importance_zero_and_no_shares():
    full = torch.rand(5, generator=generator(), dtype=torch.float64)
    ours = importance_scores(full.expand(3, -1) - full, [1, 2])
    assert ours.raw.value[full_mask([1, 2]).bool()].tolist() == [0, 0, 0]
    assert ours.share.value.isnan().all()
    assert ours.top_share.value.isnan().all()


@pytest.mark.filterwarnings("ignore:std")
def test_one_prompt_gives_importance_but_no_shares():
    ours = importance_scores(torch.tensor([[2.0], [0.5]]), [2])
    assert ours.raw.value.tolist() == [[2.0, 0.5]]
    assert ours.raw.error.isnan().all()
    assert ours.share.value.isnan().all()


def test_shares_of_noise_are_reported_at_the_rate_of_the_interval():
    """Heads without any effect pass the one-sided test in 2.5 % of layers."""
    layers, n = 1000, 200
    noise = torch.randn(2 * layers, n, generator=generator(), dtype=torch.float64)
    rate = 1 - importance_scores(noise, [2] * layers).top_share.value.isnan().double().mean().item()
    expected = 0.025
    assert rate == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / layers))


def test_share_errors_equal_the_jackknife_by_recomputation():
    heads, n = [3, 1, 2], 25
    generator = torch.Generator().manual_seed(0)
    full = torch.rand(n, generator=generator, dtype=torch.float64)
    ablated = full + 0.5 + torch.randn(6, n, generator=generator, dtype=torch.float64)
    scores = importance_scores(ablated - full, heads)
    left_out = [
        importance_scores(ablated[:, kept] - full[kept], heads) for kept in (torch.arange(n) != i for i in range(n))
    ]
    for name in ("share", "effective_heads", "top_share"):
        replicates = torch.stack([getattr(s, name).value for s in left_out])
        expected = ((n - 1) * replicates.var(dim=0, correction=0)).sqrt()
        torch.testing.assert_close(getattr(scores, name).error, expected, equal_nan=True)
    assert scores.effective_heads.error[0] > 0


# Intervals


def test_intervals_of_scores_and_totals_are_scipy_s():
    heads, n = [3, 0, 2], 25
    values = torch.randn(5, n, generator=generator(), dtype=torch.float64) + 1
    ours = importance_scores(values, heads)
    sets = {(0, 0): [0], (0, 2): [2], (2, 1): [4]}
    for (layer, head), rows in sets.items():
        expected = t.interval(0.95, n - 1, *mean_and_error(values[rows].sum(0).tolist()))
        assert ours.raw.interval[:, layer, head].tolist() == pytest.approx(expected, rel=1e-4)
    for layer, rows in {0: [0, 1, 2], 2: [3, 4]}.items():
        mean, error = mean_and_error(values[rows].sum(0).tolist())
        assert (ours.total.value[layer].item(), ours.total.error[layer].item()) == pytest.approx((mean, error))
        expected = t.interval(0.95, n - 1, mean, error)
        assert ours.total.interval[:, layer].tolist() == pytest.approx(expected, rel=1e-4)
    for value in (
        ours.raw.value,
        ours.raw.error,
        ours.share.value,
        ours.share.error,
        *ours.raw.interval,
        *ours.share.interval,
    ):
        assert value[1].isnan().all()  # a layer without heads
    assert ours.effective_heads.value[1].isnan()


def shares_by_hand(means):
    positive = [max(m, 0.0) for m in means]
    share = [p / sum(positive) for p in positive]
    return [*share, math.exp(-sum(s * math.log(s) for s in share if s > 0)), max(share)]


@pytest.mark.parametrize("errors_above_zero", [0.0, 2.2, 5.0])  # 2.2 by itself, but not of three heads at once
def test_share_intervals_equal_a_loop_over_resampled_prompts(errors_above_zero):
    n = 30
    noise = torch.randn(3, n, generator=generator(), dtype=torch.float64)
    noise -= noise.mean(dim=1, keepdim=True)
    error = noise.std(dim=1) / n**0.5
    values = noise + torch.stack([torch.tensor(3.0), torch.tensor(2.0), errors_above_zero * error[2]])[:, None]
    ours = importance_scores(values, [3])
    weights = bootstrap_weights(n, DRAWS, generator())
    means, resampled_means = values.mean(1).tolist(), (weights @ values.T).tolist()
    estimate, resampled = np.array(shares_by_hand(means)), np.array([shares_by_hand(m) for m in resampled_means])
    moved = np.abs(resampled - estimate)
    moved[:, 4] = moved[:, :3].max(axis=1)  # the top share's interval is that of the share that moves most
    for h in range(3):  # a share's is that of the share without the cut at 0
        of = [m[h] / sum(max(x, 0.0) for x in m) for m in (means, *resampled_means)]
        moved[:, h] = np.abs(np.array(of[1:]) - of[0])
    half = np.quantile(moved, 0.95, axis=0)
    own, joint = t.ppf(0.975, n - 1), norm.ppf(1 - 0.025 / 3)
    above, above_at_once = (
        np.array(shares_by_hand([m if m > z * e else 0.0 for m, e in zip(means, error.tolist(), strict=True)]))
        for z in (own, joint)
    )
    low, high = estimate - half, np.maximum(estimate, above_at_once) + half
    low[3], high[3] = min(estimate[3], above[3]) - half[3], estimate[3] + half[3]
    low, high = np.maximum(low, [0, 0, 0, 1, 1 / 3]), np.minimum(high, [1, 1, 1, 3, 1])
    found = torch.cat([ours.share.interval[:, 0], ours.effective_heads.interval, ours.top_share.interval], dim=1)
    np.testing.assert_allclose(found, [low, high], atol=1e-10)


@pytest.mark.parametrize(
    ("means", "at_the_boundary"),
    [([10, *7 * [0]], True), ([10, 5, *6 * [0]], True), ([*4 * [10], *4 * [0]], True), (8 * [10], False), ([5], False)],
)
def test_intervals_of_shares_cover_the_truth_where_heads_of_mean_zero_stand_beside_real_ones(means, at_the_boundary):
    """Means in standard errors of a head of mean zero; values are like differences of squared errors, and paired."""
    n, layers, n_heads = 256, 400, len(means)
    g = generator(3)
    true = torch.tensor(means, dtype=torch.float64) / n**0.5
    shared = torch.randn(n, layers, 1, generator=g, dtype=torch.float64)
    left, right, own = torch.randn(3, n, layers, n_heads, generator=g, dtype=torch.float64)
    values = ((shared + left) ** 2 - (shared + right) ** 2) / 12**0.5 + true * own**2
    scores = importance_scores(values.flatten(1).T, layers * [n_heads])
    truth = shares_by_hand(true.tolist())
    shown = ~scores.top_share.value.isnan()
    margin = 3 * math.sqrt(0.95 * 0.05 / int(shown.sum()))
    for of, expected in ((scores.effective_heads, truth[-2]), (scores.top_share, truth[-1])):
        low, high = of.interval[:, shown] + 1e-9 * torch.tensor([[-1.0], [1.0]])
        assert ((low <= expected) & (expected <= high)).double().mean() >= 0.95 - margin
    # By the bootstrap alone, effective heads +- half, it is another matter just where heads of mean zero are.
    effective = scores.effective_heads
    low = (2 * effective.value - effective.interval[1])[shown & (effective.interval[1] < n_heads)]
    missed = int((low > truth[-2] + 1e-9).sum()) / int(shown.sum())
    assert (missed > 0.05 + margin) == at_the_boundary


def test_a_layer_barely_above_noise_has_intervals_of_all_values():
    noise = torch.randn(2, 100, generator=generator(), dtype=torch.float64)
    noise = noise - noise.mean(dim=1, keepdim=True)
    error = (noise.sum(dim=0).std() / 10).item()
    barely, clearly = (importance_scores(noise + z * error / 2, [2]) for z in (3.0, 5.0))
    assert barely.share.value[0].tolist() == pytest.approx([0.5, 0.5])
    assert barely.share.interval.tolist() == [[[0, 0]], [[1, 1]]]
    assert (barely.effective_heads.interval.tolist(), barely.top_share.interval.tolist()) == ([[1], [2]], [[0.5], [1]])
    assert clearly.share.interval[0].min() > 0
    assert clearly.share.interval[1].max() < 1
