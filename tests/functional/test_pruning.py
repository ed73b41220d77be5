"""Which heads to keep, spelled out by hand."""

import math

import pytest
import torch

from lightning_icl.functional.pruning import keep_least, keep_random, keep_top, pruning_masks

NAN = math.nan
RAGGED = torch.tensor([[0.2, 0.5, -0.1], [-0.3, NAN, NAN], [0.1, 0.7, NAN]])  # raw importance of heads [3, 1, 2]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [[0, 1, 0], [1, 0, 0], [0, 1, 0]]),
        (2, [[1, 1, 0], [1, 0, 0], [1, 1, 0]]),
        (3, [[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
        (9, [[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
    ],
)
def test_keep_top_by_hand(n, expected):
    assert keep_top(RAGGED, n).int().tolist() == expected


def test_keep_least_by_hand():
    assert keep_least(RAGGED).int().tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]


def test_ties_keep_one_head():
    tied = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, NAN]])
    for kept in (keep_top(tied), keep_least(tied)):
        assert kept.sum(dim=1).tolist() == [1, 1]
        assert not kept[1, 2]


def test_keep_random_is_uniform_over_the_heads_a_layer_has():
    heads, draws, shared = [3, 1, 2], 4000, generator()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kept = torch.stack([keep_random(heads, shared) for _ in range(draws)]).double()
    assert torch.equal(torch.get_rng_state(), before)
    assert (kept.sum(dim=2) == 1).all()
    for layer, h in enumerate(heads):
        margin = 4 * math.sqrt(1 / h * (1 - 1 / h) / draws)
        expected = [1 / h] * h + [0] * (3 - h)
        assert (kept[:, layer].mean(dim=0) - torch.tensor(expected).double()).abs().max() <= margin
    assert torch.equal(keep_random([9, 9], generator(5)), keep_random([9, 9], generator(5)))


def test_pruning_masks_by_hand():
    masks = pruning_masks(RAGGED, [3, 1, 2], 5, generator())
    everything, later = [[1, 1, 1], [1, 0, 0], [1, 1, 0]], ([1, 0, 0], [0, 1, 0])
    assert list(masks) == ["full", "pruned", "prune_layer1_instead", "random_head", "least_important"]
    assert masks["full"].tolist() == [everything]
    assert masks["pruned"].tolist() == [[[1, 1, 1], [1, 0, 0], [0, 1, 0]]]
    assert masks["prune_layer1_instead"].tolist() == [[[0, 1, 0], [1, 0, 0], [1, 1, 0]]]
    assert masks["least_important"].tolist() == [[[1, 1, 1], [1, 0, 0], [1, 0, 0]]]
    assert masks["random_head"].shape == (5, 3, 3)
    for draw in masks["random_head"].tolist():
        assert draw[:2] == everything[:2]
        assert draw[2] in later


def test_pruning_masks_draw_as_many_random_heads_as_asked_from_the_generator():
    raw = torch.zeros(3, 16)
    first, second = (pruning_masks(raw, [16] * 3, 6, generator(1))["random_head"] for _ in range(2))
    other = pruning_masks(raw, [16] * 3, 6, generator(2))["random_head"]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len({str(draw.tolist()) for draw in first}) > 1
    assert (first[:, 0] == 1).all()
    assert (first[:, 1:].sum(dim=2) == 1).all()


def test_a_single_layer_is_pruned_only_by_the_layer_1_control():
    masks = pruning_masks(torch.tensor([[0.1, 0.9]]), [2], 2, generator())
    kept = {name: mask.unique(dim=0).tolist() for name, mask in masks.items()}
    assert kept.pop("prune_layer1_instead") == [[[0, 1]]]
    assert all(mask == [[[1, 1]]] for mask in kept.values())
