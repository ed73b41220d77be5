"""Risks and standard errors against plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t

from lightning_icl.functional.risk import (
    bootstrap_interval,
    bootstrap_weights,
    excess_risk,
    jackknife_errors,
    mean_and_standard_error,
    mean_interval,
    squared_errors,
    t_quantile,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (1, 5), (6, 1)])
def test_squared_errors_and_excess_risk_equal_a_loop(shape):
    prediction, f_query = drawn(*shape), drawn(*shape, seed=1)
    gaps = (prediction - f_query).tolist()
    errors = torch.tensor([sum(gap**2 for gap in row) / shape[1] for row in gaps], dtype=torch.float64)
    torch.testing.assert_close(squared_errors(prediction, f_query), errors, rtol=0, atol=1e-12)
    risk = sum(errors) / shape[0]
    torch.testing.assert_close(excess_risk(prediction, f_query), risk, rtol=0, atol=1e-12)


def test_squared_errors_of_a_path_are_those_of_each_iterate():
    path, f_query = drawn(3, 4, 2), drawn(4, 2, seed=1)
    together = squared_errors(path, f_query.expand(3, 4, 2))
    torch.testing.assert_close(together, torch.stack([squared_errors(p, f_query) for p in path]), rtol=0, atol=0)


def test_float32_inputs_are_compared_in_float64():
    f_query = torch.full((2, 3), 1e-6)
    risk = excess_risk(1 + torch.zeros(2, 3), f_query)
    assert risk.dtype == torch.float64
    assert risk.item() == pytest.approx((1 - float(f_query[0, 0])) ** 2, abs=1e-14)


def test_excess_risk_is_risk_less_the_noise_with_lower_variance():
    n, noise_std = 20_000, 0.7
    f, prediction = drawn(n, 1), drawn(n, 1, seed=1)
    risks = squared_errors(prediction, f + noise_std * drawn(n, 1, seed=2)) - noise_std**2
    excess = squared_errors(prediction, f)
    gap = (risks - excess).numpy()
    assert abs(gap.mean()) < 4 * gap.std(ddof=1) / math.sqrt(n)
    assert excess.var() < risks.var()


@pytest.mark.parametrize("shape", [(7,), (2,), (5, 3), (4, 2, 3)])
def test_mean_and_standard_error_equal_numpy(shape):
    values = drawn(*shape)
    mean, error = mean_and_standard_error(values)
    np.testing.assert_allclose(mean, values.numpy().mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(error, np.std(values.numpy(), axis=0, ddof=1) / math.sqrt(shape[0]), atol=1e-12)


def test_standard_error_is_the_spread_of_means():
    means, errors = mean_and_standard_error(drawn(25, 4000))  # 4000 means of 25 standard normal numbers
    spread = means.std().item()
    margin = 4 * (1 / 5) / math.sqrt(2 * 4000)  # standard error of a standard deviation
    assert spread == pytest.approx(1 / 5, abs=margin)
    assert errors.square().mean().sqrt().item() == pytest.approx(1 / 5, abs=margin)


@pytest.mark.filterwarnings("ignore:std")
def test_one_prompt_has_no_standard_error():
    mean, error = mean_and_standard_error(drawn(1, 2))
    torch.testing.assert_close(mean, drawn(1, 2)[0])
    assert error.isnan().all()


@pytest.mark.parametrize("n", [2, 7])
def test_jackknife_equals_the_loop_and_for_a_mean_the_standard_error(n):
    values = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    ratio, mean = jackknife_errors(values, lambda means: (means[:, 0] / means[:, 1], means))
    array = values.numpy()
    thetas = [np.delete(array, i, 0).mean(0)[0] / np.delete(array, i, 0).mean(0)[1] for i in range(n)]
    assert ratio.item() == pytest.approx(((n - 1) / n * sum((t - np.mean(thetas)) ** 2 for t in thetas)) ** 0.5)
    np.testing.assert_allclose(mean, array.std(0, ddof=1) / n**0.5, rtol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 16, 512, 100_000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.9997])
def test_the_t_quantile_is_scipy_s(n, level):
    assert t_quantile(n, level) == pytest.approx(t.ppf((1 + level) / 2, n - 1), rel=1e-8 if n < 10_000 else 1e-3)
    assert t_quantile(1, level) == math.inf


def test_an_interval_of_a_mean_is_scipy_s():
    values = drawn(40, 3)
    low, high = mean_interval(*mean_and_standard_error(values), n=40)
    expected = t.interval(0.95, 39, values.numpy().mean(0), values.numpy().std(0, ddof=1) / 40**0.5)
    np.testing.assert_allclose(torch.stack([low, high]), expected, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_bootstrap_weights_count_a_resample(n):
    weights = bootstrap_weights(n, 500, torch.Generator().manual_seed(0))
    counts = weights * n
    assert torch.equal(counts, counts.round())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(500, dtype=torch.float64))
    # Each prompt's count is binomial(n, 1/n): mean 1, variance 1 - 1/n.
    margin = 5 * ((1 - 1 / n) / 500) ** 0.5
    assert (counts.mean(dim=0) - 1).abs().max() <= margin
    again = bootstrap_weights(n, 500, torch.Generator().manual_seed(0))
    assert torch.equal(weights, again)


def test_the_symmetric_bootstrap_equals_numpy_and_leaves_out_what_has_no_value():
    estimate, resampled = drawn(3), drawn(200, 3, seed=1)
    resampled[:50, 2] = math.nan
    low, high = bootstrap_interval(estimate, resampled)
    for i in range(3):
        values = resampled[:, i].numpy()
        half = np.quantile(np.abs(values[~np.isnan(values)] - estimate[i].item()), 0.95)
        expected = [estimate[i].item() - half, estimate[i].item() + half]
        assert [low[i].item(), high[i].item()] == pytest.approx(expected, rel=1e-12)


def test_the_bootstrap_s_interval_of_a_mean_is_nearly_that_of_its_standard_error():
    values = drawn(400)
    weights = bootstrap_weights(400, 4000, torch.Generator().manual_seed(1))
    low, high = bootstrap_interval(values.mean(), weights @ values)
    # The standard error of a 95 % quantile of 4000 draws is about 2.3 % of it.
    assert ((high - low) / 2).item() == pytest.approx(1.96 * values.std().item() / 20, rel=0.09)
