"""Which heads to keep: by hand, against plain loops, and on risks whose best allocation is known."""

import itertools
import math

import pytest
import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask, single_removals
from lightning_icl.functional.pruning import (
    GreedyRemoval,
    ImportanceThreshold,
    PaperPruning,
    PruningCase,
    TopHeads,
    check_strategies,
    greedy_path,
    keep_least,
    keep_lists,
    keep_random,
    keep_top,
    pruning_controls,
)

NAN = math.nan
RAGGED = torch.tensor([[0.2, 0.5, -0.1], [-0.3, NAN, NAN], [0.1, 0.7, NAN]])  # raw importance of heads [3, 1, 2]
EMPTY_LAYER = torch.tensor([[0.2, 0.5], [NAN, NAN], [0.1, NAN]])  # heads [2, 0, 1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def additive_errors(worth, n=7):
    """Errors whose mean is 1 plus the worth of the heads that are missing; every prompt sees a worth of its own."""
    per_prompt = worth.nan_to_num() * torch.linspace(0.5, 1.5, n, dtype=torch.float64)[:, None, None]
    return lambda masks: 1 + ((1 - masks.double())[:, None] * per_prompt).sum(dim=(2, 3))


def case(worth, errors=None):
    return PruningCase(worth, errors or additive_errors(worth))


# One head or several of each layer


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


def test_a_layer_without_heads_keeps_none():
    assert keep_top(EMPTY_LAYER).int().tolist() == [[0, 1], [0, 0], [1, 0]]
    assert keep_least(EMPTY_LAYER).int().tolist() == [[1, 0], [0, 0], [1, 0]]
    assert keep_random(~EMPTY_LAYER.isnan(), generator())[1:].int().tolist() == [[0, 0], [1, 0]]


def test_ties_keep_one_head():
    tied = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, NAN]])
    for kept in (keep_top(tied), keep_least(tied)):
        assert kept.sum(dim=1).tolist() == [1, 1]
        assert not kept[1, 2]


def test_keep_random_is_uniform_over_the_heads_a_layer_has():
    living, draws, shared = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]]).bool(), 4000, generator()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kept = torch.stack([keep_random(living, shared) for _ in range(draws)]).double()
    assert torch.equal(torch.get_rng_state(), before)
    assert (kept.sum(dim=2) == 1).all()
    for layer, alive in enumerate(living):
        share = 1 / int(alive.sum())
        margin = 4 * math.sqrt(share * (1 - share) / draws)
        assert (kept[:, layer].mean(dim=0) - share * alive.double()).abs().max() <= margin
    wide = torch.ones(2, 9, dtype=torch.bool)
    assert torch.equal(keep_random(wide, generator(5)), keep_random(wide, generator(5)))


# Controls


def test_pruning_controls_by_hand():
    masks = pruning_controls(RAGGED, 5, generator())
    later = ([1, 0, 0], [0, 1, 0])
    assert list(masks) == ["prune_layer1_instead", "random_head", "least_important"]
    assert masks["prune_layer1_instead"].tolist() == [[[0, 1, 0], [1, 0, 0], [1, 1, 0]]]
    assert masks["least_important"].tolist() == [[[1, 1, 1], [1, 0, 0], [1, 0, 0]]]
    assert masks["random_head"].shape == (5, 3, 3)
    for draw in masks["random_head"].tolist():
        assert draw[:2] == [[1, 1, 1], [1, 0, 0]]
        assert draw[2] in later


def test_pruning_controls_draw_as_many_random_heads_as_asked_from_the_generator():
    raw = torch.zeros(3, 16)
    first, second = (pruning_controls(raw, 6, generator(1))["random_head"] for _ in range(2))
    other = pruning_controls(raw, 6, generator(2))["random_head"]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len({str(draw.tolist()) for draw in first}) > 1
    assert (first[:, 0] == 1).all()
    assert (first[:, 1:].sum(dim=2) == 1).all()


