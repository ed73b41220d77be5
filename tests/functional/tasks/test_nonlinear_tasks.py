"""Nonlinear tasks: their functions against plain loops, their scalings against closed forms."""

import math

import numpy as np
import pytest
import torch
from margins import assert_mean_within_4_standard_errors, generator

from lightning_icl import (
    DecisionTree,
    HiddenRepresentation,
    InputError,
    LinearClassification,
    PolynomialRegression,
    QuadraticRegression,
    ReLUNetwork,
)
from lightning_icl.functional.tasks.nonlinear import hermite_sum, relu_network, tree_values

SHAPES = [(3, 5, 4), (1, 1, 1), (1, 6, 1), (2, 1, 7)]  # batch, points, dims


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize(("batch", "points", "dims"), SHAPES)
def test_hermite_sum_by_numpys_polynomials(batch, points, dims, degree):
    x, w = drawn(batch, points, dims), drawn(batch, degree, dims, seed=1)
    expected = np.zeros((batch, points))
    for b in range(batch):
        for j in range(dims):
            for k in range(1, degree + 1):
                he = np.polynomial.hermite_e.HermiteE.basis(k)(x[b, :, j].numpy())
                expected[b] += w[b, k - 1, j].item() * he / math.sqrt(math.factorial(k))
    np.testing.assert_allclose(hermite_sum(x, w), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize(("batch", "points", "dims"), SHAPES)
def test_relu_network_by_a_loop(batch, points, dims, width):
    x, u, a = drawn(batch, points, dims), drawn(batch, width, dims, seed=1), drawn(batch, width, seed=2)
    values = relu_network(x, u, a)
    for b in range(batch):
        for p in range(points):
            hidden = [max(0.0, float(u[b, i] @ x[b, p])) for i in range(width)]
            expected = math.sqrt(2 / width) * sum(float(a[b, i]) * hidden[i] for i in range(width))
            assert values[b, p].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(("batch", "points", "dims"), SHAPES)
def test_tree_values_by_descending_one_point_at_a_time(batch, points, dims, depth):
    x, leaves = drawn(batch, points, dims), drawn(batch, 2**depth, seed=1)
    tested = torch.randint(dims, (batch, 2**depth - 1), generator=generator(2))
    values = tree_values(x, tested, leaves)

    def descend(b, point, level=0, place=0):
        """``place`` counts the nodes of a level from the left; level l starts at node 2^l - 1."""
        if level == depth:
            return leaves[b, place]
        right = point[tested[b, 2**level - 1 + place]] > 0
        return descend(b, point, level + 1, 2 * place + int(right))

    for b in range(batch):
        for p in range(points):
            assert values[b, p] == descend(b, x[b, p])


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("dims", [1, 5])
def test_representation_by_a_loop_and_targets_are_linear_in_it(float64, dims, n_layers):
    task = HiddenRepresentation(dims, 4, n_layers)
    x = drawn(6, 7, dims)
    expected = x.numpy()
    for layer in task.layers:
        expected = expected @ layer.value.numpy().T
        expected = np.where(expected > 0, expected, 0.01 * expected)
    phi = task.representation(x)
    np.testing.assert_allclose(phi, expected, atol=1e-12)
    f, w = task.sample_targets(x, generator())
    assert w is None
    coefficients = torch.linalg.lstsq(phi, f[..., None]).solution
    torch.testing.assert_close((phi @ coefficients)[..., 0], f, atol=1e-9, rtol=0)


def test_the_representation_is_shared_by_prompts_and_tasks_of_one_seed():
    x = drawn(2, 3)
    first, second = HiddenRepresentation(3, 4), HiddenRepresentation(3, 4, noise_std=1.0)
    assert torch.equal(first.representation(x), second.representation(x))
    other = HiddenRepresentation(3, 4, representation_seed=1)
    assert not torch.allclose(first.representation(x), other.representation(x))


def test_the_representation_keeps_the_second_moment_on_average_over_seeds():
    x = drawn(1, 8)
    squares = [HiddenRepresentation(8, 30, 2, seed).representation(x).square().sum() for seed in range(400)]
    assert_mean_within_4_standard_errors(torch.stack(squares), 30 * x.square().sum().item() / 8)


@pytest.mark.parametrize(
    ("task", "second", "between"),  # E f(x)^2, and E f(x) f(x') for two points of a prompt, with x ~ N(0, I_d)
    [
        (QuadraticRegression(3), 3, 3 / 3),
        (QuadraticRegression(3, features="uniform"), 3 * 9 / 5 / 3, 3 / 3),
        (PolynomialRegression(3, 1), 3, 0),
        (PolynomialRegression(3, 3), 3, 0),
        (ReLUNetwork(3, 20), 3, 3 / math.pi),
        # Two draws of a path's two tests are of one feature with probability 1/3: the points agree with 1/2 or 1/4.
        (DecisionTree(3, 2), 1, 1 / 3 * 1 / 2 + 2 / 3 * 1 / 4),
        (DecisionTree(1, 4, features="rademacher"), 1, 1 / 2),
        (LinearClassification(3, flip_probability=0.1), 0.64, 0),
    ],
)
def test_scaling_of_the_targets(task, second, between):
    prompt = task.sample(40_000, 1, 1, generator())
    f, g = prompt.f[:, 0].double(), prompt.f_query[:, 0].double()
    for values in (f, g):
        assert_mean_within_4_standard_errors(values, 0)
        assert_mean_within_4_standard_errors(values**2, second)
    assert_mean_within_4_standard_errors(f * g, between)


def test_leaves_are_gaussian():
    f = DecisionTree(3, 3).sample(40_000, 1, 1, generator()).f.double()
    assert_mean_within_4_standard_errors(f**4, 3)


@pytest.mark.parametrize("sparsity", [None, 1, 2])
@pytest.mark.parametrize("flip_probability", [0.0, 0.2, 0.5])
def test_classes_are_balanced_signs_flipped_with_their_probability(flip_probability, sparsity):
    prompt = LinearClassification(3, sparsity, flip_probability).sample(20_000, 2, 2, generator())
    f, y = torch.cat([prompt.f, prompt.f_query], 1).double(), torch.cat([prompt.y, prompt.y_query], 1).double()
    assert set(y.unique().tolist()) == {-1.0, 1.0}
    np.testing.assert_allclose(f.abs(), 1 - 2 * flip_probability, atol=1e-7)
    assert_mean_within_4_standard_errors(y, 0)
    assert_mean_within_4_standard_errors(y * f, (1 - 2 * flip_probability) ** 2)
    residual = y - f  # zero mean given f, and independent between points
    products = residual[:, :, None] * residual[:, None]
    assert_mean_within_4_standard_errors(products, (1 - (1 - 2 * flip_probability) ** 2) * np.eye(4))


def test_classes_are_separated_by_a_hyperplane_through_few_features():
    prompt = LinearClassification(4, 1).sample(200, 30, 1, generator())
    by_one_feature = (prompt.x.sign() * prompt.y[..., None]).mean(dim=1).abs()
    assert (by_one_feature.amax(dim=1) == 1).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PolynomialRegression(3, 0), "degree is 0, but it must be at least 1."),
        (lambda: ReLUNetwork(3, 0), "width is 0, but it must be at least 1."),
        (lambda: DecisionTree(3, 0), "depth is 0, but it must be at least 1."),
        (lambda: HiddenRepresentation(3, width=0), "width is 0"),
        (lambda: HiddenRepresentation(3, n_layers=0), "n_layers is 0"),
        (lambda: LinearClassification(3, 4), "sparsity is 4, but it must lie between 1 and n_dims, which is 3."),
        (lambda: LinearClassification(3, 0), "sparsity is 0"),
        (lambda: LinearClassification(3, flip_probability=0.6), "flip_probability is 0.6.*between 0 and 0.5."),
        (lambda: LinearClassification(3, flip_probability=math.nan), "flip_probability is nan"),
        (lambda: DecisionTree(0), "n_dims is 0"),
        (lambda: DecisionTree(3, features="rademacher", noise_std=-1.0), "noise_std is -1.0"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
