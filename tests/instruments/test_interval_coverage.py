"""Do the 95 % intervals hold? Many fresh sets of prompts against the values on very many."""

import math

import pytest
import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.heads import importance_scores
from lightning_icl.functional.prompts import concatenated
from lightning_icl.instruments.ablation import AblatedHeads
from lightning_icl.instruments.importance import values_by_score

TASK, HEADS, MEAN_REFERENCE = SparseLinearRegression(3, 2, noise_std=0.3), [3, 2], 8
QUANTITIES = ("raw", "total", "share", "effective_heads", "top_share")


def sampled(n_prompts, seed):
    return TASK.sample(n_prompts, 4, 2, torch.Generator().manual_seed(seed))


def untrained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(3, d_model=12, heads=HEADS, mlp=False)


def trained(steps=800):
    transformer, generator = untrained(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(transformer.parameters(), 5e-3)
    for _ in range(steps):
        prompt = TASK.sample(64, 4, 4, generator)
        loss = (transformer.on_prompt(prompt).prediction - prompt.f_query).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return transformer


def values(transformer, n_prompts, seed):
    """Every score's values on fresh prompts, which the reference prompts are drawn apart from."""
    reference = sampled(n_prompts, seed + 10_000)
    more = concatenated([reference, sampled((MEAN_REFERENCE - 1) * n_prompts, seed + 20_000)])
    ablations = [AblatedHeads(), AblatedHeads("mean", more), AblatedHeads("resample", reference)]
    return values_by_score(transformer, sampled(n_prompts, seed), ablations=ablations, chunk_size=4096)[1]


def true_values(transformer, n_prompts):
    return {name: importance_scores(value, HEADS) for name, value in values(transformer, n_prompts, 1).items()}


def coverage(transformer, truth, n_sets, n_prompts):
    """By (score, quantity): the part of the sets that have an interval, and of those, the part that covers it."""
    sets = [values(transformer, n_prompts, 100 + i) for i in range(n_sets)]
    found = {}
    for name, true in truth.items():
        scores = [importance_scores(each[name], HEADS) for each in sets]
        for quantity in QUANTITIES:
            low, high = torch.stack([getattr(score, quantity).interval for score in scores]).unbind(dim=1)
            expected = getattr(true, quantity).value
            real = ~true.raw.value.isnan() if expected.dim() == 2 else torch.ones(len(HEADS), dtype=torch.bool)
            reported = ~low.isnan()
            rounding = 1e-9 * true.raw.value.abs().nan_to_num().max()
            covers = (low <= expected + rounding) & (expected - rounding <= high)
            n_reported = reported.sum(dim=0)
            found[name, quantity] = (
                (n_reported / n_sets)[real],
                ((covers & reported).sum(dim=0) / n_reported)[real],
                expected[real],
            )
    return found


def table(found):
    for (name, quantity), (reported, covered, expected) in found.items():
        rows = ", ".join(
            f"{c:.1%} of {r:.0%} ({e:.3g})" for r, c, e in zip(reported, covered, expected, strict=True) if r > 0
        )
        print(f"{name:24} {quantity:16} {rows or 'never reported'}")


def on_the_edge(quantity, expected):
    """Values within 1 % of the end of what is possible: intervals are cut there, and so miss on one side at most."""
    n_heads = torch.tensor(HEADS)
    match quantity:
        case "share":
            return expected < 0.01
        case "effective_heads":
            return expected > 0.99 * n_heads
        case "top_share":
            return expected < 1.01 / n_heads
    return torch.zeros_like(expected, dtype=torch.bool)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("make", [untrained, trained])
def test_95_percent_intervals_cover_the_value_90_to_99_percent_of_the_time(make):
    transformer = make()
    found = coverage(transformer, true_values(transformer, 200_000), n_sets=200, n_prompts=512)
    table(found)
    for (name, quantity), (reported, covered, expected) in found.items():
        # A layer whose total is above noise in few of the sets has shares by luck.
        judged = reported >= 0.5
        assert judged.all() or quantity not in ("raw", "total")
        assert (covered[judged] >= 0.9).all(), (name, quantity, covered)
        inside = judged & ~on_the_edge(quantity, expected)
        assert (covered[inside] <= 0.99).all(), (name, quantity, covered)


def test_intervals_of_scores_cover_the_value_in_small():
    transformer, n_sets = untrained(), 25
    found = coverage(transformer, true_values(transformer, 6_000), n_sets, n_prompts=128)
    margin = 4 * math.sqrt(0.95 * 0.05 / n_sets)
    for (name, quantity), (reported, covered, _) in found.items():
        if quantity in ("raw", "total"):
            assert (reported == 1).all()
            assert (covered >= 0.95 - margin).all(), (name, quantity, covered)