def test_a_single_layer_is_pruned_only_by_the_layer_1_control():
    raw = torch.tensor([[0.1, 0.9]])
    kept = {name: mask.unique(dim=0).tolist() for name, mask in pruning_controls(raw, 2, generator()).items()}
    assert kept.pop("prune_layer1_instead") == [[[0, 1]]]
    assert all(mask == [[[1, 1]]] for mask in kept.values())
    assert PaperPruning().keep(case(raw)).tolist() == [[1, 1]]


# Strategies


def test_each_strategy_by_hand():
    ragged = case(RAGGED)
    assert PaperPruning().keep(ragged).tolist() == [[1, 1, 1], [1, 0, 0], [0, 1, 0]]
    assert TopHeads(2).keep(ragged).tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert TopHeads().keep(ragged).tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]  # 5, as the paper's
    assert ImportanceThreshold(0.2).keep(ragged).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]  # full risk 1
    assert ImportanceThreshold(0.0).keep(ragged).tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert ImportanceThreshold(9.0).keep(ragged).sum() == 0
    assert GreedyRemoval(2).keep(ragged).tolist() == TopHeads(2).keep(ragged).tolist()  # risks add up
    assert int(GreedyRemoval().keep(ragged).sum()) == 5


def test_the_threshold_is_relative_to_the_full_models_risk():
    worth = torch.tensor([[0.3, 0.5]])
    errors = additive_errors(worth)
    assert ImportanceThreshold(0.2).keep(case(worth, lambda masks: 2 * errors(masks))).tolist() == [[0, 1]]


@pytest.mark.parametrize("worth", [RAGGED, EMPTY_LAYER, torch.tensor([[0.4]])], ids=["ragged", "0 heads", "1 head"])
def test_as_many_heads_as_there_are_keeps_all(worth):
    total = int((~worth.isnan()).sum())
    for strategy in (TopHeads(total), GreedyRemoval(total)):
        strategy.check(total)
        assert torch.equal(strategy.keep(case(worth)), (~worth.isnan()).float())
    assert PaperPruning().keep(case(worth)).isfinite().all()


def test_a_strategy_keeps_no_dead_head():
    worth = torch.tensor([[NAN, 0.3, 0.4], [-0.5, NAN, -0.1]])
    for strategy in (PaperPruning(), TopHeads(4), ImportanceThreshold(0.0), GreedyRemoval(4)):
        assert (strategy.keep(case(worth))[worth.isnan()] == 0).all()
    assert TopHeads(9).keep(case(worth)).sum() == GreedyRemoval(9).keep(case(worth)).sum() == 4
    assert case(worth).paper_total == 3


# Greedy removal


def interacting_errors(heads, seed=0, n=11):
    """Errors of a model whose heads make up for one another."""
    values = torch.randn(len(heads), max(heads), n, generator=generator(seed), dtype=torch.float64)
    target = (values * full_mask(heads)[..., None]).sum(dim=(0, 1)) + 0.3
    return lambda masks: ((masks.double()[..., None] * values).sum(dim=(1, 2)).tanh() - target.tanh()).square()


@pytest.mark.parametrize("heads", [[3, 1, 2], [1], [2, 0, 1], [4, 4]])
@pytest.mark.parametrize("n_heads", [0, 2])
def test_the_greedy_path_equals_a_plain_loop(heads, n_heads):
    errors = interacting_errors(heads)
    kept = [(layer, head) for layer, n in enumerate(heads) for head in range(n)]

    def risk(kept):
        mask = torch.zeros(len(heads), max(heads))
        for layer, head in kept:
            mask[layer, head] = 1
        return float(errors(mask[None])[0].mean())

    path = greedy_path(full_mask(heads), errors, n_heads)
    removed, risks = [], [risk(kept)]
    while len(kept) > n_heads:
        without = {gone: risk([head for head in kept if head != gone]) for gone in kept}
        cheapest = min(without, key=without.get)
        kept.remove(cheapest)
        removed.append((cheapest[0] + 1, cheapest[1] + 1))
        risks.append(without[cheapest])
    assert path.removed == removed
    torch.testing.assert_close(path.risks()[0].tolist(), risks, rtol=1e-12, atol=0)
    every = torch.stack(path.errors)
    torch.testing.assert_close(path.risks()[1], every.std(dim=1) / every.shape[1] ** 0.5)
    assert path.heads_left == list(range(sum(heads), min(n_heads, sum(heads)) - 1, -1))
    assert [sum(row) for row in path.allocation] == path.heads_left
    assert path.allocation[0] == list(heads)


