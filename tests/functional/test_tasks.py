"""Laws of regression problems against the moments they promise."""

import math

import jaxtyping
import numpy as np
import pytest
import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import predictions, ridge
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import LinearRegression, SparseLinearRegression, Task
from lightning_icl.functional.tasks.features import ar1_factor

LAWS = ["gaussian", "sign", "unit_norm", "scaled"]


class Squares(Task):
    """A task without linear weights."""

    def sample_targets(self, x, generator):
        return x.square().sum(-1), None


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_mean_within_4_standard_errors(samples, expected):
    """``samples`` are independent along the first axis; 1e-6 allows for rounding where they do not vary."""
    samples = np.asarray(samples, dtype=np.float64)
    margin = 4 * samples.std(axis=0, ddof=1) / math.sqrt(len(samples)) + 1e-6
    assert (np.abs(samples.mean(axis=0) - expected) <= margin).all()


def ar1_by_hand(n_dims, correlation):
    return np.array([[correlation ** abs(i - j) for j in range(n_dims)] for i in range(n_dims)])


@pytest.mark.parametrize(("n_dims", "correlation"), [(1, 0.5), (2, -0.3), (5, 0.0), (6, 0.7), (6, -0.7), (40, 0.99)])
def test_ar1_factor_is_the_cholesky_factor(n_dims, correlation):
    factor = ar1_factor(n_dims, correlation).numpy()
    np.testing.assert_allclose(factor @ factor.T, ar1_by_hand(n_dims, correlation), atol=1e-12)
    np.testing.assert_allclose(factor, np.linalg.cholesky(ar1_by_hand(n_dims, correlation)), atol=1e-10)


@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.8])
def test_features_are_independent_points_with_ar1_covariance(correlation):
    prompt = LinearRegression(5, correlation=correlation).sample(10_000, 1, 1, generator())
    context, query = prompt.x[:, 0].double(), prompt.x_query[:, 0].double()
    assert_mean_within_4_standard_errors(torch.cat([context, query]), 0)
    for x in (context, query):
        assert_mean_within_4_standard_errors(x[:, :, None] * x[:, None], ar1_by_hand(5, correlation))
    assert_mean_within_4_standard_errors(context[:, :, None] * query[:, None], 0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("n_dims", "sparsity"), [(6, 1), (6, 2), (6, 6), (1, 1)])
def test_support_has_the_given_size_and_is_uniform(n_dims, sparsity, law):
    w = SparseLinearRegression(n_dims, sparsity, weight_law=law).sample_weights(20_000, generator())
    support = (w != 0).double()
    assert (support.sum(dim=1) == sparsity).all()
    pairs = support[:, :, None] * support[:, None]
    both = sparsity / n_dims * (sparsity - 1) / max(n_dims - 1, 1)  # without replacement
    expected = np.full((n_dims, n_dims), both)
    np.fill_diagonal(expected, sparsity / n_dims)
    assert_mean_within_4_standard_errors(pairs, expected)


@pytest.mark.parametrize("sparsity", [1, 3, 8])
@pytest.mark.parametrize(
    ("law", "second", "fourth"),  # moments of a non-zero weight
    [
        ("gaussian", lambda s: 1, lambda s: 3),
        ("sign", lambda s: 1, lambda s: 1),
        ("unit_norm", lambda s: 1 / s, lambda s: 3 / (s * (s + 2))),
        ("scaled", lambda s: 1 / s, lambda s: 3 / s**2),
    ],
)
def test_moments_of_the_weight_laws(law, second, fourth, sparsity):
    task = SparseLinearRegression(8, sparsity, weight_law=law)
    w = task.sample_weights(20_000, generator()).double()
    for power, moment in ((1, 0), (2, second(sparsity)), (3, 0), (4, fourth(sparsity))):
        assert_mean_within_4_standard_errors((w**power).sum(dim=1) / sparsity, moment)
    assert_mean_within_4_standard_errors(w.square(), task.weight_variance)
    products = w[:, :, None] * w[:, None]
    assert_mean_within_4_standard_errors(products, task.weight_variance * np.eye(8))  # weights are uncorrelated


