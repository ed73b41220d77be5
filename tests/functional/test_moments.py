"""The statistics of padded prompts against those of the prompts cut short, and estimators in both their forms."""

import inspect
import pydoc
import re

import pytest
import torch
from regression_cases import CASES, assert_close, problem

from lightning_icl import SparseLinearRegression
from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import concatenated
from lightning_icl.functional.risk import excess_risk

SUPPORTS, POOL = estimators.all_supports(3, 2), torch.eye(2, 3, dtype=torch.float64)
IN_BOTH_FORMS = {  # each with its settings
    estimators.adaptive_lasso: {"alpha": 0.1, "gamma": 0.5},
    estimators.averaging: {},
    estimators.best_subset: {"sparsity": 2},
    estimators.elastic_net: {"alpha": 0.1, "l1_ratio": 0.5},
    estimators.feature_scale: {"power": 0.5},
    estimators.fista_path: {"alpha": 0.1, "n_steps": 3, "step_size": 0.1},
    estimators.gd_plus_plus_path: {"n_steps": 3, "step_size": 0.1, "gamma": 0.1},
    estimators.gradient_descent_path: {"n_steps": 3, "step_size": 0.1},
    estimators.ista_path: {"alpha": 0.1, "n_steps": 3, "step_size": 0.1},
    estimators.iterative_hard_thresholding_path: {"sparsity": 2, "n_steps": 3, "step_size": 0.1},
    estimators.lasso: {"alpha": 0.1},
    estimators.lasso_duality_gap: {"w": POOL, "alpha": 0.1},
    estimators.lasso_path: {"alphas": [0.1, 0.01]},
    estimators.least_squares: {},
    estimators.newton_path: {"n_steps": 3},
    estimators.orthogonal_matching_pursuit: {"n_nonzero": 2},
    estimators.preprocess_then_gd_path: {"n_steps": 3, "step_size": 0.1},
    estimators.ridge: {"alpha": 0.3},
}
POSTERIORS = {
    estimators.gaussian_posterior: {"supports": SUPPORTS, "noise_std": 0.3},
    estimators.sign_posterior: {"supports": SUPPORTS, "noise_std": 0.3},
    estimators.pool_posterior: {"pool": POOL, "noise_std": 0.3},
}
of_weights = pytest.mark.parametrize(("estimate", "settings"), IN_BOTH_FORMS.items())
of_posteriors = pytest.mark.parametrize(("estimate", "settings"), POSTERIORS.items())


# Padding