def test_greedy_removal_scores_again_after_each_removal():
    """Two heads that say the same cost nothing one at a time; a third is worth a little: only re-scoring sees it."""

    def errors(masks):
        first, second, third = masks[:, 0].T.double()
        return (1.0 * (first + second == 0) + 0.1 * (third == 0))[:, None].expand(-1, 2)

    worth = torch.tensor([[0.0, 0.0, 0.1]])
    assert TopHeads(1).keep(case(worth, errors)).tolist() == [[0, 0, 1]]
    assert GreedyRemoval(1).keep(case(worth, errors)).sum() == 1
    assert GreedyRemoval(1).keep(case(worth, errors))[0, 2] == 0


def test_greedy_allocation_is_the_best_where_risks_add_up():
    worth = torch.rand(3, 3, generator=generator(), dtype=torch.float64)
    errors = additive_errors(worth)
    for total, mask in zip(*(lambda p: (p.heads_left, p.masks))(case(worth).path(0)), strict=True):
        all_masks = torch.stack(
            [
                torch.zeros(9).index_fill(0, torch.tensor(kept, dtype=torch.long), 1).unflatten(0, (3, 3))
                for kept in itertools.combinations(range(9), total)
            ]
        )
        best = errors(all_masks).mean(dim=1).min()
        assert float(errors(mask[None]).mean()) == pytest.approx(float(best), abs=1e-12)


def test_the_path_is_walked_once_and_further_only_where_asked():
    asked = []

    def errors(masks):
        asked.append(len(masks))
        return interacting_errors([3, 2])(masks)

    shared = PruningCase(torch.zeros(2, 3).masked_fill(full_mask([3, 2]) == 0, NAN), errors)
    first = shared.path(3)
    assert asked == [1, 5, 4]
    assert shared.path(4) is first
    assert torch.equal(shared.path(4).at(4), first.masks[1])
    longer = shared.path(1)
    whole = greedy_path(full_mask([3, 2]), interacting_errors([3, 2]), 1)
    assert longer.removed == whole.removed
    assert torch.equal(torch.stack(longer.errors), torch.stack(whole.errors))
    assert longer.heads_left == [5, 4, 3, 2, 1]


def test_single_removals_by_hand():
    assert single_removals(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])).tolist() == [
        [[0, 1], [0, 0], [1, 0]],
        [[1, 0], [0, 0], [1, 0]],
        [[1, 1], [0, 0], [0, 0]],
    ]


# Names and refusals


def test_keep_lists_count_from_1():
    assert keep_lists(torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, 0]])) == [[1, 2, 3], [2], []]


def test_keys_carry_the_settings():
    strategies = [PaperPruning(), TopHeads(), TopHeads(12), ImportanceThreshold(0.05), GreedyRemoval(8)]
    assert [s.key for s in strategies] == ["paper", "top", "top_12", "threshold_0.05", "greedy_8"]
    check_strategies(strategies)
    with pytest.raises(InputError, match="strategies has top_12 2 times, but each must be there once"):
        check_strategies([*strategies, TopHeads(12)])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TopHeads(0), "n_heads is 0, but TopHeads must keep at least 1 head"),
        (lambda: GreedyRemoval(-2), "n_heads is -2, but GreedyRemoval must keep at least 1 head"),
        (lambda: GreedyRemoval(25).check(24), "greedy_25: n_heads is 25, but the model has 24 heads"),
        (lambda: ImportanceThreshold(-0.1), "threshold is -0.1, but it must be a finite number"),
        (lambda: ImportanceThreshold(NAN), "threshold is nan, but it must be a finite number"),
        (lambda: pruning_controls(RAGGED, 0, generator()), "n_random is 0"),
    ],
)
def test_bad_options_are_named(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
