"""How far the same heads do the work in two networks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.heads import ImportanceScores, importance_scores, prompt_weights
from lightning_icl.functional.risk import bootstrap_interval


class HeadPattern(NamedTuple):
    """Which heads do the work in two networks, by leave-one-out importance on the same prompts.

    Attributes:
        model, other: the scores of each.
        overlap: of each layer 1 - 1/2 sum_h |share_h - share'_h|: the part of the work that the same heads do. NaN
            where one of the two has no shares there.
        interval: its 95 % interval by the symmetric bootstrap over prompts, cut to [0, 1]; all of that where a layer's
            total is closer to zero than two of its intervals (see ImportanceScores).
    """

    model: ImportanceScores
    other: ImportanceScores
    overlap: Float[Tensor, " layers"]
    interval: Float[Tensor, "bounds layers"]


def head_pattern(
    values: Float[Tensor, "heads batch"],
    other_values: Float[Tensor, "other_heads batch"],
    heads: Sequence[int],
    other_heads: Sequence[int],
    in_order: bool,
) -> HeadPattern:
    """The pattern from leave-one-out values on each prompt, heads in layer order, as ``values_by_score`` gives them.

    Heads are matched as they are numbered where they stand ``in_order``, as in a model trained from the other; else by
    size, the largest share with the largest.
    """
    weights = prompt_weights(values)
    scores = importance_scores(values, heads, weights), importance_scores(other_values, other_heads, weights)
    overlaps, intervals = [], []
    by_layer = zip(values.split(list(heads)), other_values.split(list(other_heads)), strict=True)
    for layer, (mine, theirs) in enumerate(by_layer):
        overlap = _overlap(mine.mean(dim=1), theirs.mean(dim=1), in_order)
        interval = bootstrap_interval(overlap, _overlap(weights @ mine.T, weights @ theirs.T, in_order)).clamp(0, 1)
        lows = torch.stack([of.total.interval[0, layer] for of in scores])
        totals = torch.stack([of.total.value[layer] for of in scores])
        if not (lows > totals - lows).all():  # weak, as in importance_scores
            interval = torch.stack([0 * overlap, 0 * overlap + 1])
        hidden = not (lows > 0).all()
        overlaps.append(torch.nan * overlap if hidden else overlap)
        intervals.append(torch.nan * interval if hidden else interval)
    return HeadPattern(*scores, torch.stack(overlaps), torch.stack(intervals, dim=1))


def _overlap(
    worth: Float[Tensor, "*draws heads"], other_worth: Float[Tensor, "*draws other_heads"], in_order: bool
) -> Float[Tensor, "*draws"]:
    shares, widest = [], max(worth.shape[-1], other_worth.shape[-1])
    for of in (worth, other_worth):
        share = of.clamp(min=0) / of.clamp(min=0).sum(dim=-1, keepdim=True)
        share = share if in_order else share.sort(dim=-1, descending=True).values
        shares.append(torch.nn.functional.pad(share, (0, widest - share.shape[-1])))
    return 1 - (shares[0] - shares[1]).abs().sum(dim=-1) / 2
