"""Reference estimators of a task against scikit-learn, numpy and brute force over every setting."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import LassoLars
from sklearn.linear_model import OrthogonalMatchingPursuit as SklearnOMP
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsRegressor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_icl.functional import references as r
from lightning_icl.functional.errors import InputError, check_each_once
from lightning_icl.functional.prompts import concatenated
from lightning_icl.functional.references import problems as problems_module
from lightning_icl.functional.tasks import (
    Flat,
    GroupSparseLinearRegression,
    LinearRegression,
    Mixture,
    PowerLaw,
    SparseLinearRegression,
    SparseRecovery,
    Task,
    TaskPool,
)

SHAPES = [(5, 12, 4), (3, 4, 9), (1, 1, 3), (3, 6, 1)]  # prompts, points, dims


class Squares(Task):
    """A task without weights and without a posterior."""

    def sample_targets(self, x, generator):
        return x.square().sum(-1), None


def task_of(dims):
    return SparseLinearRegression(dims, (dims + 1) // 2, noise_std=0.3)


def sampled(task, batch, n, seed=0, n_queries=2):
    return task.sample(batch, n, n_queries, torch.Generator().manual_seed(seed)).double()


def case_of(task, depth=3, trained_on=None):
    return r.Case(task, trained_on or task, depth)


def tuned(reference, task, n, prefixes=False, n_tuning=40, trained_on=None):
    tuning = sampled(task, n_tuning, n, seed=7)
    problems = r.every_prefix(tuning, at_queries=True) if prefixes else r.whole_prompts(tuning)
    return r.tuned([reference.bound(case_of(task, trained_on=trained_on))], problems)[0]


def errors(reference, problems):
    return r.errors([reference], problems)[reference.key]


# The problems


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_prompts_predict_the_queries_from_all_examples(shape):
    prompt = sampled(task_of(shape[2]), *shape[:2])
    problems = r.whole_prompts(prompt)
    assert problems.sizes.tolist() == [shape[1]]
    torch.testing.assert_close(problems.targets[:, 0], prompt.x_query)
    torch.testing.assert_close(problems.f[:, 0], prompt.f_query)
    for b in range(shape[0]):
        gram = prompt.x[b].numpy().T @ prompt.x[b].numpy() / shape[1]
        np.testing.assert_allclose(problems.moments.gram[b], gram, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("at_queries", [False, True])
def test_every_prefix_predicts_what_follows_from_what_came_before(shape, at_queries):
    batch, n, _ = shape
    prompt = sampled(task_of(shape[2]), batch, n)
    problems = r.every_prefix(prompt, at_queries)
    assert problems.sizes.tolist() == list(range(1, n + 1))
    rows = problems.by_size(problems.moments.moment)
    for b in range(batch):
        for k in range(1, n + 1):
            x, y = prompt.x[b, :k].numpy(), prompt.y[b, :k].numpy()
            np.testing.assert_allclose(rows[b, k - 1], x.T @ y / k, atol=1e-12)
            at_end = (prompt.x_query[b, :1], prompt.f_query[b, :1])
            following = (prompt.x[b, k : k + 1], prompt.f[b, k : k + 1]) if k < n else at_end
            target, f = (prompt.x_query[b], prompt.f_query[b]) if at_queries else following
            torch.testing.assert_close(problems.targets[b, k - 1], target)
            torch.testing.assert_close(problems.f[b, k - 1], f)


def test_parts_are_the_problems_again(monkeypatch):
    problems = r.every_prefix(sampled(task_of(4), 5, 3))
    assert list(problems.parts()) == [problems]
    monkeypatch.setattr(problems_module, "ENTRIES_AT_ONCE", 2 * 3 * (4**2 + problems_module.ITERATES * 4))
    parts = list(problems.parts())
    assert [len(part.x) for part in parts] == [2, 2, 1]
    for name in ("x", "y", "targets", "f", "w"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(problems, name))
    for i in range(4):
        assert torch.equal(torch.cat([part.moments[i] for part in parts]), problems.moments[i])


@pytest.mark.parametrize("prefixes", [False, True])
def test_memory_is_bounded_whatever_the_dimensions(monkeypatch, prefixes):
    """No moments of more than one prompt's prefixes, or of more whole prompts than asked, are made at once."""
    at_once = 3 * (64**2 + problems_module.ITERATES * 64)
    made = []
    for name in ("moments", "prefix_moments"):
        original = getattr(problems_module, name)

        def recorded(*args, original=original):
            made.append(original(*args))
            return made[-1]

        monkeypatch.setattr(problems_module, name, recorded)
    prompts = sampled(SparseLinearRegression(64, 4, noise_std=0.4), 4, 64)
    problems = r.every_prefix(prompts, at_queries=True) if prefixes else r.whole_prompts(prompts)
    references = [r.GD(2, "shared"), r.Ridge(), r.ZeroPredictor(), r.NearestNeighbours()]
    found = []
    for entries in (2**40, at_once):
        monkeypatch.setattr(problems_module, "ENTRIES_AT_ONCE", entries)
        made.clear()
        bound = [reference.bound(case_of(LinearRegression(64, noise_std=[0.1, 0.5]))) for reference in references]
        chosen = r.tuned(bound, dataclasses.replace(problems))
        found.append(r.errors(chosen, dataclasses.replace(problems)))
        largest = max(m.gram.numel() for m in made)
        rows = {2**40: 4, at_once: 1 if prefixes else 3}[entries] * (64 if prefixes else 1)
        assert largest == rows * 64**2
    for key, whole in found[0].items():
        torch.testing.assert_close(found[1][key], whole, rtol=1e-6, atol=1e-9)


