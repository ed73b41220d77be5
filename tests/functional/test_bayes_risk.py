"""On prompts of its own law, no reference that sees only the data beats the posterior mean."""

import pytest
import torch
from regression_cases import sparse_problem

from lightning_icl.functional import estimators
from lightning_icl.functional.estimators import (
    all_supports,
    gaussian_posterior,
    group_supports,
    inverse_curvature,
    sign_posterior,
)


def normal(mean=0.0):
    return lambda generator, shape: mean + torch.randn(shape, generator=generator)


def signs(generator, shape):
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


SETTINGS = {
    "two of eight, n = d": (all_supports(8, 2), 8, 0.4, normal(), gaussian_posterior),
    "two of eight, n = 2d, little noise": (all_supports(8, 2), 16, 0.1, normal(), gaussian_posterior),
    "signs, n < d": (all_supports(6, 3), 4, 0.4, signs, sign_posterior),
    "signs, n = d, much noise": (all_supports(6, 3), 6, 0.8, signs, sign_posterior),
    "two of four groups, n < d": (group_supports(8, 2, 2), 6, 0.4, normal(), gaussian_posterior),
    "mean one, n = 2d": (all_supports(6, 3), 12, 0.4, normal(1.0), lambda *law: gaussian_posterior(*law, 1.0, 1.0)),
}


def rivals(x, y, sparsity, noise_std, second_moment):
    """Weights of every other reference that sees only the data, over grids and along whole paths."""
    step, best_alpha = inverse_curvature(x), noise_std**2 / second_moment
    found = {
        "least squares": estimators.least_squares(x, y),
        "averaging": estimators.averaging(x, y),
        "best subset": estimators.best_subset(x, y, sparsity),
        "ridge of the law": estimators.ridge(x, y, best_alpha),
    }
    for scale in (0.3, 3.0):
        found[f"ridge times {scale}"] = estimators.ridge(x, y, scale * best_alpha)
    for alpha in (0.02, 0.05, 0.1, 0.2, 0.4):
        found[f"lasso {alpha}"] = estimators.lasso(x, y, alpha, relative_gap=1e-6)
        found[f"elastic net {alpha}"] = estimators.elastic_net(x, y, alpha, 0.5)
        found[f"adaptive lasso {alpha}"] = estimators.adaptive_lasso(x, y, alpha)
    paths = {
        "OMP": estimators.orthogonal_matching_pursuit(x, y, x.shape[2]),
        "IHT": estimators.iterative_hard_thresholding_path(x, y, sparsity, 20, step)[::5],
        "GD": estimators.gradient_descent_path(x, y, 30, step)[::3],
        "GD++": estimators.gd_plus_plus_path(x, y, 8, step, 0.3 * step),
        "Newton": estimators.newton_path(x, y, 8),
        "ISTA": estimators.ista_path(x, y, 0.1, 12, step)[::3],
        "FISTA": estimators.fista_path(x, y, 0.1, 12, step)[::3],
    }
    for power in (0.5, 1.0):
        rescaled = inverse_curvature(estimators.preprocessed(x, x, y, power))
        paths[f"preprocess {power}"] = estimators.preprocess_then_gd_path(x, y, 30, rescaled, power)[::3]
    return found | {f"{name} {t}": w for name, path in paths.items() for t, w in enumerate(path)}


def standard_errors(samples):
    """How many standard errors the mean lies above 0; 0 where it is rounding."""
    return (samples.mean() / (samples.std() / len(samples) ** 0.5 + 1e-12)).item()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("n_prompts", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_reference_that_sees_only_the_data_beats_bayes(setting, n_prompts):
    supports, n, noise_std, weights, law = SETTINGS[setting]
    x, y, w = sparse_problem(n_prompts, n, supports, noise_std, weights, seed=11)
    bayes, second_moment = law(x, y, supports, noise_std).mean, w.square().mean().item()
    risk = (bayes - w).square().sum(-1)  # excess risk, in closed form: x_q is isotropic
    references = rivals(x, y, supports.shape[1], noise_std, second_moment)
    margins = {name: standard_errors((ours - w).square().sum(-1) - risk) for name, ours in references.items()}
    assert min(margins.values()) > -3, min(margins.items(), key=lambda item: item[1])
    assert sorted(margins.values())[len(margins) // 2] > 10  # most are clearly worse

    # The error of a posterior mean is uncorrelated with everything that can be computed from the data.
    correlations = {name: standard_errors(((w - bayes) * ours).sum(-1)) for name, ours in references.items()}
    assert max(map(abs, correlations.values())) < 4, max(correlations.items(), key=lambda item: abs(item[1]))

    # Nearest neighbours do not answer with weights: compare predictions at one query.
    x_query = torch.randn(n_prompts, 1, x.shape[2], generator=torch.Generator().manual_seed(12), dtype=x.dtype)
    wanted = estimators.predictions(w, x_query)
    ours, theirs = estimators.predictions(bayes, x_query), estimators.nearest_neighbours(x, y, x_query, 3)
    assert standard_errors(((theirs - wanted).square() - (ours - wanted).square())[:, 0]) > 10


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_evidence_is_highest_under_the_law_of_the_prompts(setting):
    """On average over prompts, against other noise levels and other supports (Gibbs)."""
    supports, n, noise_std, weights, law = SETTINGS[setting]
    x, y, _ = sparse_problem(2000, n, supports, noise_std, weights, seed=13)
    truth = law(x, y, supports, noise_std).log_evidence
    everything = all_supports(x.shape[2], supports.shape[1] + 1)
    for other in (
        law(x, y, supports, 0.7 * noise_std).log_evidence,
        law(x, y, supports, 1.4 * noise_std).log_evidence,
        law(x, y, everything, noise_std).log_evidence,
        law(x, y, supports[: len(supports) // 2], noise_std).log_evidence,
    ):
        assert standard_errors(truth - other) > 4
