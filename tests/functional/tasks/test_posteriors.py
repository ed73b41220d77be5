"""The posterior each law offers, against a mixture of Gaussian components written out in plain numpy."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from margins import EVERY_TASK, assert_mean_within_4_standard_errors, generator

from lightning_icl import (
    Eigenvalues,
    GroupSparseLinearRegression,
    InputError,
    LinearClassification,
    LinearRegression,
    Mixture,
    PowerLaw,
    ReLUNetwork,
    SparseLinearRegression,
    SparseRecovery,
    Spiked,
    TaskPool,
)
from lightning_icl.functional import estimators
from lightning_icl.functional.references import default_bayes
from lightning_icl.functional.tasks.features import haar_rotations

D = 4
CASES = [(3, 7, ""), (3, 2, ""), (1, 1, ""), (2, 6, "duplicated feature"), (2, 6, "zero labels"), (2, 6, "zero x")]


def examples(batch, n, kind="", d=D):
    """Any x and y: the formulas hold for all, not only for those of the law."""
    x, y = (torch.randn(batch, n, size, generator=generator(1), dtype=torch.float64) for size in (d, 1))
    x[..., -1] = x[..., 0] if kind == "duplicated feature" else x[..., -1]
    return x * (kind != "zero x"), 2 * y[..., 0] * (kind != "zero labels")


def each(x, y):
    return zip(x.numpy(), y.numpy(), strict=True)


def assert_close(actual, expected, atol=1e-9, rtol=0.0):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def subsets(allowed):
    """The subsets of range(D) that are ``allowed``, by counting in binary."""
    return [s for s in ([j for j in range(D) if code >> j & 1] for code in range(2**D)) if allowed(s)]


def of_size(s):
    return subsets(lambda subset: len(subset) == s)


def normal_on(supports, variance=1.0, mean=0.0):
    """One component (mean, covariance) of w for each support."""
    indicators = [np.isin(range(D), support).astype(float) for support in supports]
    return [(mean * on, variance * np.diag(on)) for on in indicators]


def signs_on(supports):
    """One component without spread for each sign vector."""
    vectors = [v for v in product([-1.0, 0.0, 1.0], repeat=D) if np.flatnonzero(v).tolist() in supports]
    return [(np.array(v), np.zeros((D, D))) for v in vectors]


def mapped(components, matrix):
    """The components of matrix @ w."""
    return [(matrix @ mean, matrix @ covariance @ matrix.T) for mean, covariance in components]


def by_hand(x, y, components, levels):
    """Mean of w and log p(y | X) when a component and a noise level are drawn uniformly."""
    means, log_joint = [], []
    for sigma, (mean, covariance) in product(levels, components):
        of_y = x @ covariance @ x.T + sigma**2 * np.eye(len(y))
        residual = y - x @ mean
        solved = np.linalg.solve(of_y, residual)
        means.append(mean + covariance @ x.T @ solved)
        log_joint.append(-(residual @ solved + np.linalg.slogdet(2 * math.pi * of_y)[1]) / 2)
    shift = max(log_joint)
    shares = np.exp(np.array(log_joint) - shift)
    return shares @ np.array(means) / shares.sum(), shift + math.log(shares.mean())


def mixing(spectrum, correlation, rotated):
    """A in x = A z, as Task documents it."""
    ar1 = np.array([[correlation ** abs(i - j) for j in range(D)] for i in range(D)])
    factor = np.sqrt(spectrum.variances(D).numpy())[:, None] * np.linalg.cholesky(ar1)
    return haar_rotations(1, D, generator(), torch.float64)[0].numpy() @ factor if rotated else factor


def unmixed(components, *how):
    """w = A^-T v."""
    return mapped(components, np.linalg.inv(mixing(*how)).T)


PAIRS = subsets(lambda s: s in ([0, 1], [2, 3]))
SLOW, LISTED = PowerLaw(1.5), Eigenvalues([4.0, 1.0, 0.5, 2.0])
LAWS = {  # task, components of its w
    "sparse": (SparseLinearRegression(D, 2, noise_std=0.5), normal_on(of_size(2))),
    "sparse, one level listed": (SparseLinearRegression(D, 1, noise_std=[0.3]), normal_on(of_size(1))),
    "sparse, levels": (SparseLinearRegression(D, 2, noise_std=[0.1, 0.5, 2.0]), normal_on(of_size(2))),
    "sparse, one level twice": (SparseLinearRegression(D, 2, noise_std=[0.2, 1.0, 1.0]), normal_on(of_size(2))),
    "sparse, mean": (SparseLinearRegression(D, 3, noise_std=0.5, weight_mean=-1.5), normal_on(of_size(3), 1.0, -1.5)),
    "scaled": (SparseLinearRegression(D, 3, noise_std=0.5, weight_law="scaled"), normal_on(of_size(3), 1 / 3)),
    "scaled, mean, levels": (
        SparseLinearRegression(D, 2, noise_std=[0.2, 0.8], weight_law="scaled", weight_mean=2.0),
        normal_on(of_size(2), 1 / 2, 2.0),
    ),
    "signs": (SparseLinearRegression(D, 3, noise_std=0.7, weight_law="sign"), signs_on(of_size(3))),
    "signs, levels": (SparseLinearRegression(D, 2, noise_std=[0.3, 1.0], weight_law="sign"), signs_on(of_size(2))),
    "unit vectors of one weight": (
        SparseLinearRegression(D, 1, noise_std=0.5, weight_law="unit_norm"),
        signs_on(of_size(1)),
    ),
    "dense": (LinearRegression(D, noise_std=0.5), normal_on(of_size(D))),
    "dense, levels": (LinearRegression(D, noise_std=[0.1, 1.0], weight_mean=1.0), normal_on(of_size(D), 1.0, 1.0)),
    "dense signs": (LinearRegression(D, noise_std=0.8, weight_law="sign"), signs_on(of_size(D))),
    "groups": (GroupSparseLinearRegression(D, 2, 1, noise_std=0.5), normal_on(PAIRS)),
    "groups of signs": (GroupSparseLinearRegression(D, 2, 1, noise_std=0.5, weight_law="sign"), signs_on(PAIRS)),
    "groups, scaled, mean": (
        GroupSparseLinearRegression(D, 2, 1, noise_std=0.5, weight_law="scaled", weight_mean=1.0),
        normal_on(PAIRS, 1 / 2, 1.0),
    ),
    "recovery": (SparseRecovery(D, 2, noise_std=0.4), normal_on(of_size(2))),
    "features of another law": (
        SparseLinearRegression(
            D, 2, noise_std=0.5, correlation=0.6, features="student_t", spectrum=SLOW, rotation="per_prompt"
        ),
        normal_on(of_size(2)),
    ),
    "whitened, correlated": (
        LinearRegression(D, noise_std=0.5, correlation=0.6, whitened=True, spectrum=SLOW),
        unmixed(normal_on(of_size(D)), SLOW, 0.6, False),
    ),
    "whitened, rotated, mean, levels": (
        LinearRegression(D, noise_std=[0.3, 1.0], weight_mean=1.0, whitened=True, spectrum=LISTED, rotation="fixed"),
        unmixed(normal_on(of_size(D), 1.0, 1.0), LISTED, 0.0, True),
    ),
    "whitened, scaled": (
        LinearRegression(
            D, noise_std=0.5, correlation=0.6, weight_law="scaled", whitened=True, spectrum=LISTED, rotation="fixed"
        ),
        unmixed(normal_on(of_size(D), 1 / D), LISTED, 0.6, True),
    ),
    "whitened signs": (
        LinearRegression(D, noise_std=0.5, correlation=0.6, weight_law="sign", whitened=True, spectrum=LISTED),
        unmixed(signs_on(of_size(D)), LISTED, 0.6, False),
    ),
    "whitened, nothing to whiten": (LinearRegression(D, noise_std=0.5, whitened=True), normal_on(of_size(D))),
}


def levels_of(task):
    return task.noise_std if isinstance(task.noise_std, list) else [task.noise_std]


def assert_posterior(task, x, y, components, levels):
    expected = [by_hand(a, b, components, levels) for a, b in each(x, y)]
    posterior = task.posterior(estimators.moments(x, y))
    assert_close(posterior.mean, [mean for mean, _ in expected], atol=1e-8)
    assert_close(posterior.log_evidence, [evidence for _, evidence in expected], atol=1e-8, rtol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", LAWS)
def test_every_law_equals_the_mixture_of_its_components(law, case):
    task, components = LAWS[law]
    assert_posterior(task, *examples(*case), components, levels_of(task))


@pytest.mark.parametrize("law", LAWS)
def test_hypotheses_are_counted_before_they_are_listed(law):
    task, components = LAWS[law]
    assert task.posterior_terms == len(components) * len(levels_of(task))


@pytest.mark.parametrize("law", LAWS)
def test_on_prompts_of_its_own_law_the_error_is_uncorrelated_with_the_answer(law):
    """And so are its two parts with what the examples say: this ties ``posterior`` to what ``sample`` draws."""
    task, _ = LAWS[law]
    prompt = task.sample(4000, 5, 1, generator(5)).double()
    mean = task.posterior(estimators.moments(prompt.x, prompt.y)).mean
    error = prompt.w - mean
    assert_mean_within_4_standard_errors(error, 0)
    assert_mean_within_4_standard_errors(error[:, :, None] * mean[:, None], 0)
    assert_mean_within_4_standard_errors(error * torch.einsum("bpd,bp->bd", prompt.x, prompt.y), 0)


@pytest.mark.parametrize("law", LAWS)
def test_rows_are_problems_of_their_own_and_stay_as_they_were(law):
    task, _ = LAWS[law]
    x, y = examples(2, 5)
    m = estimators.prefix_moments(x, y)
    before = [field.clone() for field in m]
    together = task.posterior(m)
    assert all(torch.equal(old, field) for old, field in zip(before, m, strict=True))
    for k in range(1, 6):
        alone = task.posterior(estimators.moments(x[:, :k], y[:, :k]))
        assert_close(together.mean[k - 1 :: 5], alone.mean.numpy())
        assert_close(together.log_evidence[k - 1 :: 5], alone.log_evidence.numpy())


@pytest.mark.parametrize(("spectrum", "rotation"), [(SLOW, "none"), (LISTED, "fixed")])
def test_a_whitened_gaussian_law_has_the_inverse_covariance_of_the_features(spectrum, rotation):
    """Which of its square roots whitens does not matter: generalised ridge with the penalty w^T Sigma w."""
    task = LinearRegression(D, noise_std=0.5, correlation=0.6, whitened=True, spectrum=spectrum, rotation=rotation)
    root = mixing(spectrum, 0.6, rotation == "fixed")
    sigma = root @ root.T
    x, y = examples(3, 6)
    expected = [np.linalg.solve(a.T @ a + 0.25 * sigma, a.T @ b) for a, b in each(x, y)]
    assert_close(task.posterior(estimators.moments(x, y)).mean, expected)
    assert task.ridge_alpha is None
    w = task.sample_weights(20_000, generator()).double()
    assert_mean_within_4_standard_errors(w[:, :, None] * w[:, None], np.linalg.inv(sigma))
    f = task.sample(20_000, 1, 1, generator()).f_query.double()
    assert_mean_within_4_standard_errors(f**2, D)  # Var <w, x> is that of <v, z>


def test_a_level_of_zero_is_found_out_from_the_examples():
    """The level decides: prompts without noise are solved exactly, noisy ones as if that level were not listed."""
    task = SparseLinearRegression(D, 1, noise_std=[0.0, 0.5])
    prompt = task.sample(60, 6, 1, generator(3)).double()
    noisy = (prompt.y - prompt.f).abs().amax(1) > 1e-3
    assert 15 < noisy.sum() < 45
    mean = task.posterior(estimators.moments(prompt.x, prompt.y)).mean
    alone = task.shifted(noise_std=0.5).posterior(estimators.moments(prompt.x, prompt.y)).mean
    assert_close(mean[~noisy], prompt.w[~noisy].numpy(), atol=1e-5)  # float32 labels
    assert_close(mean[noisy], alone[noisy].numpy(), atol=1e-9)


# A pool


POOLS = {
    "sparse": TaskPool(SparseLinearRegression(D, 2, noise_std=0.5), 7),
    "levels": TaskPool(SparseLinearRegression(D, 2, noise_std=[0.1, 0.5, 2.0], weight_law="unit_norm"), 5),
    "one task": TaskPool(LinearRegression(D, noise_std=0.5), 1),
    "alike": TaskPool(LinearRegression(D, noise_std=0.5, weight_law="sign"), 40),  # of 16 sign vectors
    "whitened": TaskPool(LinearRegression(D, noise_std=0.5, correlation=0.6, whitened=True, rotation="fixed"), 6),
    "fixed design": TaskPool(SparseRecovery(D, 1, noise_std=0.5), 3),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_equals_its_average_by_likelihood(name, case):
    pool = POOLS[name]
    components = [(w, np.zeros((D, D))) for w in pool.pool.double().numpy()]
    assert_posterior(pool, *examples(*case), components, levels_of(pool.task))
    assert pool.posterior_terms == len(components) * len(levels_of(pool.task))


@pytest.mark.parametrize("name", POOLS)
def test_on_prompts_of_a_pool_the_error_is_uncorrelated_with_the_answer(name):
    prompt = POOLS[name].sample(4000, 3, 1, generator(5)).double()
    mean = POOLS[name].posterior(estimators.moments(prompt.x, prompt.y)).mean
    error = prompt.w - mean
    assert_mean_within_4_standard_errors(error, 0)
    assert_mean_within_4_standard_errors(error[:, :, None] * mean[:, None], 0)


def test_a_large_pool_approaches_the_posterior_of_its_law():
    task = LinearRegression(2, noise_std=1.0)
    m = estimators.moments(*examples(4, 3, d=2))
    pool = TaskPool(task, 200_000).posterior(m)
    assert_close(pool.mean, task.posterior(m).mean.numpy(), atol=0.03)
    assert_close(pool.log_evidence, task.posterior(m).log_evidence.numpy(), atol=0.03)


# Refusals


WITHOUT = {
    "Laplace noise": SparseLinearRegression(D, 2, noise_std=0.5, noise="laplace"),
    "Student noise": GroupSparseLinearRegression(D, 2, 1, noise_std=0.5, noise="student_t"),
    "unit vectors": SparseLinearRegression(D, 2, noise_std=0.5, weight_law="unit_norm"),
    "whitened, Laplace noise": LinearRegression(D, noise_std=0.5, correlation=0.6, whitened=True, noise="laplace"),
    "a pool with Laplace noise": TaskPool(LinearRegression(D, noise_std=0.5, noise="laplace"), 3),
    "a mixture with a network": Mixture([LinearRegression(D, noise_std=0.5), ReLUNetwork(D, 5)]),
    "a mixture with Laplace noise": Mixture([LinearRegression(D, noise_std=n, noise="laplace") for n in (0.5, 1.0)]),
    "classes": LinearClassification(D),
    "a network": ReLUNetwork(D, 5, noise_std=0.1),
}


@pytest.mark.parametrize("law", WITHOUT)
def test_a_law_without_a_closed_form_says_so(law):
    assert WITHOUT[law].posterior_terms is None
    with pytest.raises(InputError, match=f"{type(WITHOUT[law]).__name__}.* has no exact posterior in closed form: use"):
        WITHOUT[law].posterior(estimators.moments(*examples(1, 3)))


def test_whitening_by_a_rotation_of_each_prompt_is_refused():
    with pytest.raises(InputError, match="whitened is true, but rotation is 'per_prompt': use a fixed rotation"):
        LinearRegression(D, whitened=True, spectrum=Spiked(), rotation="per_prompt")


@pytest.mark.parametrize(
    ("task", "terms"),
    [
        (SparseLinearRegression(60, 30, noise_std=0.5), math.comb(60, 30)),
        (
            SparseLinearRegression(22, 7, noise_std=[0.1] * 7),
            7 * math.comb(22, 7),
        ),  # each level alone is below the limit
        (LinearRegression(21, noise_std=0.5, weight_law="sign"), 2**21),
        (GroupSparseLinearRegression(64, 2, 16, noise_std=0.5), math.comb(32, 16)),
    ],
)
def test_too_many_hypotheses_are_refused_before_they_are_listed(task, terms):
    assert task.posterior_terms == terms
    with pytest.raises(InputError, match=f"there are {terms:,} hypotheses behind the posterior of this law, above"):
        task.posterior(estimators.moments(*examples(1, 3, d=task.n_dims)))


def test_every_task_with_hypotheses_has_a_posterior_and_no_other():
    for task in EVERY_TASK.values():
        m = estimators.moments(*examples(2, 3, d=task.n_dims))
        if task.posterior_terms is None:
            with pytest.raises(InputError, match="has no exact posterior"):
                task.posterior(m)
        else:
            assert task.posterior(m).mean.isfinite().all()


@pytest.mark.parametrize("redrawn", ["sample_weights", "sample_targets", "sample_labels"])
def test_a_subclass_that_draws_in_its_own_way_promises_only_what_it_says(redrawn):
    """The prior of its base class would be wrong, and Bayes no bound."""
    own = type("Own", (LinearRegression,), {redrawn: getattr(LinearRegression, redrawn)})(3, noise_std=0.4)
    assert (own.ridge_alpha, own.posterior_terms, default_bayes(own)) == (None, None, [])
    m = estimators.moments(*examples(2, 5, d=3))
    with pytest.raises(InputError, match="has no exact posterior in closed form"):
        own.posterior(m)

    said = {
        redrawn: getattr(LinearRegression, redrawn),
        "ridge_alpha": property(lambda self: 0.7),
        "posterior": lambda self, m: LinearRegression.posterior(self, m),
    }
    own, base = type("Said", (LinearRegression,), said)(3, noise_std=0.4), LinearRegression(3, noise_std=0.4)
    assert (own.ridge_alpha, own.posterior_terms) == (0.7, 1)
    assert torch.equal(own.posterior(m).mean, base.posterior(m).mean)
    wider = type("Wider", (LinearRegression,), {"sample_features": LinearRegression.sample_features})(3, noise_std=0.4)
    assert (wider.ridge_alpha, wider.posterior_terms) == (base.ridge_alpha, base.posterior_terms)