@pytest.mark.parametrize("held", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_counts_for_nothing_whatever_it_holds(case, held):
    x, y = problem(*case)
    n = x.shape[1]
    wide_x, wide_y = (torch.full((t.shape[0], n + 3, *t.shape[2:]), held, dtype=t.dtype) for t in (x, y))
    mask = torch.zeros(len(y), n + 3, dtype=torch.bool)
    for b in range(len(x)):  # each prompt has its own n, and its padding elsewhere
        kept = torch.arange(max(1, n - b)) + b
        wide_x[b, kept], wide_y[b, kept], mask[b, kept] = x[b, : len(kept)], y[b, : len(kept)], True
        ours = estimators.moments(wide_x[b : b + 1], wide_y[b : b + 1], mask[b : b + 1])
        alone = estimators.moments(x[b : b + 1, : len(kept)], y[b : b + 1, : len(kept)])
        for field, expected in zip(ours, alone, strict=True):
            assert_close(field, expected.numpy(), atol=1e-12)
    together = estimators.moments(wide_x, wide_y, mask)
    for field, expected in zip(together.rows(slice(b, None)), alone, strict=True):
        assert_close(field, expected.numpy(), atol=1e-12)


def test_a_padded_prompt_has_the_risk_of_the_unpadded_one():
    task = SparseLinearRegression(n_dims=16, sparsity=4, noise_std=0.4)
    prompt = task.sample(1024, 64, 16, torch.Generator().manual_seed(0)).double()
    short, padded = prompt.first(16), prompt.padded_after(16)
    ours, alone = estimators.moments(padded.x, padded.y, padded.point_mask), estimators.moments(short.x, short.y)
    for field, expected in zip(ours, alone, strict=True):
        assert_close(field, expected.numpy(), atol=1e-12)
    risks = [
        float(excess_risk(estimators.predictions(estimators.lasso(m, 0.1), prompt.x_query), prompt.f_query).mean())
        for m in (ours, alone, estimators.moments(padded.x, padded.y))
    ]
    assert risks[0] == pytest.approx(risks[1], rel=1e-9)
    assert risks[2] > 2 * risks[0]  # padding taken for examples


def test_a_prompt_that_is_all_padding_is_named():
    x, y = problem(3, 4, 2, "plain")
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(InputError, match="prompt 1 of the batch, counted from 0, holds padding only"):
        estimators.moments(x, y, mask)


@pytest.mark.parametrize(("estimate", "settings"), (IN_BOTH_FORMS | POSTERIORS).items())
def test_a_padded_prompt_has_the_estimate_of_its_own_examples(estimate, settings):
    task = SparseLinearRegression(n_dims=3, sparsity=2, noise_std=0.4)
    whole = task.sample(2, 9, 1, torch.Generator().manual_seed(0)).double()
    padded = concatenated([whole.rows(0, 1).padded_after(4), whole.rows(1, 2)])
    ours = estimate(padded, **settings)
    for b, n in enumerate((4, 9)):
        x, y = whole.x[b : b + 1, :n], whole.y[b : b + 1, :n]
        at = {name: value[b : b + 1] if name == "w" else value for name, value in settings.items()}
        found = ours if isinstance(ours, tuple) else (ours,)
        alone = estimate(x, y, **at)
        for mine, expected in zip(found, alone if isinstance(alone, tuple) else (alone,), strict=True):
            mine = mine[b : b + 1] if isinstance(ours, tuple) or mine.dim() < 3 else mine[:, b : b + 1]
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


# Both forms


def test_every_estimator_of_moments_is_tried_here():
    public = {getattr(estimators, name) for name in dir(estimators) if not name.startswith("_")}
    both = {value for value in public if callable(value) and hasattr(value, "__signature__")}
    assert both == {*IN_BOTH_FORMS, *POSTERIORS}


@of_weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_examples_give_what_their_moments_give_in_the_labels_dtype(estimate, settings, dtype):
    x, y = (t.to(dtype) for t in problem(2, 9, 3, "plain"))
    of_x, by_name = estimate(x, y, **settings), estimate(x=x, y=y, **settings)
    of_m = estimate(estimators.moments(x, y), *settings.values())
    assert (of_x.dtype, of_m.dtype) == (dtype, torch.float64)
    torch.testing.assert_close(of_x, of_m.to(dtype), rtol=1e-12 if dtype == torch.float64 else 0, atol=1e-12)
    torch.testing.assert_close(of_x, by_name, rtol=0, atol=0)


@of_posteriors
def test_posteriors_of_examples_keep_their_evidence_in_float64(estimate, settings):
    x, y = (t.float() for t in problem(2, 9, 3, "plain"))
    of_x, of_m = estimate(x, y, **settings), estimate(estimators.moments(x, y), *settings.values())
    assert [t.dtype for t in (*of_x, *of_m)] == [torch.float32, *[torch.float64] * 3]
    torch.testing.assert_close(of_x.mean, of_m.mean.float(), rtol=0, atol=0)
    torch.testing.assert_close(of_x.log_evidence, of_m.log_evidence, rtol=0, atol=0)


@pytest.mark.parametrize(("estimate", "settings"), (IN_BOTH_FORMS | POSTERIORS).items())
def test_help_shows_the_signature_of_examples(estimate, settings):
    names = [*inspect.signature(estimate).parameters]
    assert names[:2] == ["x", "y"]
    assert set(settings) <= set(names[2:])
    shown = pydoc.plain(pydoc.render_doc(estimate))
    assert re.search(rf"{estimate.__name__}\(\s*x: ", shown)  # from Python 3.13 on, a long one has a line an argument
    assert "In place of x and y it takes a Prompt, or ``Moments``." in shown


def test_a_forgotten_argument_is_named():
    x, y = problem(2, 9, 3, "plain")
    for arguments, forgotten in (((x, y), "alpha"), ((x,), "y"), ((), "x")):
        with pytest.raises(TypeError, match=f"missing a required argument: '{forgotten}'"):
            estimators.lasso(*arguments)
