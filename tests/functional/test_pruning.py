"""Which heads to keep: by hand, against plain loops, and on risks whose best allocation is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from lightning_icl.functional.errors import InputError, check_each_once
from lightning_icl.functional.heads import full_mask, single_removals
from lightning_icl.functional.pruning import (
    GreedyRemoval,
    ImportanceThreshold,
    PaperPruning,
    PruningCase,
    TopHeads,
    keep_lists,
    keep_top,
    mean_half_width,
    n_choices,
    pruning_controls,
    random_choices,
    rank_among,
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


def test_the_least_important_by_hand():
    assert keep_top(-RAGGED).int().tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]


def test_a_layer_without_heads_keeps_none():
    assert keep_top(EMPTY_LAYER).int().tolist() == [[0, 1], [0, 0], [1, 0]]
    assert keep_top(-EMPTY_LAYER).int().tolist() == [[1, 0], [0, 0], [1, 0]]
    assert random_choices(~EMPTY_LAYER.isnan(), 3, generator()).tolist() == [[[1, 1], [0, 0], [1, 0]]]


def test_ties_keep_one_head():
    tied = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, NAN]])
    for kept in (keep_top(tied), keep_top(-tied)):
        assert kept.sum(dim=1).tolist() == [1, 1]
        assert not kept[1, 2]


LIVING = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]]).bool()


def test_random_choices_are_all_of_them_once_or_a_uniform_sample():
    assert n_choices(LIVING) == 6
    every = random_choices(LIVING, 9, generator())
    expected = {(a, 1, b) for a in (0, 2, 3) for b in (0, 1)}
    assert {tuple(mask[1:].argmax(dim=1).tolist()) for mask in every} == expected
    assert len(every) == 6
    assert (every[:, 0] == LIVING[0]).all()
    assert (every[:, 1:].sum(dim=2) == 1).all()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    shared, draws = generator(), 3000
    for n in (2, 6):  # by draws until 2 differ; the first 2 of all in random order
        kept = torch.stack([random_choices(LIVING, n, shared)[:2] for _ in range(draws)]).double()
        assert (kept[:, 0] != kept[:, 1]).flatten(1).any(dim=1).all()
        for layer, alive in enumerate(LIVING[1:], start=1):
            share = 1 / int(alive.sum())
            margin = 4 * math.sqrt(share * (1 - share) / draws)
            assert (kept[:, :, layer].mean(dim=0) - share * alive.double()).abs().max() <= margin
    assert torch.equal(torch.get_rng_state(), before)
    wide = torch.ones(9, 9, dtype=torch.bool)
    assert torch.equal(random_choices(wide, 4, generator(5)), random_choices(wide, 4, generator(5)))


# Controls


def test_pruning_controls_by_hand():
    masks = pruning_controls(RAGGED, 1, generator())
    assert list(masks) == ["prune_layer1_instead", "random_head", "least_important"]
    assert masks["prune_layer1_instead"].tolist() == [[[0, 1, 0], [1, 0, 0], [1, 1, 0]]]
    assert masks["least_important"].tolist() == [[[1, 1, 1], [1, 0, 0], [1, 0, 0]]]
    later = ([1, 0, 0], [0, 1, 0])
    assert sorted(masks["random_head"].tolist()) == sorted([[1, 1, 1], [1, 0, 0], row] for row in later)


@pytest.mark.parametrize(
    ("heads", "n_random", "expected"),
    [([9, 8, 16], 3, 128), ([1, 3, 43], 3, 3), ([1, 3, 43], 200, 129), ([2] * 60, 5, 5)],
)
def test_every_choice_is_a_control_where_there_are_at_most_128(heads, n_random, expected):
    raw = torch.zeros(len(heads), max(heads)).masked_fill(full_mask(heads) == 0, NAN)
    first, second = (pruning_controls(raw, n_random, generator(1))["random_head"] for _ in range(2))
    assert torch.equal(first, second)
    assert len(first) == len(first.unique(dim=0)) == expected
    if expected < 128:
        assert not torch.equal(first, pruning_controls(raw, n_random, generator(2))["random_head"])
    assert (first[:, 1:].sum(dim=2) == 1).all()
    assert (first * (1 - full_mask(heads))).sum() == 0


# Intervals over choices of heads, and ranks


def test_half_widths_by_hand():
    values = torch.randn(5, 40, generator=generator(), dtype=torch.float64) + torch.arange(5.0)[:, None]
    prompts, draws = values.numpy().mean(axis=0), values.numpy().mean(axis=1)
    over_prompts = student.ppf(0.975, 39) * prompts.std(ddof=1) / math.sqrt(40)
    over_draws = student.ppf(0.975, 4) * draws.std(ddof=1) / math.sqrt(5)
    assert mean_half_width(values, 5) == pytest.approx(over_prompts, rel=0.01)  # every choice: no luck of the draw
    assert mean_half_width(values, 20) == pytest.approx(math.hypot(over_prompts, over_draws * 0.75**0.5), rel=0.01)
    alike = values[:1].expand(3, -1)
    assert mean_half_width(alike, 99) == pytest.approx(mean_half_width(values[:1], 1))
    assert math.isnan(mean_half_width(values[:1], 99))  # one draw does not say how far draws differ


def planted_values(n, draws, batch, between, generator):
    """(draws, batch) errors of ``draws`` of n choices, and their mean over all choices and prompts."""
    effects = between * torch.randn(n, generator=generator, dtype=torch.float64)
    prompts = torch.randn(batch, generator=generator, dtype=torch.float64)
    both = torch.randn(draws, batch, generator=generator, dtype=torch.float64)
    drawn = effects[torch.randperm(n, generator=generator)[:draws]]
    return drawn[:, None] + prompts + 0.5 * both, float(effects.mean())


@pytest.mark.parametrize("n", [64, 4096])
@pytest.mark.parametrize("draws", [2, 8, 64])
@pytest.mark.parametrize("between", [0.0, 0.1, 1.0])
def test_95_percent_intervals_over_choices_and_prompts_hold(n, draws, between):
    shared, sets = generator(), 600
    held = []
    for _ in range(sets):
        values, true = planted_values(n, draws, 100, between, shared)
        held.append(abs(float(values.mean()) - true) <= mean_half_width(values, n))
    print(f"of {n}, {draws} draws, {between} apart: {sum(held) / sets:.1%}")
    assert sum(held) / sets >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / sets)
    # Both parts count the noise of a draw on these prompts, so few draws that hardly differ give wide intervals.
    assert sum(held) / sets <= 0.99 or between < 1 or draws == 2


def test_ranks_by_hand():
    values = torch.tensor([3.0, 1.0, 2.0, 5.0])[:, None] + torch.tensor([0.0, 1.0, -1.0])  # the same noise in all
    noisy = torch.tensor([[2.9, 9.0, -3.0]])
    assert rank_among(values[0], values[1:]) == (3, 3, 3)
    assert rank_among(values[3], values[:3]) == (4, 4, 4)
    assert rank_among(values[0], torch.cat([values[1:], noisy])) == (4, 3, 4)  # 2.97, but not surely


def test_95_percent_intervals_of_ranks_hold_also_among_equals():
    shared, held = generator(), []
    for i in range(300):
        risks = torch.linspace(0, 1.5, 40, dtype=torch.float64).sub(0.5).clamp_min(0)  # the first 14 are equal
        mine = i % 40
        values = risks[:, None] + torch.randn(40, 50, generator=shared, dtype=torch.float64)
        others = torch.arange(40) != mine
        rank = rank_among(values[mine], values[others])
        true_low, true_high = 1 + int((risks < risks[mine]).sum()), int((risks <= risks[mine]).sum())
        held.append(rank.low <= true_low and rank.high >= true_high)
        assert rank.low <= rank.value <= rank.high
    print(f"ranks: {np.mean(held):.1%}")
    assert np.mean(held) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300)


def test_a_single_layer_is_pruned_only_by_the_layer_1_control():
    raw = torch.tensor([[0.1, 0.9]])
    kept = {name: masks.tolist() for name, masks in pruning_controls(raw, 2, generator()).items()}
    assert kept.pop("prune_layer1_instead") == [[[0, 1]]]
    assert all(mask == [[[1, 1]]] for mask in kept.values())
    assert n_choices(~raw.isnan()) == 1
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

    path = PruningCase(torch.zeros(full_mask(heads).shape).masked_fill(full_mask(heads) == 0, NAN), errors).path(
        n_heads
    )
    removed, risks = [], [risk(kept)]
    while len(kept) > n_heads:
        without = {gone: risk([head for head in kept if head != gone]) for gone in kept}
        cheapest = min(without, key=without.get)
        kept.remove(cheapest)
        removed.append((cheapest[0] + 1, cheapest[1] + 1))
        risks.append(without[cheapest])
    assert path.removed == removed
    torch.testing.assert_close([float(of.mean()) for of in path.errors], risks, rtol=1e-12, atol=0)
    assert path.heads_left == list(range(sum(heads), min(n_heads, sum(heads)) - 1, -1))
    assert path.masks[0].sum(dim=1).tolist() == list(heads)


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

    worth = torch.zeros(2, 3).masked_fill(full_mask([3, 2]) == 0, NAN)
    shared = PruningCase(worth, errors)
    first = shared.path(3)
    assert asked == [1, 5, 4]
    assert shared.path(4) is first
    assert torch.equal(GreedyRemoval(4).keep(shared), first.masks[1])
    longer = shared.path(1)
    assert first.heads_left == [5, 4, 3]  # whoever asked for less has that
    assert asked == [1, 5, 4, 3, 2]
    whole = PruningCase(worth, interacting_errors([3, 2])).path(1)
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
    check_each_once("strategies", [s.key for s in strategies])
    with pytest.raises(InputError, match="strategies has top_12 2 times, but each must be there once"):
        check_each_once("strategies", [s.key for s in [*strategies, TopHeads(12)]])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TopHeads(0), "n_heads is 0, but it must be at least 1"),
        (lambda: GreedyRemoval(-2), "n_heads is -2, but it must be at least 1"),
        (lambda: GreedyRemoval(25).check(24), "greedy_25: n_heads is 25, but the model has 24 heads"),
        (lambda: ImportanceThreshold(-0.1), "threshold is -0.1, but it must be a finite number"),
        (lambda: ImportanceThreshold(NAN), "threshold is nan, but it must be a finite number"),
        (lambda: pruning_controls(RAGGED, 0, generator()), "n_random is 0"),
    ],
)
def test_bad_options_are_named(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