class Reads(TorchDispatchMode):
    """Counts the numbers that Python asks of tensors, each of which would wait for a device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize(
    ("reference", "n_paths"),
    [
        (r.GD(), 13),
        (r.GD(step_size="shared", max_steps=20), 41),
        (r.PreprocessThenGD(scale=1.0), 1),
        (r.GDPlusPlus("depth"), 160),
        (r.Newton(), 1),
        (r.ISTA(max_steps=9), 16),
        (r.IterativeHardThresholding(), 1),
    ],
    ids=lambda value: getattr(value, "key", ""),
)
def test_tuning_reads_nothing_but_a_handful_of_numbers_from_the_device(reference, n_paths, prefixes):
    """At most one a path, the number of its steps, which is on the CPU; a grid has up to 8,160 settings."""
    tuning = sampled(task_of(4), 9, 5)
    problems = r.every_prefix(tuning, at_queries=True) if prefixes else r.whole_prompts(tuning)
    bound = reference.bound(case_of(task_of(4)))
    with Reads() as reads:
        float(torch.ones(1))
        assert reads.count == 1
        r.tuned([bound], problems)
    assert reads.count <= 1 + 2 * n_paths + 10


# Prompts of different lengths


EVERY = [
    r.ZeroPredictor(), r.Averaging(), r.LeastSquares(), r.OracleLeastSquares(), r.Ridge(), r.Lasso(), r.ElasticNet(),
    r.AdaptiveLasso(), r.GD(), r.GD(3, "shared"), r.PreprocessThenGD(), r.PreconditionedGD(steps=3),
    r.GDPlusPlus("depth"), r.Newton(), r.ISTA(max_steps=9), r.FISTA(4), r.BestSubset(), r.OrthogonalMatchingPursuit(),
    r.IterativeHardThresholding(), r.Bayes(), r.PoolPosterior(), r.NearestNeighbours(),
]  # fmt: skip


def padded(prompt, places, n_points, filled_with=0.0):
    """The same prompts with their examples at these places of n_points, and padding between them."""
    x = torch.full((len(prompt.x), n_points, prompt.x.shape[2]), filled_with).to(prompt.x)
    y, mask = x[..., 0].clone(), torch.zeros(x.shape[:2], dtype=torch.bool)
    x[:, places], y[:, places], mask[:, places] = prompt.x, prompt.y, True
    return prompt._replace(x=x, y=y, f=torch.zeros_like(y), point_mask=mask)


@pytest.mark.parametrize("reference", EVERY, ids=lambda reference: reference.key)
def test_padding_counts_for_nothing(reference):
    """In tuning and scoring, wherever it stands and whatever it holds; each prompt has its own number of examples."""
    task = task_of(4)
    (short, few), (long, many) = (
        (sampled(task, 9, n, seed), sampled(task, 5, n, seed + 2)) for n, seed in ((3, 0), (7, 1))
    )
    bound = reference.bound(case_of(task, trained_on=TaskPool(task, 6)))
    (alone,) = r.tuned([bound], r.whole_prompts(long))
    (beside,) = r.tuned([bound], r.whole_prompts(padded(long, [1, 2, 4, 5, 6, 7, 8], 9, torch.nan)))
    assert beside.label() == alone.label()
    mixed = concatenated([padded(short, [0, 3, 6], 9), padded(long, range(2, 9), 9)])
    (chosen,) = r.tuned([bound], r.whole_prompts(mixed))
    fresh = r.whole_prompts(concatenated([padded(few, [1, 2, 7], 9), padded(many, range(7), 9)]))
    expected = torch.cat([errors(chosen, r.whole_prompts(prompt)) for prompt in (few, many)])
    torch.testing.assert_close(errors(chosen, fresh), expected, rtol=1e-7, atol=1e-10)
    assert (expected > 0).all()


def test_prefixes_of_padded_prompts_are_refused():
    prompt = sampled(task_of(4), 3, 6)
    with pytest.raises(InputError, match="the prompts are padded, but all 6 examples of each are needed here"):
        r.every_prefix(prompt.padded_after(4))
    whole = prompt._replace(point_mask=torch.ones(3, 6, dtype=torch.bool))
    assert torch.equal(r.every_prefix(whole).moments.gram, r.every_prefix(prompt).moments.gram)


# Each reference against an independent fit of every prefix


def gd_by_hand(x, y, n_steps, power, scale=1.0):
    features = x * np.abs(x.T @ y / len(y)) ** power
    largest = np.linalg.eigvalsh(features.T @ features / len(y)).max()
    w = np.zeros(x.shape[1])
    for _ in range(n_steps):
        w = w - scale / largest * features.T @ (features @ w - y) / len(y)
    return np.abs(x.T @ y / len(y)) ** power * w


def preconditioned_by_hand(x, y, n_steps, step, matrix):
    w = np.zeros(x.shape[1])
    for _ in range(n_steps):
        w = w - step * matrix @ x.T @ (x @ w - y) / len(y)
    return w


def best_subset_by_hand(x, y, size):
    import itertools

    fits = []
    for support in map(list, itertools.combinations(range(x.shape[1]), size)):
        w = np.zeros(x.shape[1])
        w[support] = np.linalg.lstsq(x[:, support], y, rcond=None)[0]
        fits.append((((y - x @ w) ** 2).sum(), w))
    return min(fits, key=lambda fit: fit[0])[1]


def proximal_by_hand(x, y, alpha, n_steps, momentum):
    step = 1 / np.linalg.eigvalsh(x.T @ x / len(y)).max()
    w = ahead = np.zeros(x.shape[1])
    t = 1.0
    for _ in range(n_steps):
        target = ahead - step * x.T @ (x @ ahead - y) / len(y)
        w_next = np.sign(target) * np.maximum(np.abs(target) - step * alpha, 0)
        t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
        ahead = w_next + ((t - 1) / t_next * (w_next - w) if momentum else 0)
        w, t = w_next, t_next
    return w


def hard_threshold_by_hand(x, y, sparsity, n_steps):
    step = 1 / np.linalg.eigvalsh(x.T @ x / len(y)).max()
    w = np.zeros(x.shape[1])
    for _ in range(n_steps):
        w = w - step * x.T @ (x @ w - y) / len(y)
        w[np.argsort(-np.abs(w))[sparsity:]] = 0
    return w


def newton_by_hand(x, y, n_steps, start):
    """Fu et al. 2023: M <- 2 M - M S M."""
    s = x.T @ x
    m = start * s
    for _ in range(n_steps):
        m = 2 * m - m @ s @ m
    return m @ x.T @ y


LINEAR = [
    (r.ZeroPredictor(), lambda x, y, s: np.zeros(x.shape[1])),
    (r.Averaging(), lambda x, y, s: x.T @ y / len(y)),
    (r.LeastSquares(), lambda x, y, s: np.linalg.lstsq(x, y, rcond=None)[0]),
    (r.Ridge(), lambda x, y, s: SklearnRidge(task_of(x.shape[1]).ridge_alpha, fit_intercept=False).fit(x, y).coef_),
    (r.Ridge(alpha=2.0), lambda x, y, s: SklearnRidge(2.0, fit_intercept=False).fit(x, y).coef_),
    (r.Lasso(alpha=0.2), lambda x, y, s: LassoLars(0.2, fit_intercept=False).fit(x, y).coef_),
    (
        r.ElasticNet(alpha=0.2, l1_ratio=0.3),
        lambda x, y, s: (
            SklearnElasticNet(0.2, l1_ratio=0.3, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(x, y).coef_
        ),
    ),
    (r.GD(steps="depth", scale=1.0), lambda x, y, s: gd_by_hand(x, y, 3, 0.0)),
    (r.GD(steps=5, scale=1.5), lambda x, y, s: gd_by_hand(x, y, 5, 0.0, 1.5)),
    (r.PreprocessThenGD(steps=4, scale=1.0), lambda x, y, s: gd_by_hand(x, y, 4, 1.0)),
    (r.PreprocessThenGD(steps=4, scale=0.7, power=0.5), lambda x, y, s: gd_by_hand(x, y, 4, 0.5, 0.7)),
    (r.PreconditionedGD(steps=4, scale=0.3), lambda x, y, s: preconditioned_by_hand(x, y, 4, 0.3, np.eye(x.shape[1]))),
    (r.ISTA(steps=6, alpha=0.1), lambda x, y, s: proximal_by_hand(x, y, 0.1, 6, momentum=False)),
    (r.FISTA(steps=6, alpha=0.1), lambda x, y, s: proximal_by_hand(x, y, 0.1, 6, momentum=True)),
    (r.IterativeHardThresholding(steps=6), lambda x, y, s: hard_threshold_by_hand(x, y, s, 6)),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("reference", "by_hand"), LINEAR, ids=[reference.key for reference, _ in LINEAR])
def test_each_equals_an_independent_fit_of_every_prefix(shape, reference, by_hand):
    task = task_of(shape[2])
    prompt = sampled(task, *shape[:2])
    for prefixes in (False, True):
        problems = r.every_prefix(prompt) if prefixes else r.whole_prompts(prompt)
        w_hat = tuned(reference, task, shape[1], prefixes).weights(problems)
        assert w_hat.shape == (shape[0], len(problems.sizes), shape[2])
        for b in range(shape[0]):
            for i, k in enumerate(problems.sizes.tolist()):
                expected = by_hand(prompt.x[b, :k].numpy(), prompt.y[b, :k].numpy(), task.sparsity)
                np.testing.assert_allclose(w_hat[b, i], expected, rtol=1e-6, atol=1e-6, err_msg=f"{reference.key} {k}")


@pytest.mark.parametrize("prefixes", [False, True])
def test_greedy_and_exhaustive_selection_equal_scikit_learn_and_brute_force(prefixes):
    task = task_of(5)
    prompt = sampled(task, 4, 9)
    problems = r.every_prefix(prompt) if prefixes else r.whole_prompts(prompt)
    subset, greedy = (
        tuned(reference, task, 9, prefixes).weights(problems)
        for reference in (r.BestSubset(), r.OrthogonalMatchingPursuit())
    )
    for b in range(4):
        for i, k in enumerate(problems.sizes.tolist()):
            if k < 4:
                continue  # fewer points than s + 1: several subsets fit perfectly
            x, y = prompt.x[b, :k].numpy(), prompt.y[b, :k].numpy()
            np.testing.assert_allclose(subset[b, i], best_subset_by_hand(x, y, 3), atol=1e-7)
            expected = SklearnOMP(n_nonzero_coefs=3, fit_intercept=False).fit(x, y).coef_
            np.testing.assert_allclose(greedy[b, i], expected, atol=1e-7)


def test_the_size_of_a_subset_is_the_law_s_or_tuned_where_it_has_none():
    grouped = GroupSparseLinearRegression(6, group_size=2, n_groups=2)
    assert tuned(r.BestSubset(), grouped, 8).label() == "best subset, 4 features"
    assert tuned(r.OrthogonalMatchingPursuit(sparsity=1), grouped, 8).label().endswith("pursuit, 1 feature")
    pursuit = tuned(r.OrthogonalMatchingPursuit(), Squares(3), 8, prefixes=True)
    assert pursuit.setting.shape == (1, 8)


def test_the_oracle_fits_the_supported_columns_alone():
    task = task_of(5)
    problems = r.every_prefix(prompt := sampled(task, 4, 9))
    w_hat = tuned(r.OracleLeastSquares(), task, 9, True).weights(problems)
    for b in range(4):
        support = (prompt.w[b] != 0).numpy()
        for k in (1, 3, 9):
            expected = np.zeros(5)
            x, y = prompt.x[b, :k].numpy(), prompt.y[b, :k].numpy()
            expected[support] = np.linalg.lstsq(x[:, support], y, rcond=None)[0]
            np.testing.assert_allclose(w_hat[b, k - 1], expected, atol=1e-8)


@pytest.mark.parametrize("at_queries", [False, True])
@pytest.mark.parametrize("k", [1, 3, 30])
def test_nearest_neighbours_equal_scikit_learn(k, at_queries):
    problems = r.every_prefix(prompt := sampled(task_of(4), 3, 8), at_queries)
    predicted = r.NearestNeighbours(k).predictions(problems)
    for b in range(3):
        for n in range(1, 9):
            fit = KNeighborsRegressor(min(k, n)).fit(prompt.x[b, :n].numpy(), prompt.y[b, :n].numpy())
            np.testing.assert_allclose(predicted[b, n - 1], fit.predict(problems.targets[b, n - 1].numpy()), atol=1e-10)


def test_bayes_of_a_dense_law_is_ridge_and_a_pool_s_posterior_its_likelihood_average():
    dense = LinearRegression(4, noise_std=0.5)
    problems = r.every_prefix(sampled(dense, 6, 7))
    bayes, ridge = (tuned(reference, dense, 7, True).weights(problems) for reference in (r.Bayes(), r.Ridge()))
    torch.testing.assert_close(bayes, ridge, rtol=0, atol=1e-9)

    pool = TaskPool(dense, n_tasks=6)
    prompt = sampled(dense, 5, 7)
    problems = r.every_prefix(prompt)
    w_hat = tuned(r.PoolPosterior(), dense, 7, True, trained_on=pool).weights(problems)
    for b in range(5):
        for k in (1, 7):
            residuals = prompt.y[b, :k] - (pool.pool.double() @ prompt.x[b, :k].T)
            share = (-residuals.square().sum(-1) / (2 * 0.25)).softmax(0)
            torch.testing.assert_close(w_hat[b, k - 1], share @ pool.pool.double(), rtol=0, atol=1e-9)


MIXED = SparseLinearRegression(3, 2, noise_std=0.3, correlation=0.6, spectrum=PowerLaw(1.0), rotation="fixed")
GIVEN = [[2.0, 0.5, 0.0], [0.5, 1.0, -0.2], [0.0, -0.2, 0.7]]


@pytest.mark.parametrize("matrix", [None, GIVEN])
@pytest.mark.parametrize("prefixes", [False, True])
def test_preconditioned_gd_takes_the_given_matrix_or_the_laws_inverse_covariance(matrix, prefixes):
    prompt = sampled(MIXED, 4, 5)
    problems = r.every_prefix(prompt) if prefixes else r.whole_prompts(prompt)
    w_hat = tuned(r.PreconditionedGD(matrix=matrix, steps=3, scale=0.2), MIXED, 5, prefixes).weights(problems)
    many = MIXED.sample(200_000, 1, 1, torch.Generator().manual_seed(0)).x[:, 0].double()
    moment = (many.T @ many / len(many)).numpy()
    np.testing.assert_allclose(MIXED.covariance, moment, atol=5 * (2 / len(many)) ** 0.5 * moment.max())
    used = np.linalg.inv(MIXED.covariance.numpy()) if matrix is None else np.array(matrix)
    for b in range(4):
        for i, k in enumerate(problems.sizes.tolist()):
            by_hand = preconditioned_by_hand(prompt.x[b, :k].numpy(), prompt.y[b, :k].numpy(), 3, 0.2, used)
            np.testing.assert_allclose(w_hat[b, i], by_hand, atol=1e-9)


def test_a_law_tells_its_covariance_unless_prompts_differ_in_it():
    turning = {"spectrum": PowerLaw(1.0), "rotation": "per_prompt"}
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.equal(LinearRegression(3).covariance, eye)
    assert torch.allclose(LinearRegression(3, spectrum=Flat(2.0), rotation="per_prompt").covariance, 2 * eye)
    assert LinearRegression(3, **turning).covariance is None
    assert torch.equal(TaskPool(MIXED, 4).covariance, MIXED.covariance)
    assert torch.equal(Mixture([MIXED, MIXED]).covariance, MIXED.covariance)
    assert Mixture([MIXED, LinearRegression(3)]).covariance is None
    assert Mixture([MIXED, LinearRegression(3, **turning)]).covariance is None
    assert SparseRecovery(3, 1).covariance is None
    assert torch.equal(SparseRecovery(3, 1, "fresh").covariance, eye)


# Settings


FREE = [r.Ridge(), r.Lasso(), r.ElasticNet(), r.GD("depth"), r.GDPlusPlus("depth"), r.GDPlusPlus("depth", "shared")]
FREE += [
    r.PreconditionedGD(steps="depth"),
    r.GD("depth", "shared"),
    r.PreprocessThenGD("depth"),
    r.PreprocessThenGD("depth", "shared"),
]
SEVERAL_SCALES = {
    "a typical law": SparseLinearRegression(16, 4, noise_std=0.4, weight_mean=0.5),
    "much noise": LinearRegression(8, noise_std=[4.0, 8.0]),
    "small features": LinearRegression(10, noise_std=[0.1], features="uniform", spectrum=Flat(1 / 12)),
    "a steep spectrum": SparseLinearRegression(16, 4, noise_std=[0.4], spectrum=PowerLaw(2.0)),
}


@pytest.mark.parametrize("reference", FREE, ids=lambda reference: reference.key)
@pytest.mark.parametrize(
    "law", [*list(SEVERAL_SCALES)[:2], *(pytest.param(of, marks=pytest.mark.slow) for of in list(SEVERAL_SCALES)[2:])]
)
def test_the_best_setting_lies_inside_the_grid(law, reference, unchecked):
    """A rival tuned to the edge of its grid would be beaten for want of a better setting."""
    task = SEVERAL_SCALES[law]
    tuning = r.whole_prompts(sampled(task, 512, task.n_dims, seed=1, n_queries=4))
    case = case_of(task, depth=4)
    bound = reference.bound(case)
    chosen, candidates = r.tuned([bound], tuning)[0].setting[:, 0], bound.grid(tuning)[:, :, 0]
    for value, grid in zip(chosen, candidates.T, strict=True):
        edges = [edge for edge in (grid.min(), grid.max()) if edge > 0]  # no shrinkage at all is an edge of the problem
        assert len(grid.unique()) == 1 or value not in edges


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("reference", [r.Lasso(), r.GD(scale=1.0, max_steps=12), r.GD(steps=2)])
def test_the_tuned_setting_is_the_best_candidate_for_every_number_of_examples(reference, prefixes):
    task = task_of(4)
    tuning = sampled(task, 30, 6, seed=3)
    problems = r.every_prefix(tuning, at_queries=True) if prefixes else r.whole_prompts(tuning)
    bound = reference.bound(case_of(task))
    # One at a time, each as a setting of its own.
    risks = torch.stack([errors(bound.at(setting), problems).mean(0) for setting in bound.grid(problems)])
    chosen = errors(r.tuned([bound], problems)[0], problems).mean(0)
    torch.testing.assert_close(chosen, risks.min(0).values, rtol=1e-5, atol=1e-9)
    assert (risks.max(0).values > 1.01 * risks.min(0).values).all()


def test_a_shared_step_is_one_number_for_all_prompts_and_is_tuned():
    task = task_of(4)
    gd = tuned(r.GD(steps=3, step_size="shared"), task, 6)
    step = float(gd.setting[0, 0])
    problems = r.whole_prompts(prompt := sampled(task, 5, 6))
    w_hat = gd.weights(problems)[:, 0]
    for b in range(5):
        w = np.zeros(4)
        for _ in range(3):
            w = w - step * prompt.x[b].numpy().T @ (prompt.x[b].numpy() @ w - prompt.y[b].numpy()) / 6
        np.testing.assert_allclose(w_hat[b], w, atol=1e-10)
    assert "one for all prompts" in gd.label()
    assert gd.key == "gd_3_shared_step"


def test_ridge_takes_its_strength_from_the_law_and_is_tuned_where_there_is_none():
    law = tuned(r.Ridge(), task_of(4), 6)
    assert float(law.setting[0, 0]) == pytest.approx(task_of(4).ridge_alpha)
    assert law.label() == "ridge, alpha 0.18 (from the law)"
    shifted = LinearRegression(4, noise_std=[0.1, 1.0])
    assert "(tuned)" in tuned(r.Ridge(), shifted, 6).label()
    assert tuned(r.Ridge(alpha=2.0), task_of(4), 6).label() == "ridge, alpha 2 (given)"


def test_small_parts_change_nothing(monkeypatch):
    task = task_of(4)
    problems = r.every_prefix(sampled(task, 7, 5))
    whole = [tuned(reference, task, 5, True).predictions(problems) for reference in r.default_references(task)]
    monkeypatch.setattr(problems_module, "ENTRIES_AT_ONCE", 11 * (4**2 + problems_module.ITERATES * 4))
    parts = [tuned(reference, task, 5, True).predictions(problems) for reference in r.default_references(task)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_settings_of_all_prefixes_serve_shorter_prompts():
    task = task_of(4)
    lasso = tuned(r.Lasso(), task, 8, prefixes=True)
    prompt = sampled(task, 3, 8)
    long = lasso.weights(r.every_prefix(prompt))
    short = lasso.weights(r.every_prefix(prompt._replace(x=prompt.x[:, :5], y=prompt.y[:, :5], f=prompt.f[:, :5])))
    torch.testing.assert_close(short, long[:, :5], rtol=0, atol=1e-9)


# Names and refusals


def test_the_default_references_of_a_law():
    keys = [reference.key for reference in r.default_references(task_of(4))]
    always = ["zero", "least_squares", "ridge", "lasso", "gd_at_depth", "gd_best"]
    always += ["preprocess_then_gd_at_depth", "preprocess_then_gd_best"]
    assert keys == [*always, "bayes", "oracle_support"]
    assert [reference.key for reference in r.default_references(Squares(4))] == always
    too_many = SparseLinearRegression(24, 8)
    assert "bayes" not in [reference.key for reference in r.default_references(too_many)]


@pytest.mark.parametrize(
    "reference",
    [
        r.ZeroPredictor(), r.Averaging(), r.LeastSquares(), r.OracleLeastSquares(), r.Ridge(), r.Lasso(),
        r.ElasticNet(), r.AdaptiveLasso(), r.GD(), r.PreprocessThenGD(), r.GDPlusPlus(), r.Newton(), r.ISTA(),
        r.FISTA(), r.BestSubset(), r.OrthogonalMatchingPursuit(), r.IterativeHardThresholding(), r.Bayes(),
        r.NearestNeighbours(), r.PreconditionedGD(),
    ],
    ids=lambda reference: reference.key,
)  # fmt: skip
def test_every_reference_is_tuned_and_names_itself(reference):
    task = task_of(4)
    reference.check(case_of(task))
    fixed = tuned(reference, task, 6)
    assert len(fixed.label()) > 3
    assert fixed.key == reference.key
    assert " " not in fixed.key
    assert torch.isfinite(errors(fixed, r.whole_prompts(sampled(task, 3, 6)))).all()


KINDS = {
    "GD": [r.GD(), r.GD(scale=1.0), r.GD(scale=0.5), r.GD(step_size="shared"), r.GD(step_size="shared", scale=0.1)],
    "preconditioners": [
        r.PreconditionedGD(),
        r.PreconditionedGD(matrix=GIVEN),
        r.PreconditionedGD(step_size="per_prompt"),
    ],
    "powers": [r.PreprocessThenGD(), r.PreprocessThenGD(power=0.5), r.PreprocessThenGD(power=0.0)],
    "elastic net": [r.ElasticNet(), r.ElasticNet(l1_ratio=0.9), r.ElasticNet(0.1)],
    "adaptive lasso": [r.AdaptiveLasso(), r.AdaptiveLasso(gamma=0.5), r.AdaptiveLasso(pilot_alpha=0.1)],
    "ISTA": [r.ISTA(), r.ISTA(alpha=0.1), r.ISTA(alpha=0.2)],
    "hard thresholding": [r.IterativeHardThresholding(), r.IterativeHardThresholding(sparsity=1)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_different_settings_have_different_names_in_logs(kind):
    assert len({reference.key for reference in KINDS[kind]}) == len(KINDS[kind])
    check_each_once("references", [reference.key for reference in KINDS[kind]])


@pytest.mark.parametrize("reference", [r.ISTA(2, 0.1), r.FISTA(2, 0.1), r.IterativeHardThresholding(2), r.GD(2)])
def test_the_label_names_the_step_size_rule(reference):
    assert "/λmax" in tuned(reference, task_of(4), 6).label()


@pytest.mark.parametrize(
    "kind",
    [
        r.GD, r.PreprocessThenGD, r.PreconditionedGD, r.GDPlusPlus, r.Newton, r.ISTA, r.FISTA, r.Ridge, r.Lasso,
        r.IterativeHardThresholding, r.ElasticNet, r.AdaptiveLasso, r.BestSubset, r.OrthogonalMatchingPursuit,
        r.NearestNeighbours,
    ],
)  # fmt: skip
def test_every_option_has_its_help_in_the_class_or_in_what_it_derives_from(kind):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "reference")
    told = {action.dest: action.help for action in parser._actions if action.dest.startswith("reference.")}
    assert told.keys() == {f"reference.{option}" for option in inspect.signature(kind).parameters}
    assert min(len(words or "") for words in told.values()) > 20


def test_the_label_names_the_power_of_preprocessing():
    reference = r.PreprocessThenGD(2, power=0.5, scale=1.0)
    assert tuned(reference, task_of(4), 6).label() == "preprocess + GD (power 0.5), 2 steps of 1/λmax"


def test_two_references_of_one_name_are_refused():
    lassos = [r.Lasso(alpha=alpha).key for alpha in (None, 0.1, 0.2)]
    check_each_once("references", lassos)
    with pytest.raises(InputError, match=r"references has lasso_0\.1 2 times"):
        check_each_once("references", [*lassos, r.Lasso(alpha=0.1).key])


@pytest.mark.parametrize(
    ("reference", "task", "words"),
    [
        (r.OracleLeastSquares(), Squares(4), "OracleLeastSquares needs a task with weights"),
        (r.BestSubset(), Squares(4), "BestSubset needs a sparsity"),
        (r.IterativeHardThresholding(sparsity=9), task_of(4), "sparsity of IterativeHardThresholding is 9"),
        (r.BestSubset(), SparseLinearRegression(40, 10), "supports of 10 among 40 features"),
        (
            r.PreconditionedGD(),
            LinearRegression(3, spectrum=PowerLaw(1.0), rotation="per_prompt"),
            "needs one covariance",
        ),
        (r.PreconditionedGD(), SparseRecovery(3, 1), "which this SparseRecovery has not: give a matrix"),
        (r.PreconditionedGD(matrix=GIVEN), task_of(4), "matrix has 3 rows, but x has 4 dimensions"),
        (r.Bayes(), Squares(4), "Bayes needs an exact posterior"),
        (r.Bayes(), SparseLinearRegression(40, 10), "hypotheses behind the posterior"),
        (r.PoolPosterior(), task_of(4), "PoolPosterior needs a model trained on a TaskPool"),
    ],
)
def test_a_case_that_cannot_be_served_is_refused_before_any_work(reference, task, words):
    with pytest.raises(InputError, match=words):
        reference.check(case_of(task))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: r.GD(steps=-1), "steps is -1"),
        (lambda: r.GD(scale=0.0), "scale is 0.0"),
        (lambda: r.Newton(max_steps=0), "max_steps is 0"),
        (lambda: r.PreconditionedGD(matrix=[[1.0, 0.0]]), "as many as each is long"),
        (lambda: r.PreconditionedGD(matrix=[[1.0, 0.5], [0.0, 1.0]]), "must be symmetric and positive definite"),
        (lambda: r.PreconditionedGD(matrix=[[1.0, 0.0], [0.0, -1.0]]), "must be symmetric and positive definite"),
        (lambda: r.NearestNeighbours(0), "k is 0"),
        (lambda: r.Ridge(alpha=-1.0), "alpha is -1.0"),
        (lambda: r.Lasso(alpha=0.0), "alpha is 0.0"),
        (lambda: r.ISTA(alpha=-1.0), "alpha is -1.0, but it must be a finite number that is 0 or larger"),
        (lambda: r.FISTA(alpha=float("nan")), "alpha is nan, but it must be a finite number that is 0 or larger"),
        (lambda: r.ElasticNet(l1_ratio=0.0), "l1_ratio is 0.0.*take Ridge"),
        (lambda: r.AdaptiveLasso(gamma=0.0), "gamma is 0.0, but it must be a finite number above 0"),
        (lambda: r.AdaptiveLasso(pilot_alpha=-1.0), "pilot_alpha is -1.0"),
        (lambda: r.PreprocessThenGD(power=-0.5), "power is -0.5"),
    ],
)
def test_bad_settings_are_named(build, words):
    with pytest.raises(InputError, match=words):
        build()
