"""The interval over seeds and prompts, against scipy and by how often it covers."""

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_icl.functional.seeds import over_seeds_and_prompts


def drawn(generator, n_seeds, n_prompts, seed_std, prompt_std=1.0, noise_std=0.5):
    """Errors of mean 0, one effect a seed, one a prompt, and what is particular to both."""
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return seed_std * normal(n_seeds, 1) + prompt_std * normal(1, n_prompts) + noise_std * normal(n_seeds, n_prompts)


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_half_width_is_that_of_scipys_intervals_for_seeds_and_for_prompts(generator, n_seeds):
    errors = drawn(generator, n_seeds, 50, 0.3)
    found = over_seeds_and_prompts(errors)
    parts = []
    for values in (errors.mean(dim=1).numpy(), errors.mean(dim=0).numpy()):
        parts.append(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    assert found.mean == pytest.approx(float(errors.mean()), rel=1e-12)
    assert found.half_width == pytest.approx(np.hypot(*parts), rel=0.01)
    assert (found.low, found.high) == (found.mean - found.half_width, found.mean + found.half_width)


def test_one_seed_gives_the_interval_over_prompts(generator):
    errors = drawn(generator, 1, 50, 0.0)
    expected = stats.t.ppf(0.975, 49) * stats.sem(errors[0].numpy())
    assert over_seeds_and_prompts(errors).half_width == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed_std", [0.0, 0.1, 1.0])
def test_the_interval_covers_the_mean_at_least_as_often_as_it_says(generator, seed_std):
    covers = []
    for _ in range(400):
        interval = over_seeds_and_prompts(drawn(generator, 3, 100, seed_std))
        covers.append(interval.low <= 0 <= interval.high)
    # 95 % less three standard errors of a share of 400.
    assert np.mean(covers) > 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5
