"""Linear probes against scikit-learn and plain loops."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import (
    STRENGTHS,
    algorithm_weights,
    area_under_roc,
    best_probe,
    by_target,
    deviations,
    explained_share,
    mean_estimate,
    probe_targets,
    ridge_probe,
    selectivity,
    shuffled_prompts,
    state_spectrum,
)
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks import SparseLinearRegression

SHAPES = [(40, 5, 3), (4, 9, 2), (1, 3, 1), (6, 1, 1), (12, 4, 5), (5, 5, 2), (5, 6, 1)]  # samples, features, outputs


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


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_a_probe_needs_a_ridge_strength_above_zero(alpha):
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        ridge_probe(drawn(4, 2), drawn(4, 1, seed=1), alpha)


def test_one_factorisation_serves_every_target_and_strength():
    states, targets = drawn(30, 6), drawn(30, 3, seed=1)
    # Other samples on which noise of 0, as much and more than the targets makes another strength best for each.
    noise = torch.tensor([0.0, 1.0, 30.0]) * drawn(20, 3, seed=3)
    others, alphas = drawn(20, 6, seed=2), [1e-3, 1.0, 50.0]
    true = others @ torch.linalg.lstsq(states, targets).solution + noise
    together, chosen = best_probe(state_spectrum(states), targets, [1, 1, 1], others, true, alphas)
    assert len(set(chosen.tolist())) > 1
    for k, alpha in enumerate(chosen.tolist()):
        expected = Ridge(alpha).fit(states.numpy(), targets[:, k].numpy())
        np.testing.assert_allclose(together.weight[:, k], expected.coef_, rtol=0, atol=1e-10)
        assert together.intercept[k].item() == pytest.approx(expected.intercept_, abs=1e-10)


# The strength


@pytest.mark.parametrize("kind", ["plain", "duplicated features", "far from 0"])
@pytest.mark.parametrize(("samples", "others", "features"), [(40, 30, 5), (6, 9, 12), (7, 7, 7), (8, 3, 7), (2, 2, 1)])
def test_the_strength_is_that_of_a_loop_over_scikit_learn(samples, others, features, kind):
    states, fresh = drawn(samples, features), drawn(others, features, seed=1)
    if kind == "duplicated features":
        states, fresh = (torch.cat([s, s, s[:, :1] + s[:, -1:]], dim=1) for s in (states, fresh))
    elif kind == "far from 0":
        states, fresh = states + 30, fresh + 30
    truth = drawn(states.shape[1], 4, seed=2) * torch.tensor([1.0, 0.3, 0.1, 0.0])
    targets, true = (s @ truth + drawn(len(s), 4, seed=3) + 2 for s in (states, fresh))
    sizes = [1, 2, 1]
    probe, chosen = best_probe(state_spectrum(states), targets, sizes, fresh, true)
    centred = (states - states.mean(0)).numpy()
    unit = (centred**2).sum() / states.shape[1]
    starts = np.cumsum([0, *sizes])
    for target, alpha in enumerate(chosen.tolist()):
        columns = slice(starts[target], starts[target + 1])
        errors = {}
        for strength in STRENGTHS:
            predicted = sklearn_predictions(
                states.numpy(), targets[:, columns].numpy(), fresh.numpy(), max(strength * unit, 1e-300)
            )
            errors[strength * unit] = ((predicted - true[:, columns].numpy()) ** 2).sum()
        at_chosen = min(errors, key=lambda tried: abs(tried - alpha))
        assert at_chosen == pytest.approx(alpha, rel=1e-9)
        assert errors[at_chosen] <= min(errors.values()) * (1 + 1e-6)
        expected = sklearn_predictions(states.numpy(), targets[:, columns].numpy(), fresh.numpy(), alpha)
        np.testing.assert_allclose(probe.predict(fresh)[:, columns], expected, rtol=0, atol=1e-6)


def test_states_that_do_not_vary_leave_the_mean_to_predict():
    states, targets = torch.full((6, 3), 2.0), drawn(6, 2)
    probe, alphas = best_probe(state_spectrum(states), targets, [2], states, targets)
    assert alphas.isfinite().all()
    torch.testing.assert_close(probe.predict(states), targets.mean(0).expand(6, -1))


def test_the_sum_over_each_targets_outputs():
    assert by_target(torch.arange(6.0).reshape(1, 6), [1, 3, 2]).tolist() == [[0.0, 6.0, 9.0]]


# Scores


@pytest.mark.parametrize(("batch", "tokens", "outputs"), [(6, 3, 4), (5, 1, 1), (2, 4, 2), (1, 4, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_explained_share_equals_scikit_learn(batch, tokens, outputs, noise):
    targets = drawn(batch, tokens, outputs) * torch.arange(1, outputs + 1) + 5
    predicted = targets + noise * drawn(batch, tokens, outputs, seed=1)
    errors = (predicted - targets).square().sum(dim=2).mean(dim=1)
    flat = [t.reshape(-1, outputs).numpy() for t in (targets, predicted)]
    expected = r2_score(*flat, multioutput="variance_weighted")
    found = explained_share(errors, deviations(targets))
    assert found.value == pytest.approx(expected, abs=1e-10)
    assert math.isnan(found.standard_error) == (batch == 1)
    assert mean_estimate(errors).value == pytest.approx(errors.numpy().mean())


def left_out_error(statistic, n):
    """The jackknife's standard error, from n recomputations."""
    values = np.array([statistic(np.delete(np.arange(n), i)) for i in range(n)])
    return math.sqrt((n - 1) * values.var())


