"""Pools and mixtures of tasks."""

import numpy as np
import pytest
import torch
from margins import assert_mean_within_4_standard_errors, generator

from lightning_icl import (
    Flat,
    InputError,
    LinearRegression,
    Mixture,
    ReLUNetwork,
    SparseLinearRegression,
    SparseRecovery,
    TaskPool,
)


def test_prompts_take_their_weights_from_the_pool_uniformly():
    pool = TaskPool(SparseLinearRegression(4, 2, noise_std=0.5), 5)
    prompt = pool.sample(20_000, 3, 1, generator())
    which = (prompt.w[:, None] == pool.pool).all(dim=2)
    assert (which.sum(dim=1) == 1).all()
    assert_mean_within_4_standard_errors(which.double(), 1 / 5)
    np.testing.assert_allclose(prompt.f, np.einsum("bpd,bd->bp", prompt.x, prompt.w), atol=1e-5)
    assert_mean_within_4_standard_errors((prompt.y - prompt.f).double() ** 2, 0.25)


def test_the_pool_is_drawn_from_the_law_of_its_task_once():
    task = SparseLinearRegression(4, 2, weight_law="sign")
    pool = TaskPool(task, 20_000).pool
    assert pool.shape == (20_000, 4)
    assert ((pool != 0).sum(dim=1) == 2).all()
    assert_mean_within_4_standard_errors(pool[:, :, None] * pool[:, None], np.eye(4) / 2)
    assert torch.equal(TaskPool(task, 7).pool, TaskPool(task, 7).pool)
    assert not torch.equal(TaskPool(task, 7).pool, TaskPool(task, 7, pool_seed=1).pool)


def test_a_pool_keeps_the_features_and_noise_of_its_task():
    task = SparseRecovery(4, 2, noise_std=1.0, noise="laplace")
    pool, plain = TaskPool(task, 3).sample(20_000, 2, 1, generator()), task.sample(1, 2, 1, generator())
    assert torch.equal(pool.x[-1], plain.x[0])  # the fixed design
    assert_mean_within_4_standard_errors((pool.y - pool.f).double() ** 4, 6)


def test_validation_of_a_pool_is_the_law_behind_it():
    task = LinearRegression(4, noise_std=0.5)
    assert TaskPool(task, 3).fresh() is task
    assert task.fresh() is task
    assert TaskPool(task, 3).ridge_alpha == task.ridge_alpha == 0.25


def test_a_pool_of_one_is_one_task():
    prompt = TaskPool(LinearRegression(3), 1).sample(6, 2, 1, generator())
    assert len(prompt.w.unique(dim=0)) == 1


def test_shifting_the_noise_or_the_features_of_a_pool_leaves_its_weights():
    pool = TaskPool(SparseLinearRegression(4, 2, noise_std=0.1), 6, pool_seed=3)
    shifted = pool.shifted(noise_std=2.0, features="uniform")
    assert torch.equal(shifted.pool, pool.pool)
    assert (shifted.task.noise_std, shifted.task.features, shifted.pool_seed) == (2.0, "uniform", 3)
    assert (pool.task.noise_std, pool.task.features) == (0.1, "gaussian")
    assert pool.shifted(n_tasks=2).n_tasks == 2
    assert pool.shifted(sparsity=1, n_tasks=8).pool.count_nonzero() == 8
    other = pool.shifted(task=LinearRegression(3), noise_std=1.0)
    assert (other.n_dims, other.task.noise_std) == (3, 1.0)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0], [0.0, 3.0, 0.0]])
def test_prompts_of_a_mixture_come_from_its_tasks_by_weight(weights):
    scales = [1e-4, 1.0, 1e4]  # told apart by the size of their features
    tasks = [LinearRegression(2, spectrum=Flat(scale)) for scale in scales]
    prompt = Mixture(tasks, weights).sample(20_000, 20, 20, generator())
    measured = prompt.x.double().square().mean(dim=(1, 2))
    nearest = (measured[:, None] / torch.tensor(scales)).log().abs().argmin(dim=1)
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    assert_mean_within_4_standard_errors(torch.nn.functional.one_hot(nearest, 3), shares)
    # Every field of a prompt comes from the same task.
    for x, f in ((prompt.x, prompt.f), (prompt.x_query, prompt.f_query)):
        np.testing.assert_allclose(f, np.einsum("bpd,bd->bp", x, prompt.w), rtol=1e-3, atol=1e-3)
        ratio = x.double().square().mean(dim=(1, 2)) / torch.tensor(scales, dtype=torch.float64)[nearest]
        assert_mean_within_4_standard_errors(ratio, 1)


