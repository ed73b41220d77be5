"""Features: their laws, variances, correlations and rotations."""

import math

import numpy as np
import pytest
import torch
from margins import assert_mean_within_4_standard_errors, generator
from scipy.stats import kstest

from lightning_icl import Eigenvalues, Flat, InputError, LinearRegression, PowerLaw, Spiked
from lightning_icl.functional.tasks.features import ar1_factor, haar_rotations, mixing_matrix, unit_variance

FOURTH_MOMENTS = {"gaussian": 3, "uniform": 9 / 5, "rademacher": 1, "laplace": 6, "student_t": 3 + 6 / (12 - 4)}
SPECTRA = [None, Flat(1 / 12), Spiked(2, 9.0), PowerLaw(1.5), Eigenvalues([1.0, 1.0, 0.5, 0.25, 1.0])]
CDFS = {  # of the unit-variance law
    "gaussian": ("norm", ()),
    "uniform": ("uniform", (-math.sqrt(3), 2 * math.sqrt(3))),
    "laplace": ("laplace", (0, 1 / math.sqrt(2))),
    "student_t": ("t", (3.0, 0, math.sqrt(1 / 3))),
}


def ar1_by_hand(n_dims, correlation):
    return np.array([[correlation ** abs(i - j) for j in range(n_dims)] for i in range(n_dims)])


def variances_by_hand(spectrum, d):
    match spectrum:
        case None:
            return np.ones(d)
        case Flat():
            return np.full(d, 1 / 12)
        case Spiked():
            return np.array([9.0, 9.0] + [1.0] * (d - 2))
        case PowerLaw():
            return np.array([j**-1.5 for j in range(1, d + 1)])
        case Eigenvalues():
            return np.array([1.0, 1.0, 0.5, 0.25, 1.0])


def covariance_by_hand(spectrum, correlation, d):
    """Before the rotation."""
    std = np.sqrt(variances_by_hand(spectrum, d))
    return std[:, None] * ar1_by_hand(d, correlation) * std


@pytest.mark.parametrize("law", FOURTH_MOMENTS)
def test_every_law_has_zero_mean_unit_variance_and_its_kurtosis(law):
    draws = unit_variance(law, (200_000, 2), generator(), df=12.0).double()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, FOURTH_MOMENTS[law])):
        assert_mean_within_4_standard_errors(draws**power, moment)
    assert_mean_within_4_standard_errors(draws.prod(dim=1), 0)


@pytest.mark.parametrize("law", CDFS)
def test_every_continuous_law_has_its_distribution_function(law):
    draws = unit_variance(law, (20_000,), generator(), df=3.0)
    assert kstest(draws.numpy(), *CDFS[law]).pvalue > 6e-5  # two-sided 4 standard errors


@pytest.mark.parametrize("rotation", ["none", "fixed", "per_prompt"])
@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: type(spectrum).__name__)
@pytest.mark.parametrize("law", ["gaussian", "uniform", "rademacher", "student_t"])
def test_features_have_the_mean_and_covariance_of_their_law(law, spectrum, rotation):
    options = {"features": law, "feature_df": 12.0, "spectrum": spectrum, "rotation": rotation}
    prompt = LinearRegression(5, correlation=0.6, **options).sample(10_000, 1, 1, generator(1))
    x = torch.cat([prompt.x, prompt.x_query], dim=1).double()
    expected = covariance_by_hand(spectrum, 0.6, 5)
    if rotation == "fixed":
        r = haar_rotations(1, 5, generator(), torch.float64)[0].numpy()
        expected = r @ expected @ r.T
    if rotation == "per_prompt":
        expected = np.eye(5) * np.trace(expected) / 5
    assert_mean_within_4_standard_errors(x.mean(dim=1), 0)
    assert_mean_within_4_standard_errors((x[..., :, None] * x[..., None, :]).mean(dim=1), expected)
    assert_mean_within_4_standard_errors(x[:, 0, :, None] * x[:, 1, None, :], 0)


@pytest.mark.parametrize("rotation", ["none", "fixed", "per_prompt"])
def test_the_points_of_a_prompt_share_its_rotation(rotation):
    """E <x, x'>^2 = tr Sigma^2 for a shared Sigma; were it drawn for each point it would be (tr Sigma)^2 / d."""
    task = LinearRegression(4, spectrum=Spiked(1, 9.0), rotation=rotation)
    x = task.sample_features(40_000, 2, generator()).double()
    squares = (x[:, 0] * x[:, 1]).sum(dim=1) ** 2
    assert_mean_within_4_standard_errors(squares, 81 + 3)
    assert not np.isclose(81 + 3, 12**2 / 4, rtol=0.5)


