"""Linear tasks against the moments they promise."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from margins import assert_mean_within_4_standard_errors, generator

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import predictions, ridge
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import (
    GroupSparseLinearRegression,
    LinearRegression,
    SparseLinearRegression,
    SparseRecovery,
    Task,
)
from lightning_icl.functional.tasks.sparse_recovery import DESIGN_ROWS

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


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize(
    ("batch", "points", "queries", "dims"), [(5, 4, 3, 6), (1, 1, 1, 1), (1, 2, 1, 9), (3, 9, 2, 2)]
)
def test_targets_are_the_weights_times_the_features(float64, batch, points, queries, dims, correlation, law):
    task = SparseLinearRegression(dims, (dims + 1) // 2, noise_std=0.3, correlation=correlation, weight_law=law)
    prompt = task.sample(batch, points, queries, generator())
    noiseless = task.shifted(noise_std=0.0).sample(batch, points, queries, generator())
    assert prompt.x.shape == (batch, points, dims)
    assert prompt.x_query.shape == (batch, queries, dims)
    for b in range(batch):
        expected = [math.fsum((prompt.w[b] * x).tolist()) for x in prompt.x_query[b]]
        np.testing.assert_allclose(prompt.f_query[b], expected, atol=1e-12)
        expected = [math.fsum((noiseless.w[b] * x).tolist()) for x in noiseless.x[b]]
        np.testing.assert_allclose(noiseless.y[b], expected, atol=1e-12)
    torch.testing.assert_close(noiseless.y_query, noiseless.f_query, rtol=0, atol=0)


@pytest.mark.parametrize(
    "task",
    [SparseLinearRegression(5, 2, noise_std=0.3, correlation=0.5, weight_law=law) for law in LAWS]
    + [Squares(3, noise_std=0.1)],
)
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
    dense, sparse = (
        LinearRegression(4, noise_std=0.3, correlation=correlation, weight_law=law),
        SparseLinearRegression(4, 4, noise_std=0.3, correlation=correlation, weight_law=law),
    )
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
    task = SparseLinearRegression(16, sparsity, noise_std=noise_std, weight_law=law)
    assert task.ridge_alpha == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "task",
    [
        LinearRegression(8, noise_std=0.8),
        LinearRegression(8, noise_std=0.8, correlation=0.5),
        SparseLinearRegression(8, 2, noise_std=0.8, weight_law="sign"),
        SparseLinearRegression(8, 3, noise_std=0.4, weight_law="unit_norm"),
        SparseLinearRegression(8, 3, noise_std=0.4, weight_law="scaled"),
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
        ({"n_dims": 4, "weight_mean": math.inf}, "weight_mean is inf"),
        ({"n_dims": 4, "noise_std": []}, "noise_std is \\[\\], but it must be a number or list at least one."),
        ({"n_dims": 4, "noise_std": [0.1, -2.0]}, "noise_std is -2.0"),
        ({"n_dims": 4, "noise": "cauchy"}, "noise is 'cauchy'.*gaussian, laplace, student_t"),
        ({"n_dims": 4, "noise_df": 2.0}, "noise_df is 2.0, but it must be a finite number above 2"),
        ({"n_dims": 4, "features": "cauchy"}, "features is 'cauchy'.*gaussian, uniform, rademacher, student_t"),
        ({"n_dims": 4, "feature_df": math.inf}, "feature_df is inf"),
        ({"n_dims": 4, "rotation": "often"}, "rotation is 'often'.*none, fixed, per_prompt"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, task, options, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # else the Literal is refused before our check
    with pytest.raises(InputError, match=message):
        task(**options)


@pytest.mark.parametrize("sparsity", [0, -1, 5])
def test_bad_sparsity_is_named(sparsity):
    with pytest.raises(InputError, match=f"sparsity is {sparsity}, but it must"):
        SparseLinearRegression(4, sparsity)


@pytest.mark.parametrize("weight_mean", [0.5, -2.0])
@pytest.mark.parametrize(("law", "slab_variance"), [("gaussian", 1), ("scaled", 1 / 3)])
def test_weight_mean_moves_the_non_zero_weights_alone(law, slab_variance, weight_mean):
    task = SparseLinearRegression(6, 3, weight_law=law, weight_mean=weight_mean)
    w = task.sample_weights(20_000, generator()).double()
    assert ((w != 0).sum(dim=1) == 3).all()
    assert_mean_within_4_standard_errors(w.sum(dim=1) / 3, weight_mean)
    assert_mean_within_4_standard_errors(w.square().sum(dim=1) / 3, weight_mean**2 + slab_variance)
    assert_mean_within_4_standard_errors((w - weight_mean / 2).square(), task.weight_variance)
    assert task.slab_std**2 == pytest.approx(slab_variance)
    assert task.ridge_alpha is None


def test_ridge_alpha_is_left_open_where_prompts_differ_in_noise():
    assert LinearRegression(4, noise_std=[0.1, 0.5]).ridge_alpha is None


@pytest.mark.parametrize("law", ["sign", "unit_norm"])
def test_weight_mean_is_refused_where_the_law_has_no_room_for_it(law):
    with pytest.raises(InputError, match=f"weight_mean is 1.0, but it must be 0 where weight_law is '{law}'."):
        LinearRegression(4, weight_law=law, weight_mean=1.0)


@pytest.mark.parametrize(("n_dims", "group_size", "n_groups"), [(6, 2, 1), (6, 2, 2), (6, 3, 2), (6, 1, 4), (1, 1, 1)])
def test_groups_are_active_together_and_uniform(n_dims, group_size, n_groups):
    task = GroupSparseLinearRegression(n_dims, group_size, n_groups, noise_std=0.5)
    w = task.sample_weights(20_000, generator()).double()
    active = (w != 0).double().reshape(20_000, -1, group_size)
    assert torch.equal(active.amin(dim=2), active.amax(dim=2))
    active = active[:, :, 0]
    assert (active.sum(dim=1) == n_groups).all()
    total = n_dims // group_size
    expected = np.full((total, total), n_groups / total * (n_groups - 1) / max(total - 1, 1))
    np.fill_diagonal(expected, n_groups / total)
    assert_mean_within_4_standard_errors(active[:, :, None] * active[:, None], expected)
    assert_mean_within_4_standard_errors(w[:, :, None] * w[:, None], task.weight_variance * np.eye(n_dims))
    assert_mean_within_4_standard_errors((w**4).sum(dim=1) / task.support_size, 3)
    assert task.ridge_alpha == pytest.approx(0.25 * n_dims / (n_groups * group_size))


def test_groups_of_one_are_plain_sparsity():
    groups, plain = GroupSparseLinearRegression(5, 1, 2, noise_std=0.3), SparseLinearRegression(5, 2, noise_std=0.3)
    assert torch.equal(groups.sample(3, 4, 2, generator()).y, plain.sample(3, 4, 2, generator()).y)


def supports_by_hand(n_dims, allowed):
    """Every subset of the indices, by counting in binary, that is ``allowed``."""
    subsets = ([j for j in range(n_dims) if code >> j & 1] for code in range(2**n_dims))
    return sorted(subset for subset in subsets if allowed(subset))


@pytest.mark.parametrize(
    ("task", "allowed"),
    [
        (SparseLinearRegression(6, 2), lambda s: len(s) == 2),
        (SparseLinearRegression(6, 6), lambda s: len(s) == 6),
        (SparseLinearRegression(1, 1), lambda s: len(s) == 1),
        (LinearRegression(4), lambda s: len(s) == 4),
        (SparseRecovery(5, 3), lambda s: len(s) == 3),
        (GroupSparseLinearRegression(6, 2, 2), lambda s: len(s) == 4 and all(j ^ 1 in s for j in s)),
        (GroupSparseLinearRegression(6, 3, 1), lambda s: s in ([0, 1, 2], [3, 4, 5])),
    ],
)
def test_supports_are_all_that_can_be_drawn(task, allowed):
    expected = supports_by_hand(task.n_dims, allowed)
    assert task.supports().tolist() == expected
    assert task.n_supports == len(expected)
    assert task.support_size == len(expected[0])
    drawn = {tuple(w.nonzero().flatten().tolist()) for w in task.sample_weights(2000, generator())}
    assert drawn == set(map(tuple, expected))


def test_counting_supports_does_not_list_them():
    assert SparseLinearRegression(200, 100).n_supports == math.comb(200, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((6, 4, 1), "group_size is 4, but it must divide n_dims, which is 6."),
        ((6, 0, 1), "group_size is 0"),
        ((6, 2, 4), "n_groups is 4, but it must lie between 1 and n_dims / group_size, which is 3."),
        ((6, 2, 0), "n_groups is 0"),
    ],
)
def test_bad_groups_are_named(options, message):
    with pytest.raises(InputError, match=message):
        GroupSparseLinearRegression(*options)


def test_a_fixed_design_is_the_same_in_every_prompt_of_every_size():
    task = SparseRecovery(5, 2, noise_std=0.1)
    first, second = task.sample(3, 4, 2, generator()), task.sample(2, 9, 2, generator(1))
    for x in (*first.x, second.x[0, :4], second.x[1, :4]):
        assert torch.equal(x, first.x[0])
    assert torch.equal(second.x[0], SparseRecovery(5, 2).sample(1, 9, 1, generator(2)).x[0])
    assert not torch.equal(second.x[0], SparseRecovery(5, 2, design_seed=1).sample(1, 9, 1, generator(2)).x[0])
    assert len(torch.cat([first.x_query, second.x_query]).reshape(-1, 5).unique(dim=0)) == 10
    assert not torch.equal(first.w[0], first.w[1])


def test_a_fixed_design_and_its_queries_have_the_features_law():
    task = SparseRecovery(3, 1, correlation=0.5, features="uniform")
    covariance = np.array([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])
    prompt = task.sample(2000, DESIGN_ROWS, 1, generator())
    for x in (prompt.x[0].double(), prompt.x_query[:, 0].double()):
        assert_mean_within_4_standard_errors(x, 0)
        assert_mean_within_4_standard_errors(x[:, :, None] * x[:, None], covariance)


def test_a_fresh_design_is_sparse_linear_regression():
    fresh, plain = SparseRecovery(5, 2, "fresh", noise_std=0.3), SparseLinearRegression(5, 2, noise_std=0.3)
    for a, b in zip(fresh.sample(3, 4, 2, generator()), plain.sample(3, 4, 2, generator()), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_bad_designs_are_named(monkeypatch):
    with pytest.raises(InputError, match=f"n_points is {DESIGN_ROWS + 1}, but a fixed design has {DESIGN_ROWS} rows."):
        SparseRecovery(3, 1).sample(1, DESIGN_ROWS + 1, 1, generator())
    with pytest.raises(InputError, match="rotation is 'per_prompt', but a fixed design has the same rows"):
        SparseRecovery(3, 1, rotation="per_prompt")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=r"design is 'frozen', but it must be one of fixed, fresh\."):
        SparseRecovery(3, 1, "frozen")