def test_signs_and_unit_norms_are_exact():
    signs = SparseLinearRegression(7, 3, weight_law="sign").sample_weights(200, generator())
    assert set(signs.unique().tolist()) == {-1.0, 0.0, 1.0}
    spheres = SparseLinearRegression(7, 3, weight_law="unit_norm").sample_weights(200, generator())
    torch.testing.assert_close(spheres.double().square().sum(dim=1), torch.ones(200).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("noise_std", [0.1, 2.0])
def test_label_noise_has_its_variance_everywhere(float64, noise_std):
    prompt = LinearRegression(3, noise_std).sample(8000, 2, 2, generator())
    noise = torch.cat([prompt.y - (prompt.x @ prompt.w[:, :, None])[..., 0], prompt.y_query - prompt.f_query], dim=1)
    assert_mean_within_4_standard_errors(noise, 0)
    products = noise[:, :, None] * noise[:, None]
    assert_mean_within_4_standard_errors(products, noise_std**2 * np.eye(4))  # independent between points
    assert_mean_within_4_standard_errors(noise**4, 3 * noise_std**4)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize(
    ("batch", "points", "queries", "dims"), [(5, 4, 3, 6), (1, 1, 1, 1), (1, 2, 1, 9), (3, 9, 2, 2)]
)
def test_targets_are_the_weights_times_the_features(float64, batch, points, queries, dims, correlation, law):
    task = SparseLinearRegression(dims, (dims + 1) // 2, 0.3, correlation, law)
    prompt = task.sample(batch, points, queries, generator())
    task.noise_std = 0.0
    noiseless = task.sample(batch, points, queries, generator())
    assert prompt.x.shape == (batch, points, dims)
    assert prompt.x_query.shape == (batch, queries, dims)
    for b in range(batch):
        expected = [math.fsum((prompt.w[b] * x).tolist()) for x in prompt.x_query[b]]
        np.testing.assert_allclose(prompt.f_query[b], expected, atol=1e-12)
        expected = [math.fsum((noiseless.w[b] * x).tolist()) for x in noiseless.x[b]]
        np.testing.assert_allclose(noiseless.y[b], expected, atol=1e-12)
    torch.testing.assert_close(noiseless.y_query, noiseless.f_query, rtol=0, atol=0)


@pytest.mark.parametrize("task", [SparseLinearRegression(5, 2, 0.3, 0.5, law) for law in LAWS] + [Squares(3, 0.1)])
def test_the_generator_is_the_only_randomness(task):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = task.sample(3, 4, 2, generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = task.sample(3, 4, 2, generator()), task.sample(3, 4, 2, generator(1))
    for name in ("x", "y", "x_query", "y_query", "f_query"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name
    assert (first.w is None and second.w is None) or torch.equal(first.w, second.w)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("law", LAWS)
def test_linear_regression_is_the_sparse_one_with_every_weight_drawn(law, correlation):
    dense, sparse = LinearRegression(4, 0.3, correlation, law), SparseLinearRegression(4, 4, 0.3, correlation, law)
    for a, b in zip(dense.sample(3, 5, 2, generator()), sparse.sample(3, 5, 2, generator()), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert (dense.sparsity, dense.weight_variance, dense.ridge_alpha) == (4, sparse.weight_variance, sparse.ridge_alpha)


def test_a_task_without_linear_weights():
    task = Squares(3, noise_std=0.1)
    prompt = task.sample(2, 4, 3, generator())
    assert prompt.w is None
    assert prompt.point_mask is None
    assert task.ridge_alpha is None
    torch.testing.assert_close(prompt.f_query, (prompt.x_query**2).sum(-1))


@pytest.mark.parametrize(
    ("sparsity", "noise_std", "law", "expected"),
    [
        (4, 0.4, "gaussian", 0.64),
        (16, 0.4, "sign", 0.16),
        (4, 0.5, "unit_norm", 4.0),
        (4, 0.5, "scaled", 4.0),
        (3, 0.0, "gaussian", 0.0),
    ],
)
def test_ridge_alpha_by_hand(sparsity, noise_std, law, expected):
    task = SparseLinearRegression(16, sparsity, noise_std, weight_law=law)
    assert task.ridge_alpha == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "task",
    [
        LinearRegression(8, 0.8),
        LinearRegression(8, 0.8, correlation=0.5),
        SparseLinearRegression(8, 2, 0.8, weight_law="sign"),
        SparseLinearRegression(8, 3, 0.4, weight_law="unit_norm"),
        SparseLinearRegression(8, 3, 0.4, weight_law="scaled"),
    ],
)
def test_ridge_alpha_is_the_best_ridge_strength(float64, task):
    prompt = task.sample(6000, 10, 8, generator())
    weights = {factor: ridge(prompt.x, prompt.y, factor * task.ridge_alpha) for factor in (0.5, 1.0, 2.0)}
    errors = {f: squared_errors(predictions(w, prompt.x_query), prompt.f_query).numpy() for f, w in weights.items()}
    for neighbour in (0.5, 2.0):
        worse = errors[neighbour] - errors[1.0]
        assert worse.mean() > 4 * worse.std(ddof=1) / math.sqrt(len(worse))


@pytest.mark.parametrize(
    "task", [LinearRegression, lambda n_dims, **options: SparseLinearRegression(n_dims, 1, **options)]
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_dims": 0}, "n_dims is 0"),
        ({"n_dims": -3}, "n_dims is -3"),
        ({"n_dims": 4, "noise_std": -0.5}, "noise_std is -0.5"),
        ({"n_dims": 4, "noise_std": math.inf}, "noise_std is inf"),
        ({"n_dims": 4, "noise_std": math.nan}, "noise_std is nan"),
        ({"n_dims": 4, "correlation": 1.0}, "correlation is 1.0"),
        ({"n_dims": 4, "correlation": -1.0}, "correlation is -1.0"),
        ({"n_dims": 4, "correlation": math.nan}, "correlation is nan"),
        ({"n_dims": 4, "weight_law": "cauchy"}, "weight_law is 'cauchy'.*gaussian, sign, unit_norm, scaled"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, task, options, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # else the Literal is refused before our check
    with pytest.raises(InputError, match=message):
        task(**options)


@pytest.mark.parametrize("sparsity", [0, -1, 5])
def test_bad_sparsity_is_named(sparsity):
    with pytest.raises(InputError, match=f"sparsity is {sparsity}.*n_dims, which is 4"):
        SparseLinearRegression(4, sparsity)