def test_without_mixing_the_coordinates_have_the_law_itself():
    task = LinearRegression(3, features="rademacher")
    assert set(task.sample_features(5, 4, generator()).unique().tolist()) == {-1.0, 1.0}
    bounded = LinearRegression(3, features="uniform", spectrum=Flat(1 / 12)).sample_features(500, 4, generator())
    assert 0.499 < bounded.abs().max() <= 0.5  # von Oswald et al.'s uniform on +-0.5


@pytest.mark.parametrize(("n_dims", "correlation"), [(1, 0.5), (2, -0.3), (5, 0.0), (6, 0.7), (6, -0.7), (40, 0.99)])
def test_ar1_factor_is_the_cholesky_factor(n_dims, correlation):
    factor = ar1_factor(n_dims, correlation).numpy()
    np.testing.assert_allclose(factor @ factor.T, ar1_by_hand(n_dims, correlation), atol=1e-12)
    np.testing.assert_allclose(factor, np.linalg.cholesky(ar1_by_hand(n_dims, correlation)), atol=1e-10)


@pytest.mark.parametrize("spectrum", SPECTRA, ids=lambda spectrum: type(spectrum).__name__)
@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.8])
def test_mixing_matrix_squares_to_the_covariance(spectrum, correlation):
    matrix = mixing_matrix(5, correlation, spectrum, "none")
    matrix = np.eye(5) if matrix is None else matrix.numpy()
    np.testing.assert_allclose(matrix @ matrix.T, covariance_by_hand(spectrum, correlation, 5), atol=1e-12)


def test_the_fixed_rotation_keeps_the_eigenvalues_and_is_the_same_for_every_task():
    first, second = (mixing_matrix(5, 0.0, SPECTRA[-1], "fixed").numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.linalg.eigvalsh(first @ first.T), [0.25, 0.5, 1, 1, 1], atol=1e-12)
    assert np.abs(first @ first.T - np.diag(np.diag(first @ first.T))).max() > 0.01


@pytest.mark.parametrize("d", [1, 2, 5])
def test_rotations_are_orthogonal_with_the_moments_of_haar_measure(d):
    r = haar_rotations(20_000, d, generator(), torch.float64)
    torch.testing.assert_close(r.mT @ r, torch.eye(d, dtype=torch.float64).expand_as(r), atol=1e-12, rtol=0)
    assert_mean_within_4_standard_errors(r, 0)
    assert_mean_within_4_standard_errors(r**2, 1 / d)
    assert_mean_within_4_standard_errors(r**4, 3 / (d * (d + 2)))
    # Unsigned QR would fix the sign of these.
    assert_mean_within_4_standard_errors(torch.linalg.det(r), 0)
    assert_mean_within_4_standard_errors(r.diagonal(dim1=1, dim2=2).sum(dim=1) ** 2, 1)


@pytest.mark.parametrize("spectrum", SPECTRA[1:], ids=lambda spectrum: type(spectrum).__name__)
def test_spectra_list_their_variances_in_float64(spectrum):
    variances = spectrum.variances(5)
    assert variances.dtype == torch.float64
    np.testing.assert_allclose(variances, variances_by_hand(spectrum, 5), rtol=1e-14)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Flat(0.0), "variance is 0.0, but it must be a finite number above 0."),
        (lambda: Flat(math.nan), "variance is nan"),
        (lambda: Spiked(0), "n_spikes is 0, but it must be at least 1."),
        (lambda: Spiked(1, -1.0), "spike is -1.0"),
        (lambda: PowerLaw(math.inf), "exponent is inf"),
        (lambda: Eigenvalues([1.0, 0.0]), "a value of values is 0.0"),
        (lambda: LinearRegression(2, spectrum=Spiked(3)), "n_spikes is 3, but it must be at most n_dims, which is 2."),
        (
            lambda: LinearRegression(3, spectrum=Eigenvalues([1.0, 2.0])),
            "values lists 2 variances, but it must list n_dims, which is 3.",
        ),
    ],
)
def test_bad_spectra_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