def test_standard_errors_agree_with_leaving_each_prompt_out():
    n = 300
    targets = drawn(n, 2, 3) * (1 + drawn(n, 1, 1, seed=1).abs())
    readings = [targets + noise * drawn(n, 2, 3, seed=seed) for noise, seed in ((0.5, 2), (1.5, 3))]
    errors, control = ((read - targets).square().sum(2).mean(1) for read in readings)
    deviation = deviations(targets)

    def r2(rows, of=0):
        true, read = (part[rows].reshape(-1, 3).numpy() for part in (targets, readings[of]))
        return r2_score(true, read, multioutput="variance_weighted")

    def difference(rows):
        return r2(rows) - r2(rows, 1)

    found, over = explained_share(errors, deviation), selectivity(errors, control, deviation)
    assert found.standard_error == pytest.approx(left_out_error(r2, n), rel=0.02)
    assert over.value == pytest.approx(difference(np.arange(n)), abs=1e-12)
    assert over.standard_error == pytest.approx(left_out_error(difference, n), rel=0.02)
    mean = mean_estimate(errors)
    assert mean.standard_error == pytest.approx(float(errors.std() / math.sqrt(n)), rel=1e-12)
    assert mean.interval == pytest.approx(
        (mean.value - 1.96 * mean.standard_error, mean.value + 1.96 * mean.standard_error)
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_target_has_no_r2_and_no_warning(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = torch.full((7, 3, 2), value, dtype=torch.float64)
        errors = drawn(7).square()
        assert deviations(targets).tolist() == [0.0] * 7
        for estimate in (
            explained_share(errors, deviations(targets)),
            selectivity(errors, errors, deviations(targets)),
        ):
            assert all(math.isnan(number) for number in estimate)


def test_a_small_spread_far_from_zero_is_still_a_spread():
    targets = 1e3 + 1e-4 * drawn(50, 2, 1)
    assert explained_share(torch.zeros(50, dtype=torch.float64), deviations(targets)).value == 1.0


def pairwise_auc(scores, positive):
    """Each positive against each negative: the area, and each score's own share, by a loop."""
    parts = np.zeros(scores.shape)
    for place in np.ndindex(*scores.shape):
        others = scores[positive != positive[place]]
        below = (others < scores[place]).mean() + 0.5 * (others == scores[place]).mean()
        parts[place] = below if positive[place] else 1 - below
    return parts[positive].mean(), parts


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize(("batch", "tokens", "outputs"), [(20, 2, 3), (2, 1, 2), (9, 1, 1)])
def test_auc_equals_scikit_learn_ties_and_all(batch, tokens, outputs, digits):
    positive = drawn(batch, tokens, outputs, seed=1) > 0.3
    positive.view(-1)[:2] = torch.tensor([True, False])
    scores = drawn(batch, tokens, outputs) + positive
    scores = scores if digits is None else scores.round(decimals=digits)
    found = area_under_roc(scores, positive)
    assert found.value == pytest.approx(roc_auc_score(positive.flatten(), scores.flatten()), abs=1e-12)
    area, parts = pairwise_auc(scores.numpy(), positive.numpy())
    chosen = positive.numpy()
    influence = [
        ((p - area) * c).sum() / chosen.sum() + ((p - area) * ~c).sum() / (~chosen).sum()
        for p, c in zip(parts, chosen, strict=True)
    ]
    expected = math.sqrt(sum(i**2 for i in influence) * batch / (batch - 1))
    assert found.standard_error == pytest.approx(expected, abs=1e-12)


def test_the_error_of_an_auc_agrees_with_leaving_each_prompt_out():
    n = 200
    positive = (drawn(n, 1, 3, seed=1) > 0.3).expand(-1, 2, -1)
    scores = drawn(n, 1, 3) + 0.5 * drawn(n, 2, 3, seed=2) + positive
    found = area_under_roc(scores, positive)
    expected = left_out_error(lambda rows: roc_auc_score(positive[rows].flatten(), scores[rows].flatten()), n)
    assert found.standard_error == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("everywhere", [True, False])
def test_without_both_classes_there_is_no_auc(everywhere):
    assert all(math.isnan(n) for n in area_under_roc(drawn(3, 1, 2), torch.full((3, 1, 2), everywhere)))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """A fixed probe, 200 fresh sets of 150 prompts: 95 % intervals of risk, R^2, selectivity and AUC."""
    sets, n = 200, 150
    # Targets and errors of one prompt hang together, and some prompts are much harder than others.
    generator = torch.Generator().manual_seed(5)

    def scored(n_prompts):
        def normal(*shape):
            return torch.randn(n_prompts, *shape, generator=generator, dtype=torch.float64)

        hardness, targets = normal(1, 1).abs(), normal(1, 2) + 0.5 * normal(3, 2)
        read, control = 0.7 * targets + 0.4 * hardness * normal(3, 2), 0.3 * targets + 0.3 * normal(1, 2)
        errors, others = ((value - targets).square().sum(2).mean(1) for value in (read, control))
        deviation = deviations(targets)
        return [
            mean_estimate(errors),
            explained_share(errors, deviation),
            selectivity(errors, others, deviation),
            area_under_roc(read, targets[:, :1].expand(-1, 3, -1) > 0.5),
        ]

    truth = [estimate.value for estimate in scored(200_000)]
    held = np.array(
        [[low <= true <= high for (low, high), true in zip((e.interval for e in scored(n)), truth, strict=True)]
         for _ in range(sets)]
    )  # fmt: skip
    assert ((held.mean(axis=0) >= 0.90) & (held.mean(axis=0) <= 0.99)).all(), held.mean(axis=0)


# Controls


def test_the_shuffled_control_explains_nothing():
    """Of one output that the states determine, n shuffled samples explain 0 +- 2 / sqrt(n), less features / n."""
    (batch, tokens, features), truth = (3000, 2, 6), drawn(6, 1, seed=99)
    fit_states, states = drawn(batch, tokens, features), drawn(batch, tokens, features, seed=1)
    fit_targets, targets = fit_states @ truth + 0.1 * drawn(batch, tokens, 1, seed=2), states @ truth
    shuffled = shuffled_prompts(fit_targets, torch.Generator().manual_seed(0))

    def r2(labels):
        read = ridge_probe(fit_states.flatten(0, 1), labels.flatten(0, 1), 1.0).predict(states)
        return explained_share((read - targets).square().sum(2).mean(1), deviations(targets)).value

    n = batch * tokens
    assert abs(r2(shuffled)) <= 4 * 2 / math.sqrt(n) + features / n
    assert r2(fit_targets) > 0.99


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
    fields = (x, y, x_query, [0.1, 0.2, 0.3], [7.0, 8.0, 9.0], [4.0, 0.0])
    prompt = Prompt(*(torch.tensor([field]) for field in fields))
    targets = probe_targets(prompt, prompt.x_query, prompt.f_query, {"mine": torch.tensor([[2.0, 10.0]])})
    # r_hat = ((1 * 5 + 3 * 6) / 2, (2 * 5 - 4 * 6) / 2) = (11.5, -7)
    assert targets.keys() == {"f", "w", "support", "r_hat", "preprocessed", "mine"}
    assert targets["f"].tolist() == [[[7.0], [8.0], [9.0]]]
    assert targets["w"].tolist() == [[[4.0, 0.0]] * 3]
    assert targets["support"].tolist() == [[[1.0, 0.0]] * 3]
    assert targets["r_hat"].tolist() == [[[11.5, -7.0]] * 3]
    assert targets["preprocessed"].tolist() == [[[11.5, -7.0], [23.0, 7.0], [0.0, -21.0]]]
    assert targets["mine"].tolist() == [[[12.0], [-6.0], [30.0]]]
    assert {value.dtype for value in targets.values()} == {torch.float64}


def test_a_task_without_weights_has_no_weights_to_probe():
    prompt = Prompt(drawn(2, 3, 2), drawn(2, 3), drawn(2, 1, 2), drawn(2, 1), drawn(2, 1))
    assert probe_targets(prompt, prompt.x_query, prompt.f_query, {}).keys() == {"f", "r_hat", "preprocessed"}
    assert probe_targets(prompt, prompt.x, None, {}).keys() == {"r_hat", "preprocessed"}


@pytest.mark.parametrize(("batch", "points", "dims"), [(4, 6, 3), (1, 1, 1), (2, 3, 8)])
def test_algorithm_weights_equal_loops(batch, points, dims):
    x, y = drawn(batch, points, dims), drawn(batch, points, seed=1)
    prompt = Prompt(x, y, drawn(batch, 1, dims, seed=2), drawn(batch, 1), drawn(batch, 1))
    weights = algorithm_weights(prompt, 3)
    assert list(weights) == ["least_squares", *(f"gd_{t}" for t in (1, 2, 3))] + [
        f"preprocess_then_gd_{t}" for t in (1, 2, 3)
    ]
    for b in range(batch):
        xb, yb = x[b].numpy(), y[b].numpy()
        np.testing.assert_allclose(weights["least_squares"][b], np.linalg.lstsq(xb, yb)[0], atol=1e-8)
        for name, scale in (("gd", np.ones(dims)), ("preprocess_then_gd", xb.T @ yb / points)):
            features, u = xb * scale, np.zeros(dims)
            step = 1 / np.linalg.eigvalsh(features.T @ features / points)[-1]
            for t in (1, 2, 3):
                u = u - step * features.T @ (features @ u - yb) / points
                np.testing.assert_allclose(weights[f"{name}_{t}"][b], scale * u, atol=1e-8)


@pytest.mark.parametrize("shape", [(6, 5, 3), (2, 1, 4), (3, 4, 1)], ids=str)
def test_padding_changes_no_target(shape):
    """Each prompt, with padding behind its own number of examples, against the same one alone without."""
    batch, n_points, n_dims = shape
    task = SparseLinearRegression(n_dims, 1, noise_std=0.3)
    prompt = task.sample(batch, n_points + 3, 2, torch.Generator().manual_seed(0)).double()
    counts = [1 + b % n_points for b in range(batch)]
    mask = torch.arange(n_points + 3) < torch.tensor(counts)[:, None]
    prompt = prompt._replace(x=prompt.x * mask[..., None], y=prompt.y * mask, f=prompt.f * mask, point_mask=mask)

    def targets(prompt):
        return probe_targets(prompt, prompt.x_query, prompt.f_query, algorithm_weights(prompt, 2))

    found = targets(prompt)
    for b, n in enumerate(counts):
        for name, value in targets(prompt.rows(b, b + 1).first(n).unpadded()).items():
            torch.testing.assert_close(found[name][b], value[0], rtol=1e-12, atol=1e-12, msg=f"{name} of {n} examples")
