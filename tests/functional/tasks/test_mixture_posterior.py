"""The posterior of a mixture of laws, against the sum over its hypotheses by scipy's densities."""

import math

import numpy as np
import pytest
from margins import generator
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from test_posteriors import CASES, PAIRS, D, assert_close, each, examples, normal_on, of_size, signs_on

from lightning_icl import (
    Flat,
    GroupSparseLinearRegression,
    InputError,
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
from lightning_icl.functional.risk import squared_errors

SPARSE, DENSE = SparseLinearRegression(D, 1, noise_std=0.5), LinearRegression(D, noise_std=0.5)
POOL = TaskPool(SparseLinearRegression(D, 2, noise_std=0.3), 6)
SKEWED = {"correlation": 0.6, "spectrum": Spiked(1, 4.0), "rotation": "fixed", "features": "uniform"}
IN_POOL = [(w, np.zeros((D, D))) for w in POOL.pool.double().numpy()]
MIXTURES = {  # and its parts: how likely, the components of w, the noise levels
    "sparse or dense": (
        Mixture([SPARSE, DENSE], [1.0, 3.0]),
        [(0.25, normal_on(of_size(1)), [0.5]), (0.75, normal_on(of_size(D)), [0.5])],
    ),
    "noise levels": (
        Mixture([DENSE, DENSE.shifted(noise_std=[0.1, 2.0])]),
        [(0.5, normal_on(of_size(D)), [0.5]), (0.5, normal_on(of_size(D)), [0.1, 2.0])],
    ),
    "weight laws": (
        Mixture(
            [
                SparseLinearRegression(D, 2, noise_std=0.7, weight_law="sign"),
                GroupSparseLinearRegression(D, 2, 1, noise_std=0.5, weight_mean=1.0),
                LinearRegression(D, noise_std=0.2, weight_law="scaled"),
            ],
            [2.0, 2.0, 1.0],
        ),
        [
            (0.4, signs_on(of_size(2)), [0.7]),
            (0.4, normal_on(PAIRS, 1.0, 1.0), [0.5]),
            (0.2, normal_on(of_size(D), 1 / D), [0.2]),
        ],
    ),
    "a pool": (Mixture([POOL, DENSE], [1.0, 1.0]), [(0.5, IN_POOL, [0.3]), (0.5, normal_on(of_size(D)), [0.5])]),
    "a mixture inside": (
        Mixture([Mixture([SPARSE, POOL], [1.0, 3.0]), DENSE], [4.0, 1.0]),
        [(0.2, normal_on(of_size(1)), [0.5]), (0.6, IN_POOL, [0.3]), (0.2, normal_on(of_size(D)), [0.5])],
    ),
    "one that is never drawn": (
        Mixture([SPARSE, ReLUNetwork(D), DENSE.shifted(correlation=0.3), DENSE], [1.0, 0.0, 0.0, 1.0]),
        [(0.5, normal_on(of_size(1)), [0.5]), (0.5, normal_on(of_size(D)), [0.5])],
    ),
    "features of another law": (
        Mixture([SPARSE.shifted(**SKEWED), DENSE.shifted(**SKEWED)]),
        [(0.5, normal_on(of_size(1)), [0.5]), (0.5, normal_on(of_size(D)), [0.5])],
    ),
    "one task": (Mixture([SPARSE]), [(1.0, normal_on(of_size(1)), [0.5])]),
}


def by_hand(x, y, parts):
    """Mean of w and log p(y | X), from the joint density of w's component and y."""
    log_joint, means = [], []
    for share, components, levels in parts:
        for mean, covariance in components:
            for sigma in levels:
                of_y = multivariate_normal(x @ mean, x @ covariance @ x.T + sigma**2 * np.eye(len(y)))
                log_joint.append(of_y.logpdf(y) + math.log(share / len(components) / len(levels)))
                means.append(mean + covariance @ x.T @ np.linalg.solve(of_y.cov_object.covariance, y - x @ mean))
    return np.exp(log_joint - logsumexp(log_joint)) @ np.array(means), logsumexp(log_joint)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", MIXTURES)
def test_it_is_the_sum_over_all_hypotheses_of_all_parts(law, case):
    mixture, parts = MIXTURES[law]
    x, y = examples(*case)
    posterior, expected = mixture.posterior(estimators.moments(x, y)), [by_hand(a, b, parts) for a, b in each(x, y)]
    assert_close(posterior.mean, [mean for mean, _ in expected], atol=1e-8)
    assert_close(posterior.log_evidence, [evidence for _, evidence in expected], atol=1e-8, rtol=1e-9)
    assert mixture.posterior_terms == sum(len(components) * len(levels) for _, components, levels in parts)


@pytest.mark.parametrize("law", MIXTURES)
def test_no_part_s_posterior_has_a_lower_risk_on_the_mixture_s_prompts(law):
    mixture, _ = MIXTURES[law]
    prompt = mixture.sample(4000, 6, 4, generator(5)).double()
    m = estimators.moments(prompt.x, prompt.y)

    def errors(law):
        return squared_errors(estimators.predictions(law.posterior(m).mean, prompt.x_query), prompt.f_query).numpy()

    own = errors(mixture)
    for part, _ in mixture.parts:
        difference = errors(part) - own
        margin = 4 * difference.std(ddof=1) / math.sqrt(len(difference))
        assert difference.mean() >= -margin
        if law == "sparse or dense":  # and there it is known to be higher
            assert difference.mean() > margin


UNLIKE = {  # options of the features in which two tasks differ
    "correlation": [{"correlation": 0.2}, {}],
    "spectrum": [{"spectrum": PowerLaw(0.5)}, {"spectrum": PowerLaw(0.6)}],
    "features": [{"features": "uniform"}, {"features": "rademacher"}],
    "degrees of freedom": [{"features": "student_t", "feature_df": df} for df in (5.0, 6.0)],
    "rotation": [{"spectrum": Spiked(), "rotation": rotation} for rotation in ("fixed", "per_prompt")],
    "scale": [{"spectrum": Flat(4.0)}, {}],
}


@pytest.mark.parametrize(
    "tasks",
    [[SPARSE.shifted(**first), DENSE.shifted(**second)] for first, second in UNLIKE.values()]
    + [
        [SparseRecovery(D, 1, noise_std=0.5), SparseRecovery(D, 1, noise_std=0.5, design_seed=1)],
        [SparseRecovery(D, 1, noise_std=0.5), SPARSE],
        [SPARSE, TaskPool(DENSE.shifted(correlation=0.2), 3)],
        [SPARSE, Mixture([DENSE, DENSE.shifted(correlation=0.2)])],
    ],
    ids=[*UNLIKE, "designs", "a design", "a pool's features", "features inside a mixture"],
)
def test_there_is_none_where_x_tells_tasks_apart_and_that_is_said(tasks):
    mixture = Mixture(tasks)
    assert mixture.posterior_terms is None
    assert default_bayes(mixture) == []
    with pytest.raises(InputError, match=r"has no exact posterior in closed form, as x alone may tell its tasks apart"):
        mixture.posterior(estimators.moments(*examples(1, 3)))


@pytest.mark.parametrize(
    "tasks",
    [
        [DENSE.shifted(feature_df=7.0), SPARSE],  # which gaussian features do not have
        [DENSE.shifted(spectrum=Flat(1.0)), SPARSE],
        [SparseRecovery(D, 1, "fresh", noise_std=0.5), SPARSE],
        [SparseRecovery(D, 1, noise_std=0.5), TaskPool(SparseRecovery(D, 2, noise_std=0.1), 3)],
        [task.shifted(rotation="per_prompt", spectrum=Spiked()) for task in (SPARSE, DENSE)],
    ],
    ids=["no degrees of freedom", "variances of 1", "a fresh design", "one design", "rotations"],
)
def test_what_is_one_law_of_x_under_other_names_is_seen_as_one(tasks):
    mixture = Mixture(tasks)
    assert mixture.posterior_terms == sum(task.posterior_terms for task in tasks)
    assert len(default_bayes(mixture)) == 1


def test_a_part_without_noise_is_found_out_from_the_examples():
    """More examples than dimensions decide: its prompts are solved, the others are as if it were not there."""
    mixture = Mixture([SPARSE.shifted(noise_std=0.0), DENSE])
    prompt = mixture.sample(60, 7, 1, generator(3)).double()
    m = estimators.moments(prompt.x, prompt.y)
    noisy = (prompt.y - prompt.f).abs().amax(1) > 1e-3
    assert 15 < noisy.sum() < 45
    mean = mixture.posterior(m).mean
    assert_close(mean[~noisy], prompt.w[~noisy].numpy(), atol=1e-5)  # float32 labels
    assert_close(mean[noisy], DENSE.posterior(m).mean[noisy].numpy(), atol=1e-9)


def test_a_mixture_is_refused_where_all_hypotheses_together_are_too_many():
    half = SparseLinearRegression(22, 7, noise_std=[0.1] * 4)
    with pytest.raises(InputError, match=f"there are {2 * half.posterior_terms:,} hypotheses behind the posterior of"):
        Mixture([half, half]).posterior(estimators.moments(*examples(1, 3, d=22)))
    assert half.posterior_terms == 4 * math.comb(22, 7) < 2**20
