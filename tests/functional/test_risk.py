"""Risks and standard errors against plain loops."""

import math

import numpy as np
import pytest
import torch

from lightning_icl.functional.risk import excess_risk, jackknife_errors, mean_and_standard_error, squared_errors


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
