"""Linear probes against scikit-learn and plain loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import (
    explained_share,
    probe_errors,
    probe_targets,
    ridge_probe,
    shuffled_prompts,
)
from lightning_icl.functional.prompts import Prompt

SHAPES = [(40, 5, 3), (4, 9, 2), (1, 3, 1), (6, 1, 1), (12, 4, 5)]  # samples, features, outputs


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sklearn_predictions(fit_states, fit_targets, states, alpha):
    return Ridge(alpha).fit(fit_states, fit_targets).predict(states).reshape(len(states), -1)


# One probe


@pytest.mark.parametrize("kind", ["plain", "duplicated feature", "constant feature", "far from 0", "zero targets"])
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize(("samples", "features", "outputs"), SHAPES)
def test_ridge_probe_equals_scikit_learn(samples, features, outputs, alpha, kind):
    states, targets = drawn(samples, features), drawn(samples, outputs, seed=1) + 3
    if kind == "duplicated feature":
        states[:, -1] = states[:, 0]
    elif kind == "constant feature":
        states[:, -1] = 7.0
    elif kind == "far from 0":
        states += 100
    elif kind == "zero targets":
        targets.zero_()
    probe = ridge_probe(states, targets, alpha)
    expected = Ridge(alpha).fit(states.numpy(), targets.numpy())
    np.testing.assert_allclose(probe.weight, expected.coef_.reshape(outputs, features).T, rtol=0, atol=1e-8)
    np.testing.assert_allclose(probe.intercept, expected.intercept_, rtol=0, atol=1e-7)
    fresh = drawn(7, features, seed=2)
    expected = sklearn_predictions(states.numpy(), targets.numpy(), fresh.numpy(), alpha)
    np.testing.assert_allclose(probe.predict(fresh), expected, rtol=0, atol=1e-7)


def test_float32_states_are_solved_in_float64():
    states, targets = drawn(30, 4).float(), drawn(30, 2, seed=1).float()
    probe, exact = ridge_probe(states, targets, 1e-3), ridge_probe(states.double(), targets.double(), 1e-3)
    torch.testing.assert_close(probe.weight, exact.weight, rtol=0, atol=0)
    assert probe.predict(states).dtype == torch.float64
    torch.testing.assert_close(probe.predict(states), exact.predict(states.double()), rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_a_probe_needs_a_ridge_strength_above_zero(alpha):
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        ridge_probe(drawn(4, 2), drawn(4, 1, seed=1), alpha)
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        probe_errors(drawn(2, 2, 2), drawn(2, 2, 1), drawn(2, 2, 2), drawn(2, 2, 1), alpha)


# Probes of prompts


@pytest.mark.parametrize(("fit_batch", "batch", "queries", "features", "outputs"), [(9, 4, 3, 5, 2), (3, 1, 1, 6, 1)])
def test_probe_errors_equal_a_loop(fit_batch, batch, queries, features, outputs):
    fit_states, fit_targets = drawn(fit_batch, queries, features), drawn(fit_batch, queries, outputs, seed=1)
    states, targets = drawn(batch, queries, features, seed=2), drawn(batch, queries, outputs, seed=3)
    errors = probe_errors(fit_states, fit_targets, states, targets, 0.5)
    rows = [np.concatenate(list(t.numpy())) for t in (fit_states, fit_targets)]
    for b in range(batch):
        predicted = sklearn_predictions(*rows, states[b].numpy(), 0.5)
        by_query = [
            sum((predicted[q, o] - targets[b, q, o].item()) ** 2 for o in range(outputs)) for q in range(queries)
        ]
        assert errors[b].item() == pytest.approx(sum(by_query) / queries, abs=1e-9)


@pytest.mark.parametrize(("batch", "queries", "outputs"), [(6, 3, 4), (5, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_explained_share_equals_scikit_learn(batch, queries, outputs, noise):
    targets = drawn(batch, queries, outputs) * torch.arange(1, outputs + 1) + 5
    predicted = targets + noise * drawn(batch, queries, outputs, seed=1)
    errors = (predicted - targets).square().sum(dim=2).mean(dim=1)
    flat = [t.reshape(-1, outputs).numpy() for t in (targets, predicted)]
    expected = r2_score(*flat, multioutput="variance_weighted")
    assert explained_share(errors, targets) == pytest.approx(expected, abs=1e-10)


def test_the_shuffled_control_explains_nothing():
    """Of one output that the states determine, n shuffled samples explain 0 +- 2 / sqrt(n), less features / n."""
    (batch, queries, features), truth = (3000, 2, 6), drawn(6, 1, seed=99)
    fit_states, states = drawn(batch, queries, features), drawn(batch, queries, features, seed=1)
    fit_targets, targets = fit_states @ truth + 0.1 * drawn(batch, queries, 1, seed=2), states @ truth
    shuffled = shuffled_prompts(fit_targets, torch.Generator().manual_seed(0))
    by_chance = explained_share(probe_errors(fit_states, shuffled, states, targets, 1.0), targets)
    n = batch * queries
    assert abs(by_chance) <= 4 * 2 / math.sqrt(n) + features / n
    assert explained_share(probe_errors(fit_states, fit_targets, states, targets, 1.0), targets) > 0.99


@pytest.mark.parametrize("batch", [1, 2, 3, 50])
def test_shuffling_permutes_whole_prompts(batch):
    targets = drawn(batch, 3, 2)
    shuffled = shuffled_prompts(targets, torch.Generator().manual_seed(0))
    assert sorted(shuffled.tolist()) == sorted(targets.tolist())
    again = shuffled_prompts(targets, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shuffled, again, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_shuffling_gives_every_prompt_anothers_targets(batch):
    targets = torch.arange(float(batch))[:, None, None]
    for seed in range(20):
        shuffled = shuffled_prompts(targets, torch.Generator().manual_seed(seed))
        assert (shuffled != targets).all(), f"seed {seed}: a prompt kept its own targets"


# Targets


def test_probe_targets_by_hand():
    x, y, x_query = [[1.0, 2.0], [3.0, -4.0]], [5.0, 6.0], [[1.0, 1.0], [2.0, -1.0], [0.0, 3.0]]
    fields = (x, y, x_query, [0.1, 0.2, 0.3], [7.0, 8.0, 9.0], [4.0, 5.0])
    targets = probe_targets(Prompt(*(torch.tensor([field]) for field in fields)))
    # r_hat = ((1 * 5 + 3 * 6) / 2, (2 * 5 - 4 * 6) / 2) = (11.5, -7)
    assert targets.keys() == {"f_query", "preprocessed_query", "w"}
    assert targets["f_query"].tolist() == [[[7.0], [8.0], [9.0]]]
    assert targets["w"].tolist() == [[[4.0, 5.0]] * 3]
    assert targets["preprocessed_query"].tolist() == [[[11.5, -7.0], [23.0, 7.0], [0.0, -21.0]]]


@pytest.mark.parametrize(("batch", "points", "queries", "dims"), [(4, 6, 3, 2), (1, 1, 1, 1), (2, 3, 1, 8)])
def test_probe_targets_equal_loops(batch, points, queries, dims):
    x, x_query, w = drawn(batch, points, dims), drawn(batch, queries, dims, seed=1), drawn(batch, dims, seed=2)
    y, f = drawn(batch, points, seed=3), drawn(batch, queries, seed=4)
    targets = probe_targets(Prompt(x, y, x_query, f + 1, f, w))
    for b in range(batch):
        r_hat = [sum(x[b, i, j] * y[b, i] for i in range(points)) / points for j in range(dims)]
        for q in range(queries):
            expected = [r_hat[j] * x_query[b, q, j] for j in range(dims)]
            np.testing.assert_allclose(targets["preprocessed_query"][b, q], expected, atol=1e-12)
            assert targets["w"][b, q].tolist() == w[b].tolist()
            assert targets["f_query"][b, q].tolist() == [f[b, q].item()]


def test_a_task_without_weights_has_no_weights_to_probe():
    prompt = Prompt(drawn(2, 3, 2), drawn(2, 3), drawn(2, 1, 2), drawn(2, 1), drawn(2, 1))
    assert probe_targets(prompt).keys() == {"f_query", "preprocessed_query"}
