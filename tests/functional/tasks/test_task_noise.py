"""Label noise: its laws, and its level where each prompt draws one."""

import numpy as np
import pytest
import torch
from margins import assert_mean_within_4_standard_errors, generator

from lightning_icl import LinearRegression

KURTOSIS = {"gaussian": 3, "laplace": 6, "student_t": 3 + 6 / (12 - 4)}


def noise_of(prompt):
    return torch.cat([prompt.y - prompt.f, prompt.y_query - prompt.f_query], dim=1).double()


@pytest.mark.parametrize("noise_std", [0.1, 2.0])
@pytest.mark.parametrize("law", KURTOSIS)
def test_noise_has_its_moments_at_examples_and_queries_alike(law, noise_std):
    noise = noise_of(
        LinearRegression(3, noise_std=noise_std, noise=law, noise_df=12.0).sample(40_000, 2, 2, generator())
    )
    assert_mean_within_4_standard_errors(noise, 0)
    products = noise[:, :, None] * noise[:, None]
    assert_mean_within_4_standard_errors(products, noise_std**2 * np.eye(4))  # independent between points
    assert_mean_within_4_standard_errors(noise**4, KURTOSIS[law] * noise_std**4)


@pytest.mark.parametrize("law", KURTOSIS)
def test_noise_is_independent_of_the_target(law):
    prompt = LinearRegression(3, noise_std=1.0, noise=law).sample(40_000, 1, 1, generator())
    assert_mean_within_4_standard_errors(noise_of(prompt) * torch.cat([prompt.f, prompt.f_query], dim=1).double(), 0)


def test_each_prompt_draws_one_level_of_the_list_uniformly():
    levels = [0.0, 0.1, 1.0, 10.0]
    noise = noise_of(LinearRegression(2, noise_std=levels).sample(4000, 50, 50, generator()))
    measured = noise.square().mean(dim=1).sqrt()
    nearest = (measured[:, None] / torch.tensor([0.001, 0.1, 1.0, 10.0])).log().abs().argmin(dim=1)
    for k, level in enumerate(levels):
        assert_mean_within_4_standard_errors((nearest == k).double(), 1 / 4)
        of_level = noise[nearest == k]
        # float32 labels carry rounding of their own.
        assert_mean_within_4_standard_errors(of_level.square().mean(dim=1), level**2)
        assert_mean_within_4_standard_errors(of_level[:, 0] * of_level[:, -1], 0)  # context, query


def test_noise_free_labels_are_the_targets():
    prompt = LinearRegression(3).sample(5, 4, 2, generator())
    assert torch.equal(prompt.y, prompt.f)
    assert torch.equal(prompt.y_query, prompt.f_query)


def test_a_list_of_one_level_is_that_level():
    one, listed = (LinearRegression(3, noise_std=std).sample(4, 3, 2, generator()) for std in (0.5, [0.5]))
    torch.testing.assert_close(one.y, listed.y)
