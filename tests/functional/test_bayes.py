"""Posterior means against dense Gaussian densities, quadrature and brute force over supports, signs and pools."""

from fractions import Fraction
from itertools import combinations, product
from math import log

import numpy as np
import pytest
import torch
from regression_cases import CASES, assert_close, each, problem, sparse_problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.bayes import (
    gaussian_posterior,
    mixed,
    pool_posterior,
    sign_posterior,
)
from lightning_icl.functional.estimators.subsets import all_supports, best_subset, group_supports

SUPPORTS_OF_CASES = [(case, s) for case in CASES for s in range(1, min(case[2], 3) + 1)]
both_laws = pytest.mark.parametrize("law", [gaussian_posterior, sign_posterior])


def log_normal(residual, covariance):
    sign, log_det = np.linalg.slogdet(covariance)
    assert sign == 1
    return -(residual @ np.linalg.solve(covariance, residual) + log_det + len(residual) * np.log(2 * np.pi)) / 2


def averaged(means, log_joint):
    """The posterior mean and log evidence of a finite mixture with equal prior weights, by hand."""
    shift = max(log_joint)
    shares = np.exp(np.array(log_joint) - shift)
    return shares @ np.array(means) / shares.sum(), shift + np.log(shares.mean())


def gaussian_by_hand(x, y, supports, sigma, slab_std, slab_mean):
    """Each support's conditional mean from the covariance of (w_S, y); nothing is shared with the normal equations."""
    means, log_joint = [], []
    for chosen in supports:
        columns = x[:, chosen]
        covariance = sigma**2 * np.eye(len(y)) + slab_std**2 * columns @ columns.T
        residual = y - slab_mean * columns.sum(1)
        w = np.zeros(x.shape[1])
        w[chosen] = slab_mean + slab_std**2 * columns.T @ np.linalg.solve(covariance, residual)
        means.append(w)
        log_joint.append(log_normal(residual, covariance))
    return averaged(means, log_joint)


def assert_posterior(posterior, by_hand, atol=1e-8):
    means, evidences = zip(*by_hand, strict=True)
    assert_close(posterior.mean, means, atol=atol)
    assert_close(posterior.log_evidence, evidences, atol=atol, rtol=1e-9)


# The sparse Gaussian law


@pytest.mark.parametrize(("case", "s"), SUPPORTS_OF_CASES, ids=str)
@pytest.mark.parametrize(("sigma", "slab_std", "slab_mean"), [(0.5, 1.0, 0.0), (0.1, 2.0, 0.0), (0.7, 0.4, 1.5)])
def test_the_gaussian_law_equals_dense_densities_of_every_support(case, s, sigma, slab_std, slab_mean):
    x, y = problem(*case)
    supports = all_supports(case[2], s)
    hand = [gaussian_by_hand(a, b, supports.tolist(), sigma, slab_std, slab_mean) for a, b in each(x, y)]
    assert_posterior(gaussian_posterior(x, y, supports, sigma, slab_std, slab_mean), hand)


def test_the_gaussian_law_equals_dense_densities_for_groups_and_for_any_list():
    x, y = problem(3, 5, 6, "plain")
    for supports in (group_supports(6, 2, 2), torch.tensor([[5, 0, 2], [1, 3, 4], [5, 0, 2]])):
        hand = [gaussian_by_hand(a, b, supports.tolist(), 0.4, 1.0, 0.5) for a, b in each(x, y)]
        assert_posterior(gaussian_posterior(x, y, supports, 0.4, 1.0, 0.5), hand)


