"""Each representation against a loop over prompts, points and coordinates in numpy."""

import numpy as np
import pytest
import torch

from lightning_icl import SparseLinearRegression
from lightning_icl.functional import representations
from lightning_icl.functional.estimators import gradient_descent_path, inverse_curvature

SHAPES = [(2, 5, 3, 4), (2, 1, 1, 1), (3, 1, 4, 2), (1, 6, 1, 3)]  # batch, points, dims, queries


def sampled(batch, points, dims, queries, seed=0):
    task = SparseLinearRegression(dims, 1, noise_std=0.3)
    return task.sample(batch, points, queries, torch.Generator().manual_seed(seed)).double()


def by_loop(prompt, transform):
    """``transform(x of a prompt, its y, one point)`` for every example and query."""
    return [
        np.array([[transform(x, y, point) for point in points] for x, y, points in zip(*fields, strict=True)])
        for fields in (
            (prompt.x.numpy(), prompt.y.numpy(), prompt.x.numpy()),
            (prompt.x.numpy(), prompt.y.numpy(), prompt.x_query.numpy()),
        )
    ]


def r_hat(x, y):
    """One coordinate at a time, by the definition."""
    return np.array([np.mean([x[i, j] * y[i] for i in range(len(y))]) for j in range(x.shape[1])])


def gd_plus_plus(x, y, point):
    curvature = sum(np.outer(row, row) for row in x) / len(x)
    gamma = 0.7 / np.linalg.eigvalsh(curvature)[-1]
    return (np.eye(len(point)) - gamma * curvature) @ point


CASES = {
    "raw": (representations.raw, lambda x, y, point: point),
    "r_hat, with its sign": (representations.correlation_features, lambda x, y, point: np.diag(r_hat(x, y)) @ point),
    "power 1/2": (representations.correlation_power_features, lambda x, y, point: abs(r_hat(x, y)) ** 0.5 * point),
    "power 2": (
        lambda prompt: representations.correlation_power_features(prompt, 2.0),
        lambda x, y, point: r_hat(x, y) ** 2 * point,
    ),
    "GD++": (lambda prompt: representations.gd_plus_plus_features(prompt, 0.7), gd_plus_plus),
    "scaled": (representations.scaled, lambda x, y, point: point / np.sqrt(np.mean(x**2))),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_features_equal_a_loop_and_labels_stay(name, shape):
    prompt, (represent, transform) = sampled(*shape), CASES[name]
    found = represent(prompt)
    for features, expected in zip((found.x, found.x_query), by_loop(prompt, transform), strict=True):
        np.testing.assert_allclose(features, expected, rtol=1e-9, atol=1e-12)
    for kept in ("y", "y_query", "f_query", "w", "f"):
        assert getattr(found, kept) is getattr(prompt, kept)


def test_gd_plus_plus_removes_the_top_direction_at_shrinkage_one():
    prompt = sampled(3, 6, 4, 2)
    shrunk = representations.gd_plus_plus_features(prompt, 1.0)
    top = torch.linalg.eigh(prompt.x.mT @ prompt.x).eigenvectors[..., -1:]
    torch.testing.assert_close(shrunk.x_query @ top, torch.zeros(3, 2, 1, dtype=torch.float64), rtol=0, atol=1e-12)


def test_features_that_are_zero_stay_zero_and_finite():
    prompt = sampled(2, 3, 2, 1)
    blank = prompt._replace(x=0 * prompt.x)
    assert not representations.scaled(blank).x_query.any()
    torch.testing.assert_close(representations.gd_plus_plus_features(blank, 0.5).x_query, prompt.x_query)


def test_the_tuned_shrinkage_has_the_lowest_risk_of_a_plain_search():
    prompt, n_steps = sampled(64, 5, 4, 3, seed=1), 3

    def risk(shrinkage):
        shrunk = representations.gd_plus_plus_features(prompt, shrinkage)
        unit, by_step = inverse_curvature(shrunk.x), []
        for step in representations.STEPS:
            path = gradient_descent_path(shrunk.x, shrunk.y, n_steps, step * unit)
            predicted = [(shrunk.x_query @ w[..., None]).squeeze(-1) for w in path[1:]]
            by_step.append([float((p - prompt.f_query).square().mean()) for p in predicted])
        return np.min(by_step, axis=0).sum()

    risks = [risk(shrinkage) for shrinkage in representations.SHRINKAGES]
    assert len(set(np.round(risks, 6))) == len(risks)
    assert representations.tuned_shrinkage(prompt, n_steps) == representations.SHRINKAGES[int(np.argmin(risks))]


# padding


def leading(prompt):
    """In coordinates fitted to other prompts with as many dimensions."""
    fitted_on = sampled(40, 5, prompt.x.shape[2], 2, seed=1)
    return representations.leading_first(representations.correlation_features, fitted_on)(prompt)


@pytest.mark.parametrize("shape", [(7, 8, 3, 4), (1, 4, 3, 2), (3, 5, 1, 1)], ids=str)
@pytest.mark.parametrize("name", [*CASES, "leading"])
def test_padding_changes_nothing_and_stays_zero(name, shape):
    """Prompts of 1 .. points - 3 examples, each against the same one without its padding, alone."""
    represent = CASES[name][0] if name in CASES else leading
    prompt, (batch, n_points, _, _) = sampled(*shape, seed=3), shape
    mask = torch.arange(n_points) < (1 + torch.arange(batch) % (n_points - 3))[:, None]
    prompt = prompt._replace(x=prompt.x * mask[..., None], y=prompt.y * mask, f=prompt.f * mask, point_mask=mask)
    found = represent(prompt)
    assert not found.x[~mask].any()
    for b, n in enumerate(mask.sum(dim=1).tolist()):
        alone = represent(prompt.rows(b, b + 1).first(n).unpadded())
        torch.testing.assert_close(found.x[b, :n], alone.x[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.x_query[b], alone.x_query[0], rtol=1e-12, atol=1e-12)


def test_what_is_fitted_on_padded_prompts_is_what_is_fitted_without():
    long, fresh = sampled(60, 9, 3, 4, seed=3), sampled(4, 5, 3, 2)
    bare, padded = long.first(5), long.padded_after(5)
    found, expected = (
        representations.leading_first(representations.correlation_features, prompt)(fresh) for prompt in (padded, bare)
    )
    torch.testing.assert_close(found.x.abs(), expected.x.abs(), rtol=1e-9, atol=1e-10)  # up to eigenvectors' signs
    assert representations.tuned_shrinkage(padded, 2) == representations.tuned_shrinkage(bare, 2)
