"""How far a network is another one, such as a construction, whatever the basis each is written in.

A network without norm computes the same in any basis of its residual stream, in any basis of each head's queries and
keys and of its values and outputs, with its heads in any order, and with a head split into two that add up to it. Under
linear attention keys and values can also change places: (1/n) sum_i <K h_i, Q h_k> O V h_i is of second degree in h_i
and does not say which factor was called the key. None of this is seen by what is measured here.

from lightning_icl.functional.constructions import ConstructedPreprocessThenGD
from lightning_icl.instruments.alignment import state_alignment, weight_alignment, written

other = written(ConstructedPreprocessThenGD(steps=3, step_size=0.2).network(8), n_dims=8)
state_alignment(transformer, other, fit, score)[2].beyond_input.value  # after layer 2
weight_alignment(transformer, other, fit, score)[1].cosine.value       # of layer 2
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.constructions import WrittenNetwork
from lightning_icl.functional.heads import ImportanceScores, importance_scores, prompt_weights
from lightning_icl.functional.risk import bootstrap_interval
from lightning_icl.instruments.state_alignment import StateAlignment, state_alignment
from lightning_icl.instruments.weight_alignment import LayerAlignment, weight_alignment
from lightning_icl.transformer import Transformer

__all__ = [
    "HeadPattern",
    "LayerAlignment",
    "StateAlignment",
    "head_pattern",
    "state_alignment",
    "weight_alignment",
    "written",
]


def written(network: WrittenNetwork, n_dims: int) -> Transformer:
    """The network as a Transformer, in float64."""
    with torch.device("meta"):  # untrained weights would be drawn from the global generator
        transformer = Transformer(n_dims, **network.options())
    transformer.load_state_dict(network.state(), assign=True)
    return transformer


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