def test_targets_of_a_mixture_at_given_points():
    x = torch.randn(20_000, 1, 3, generator=generator())
    tasks = [LinearRegression(3, weight_law="sign"), LinearRegression(3, weight_mean=10.0)]
    f, w = Mixture(tasks, [3.0, 1.0]).sample_targets(x, generator())
    signs = (w.abs() == 1).all(dim=1)
    assert_mean_within_4_standard_errors(signs.double(), 3 / 4)
    assert_mean_within_4_standard_errors(w[~signs], 10)
    np.testing.assert_allclose(f, np.einsum("bpd,bd->bp", x, w), atol=1e-3)


def test_a_mixture_has_weights_only_where_each_task_has():
    linear, network = LinearRegression(3), ReLUNetwork(3, 4)
    assert Mixture([linear, linear]).sample(2, 3, 1, generator()).w is not None
    for tasks in ([linear, network], [network, linear], [network]):
        prompt = Mixture(tasks).sample(2, 3, 1, generator())
        assert prompt.w is None
        assert prompt.point_mask is None
        assert prompt.f is not None


def test_the_fresh_law_of_a_mixture_is_that_of_its_tasks():
    linear, pool = LinearRegression(3), TaskPool(LinearRegression(3, noise_std=0.5), 4)
    assert repr(Mixture([linear, pool], [1.0, 3.0]).fresh()) == repr(Mixture([linear, pool.task], [1.0, 3.0]))
    without = Mixture([linear, linear])
    assert without.fresh() is without


def test_shifts_of_a_mixture_reach_the_tasks_that_have_the_option():
    mixture = Mixture(
        [SparseLinearRegression(4, 2), TaskPool(LinearRegression(4), 3), ReLUNetwork(4, 5)], [1.0, 2.0, 3.0]
    )
    shifted = mixture.shifted(noise_std=1.5, sparsity=1, width=9, n_tasks=7)
    sparse, pool, network = shifted.tasks
    assert (sparse.noise_std, pool.task.noise_std, network.noise_std) == (1.5, 1.5, 1.5)
    assert (sparse.sparsity, pool.task.sparsity, pool.n_tasks, network.width) == (1, 4, 7, 9)
    assert shifted.weights == mixture.weights
    assert mixture.shifted(weights=[1.0, 0.0, 0.0]).weights == [1.0, 0.0, 0.0]
    with pytest.raises(InputError, match=r"Mixture has no option 'widht'; did you mean 'width'\?"):
        mixture.shifted(widht=3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TaskPool(ReLUNetwork(3), 4), "task is ReLUNetwork, but a pool holds the weights of a linear task."),
        (lambda: TaskPool(TaskPool(LinearRegression(3), 2), 4), "task is TaskPool"),
        (lambda: TaskPool(LinearRegression(3), 0), "n_tasks is 0, but it must be at least 1."),
        (lambda: Mixture([]), r"tasks is \[\], but a mixture needs at least one task."),
        (
            lambda: Mixture([LinearRegression(3), LinearRegression(4)]),
            r"tasks have n_dims \[3, 4\], but the tasks of a mixture need the same.",
        ),
        (lambda: Mixture([LinearRegression(3)], [1.0, 2.0]), "weights lists 2 numbers, but there are 1 tasks."),
        (lambda: Mixture([LinearRegression(3)], [-1.0]), r"weights is \[-1.0\]"),
        (lambda: Mixture([LinearRegression(3)], [0.0]), r"weights is \[0.0\].*not all 0"),
        (lambda: Mixture([LinearRegression(3)], [float("nan")]), r"weights is \[nan\]"),
    ],
)
def test_bad_compositions_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
