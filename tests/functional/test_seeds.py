"""Starts from a seed; the interval over seeds and prompts, against scipy and by how often it covers."""

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_icl.functional.seeds import over_seeds_and_prompts, seeded


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
    assert found.value == pytest.approx(float(errors.mean()), rel=1e-12)
    for half in (found.value - found.low, found.high - found.value):
        assert half == pytest.approx(np.hypot(*parts), rel=0.01)


def test_one_seed_gives_the_interval_over_prompts(generator):
    errors = drawn(generator, 1, 50, 0.0)
    expected = stats.t.ppf(0.975, 49) * stats.sem(errors[0].numpy())
    found = over_seeds_and_prompts(errors)
    assert found.high - found.value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed_std", [0.0, 0.1, 1.0])
def test_the_interval_covers_the_mean_at_least_as_often_as_it_says(generator, seed_std):
    covers = []
    for _ in range(400):
        interval = over_seeds_and_prompts(drawn(generator, 3, 100, seed_std))
        covers.append(interval.low <= 0 <= interval.high)
    # 95 % less three standard errors of a share of 400.
    assert np.mean(covers) > 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5


def test_within_a_seed_numbers_are_those_of_manual_seed_and_afterwards_go_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.randn(5)
        torch.manual_seed(1)
        torch.randn(3)
        before = torch.random.get_rng_state()
        with seeded(7):
            assert torch.equal(torch.randn(5), expected)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_the_generator_goes_on_after_an_exception_too():
    before = torch.random.get_rng_state()
    assert not torch.equal(before, torch.Generator().manual_seed(7).get_state())
    with pytest.raises(RuntimeError, match="negative dimension"), seeded(7):
        torch.randn(-1)
    assert torch.equal(torch.random.get_rng_state(), before)
