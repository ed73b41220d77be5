"""Reference estimators of a task against scikit-learn, numpy and brute force over every setting."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LassoLars, Ridge

from lightning_icl.functional.references import (
    ReferenceSettings,
    gd_path,
    reference_errors,
    reference_predictions,
    reference_weights,
    tuned_settings,
)
from lightning_icl.functional.tasks import SparseLinearRegression

SHAPES = [(5, 12, 4), (3, 4, 9), (1, 1, 3), (3, 6, 1)]  # prompts (odd: the median is one of them), points, dims
SETTINGS = [
    ReferenceSettings(ridge_alpha=0.7, lasso_alpha=0.05, depth=3, gd_steps=9, preprocess_then_gd_steps=2),
    ReferenceSettings(ridge_alpha=5.0, lasso_alpha=0.3, depth=4, gd_steps=0, preprocess_then_gd_steps=6),
]
ALWAYS = {
    "zero", "least_squares", "ridge", "lasso", "gd_at_depth", "gd_best",
    "preprocess_then_gd_at_depth", "preprocess_then_gd_best",
}  # fmt: skip


def sampled(batch, n, d, seed=0, noise_std=0.3):
    task = SparseLinearRegression(d, (d + 1) // 2, noise_std)
    return task.sample(batch, n, 2, torch.Generator().manual_seed(seed))


def arrays(prompt):
    """(x, y, x_query, f_query, w) of each prompt in float64 numpy."""
    return zip(
        *(t.double().numpy() for t in (prompt.x, prompt.y, prompt.x_query, prompt.f_query, prompt.w)), strict=True
    )


def ridge_by_hand(x, y, alpha):
    return Ridge(alpha, fit_intercept=False).fit(x, y).coef_


def lasso_by_hand(x, y, alpha):
    return LassoLars(alpha, fit_intercept=False).fit(x, y).coef_  # exact: it follows the path of solutions


def lasso_objective(x, y, w, alpha):
    return ((y - x @ w) ** 2).sum() / (2 * len(y)) + alpha * np.abs(w).sum()


def gd_by_hand(x, y, n_steps, preprocess):
    """PAPER.md section 7 with step 1 / lambda_max, as weights in the original coordinates."""
    r_hat = x.T @ y / len(y) if preprocess else np.ones(x.shape[1])
    features = x * r_hat
    largest = np.linalg.eigvalsh(features.T @ features / len(y)).max()
    path = [np.zeros(x.shape[1])]
    for _ in range(n_steps):
        path.append(path[-1] - features.T @ (features @ path[-1] - y) / len(y) / largest)
    return [r_hat * w for w in path]


def oracle_by_hand(x, y, support):
    w = np.zeros(x.shape[1])
    w[support] = np.linalg.lstsq(x[:, support], y, rcond=None)[0]
    return w


def weights_by_hand(x, y, w, s):
    gd, preprocessed = (gd_by_hand(x, y, 20, preprocess) for preprocess in (False, True))
    return {
        "zero": np.zeros(x.shape[1]),
        "least_squares": np.linalg.pinv(x) @ y,
        "ridge": ridge_by_hand(x, y, s.ridge_alpha),
        "lasso": lasso_by_hand(x, y, s.lasso_alpha),
        "gd_at_depth": gd[s.depth],
        "gd_best": gd[s.gd_steps],
        "preprocess_then_gd_at_depth": preprocessed[s.depth],
        "preprocess_then_gd_best": preprocessed[s.preprocess_then_gd_steps],
        "oracle_support": oracle_by_hand(x, y, w != 0),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_reference_weights_equal_independent_ones(shape, settings):
    prompt = sampled(*shape)
    ours = reference_weights(prompt, settings)
    assert {w.dtype for w in ours.values()} == {torch.float64}
    for b, (x, y, _, _, w) in enumerate(arrays(prompt)):
        expected = weights_by_hand(x, y, w, settings)
        assert ours.keys() == expected.keys()
        for name, weights in expected.items():
            if name == "lasso":  # promised to a duality gap, not to a distance
                objectives = [lasso_objective(x, y, v, settings.lasso_alpha) for v in (ours[name][b].numpy(), weights)]
                assert objectives[0] - objectives[1] <= 1e-8 * (y @ y) / (2 * len(y)) + 1e-12
            else:
                np.testing.assert_allclose(ours[name][b], weights, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("settings", SETTINGS)
def test_reference_predictions_and_errors_equal_loops(settings):
    prompt = sampled(4, 8, 5)
    weights = reference_weights(prompt, settings)
    ours, errors = reference_predictions(prompt, settings), reference_errors(prompt, settings)
    assert ours.keys() == errors.keys() == weights.keys()
    for name, w_hat in weights.items():
        for b, (_, _, x_query, f_query, _) in enumerate(arrays(prompt)):
            expected = np.array([q @ w_hat[b].numpy() for q in x_query])
            np.testing.assert_allclose(ours[name][b], expected, atol=1e-10)
            np.testing.assert_allclose(errors[name][b], ((expected - f_query) ** 2).mean(), atol=1e-10)


def test_the_oracle_needs_weights():
    prompt = sampled(2, 6, 3)
    assert reference_weights(prompt, SETTINGS[0]).keys() == ALWAYS | {"oracle_support"}
    assert reference_weights(prompt._replace(w=None), SETTINGS[0]).keys() == ALWAYS
    assert reference_errors(prompt._replace(w=None), SETTINGS[0]).keys() == ALWAYS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_gd_path_steps_by_each_prompts_inverse_curvature(shape, power):
    prompt = sampled(*shape).double()
    path = gd_path(prompt, 10, power)
    for b, (x, y, *_) in enumerate(arrays(prompt)):
        np.testing.assert_allclose(path[:, b], gd_by_hand(x, y, 10, preprocess=power == 1), rtol=0, atol=1e-9)


def risk_by_hand(prompt, fit, alpha):
    """Excess risk of ``fit(x, y, alpha)`` by the loop over prompts."""
    errors = [((x_query @ fit(x, y, alpha) - f) ** 2).mean() for x, y, x_query, f, _ in arrays(prompt)]
    return sum(errors) / len(errors)


def grid_by_hand(prompt):
    largest = float(np.median([np.abs(x.T @ y).max() / len(y) for x, y, *_ in arrays(prompt)]))
    return [largest / 10 ** (k / 4) for k in range(17)]


@cache
def tuned(shape, max_steps=40):
    prompt = sampled(*shape, seed=1)
    return prompt, tuned_settings(prompt, depth=2, max_steps=max_steps)


@pytest.mark.parametrize("shape", SHAPES)
def test_tuned_strengths_have_the_lowest_risk_of_the_grid(shape):
    prompt, settings = tuned(shape)
    for fit, chosen, unit, tolerance in (
        (ridge_by_hand, settings.ridge_alpha, shape[1], 1e-9),
        (lasso_by_hand, settings.lasso_alpha, 1, 1e-2),  # solved approximately while tuning: near-ties fall either way
    ):
        grid = [unit * alpha for alpha in grid_by_hand(prompt)]
        risks = [risk_by_hand(prompt, fit, alpha) for alpha in grid]
        nearest = int(np.argmin([abs(np.log(chosen / alpha)) for alpha in grid]))
        assert chosen == pytest.approx(grid[nearest], rel=1e-9)
        assert risks[nearest] <= min(risks) * (1 + tolerance) + 1e-12


@pytest.mark.parametrize(("shape", "max_steps"), [*((shape, 40) for shape in SHAPES), (SHAPES[0], 0), (SHAPES[0], 1)])
def test_tuned_numbers_of_steps_are_the_best_of_all(shape, max_steps):
    prompt, settings = tuned(shape, max_steps)
    assert settings.depth == 2
    for preprocess, chosen in ((False, settings.gd_steps), (True, settings.preprocess_then_gd_steps)):
        errors = []
        for x, y, x_query, f_query, _ in arrays(prompt):
            path = gd_by_hand(x, y, max_steps, preprocess)
            errors.append([((x_query @ w - f_query) ** 2).mean() for w in path])
        risks = np.mean(errors, axis=0)
        assert 0 <= chosen <= max_steps
        assert risks[chosen] <= risks.min() + 1e-12


def test_stopping_early_wins_where_labels_are_noisy():
    """GD overfits the noise of few points, so that the best number of steps is neither the first nor the last."""
    settings = tuned_settings(sampled(61, 12, 8, noise_std=1.0), depth=2)
    assert 0 < settings.gd_steps < 200
    assert 0 < settings.preprocess_then_gd_steps < 200


@pytest.mark.parametrize("alpha", [0.0, 0.123, 40.0])
def test_the_laws_ridge_strength_is_kept(alpha):
    prompt = sampled(5, 8, 3)
    settings = tuned_settings(prompt, 2, ridge_alpha=alpha, max_steps=2)
    assert settings.ridge_alpha == alpha
    assert settings._replace(ridge_alpha=0.0) == tuned_settings(prompt, 2, max_steps=2)._replace(ridge_alpha=0.0)


def test_prompts_without_any_signal_get_zero_weights():
    prompt = sampled(3, 6, 4)
    prompt = prompt._replace(y=0 * prompt.y, f_query=0 * prompt.f_query, w=0 * prompt.w)
    weights = reference_weights(prompt, tuned_settings(prompt, depth=2, max_steps=3))
    assert weights.keys() == ALWAYS | {"oracle_support"}
    assert not any(w.any() for w in weights.values())
