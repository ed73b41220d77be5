"""SOAP against closed forms and against a plain reading of the paper's algorithm, one matrix at a time."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_icl.soap import SOAP

SHAPES = [
    (5, 4),
    (5, 4),
    (4, 5),
    (4, 4),
    (2, 1),
    (1, 1),
]  # one row or column more at most: a null space of more is any basis


def matrices(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def stepped(gradients, **options):
    """Zero matrices after one step on each list of gradients."""
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients[0]]
    optimizer = SOAP(weights, lr=0.1, **options)
    for of_step in gradients:
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach() for weight in weights]


def plain(gradients, lr, beta, eps, every, weight_decay):
    """Algorithm 3 of Vyas et al. (2024) on one matrix: bases from the first gradient, then Adam in them."""
    first = gradients[0]
    moments = [(1 - beta) * first @ first.T, (1 - beta) * first.T @ first]
    bases = [torch.linalg.eigh(m)[1][:, range(len(m) - 1, -1, -1)] for m in moments]
    weight = torch.zeros_like(first)
    average, square = torch.zeros_like(first), torch.zeros_like(first)
    for t, gradient in enumerate(gradients[1:], start=1):
        seen = bases[0].T @ gradient @ bases[1]
        average = beta * average + (1 - beta) * gradient
        square = beta * square + (1 - beta) * seen**2
        adam = (bases[0].T @ average @ bases[1]) / (1 - beta**t) / ((square / (1 - beta**t)) ** 0.5 + eps)
        weight = (1 - lr * weight_decay) * weight - lr * bases[0] @ adam @ bases[1].T
        moments = [
            beta * m + (1 - beta) * g
            for m, g in zip(moments, (gradient @ gradient.T, gradient.T @ gradient), strict=True)
        ]
        if t % every == 0:
            for side in (0, 1):
                variances = torch.diag(bases[side].T @ moments[side] @ bases[side])
                order = torch.argsort(variances, descending=True)
                square = square[order] if side == 0 else square[:, order]
                bases[side] = torch.linalg.qr(moments[side] @ bases[side][:, order])[0]
    return weight


@pytest.mark.parametrize("every", [1, 3])
def test_many_matrices_at_once_are_the_papers_algorithm_on_each(every):
    gradients = [matrices(seed) for seed in range(9)]
    found = stepped(gradients, betas=(0.9, 0.9), weight_decay=0.3, basis_every=every)
    for place, weight in enumerate(found):
        expected = plain([of_step[place] for of_step in gradients], 0.1, 0.9, 1e-8, every, 0.3)
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-9)


def test_a_constant_gradient_gives_steps_along_its_orthogonal_factor():
    """In the basis of its singular vectors it is diagonal, and Adam steps by its sign: -lr U V^T."""
    gradient = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(gradient)
    (found,) = stepped([[gradient]] * 6)
    torch.testing.assert_close(found, -5 * 0.1 * left @ right, rtol=1e-5, atol=1e-6)


def test_rotated_gradients_give_rotated_steps():
    """Which holds of no elementwise method; AdamW is the control."""
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(8)]
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in (5, 4))
    rotated = [left @ gradient @ right for gradient in gradients]
    (plainly,), (turned,) = (stepped([[g] for g in of], basis_every=1) for of in (gradients, rotated))
    torch.testing.assert_close(turned, left @ plainly @ right, rtol=1e-7, atol=1e-8)

    adamw = []
    for of in (gradients, rotated):
        weight = nn.Parameter(torch.zeros_like(gradients[0]))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for gradient in of:
            weight.grad = gradient
            optimizer.step()
        adamw.append(weight.detach())
    assert (adamw[1] - left @ adamw[0] @ right).abs().max() > 0.05


def test_it_goes_on_from_a_state_dict_bit_for_bit():
    gradients = [matrices(seed) for seed in range(8)]
    whole = stepped(gradients, basis_every=3)
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients[0]]
    optimizer = SOAP(weights, lr=0.1, basis_every=3)
    for number, of_step in enumerate(gradients):
        if number == 5:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = SOAP(weights, lr=math.pi)
            optimizer.load_state_dict(saved)
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    assert all(torch.equal(weight, expected) for weight, expected in zip(weights, whole, strict=True))


def test_matrices_that_part_company_and_meet_again_each_go_their_own_way():
    """Alone among its like, a matrix steps as one that was never with them."""
    gradients = [matrices(seed)[:2] for seed in range(9)]
    given = [(0, 1), (0, 1), (0,), (0, 1), (1,), (0, 1), (0, 1), (1,), (0,)]  # at each step, which of the two
    weights = [nn.Parameter(torch.zeros(SHAPES[0], dtype=torch.float64)) for _ in range(2)]
    optimizer = SOAP(weights, lr=0.1, betas=(0.9, 0.9), basis_every=2)
    for of_step, which in zip(gradients, given, strict=True):
        for place, weight in enumerate(weights):
            weight.grad = of_step[place].clone() if place in which else None
        optimizer.step()
    for place, weight in enumerate(weights):
        own = [of_step[place] for of_step, which in zip(gradients, given, strict=True) if place in which]
        torch.testing.assert_close(weight.detach(), plain(own, 0.1, 0.9, 1e-8, 2, 0.0), rtol=1e-9, atol=1e-9)


def test_states_of_one_shape_stay_in_one_tensor_and_are_saved_apart():
    weights = [nn.Parameter(torch.zeros(3, 2)) for _ in range(2)]
    optimizer = SOAP(weights, lr=0.1, basis_every=2)
    places = []
    for seed in range(6):
        for weight in weights:
            weight.grad = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        places.append([[value.data_ptr() for value in list(optimizer.state[w].values())[1:]] for w in weights])
    assert places[0] == places[-1]
    assert [value.shape for value in list(optimizer.state_dict()["state"][1].values())[1:]] == [
        *[(3, 2)] * 2, (3, 3), (2, 2), (3, 3), (2, 2)
    ]  # fmt: skip


def test_a_matrix_without_gradients_stays_and_one_of_zeros_moves_nothing():
    weights = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizer = SOAP(weights, lr=0.1)
    for _ in range(3):
        weights[1].grad = torch.zeros(3, 2)
        optimizer.step()
    assert all(torch.equal(weight, torch.ones(3, 2)) for weight in weights)