def test_the_gaussian_law_equals_quadrature_in_one_dimension():
    grid = np.linspace(-15, 15, 6001)
    for case, slab_mean, slab_std in [((4, 1, 1), 0.0, 1.0), ((4, 3, 1), 1.5, 0.7), ((2, 20, 1), -1.0, 2.0)]:
        x, y = problem(*case, "plain")
        hand = []
        for a, b in each(x, y):
            log_joint = -((b[:, None] - a * grid) ** 2).sum(0) / (2 * 0.6**2) - len(b) * np.log(2 * np.pi * 0.6**2) / 2
            log_joint -= (grid - slab_mean) ** 2 / (2 * slab_std**2) + np.log(2 * np.pi * slab_std**2) / 2
            density = np.exp(log_joint - log_joint.max())
            evidence = np.log(density.sum() * (grid[1] - grid[0])) + log_joint.max()
            hand.append(([(density * grid).sum() / density.sum()], evidence))
        assert_posterior(gaussian_posterior(x, y, all_supports(1, 1), 0.6, slab_std, slab_mean), hand)


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("slab_mean", [0.0, 1.0])
def test_the_gaussian_law_equals_quadrature_in_two_dimensions(s, slab_mean):
    """Over the line of each feature (s = 1), or over the plane (s = 2), by the trapezoidal rule."""
    grid, sigma, slab_std = np.linspace(-9, 9, 901), 0.6, 0.8
    x, y = problem(3, 3, 2, "plain")
    hand = []
    for a, b in each(x, y):
        if s == 1:
            points = np.concatenate([np.stack([grid, 0 * grid], 1), np.stack([0 * grid, grid], 1)])
            prior = -((points.sum(1) - slab_mean) ** 2) / (2 * slab_std**2) - np.log(2 * np.pi * slab_std**2) / 2
            weight = (grid[1] - grid[0]) / 2
        else:
            points = np.stack([part.ravel() for part in np.meshgrid(grid, grid)], 1)
            prior = -((points - slab_mean) ** 2).sum(1) / (2 * slab_std**2) - np.log(2 * np.pi * slab_std**2)
            weight = (grid[1] - grid[0]) ** 2
        log_joint = prior - ((b - points @ a.T) ** 2).sum(1) / (2 * sigma**2)
        density = np.exp(log_joint - log_joint.max())
        evidence = np.log(density.sum() * weight) + log_joint.max() - len(b) * np.log(2 * np.pi * sigma**2) / 2
        hand.append((density @ points / density.sum(), evidence))
    assert_posterior(gaussian_posterior(x, y, all_supports(2, s), sigma, slab_std, slab_mean), hand)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("sigma", "slab_std"), [(0.5, 1.0), (2.0, 0.3), (1e-3, 1.0)])
def test_with_every_feature_in_the_support_it_is_ridge(case, sigma, slab_std):
    x, y = problem(*case)
    mean = gaussian_posterior(x, y, all_supports(case[2], case[2]), sigma, slab_std).mean
    assert_close(mean, estimators.ridge(x, y, (sigma / slab_std) ** 2).numpy(), atol=1e-7)


@pytest.mark.parametrize("noise_std", [0.0, 1e-6, 1e-4])
@pytest.mark.parametrize("n", [5, 6, 20])
def test_with_vanishing_noise_it_is_oracle_least_squares(noise_std, n):
    """n > s + 1 points: only the true support (of 3 among 8) explains them."""
    x, y, w = sparse_problem(50, n, all_supports(8, 3), noise_std, lambda g, shape: torch.randn(shape, generator=g))
    mean = gaussian_posterior(x, y, all_supports(8, 3), noise_std).mean
    oracle = estimators.oracle_least_squares(x, y, w != 0)
    smallest = torch.where(w != 0, w.abs(), torch.inf).amin(1)
    told_apart = smallest > 0.05 + 100 * noise_std  # a weight lost in the noise leaves the support in doubt
    assert told_apart.sum() > 30
    assert_close(mean[told_apart], oracle[told_apart].numpy(), atol=1e-6 + 1e-3 * noise_std)


