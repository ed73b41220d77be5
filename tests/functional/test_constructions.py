"""Constructed networks against their algorithms, iterated plainly in the loops below; planted variants."""

import itertools

import pytest
import torch

from lightning_icl import Prompt, Transformer
from lightning_icl.functional.constructions import (
    ConstructedGD,
    ConstructedGDPlusPlus,
    ConstructedPreprocessThenGD,
    with_cancelling_pair,
    with_duplicate,
    with_flipped_sign,
    with_idle_head,
    with_swapped_heads,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.instruments.alignment import written


def prompts(n, d, batch=4, queries=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, x_query, w = (torch.randn(batch, size, d, generator=generator, dtype=torch.float64) for size in (n, queries, 1))
    y = (x * w).sum(-1) + 0.3 * torch.randn(batch, n, generator=generator, dtype=torch.float64)
    f = (x_query * w).sum(-1)
    return Prompt(x, y, x_query, f, f, w[:, 0])


def matrix_of(d):
    """Not symmetric, so that A and its transpose are told apart."""
    return (torch.eye(d) + 0.3 * torch.ones(d, d).triu(1)).tolist()


def read_after_each_layer(model, prompt):
    with torch.no_grad():
        return torch.stack([model.read(states) for states in model.on_prompt(prompt).query_states])


# The algorithms once more, prompt by prompt, with the examples' residuals and inputs carried along.


def gd(x, y, steps, eta, preconditioner):
    w, found = torch.zeros_like(x[0]), []
    for _ in range(steps + 1):
        found.append(w)
        gradient = sum((w @ xi - yi) * xi for xi, yi in zip(x, y, strict=True)) / len(x)
        w = w - eta * (preconditioner @ gradient)
    return found


def preprocess_then_gd(x, y, steps, eta, kept):
    r = sum(yi * xi for xi, yi in zip(x, y, strict=True)) / len(x)
    r = torch.stack([value if j in kept else 0 * value for j, value in enumerate(r, start=1)])
    u = gd(x @ torch.diag(r), y, steps, eta, torch.eye(len(r)).to(x))
    return [torch.zeros_like(r), *(torch.diag(r) @ ut for ut in u)]


def gd_plus_plus(x, y, steps, eta, gamma):
    """The inputs and labels of the tokens themselves, transformed at each step; a probe token a coordinate reads w."""
    d = x.shape[1]
    points = torch.cat([x, torch.eye(d).to(x)])  # the unit vectors as queries: their label slot is -w
    labels = torch.cat([y, torch.zeros(d).to(x)])
    found = [-labels[-d:]]
    for _ in range(steps):
        scores = points @ points[: len(x)].T / len(x)
        points, labels = points - gamma * scores @ points[: len(x)], labels - eta * scores @ labels[: len(x)]
        found.append(-labels[-d:])
    return found


def cases(d):
    eye = torch.eye(d, dtype=torch.float64)
    matrix = matrix_of(d)
    some = list(range(1, d + 1, 2))
    return {
        "gd": (ConstructedGD(3, 0.17), lambda x, y: gd(x, y, 3, 0.17, eye)),
        "preconditioned": (
            ConstructedGD(3, 0.11, matrix),
            lambda x, y: gd(x, y, 3, 0.11, torch.tensor(matrix, dtype=torch.float64)),
        ),
        "preprocess_then_gd": (
            ConstructedPreprocessThenGD(3, 0.13),
            lambda x, y: preprocess_then_gd(x, y, 3, 0.13, range(1, d + 1)),
        ),
        "some_coordinates": (
            ConstructedPreprocessThenGD(2, 0.13, some),
            lambda x, y: preprocess_then_gd(x, y, 2, 0.13, some),
        ),
        "gd_plus_plus": (ConstructedGDPlusPlus(3, 0.17, 0.05), lambda x, y: gd_plus_plus(x, y, 3, 0.17, 0.05)),
    }


NAMES = list(cases(1))


@pytest.mark.parametrize("n", [1, 8, 64])
@pytest.mark.parametrize("d", [1, 5, 16])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_the_algorithms_iterate(name, d, n):
    construction, iterates = cases(d)[name]
    prompt = prompts(n, d)
    expected = torch.stack([torch.stack(iterates(x, y)) for x, y in zip(prompt.x, prompt.y, strict=True)], dim=1)
    read = read_after_each_layer(written(construction.network(d), d), prompt)
    predicted = torch.einsum("tbd,bqd->tbq", expected, prompt.x_query)
    scale = max(1.0, float(predicted.abs().max()))
    assert len(read) == len(construction.options(d)["heads"]) + 1
    assert (read - predicted).abs().max() < 1e-10 * scale
    assert (construction.path(prompt.x, prompt.y) - expected).abs().max() < 1e-10 * max(
        1.0, float(expected.abs().max())
    )


@pytest.mark.parametrize("name", NAMES)
def test_softmax_comes_to_the_algorithm_on_centred_examples_with_the_square_of_the_scale(name):
    d, prompt = 3, prompts(12, 3)
    linear, iterates = cases(d)[name]
    centred = (prompt.x - prompt.x.mean(1, keepdim=True), prompt.y - prompt.y.mean(1, keepdim=True))
    expected = torch.stack([torch.stack(iterates(x, y)) for x, y in zip(*centred, strict=True)], dim=1)
    predicted = torch.einsum("tbd,bqd->tbq", expected, prompt.x_query)
    errors = []
    for scale in (0.04, 0.02, 0.01):
        read = read_after_each_layer(written(linear.network(d).in_softmax(scale), d), prompt)
        errors.append(float((read - predicted).abs().max() / predicted.abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[2] < 1e-3


def test_softmax_as_an_option_says_what_it_approximates():
    prompt, construction = prompts(12, 3), ConstructedPreprocessThenGD(2, 0.1, softmax_scale=1e-3)
    read = read_after_each_layer(written(construction.network(3), 3), prompt)
    expected = torch.einsum("tbd,bqd->tbq", construction.path(prompt.x, prompt.y), prompt.x_query)
    assert construction.options(3)["attention"] == "softmax"
    assert construction.options(3)["heads"] == [6, 2, 2]
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_prompt_predicts_what_the_short_one_does(name):
    prompt = prompts(9, 5)
    model = written(cases(5)[name][0].network(5), 5)
    torch.testing.assert_close(
        read_after_each_layer(model, prompt.padded_after(4)), read_after_each_layer(model, prompt.first(4))
    )


def test_noise_is_of_its_size_and_seed():
    plain = ConstructedGD(3, 0.2).state(16)
    noisy, again, other = (ConstructedGD(3, 0.2, weight_noise=0.05, seed=seed).state(16) for seed in (1, 1, 2))
    # All of the linear network: its biases and the rows that fill up smaller heads stay 0.
    names = ["read_in.weight", "layers.0.attention.query.weight", "layers.0.attention.key.weight", "read_out.weight"]
    scale = {"layers.0.attention.query.weight": 16**0.5}
    added = torch.cat([((noisy[name] - plain[name]) / scale.get(name, 1)).flatten() for name in names])
    assert added.std() == pytest.approx(0.05, rel=4 / (2 * len(added)) ** 0.5)  # four standard errors
    assert not noisy["read_in.bias"].any()
    assert all(torch.equal(noisy[name], again[name]) for name in plain)
    assert not torch.equal(noisy["read_in.weight"], other["read_in.weight"])


def test_noise_in_softmax_is_that_of_the_linear_network():
    """Else noise of the size of its small scores would drown them."""
    prompt = prompts(40, 4, batch=64)
    linear, softmax = (ConstructedGD(2, 0.2, weight_noise=0.02, seed=1, softmax_scale=c) for c in (None, 1e-3))
    read = []
    for construction in (linear, softmax):
        model = Transformer(4, **construction.options(4)).double()
        model.load_state_dict(construction.state(4))
        read.append(read_after_each_layer(model, prompt))
    far = (read[0] - read[1]).square().mean() / read[0].square().mean()
    assert far < 0.1  # what the mean of the examples makes


def test_the_coordinates_with_most_to_tell_are_the_best_to_keep():
    """On independent features of variances 1, .5, .25 and .1, of all pairs."""
    wide = torch.tensor([0.25, 1.0, 0.1, 0.5], dtype=torch.float64).sqrt()
    prompt = prompts(40, 4, batch=2000, queries=4)
    x, x_query = prompt.x * wide, prompt.x_query * wide
    y = torch.einsum("bpd,bd->bp", x, prompt.w)
    risks = {}
    for kept in itertools.combinations(range(1, 5), 2):
        w = ConstructedPreprocessThenGD(10, 0.1, list(kept)).path(x, y)[-1]
        risks[kept] = float(torch.einsum("bqd,bd->bq", x_query, w - prompt.w).square().mean())
    assert min(risks, key=risks.get) == (2, 4)


def test_heads_that_add_nothing_in_all_leave_the_function_as_it_is():
    d, prompt = 4, prompts(8, 4)
    network = ConstructedPreprocessThenGD(2, 0.2).network(d)
    expected = read_after_each_layer(written(network, d), prompt)
    generator = torch.Generator().manual_seed(1)
    variants = {
        "idle": (with_idle_head(network, 2, generator), [4, 2, 1]),
        "duplicate": (with_duplicate(network, 1, 3), [5, 1, 1]),
        "cancelling": (with_cancelling_pair(network, 3, 1, size=2.0), [4, 1, 3]),
    }
    for changed, heads in variants.values():
        assert changed.options()["heads"] == heads
        torch.testing.assert_close(read_after_each_layer(written(changed, d), prompt), expected)


def test_a_flipped_sign_ascends():
    prompt = prompts(8, 4)
    network = with_flipped_sign(ConstructedGD(2, 0.2).network(4), 2, 1)
    found = read_after_each_layer(written(network, 4), prompt)
    for x, y, x_query, read in zip(prompt.x, prompt.y, prompt.x_query, found.transpose(0, 1), strict=True):
        w = 0.2 * x.T @ y / 8
        ascended = w + 0.2 * x.T @ (x @ w - y) / 8
        torch.testing.assert_close(read[2], x_query @ ascended)


def test_swapped_heads_preprocess_a_coordinate_too_late():
    """Layer 1 without head 1 leaves w_1 at 0 after the first step; the head comes to it in layer 2."""
    d, prompt = 3, prompts(8, 3)
    network = with_swapped_heads(ConstructedPreprocessThenGD(2, 0.2).network(d), (1, 1), (2, 1))
    found = read_after_each_layer(written(network, d), prompt)
    assert network.options()["head_dim"] == [3, 1, 3]
    assert not found[:3].any()  # the step had nothing to descend on
    once = torch.einsum("bd,bqd->bq", ConstructedPreprocessThenGD(1, 0.2).path(prompt.x, prompt.y)[2], prompt.x_query)
    torch.testing.assert_close(found[3], once)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ConstructedGD(0, 0.1), "steps is 0"),
        (lambda: ConstructedGD(1, 0.1, [[float("nan")]]), "finite numbers"),
        (lambda: ConstructedGD(1, 0.1, []), "as wide as it is long"),
        (lambda: ConstructedGD(1, float("nan")), "step_size is nan"),
        (lambda: ConstructedGD(1, 0.1, [[1.0, 0.0]]), "as wide as it is long"),
        (lambda: ConstructedGD(1, 0.1, [[1.0]]).options(2), "n_dims 2"),
        (lambda: ConstructedGDPlusPlus(1, 0.1, -1.0), "gamma is -1.0"),
        (lambda: ConstructedPreprocessThenGD(1, 0.1, [1, 1]), "each once"),
        (lambda: ConstructedPreprocessThenGD(1, 0.1, []), "each once"),
        (lambda: ConstructedPreprocessThenGD(1, 0.1, [3]).options(2), "coordinates has 3"),
        (lambda: ConstructedGD(1, 0.1, softmax_scale=0.0), "softmax_scale is 0.0"),
        (lambda: ConstructedGD(1, 0.1, weight_noise=float("inf")), "weight_noise is inf"),
    ],
)
def test_what_cannot_be_is_refused(build, said):
    with pytest.raises(InputError, match=said):
        build()