def test_noiseless_labels_that_many_supports_explain_are_averaged_over_those_of_likely_weights():
    """Two points, two features of four: all six supports fit exactly; the density of each is that of its weights."""
    x, y = problem(5, 2, 4, "noiseless")
    hand = []
    for a, b in each(x, y):
        means, log_joint = [], []
        for chosen in map(list, combinations(range(4), 2)):
            w = np.zeros(4)
            w[chosen] = np.linalg.solve(a[:, chosen], b)
            means.append(w)
            log_joint.append(-(w @ w) / 2 - np.log(2 * np.pi) - np.linalg.slogdet(a[:, chosen])[1])
        hand.append(averaged(means, log_joint))
    assert_posterior(gaussian_posterior(x, y, all_supports(4, 2), 0.0), hand, atol=2e-3)


# Where rounding sets the noise


def eliminated(matrix, right):
    """The pivots of a positive definite matrix, and the solution of matrix u = right, in rational numbers."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, row in enumerate(rows):
        for other in rows[i + 1 :]:
            ratio = other[i] / row[i]
            other[i:] = [a - ratio * b for a, b in zip(other[i:], row[i:], strict=True)]
    solution = [Fraction(0)] * len(rows)
    for i in reversed(range(len(rows))):
        solution[i] = (rows[i][-1] - sum(a * b for a, b in zip(rows[i][:-1], solution, strict=True))) / rows[i][i]
    return [row[i] for i, row in enumerate(rows)], solution


def exact_gaussian(x, y, supports, variance, slab_std, slab_mean):
    """``gaussian_by_hand`` of one prompt without any rounding, so that no covariance is too close to singular."""
    x, y = [[*map(Fraction, row)] for row in x], [*map(Fraction, y)]
    variance, slab_std, slab_mean = Fraction(variance), Fraction(slab_std), Fraction(slab_mean)
    means, squares, log_dets = [], [], []
    for chosen in supports:
        a = [[row[j] for j in chosen] for row in x]
        products = [[slab_std**2 * sum(s * t for s, t in zip(p, q, strict=True)) for q in a] for p in a]
        covariance = [[c + (i == j) * variance for j, c in enumerate(row)] for i, row in enumerate(products)]
        residual = [label - slab_mean * sum(row) for label, row in zip(y, a, strict=True)]
        pivots, u = eliminated(covariance, residual)
        means.append(np.zeros(len(x[0])))
        means[-1][chosen] = [
            float(slab_mean + slab_std**2 * sum(row[k] * v for row, v in zip(a, u, strict=True)))
            for k in range(len(chosen))
        ]
        squares.append(sum(r * v for r, v in zip(residual, u, strict=True)))
        log_dets.append(sum(log(p.numerator) - log(p.denominator) for p in pivots))
    least = min(squares)  # of the order of 1e12: only their differences fit into a float
    log_joint = [-(float(q - least) + det) / 2 for q, det in zip(squares, log_dets, strict=True)]
    mean, log_evidence = averaged(means, log_joint)
    return mean, log_evidence - float(least) / 2 - len(y) * np.log(2 * np.pi) / 2


def stated_floor(x, y, weight_square):
    """The smallest variance of the noise, from the docstring of ``gaussian_posterior``."""
    columns = np.square(x).sum(0).max()
    return max(1e-12 * (y @ y), 128 * np.finfo(float).eps * columns * weight_square, 1e-200)


NEARLY_SINGULAR = [
    *[(1, 1, 5, "plain"), (1, 2, 5, "plain"), (1, 3, 5, "plain"), (1, 6, 5, "plain"), (1, 2, 5, "zero labels")],
    *[(1, 6, 5, "duplicated feature"), (1, 2, 5, "duplicated feature"), (1, 4, 5, "duplicated point")],
    *[(1, 6, 5, "zero feature"), (1, 3, 5, "zero x"), (1, 6, 5, "scaled features"), (1, 6, 5, "noiseless")],
]


@pytest.mark.parametrize("case", NEARLY_SINGULAR, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("slab_mean", [0.0, 1.0])
def test_without_noise_the_gaussian_law_is_exact_at_the_stated_floor(case, scale, slab_mean):
    """Whatever the size of x beside y's; the mean to 1e-3 of its largest weight, and the evidence as near."""
    x, y = problem(*case)
    x, supports = scale * x, all_supports(5, 3)
    variance = stated_floor(x[0].numpy(), y[0].numpy(), 3 * (0.5**2 + slab_mean**2))
    mean, log_evidence = exact_gaussian(x[0].tolist(), y[0].tolist(), supports.tolist(), variance, 0.5, slab_mean)
    ours = gaussian_posterior(x, y, supports, 0.0, 0.5, slab_mean)
    assert_close(ours.mean[0], mean, atol=2e-3 * np.abs(mean).max() + 1e-12)
    assert_close(ours.log_evidence, [log_evidence], atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("case", [case for case in NEARLY_SINGULAR if case[3] != "scaled features"], ids=str)
def test_large_features_leave_the_stated_noise_alone(case):
    """x of size 1e4 and y of size 1: a noise of .1 is above the floor, so it is the noise."""
    x, y = problem(*case)
    x, supports = 1e4 * x, all_supports(5, 3)
    assert stated_floor(x[0].numpy(), y[0].numpy(), 3.0) < 0.1**2
    mean, log_evidence = exact_gaussian(x[0].tolist(), y[0].tolist(), supports.tolist(), 0.1**2, 1.0, 0.0)
    ours = gaussian_posterior(x, y, supports, 0.1)
    assert_close(ours.mean[0], mean, atol=2e-3 * np.abs(mean).max())
    assert_close(ours.log_evidence, [log_evidence], atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("n", [1, 6, 40])
def test_features_that_are_alike_share_what_they_explain_without_noise(n, scale):
    """y = x_1 = x_5: rounding must not decide between the two."""
    x, _ = problem(20, n, 5, "duplicated feature")
    x, pool = scale * x, torch.eye(5, dtype=torch.float64)
    laws = [gaussian_posterior(x, x[..., 0], all_supports(5, 1), 0.0)] if n > 1 else []
    laws += [sign_posterior(x, x[..., 0], all_supports(5, 1), 0.0), pool_posterior(x, x[..., 0], pool, 0.0)]
    for posterior in laws:
        assert_close(posterior.mean, [[0.5, 0, 0, 0, 0.5]] * 20, atol=3e-3)


# The sign law


def signs_by_hand(x, y, supports, sigma, magnitude):
    means, log_joint = [], []
    for chosen in supports:
        for signs in product([-magnitude, magnitude], repeat=len(chosen)):
            w = np.zeros(x.shape[1])
            w[chosen] = signs
            means.append(w)
            log_joint.append(log_normal(y - x @ w, sigma**2 * np.eye(len(y))))
    return averaged(means, log_joint)


@pytest.mark.parametrize(("case", "s"), SUPPORTS_OF_CASES, ids=str)
@pytest.mark.parametrize(("sigma", "magnitude"), [(0.5, 1.0), (2.0, 1.0), (0.3, 0.5)])
def test_the_sign_law_equals_the_average_over_every_sign_vector(case, s, sigma, magnitude):
    x, y = problem(*case)
    supports = all_supports(case[2], s)
    hand = [signs_by_hand(a, b, supports.tolist(), sigma, magnitude) for a, b in each(x, y)]
    assert_posterior(sign_posterior(x, y, supports, sigma, magnitude), hand)


def test_the_sign_law_equals_the_pool_of_its_sign_vectors():
    x, y = problem(4, 5, 6, "plain")
    supports = all_supports(6, 4)
    signs = torch.tensor([*product([-1.0, 1.0], repeat=4)], dtype=torch.float64)
    pool = torch.zeros(len(supports), len(signs), 6, dtype=torch.float64)
    pool = pool.scatter(2, supports[:, None].expand(-1, len(signs), -1), signs.expand(len(supports), -1, -1))
    ours, theirs = sign_posterior(x, y, supports, 0.7), pool_posterior(x, y, pool.flatten(0, 1), 0.7)
    assert_close(ours.mean, theirs.mean.numpy())
    assert_close(ours.log_evidence, theirs.log_evidence.numpy())


@pytest.mark.parametrize("noise_std", [0.0, 1e-4])
def test_without_noise_the_sign_law_finds_the_weights(noise_std):
    supports = all_supports(7, 2)
    signs = lambda g, shape: 2.0 * torch.randint(2, shape, generator=g) - 1  # noqa: E731
    x, y, w = sparse_problem(20, 3, supports, noise_std, signs)
    assert_close(sign_posterior(x, y, supports, noise_std).mean, w.numpy(), atol=1e-6)


# A pool of tasks


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_the_pool_equals_its_average_by_likelihood(case, sigma):
    x, y = problem(*case)
    pool = torch.randn(7, case[2], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hand = []
    for a, b in each(x, y):
        densities = [log_normal(b - a @ w, sigma**2 * np.eye(len(b))) for w in pool.numpy()]
        hand.append(averaged(pool.numpy(), densities))
    assert_posterior(pool_posterior(x, y, pool, sigma), hand)


def test_prior_weights_count_like_repeated_tasks_and_zero_leaves_a_task_out():
    x, y = problem(3, 4, 5, "plain")
    pool = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weighted = pool_posterior(x, y, pool, 1.0, torch.tensor([2.0, 0.0, 1.0]))
    repeated = pool_posterior(x, y, pool[[0, 0, 2]], 1.0)
    assert_close(weighted.mean, repeated.mean.numpy())
    assert_close(weighted.log_evidence, repeated.log_evidence.numpy())


def test_a_pool_of_one_task_is_that_task():
    x, y = problem(2, 4, 3, "plain")
    assert_close(pool_posterior(x, y, torch.tensor([[1.0, -2.0, 0.5]]), 0.3).mean, [[1.0, -2.0, 0.5]] * 2)


# Mixtures of laws


def test_a_mixture_of_noise_levels_equals_the_average_over_levels_and_supports():
    x, y = problem(3, 5, 4, "plain")
    levels, prior, supports = [0.2, 0.5, 2.0], [0.2, 0.3, 0.5], all_supports(4, 2)
    hand = []
    for a, b in each(x, y):
        parts = [gaussian_by_hand(a, b, supports.tolist(), sigma, 1.0, 0.0) for sigma in levels]
        shares = [p * np.exp(evidence) for p, (_, evidence) in zip(prior, parts, strict=True)]
        mean = sum(share * mean for share, (mean, _) in zip(shares, parts, strict=True)) / sum(shares)
        hand.append((mean, np.log(sum(shares))))
    parts = [gaussian_posterior(x, y, supports, sigma) for sigma in levels]
    assert_posterior(mixed(parts, prior), hand)
    assert_posterior(mixed(parts, [2 * p for p in prior]), hand)  # weights, not probabilities


def test_a_mixture_of_sparsities_is_the_law_of_all_their_supports():
    """Two pools of supports, weighted by how many there are, and the sign vectors of both sizes in one pool."""
    x, y = problem(3, 5, 4, "plain")
    parts = [sign_posterior(x, y, all_supports(4, s), 0.5) for s in (1, 2)]
    vectors = [v for v in product([-1.0, 0.0, 1.0], repeat=4) if 1 <= sum(map(abs, v)) <= 2]
    together = mixed(parts, [8.0, 24.0])  # 4 x 2 and 6 x 4 sign vectors
    pool = pool_posterior(x, y, torch.tensor(vectors, dtype=torch.float64), 0.5)
    assert_close(together.mean, pool.mean.numpy())
    assert_close(together.log_evidence, pool.log_evidence.numpy())


def test_a_law_of_prior_weight_zero_does_not_count():
    x, y = problem(3, 5, 4, "plain")
    first, second = (gaussian_posterior(x, y, all_supports(4, s), 0.5) for s in (1, 2))
    assert_close(mixed([first, second], [0.0, 1.0]).mean, second.mean.numpy())


# How it is computed


@both_laws
@pytest.mark.parametrize("block", [1, 40, 1000, 10**7])
def test_every_prefix_is_a_prompt_of_its_own_whatever_the_block(law, block):
    x, y = problem(3, 7, 5, "plain")
    supports, m = all_supports(5, 2), estimators.prefix_moments(x, y)
    together = law(m, supports, 0.3, block=block)
    for k in range(1, 8):
        alone = law(estimators.moments(x[:, :k], y[:, :k]), supports, 0.3)
        assert_close(together.mean[k - 1 :: 7], alone.mean.numpy())
        assert_close(together.log_evidence[k - 1 :: 7], alone.log_evidence.numpy())


@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_a_pool_is_summed_in_blocks_of_any_size(block):
    x, y = problem(3, 7, 5, "plain")
    pool = torch.randn(11, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = pool_posterior(x, y, pool, 0.5)
    cut = pool_posterior(estimators.moments(x, y), pool, 0.5, block=block)
    assert_close(cut.mean, whole.mean.numpy())
    assert_close(cut.log_evidence, whole.log_evidence.numpy())


def test_each_prompt_can_have_a_noise_level_of_its_own():
    x, y = problem(3, 5, 4, "plain")
    levels, supports, pool = [0.1, 0.5, 2.0], all_supports(4, 2), torch.eye(4)
    for law in (
        lambda x, y, noise: gaussian_posterior(x, y, supports, noise, 1.0, 0.5),
        lambda x, y, noise: sign_posterior(x, y, supports, noise),
        lambda x, y, noise: pool_posterior(x, y, pool, noise),
    ):
        together = law(x, y, torch.tensor(levels, dtype=torch.float64))
        for b, level in enumerate(levels):
            alone = law(x[b : b + 1], y[b : b + 1], level)
            assert_close(together.mean[b], alone.mean[0].numpy())
            assert_close(together.log_evidence[b], alone.log_evidence[0].numpy())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("noise_std", [0.0, 1e-9, 1e9])
def test_extreme_noise_levels_give_finite_answers(case, noise_std):
    x, y = problem(*case)
    for posterior in (
        gaussian_posterior(x, y, all_supports(case[2], 1), noise_std, 1.0, 0.5),
        gaussian_posterior(x, y, all_supports(case[2], case[2]), noise_std),
        sign_posterior(x, y, all_supports(case[2], 1), noise_std),
        pool_posterior(x, y, torch.eye(case[2]), noise_std),
    ):
        assert posterior.mean.isfinite().all()
        assert posterior.log_evidence.isfinite().all()


def test_labels_that_no_support_explains_still_pick_the_best():
    """Log evidences of order -1e9: differences of thousands among them decide."""
    x, y = problem(4, 12, 5, "plain")
    y = 10 * y
    posterior = gaussian_posterior(x, y, all_supports(5, 2), 1e-3, 100.0)
    assert (posterior.log_evidence < -1e6).all()
    assert_close(posterior.mean, best_subset(x, y, 2).numpy(), atol=1e-5)


def test_means_come_in_the_type_of_the_labels_and_evidences_in_float64():
    x, y = (t.float() for t in problem(2, 6, 4, "plain"))
    supports, pool = all_supports(4, 2), torch.eye(4)
    posteriors = [
        gaussian_posterior(x, y, supports, 0.5),
        sign_posterior(x, y, supports, 0.5),
        pool_posterior(x, y, pool, 0.5, torch.ones(4)),
    ]
    posteriors.append(mixed(posteriors, [1.0, 1.0, 1.0]))
    assert {p.mean.dtype for p in posteriors} == {torch.float32}
    assert {p.log_evidence.dtype for p in posteriors} == {torch.float64}


class LiveBytes(TorchDispatchMode):
    """The most bytes that results of torch's operations held at one time."""

    def __init__(self):
        super().__init__()
        self.peak, self.sizes = 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self.sizes[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.sizes.values()))
        return results


@both_laws
def test_the_block_bounds_the_memory_whatever_the_number_of_prompts_and_supports(law):
    """Some 30 numbers for each pair in the block, where the joint densities alone are one for each of many pairs."""
    block = 2**15
    for n_prompts, d in [(4, 16), (16, 16), (4, 20)]:
        m, supports = estimators.prefix_moments(*problem(n_prompts, 8, d, "plain")), all_supports(d, 4)
        with LiveBytes() as memory:
            posterior = law(m, supports, 0.4, block=block)
        answer = 8 * sum(part.numel() for part in posterior)
        assert 8 * block < memory.peak - answer < 8 * 40 * block, memory.peak - answer


@pytest.mark.parametrize("d", [20, 40])
def test_large_supports_take_no_more_memory(d):
    """A factor of one has d^2 / 2 entries."""
    block, supports = 2**10, all_supports(d, d)
    m = estimators.prefix_moments(*problem(16, 64, d, "plain"))
    with LiveBytes() as memory:
        posterior = gaussian_posterior(m, supports, 0.4, block=block)
    given = 8 * sum(part.numel() for part in (*m, *posterior))  # views of m count as m
    assert memory.peak - given < 8 * 200 * block


@pytest.mark.parametrize("size", [24, 25, 29])
@pytest.mark.parametrize("slab_mean", [0.0, 1.0])
def test_large_supports_equal_dense_densities(size, slab_mean):
    x, y = problem(3, 12, 30, "plain")
    supports = torch.stack([torch.arange(size), torch.arange(30)[30 - size :]])
    hand = [gaussian_by_hand(a, b, supports.tolist(), 0.4, 1.0, slab_mean) for a, b in each(x, y)]
    assert_posterior(gaussian_posterior(x, y, supports, 0.4, 1.0, slab_mean), hand)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, s: gaussian_posterior(x, y, s, -1.0), "noise_std is -1.0"),
        (lambda x, y, s: gaussian_posterior(x, y, s, float("nan")), "noise_std is nan"),
        (lambda x, y, s: sign_posterior(x, y, s, torch.tensor([-1.0])), "noise_std is tensor"),
        (lambda x, y, s: gaussian_posterior(x, y, s, 0.1, 0.0), "slab_std is 0.0"),
        (lambda x, y, s: sign_posterior(x, y, s, 0.1, 0.0), "magnitude is 0.0"),
        (lambda x, y, s: gaussian_posterior(x, y, s + 1, 0.1), "different features, 0 to 3"),
        (lambda x, y, s: sign_posterior(x, y, s - 1, 0.1), "different features, 0 to 3"),
        (lambda x, y, s: gaussian_posterior(x, y, s * 0, 0.1), "different features, 0 to 3"),
        (lambda x, y, s: gaussian_posterior(x, y, s[:0], 0.1), "have a row"),
        (lambda x, y, s: gaussian_posterior(x, y, s[:1].expand(2**20 + 1, -1), 0.1), "1,048,577 supports.*lasso"),
        (lambda x, y, s: sign_posterior(x, y, torch.arange(21)[None], 0.1), r"2,097,152 .*\(1 x 2\^21\)"),
        (lambda x, y, s: pool_posterior(x, y, torch.eye(4), 0.1, torch.tensor([1.0, 1, 1, -1])), "prior is .*-1"),
        (lambda x, y, s: pool_posterior(x, y, torch.eye(4), 0.1, torch.zeros(4)), "positive sum"),
        (lambda x, y, s: mixed([gaussian_posterior(x, y, s, 0.1)], [0.5, 0.5]), "prior has 2 weights"),
        (lambda x, y, s: mixed([gaussian_posterior(x, y, s, 0.1)], [0.0]), "positive sum"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*problem(1, 3, 4, "plain"), all_supports(4, 2))
