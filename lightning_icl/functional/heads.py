"""Which attention heads matter: ablation and importance.

Everything here is "run with this mask". A head mask is (layers, heads of the widest layer): 1 keeps a head, 0 ablates
it; where a layer has fewer heads, the rest of its row is 0 and ignored. Definitions: PAPER.md section 4.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.risk import jackknife_errors, mean_and_standard_error, squared_errors

HeadMask = Float[Tensor, "layers heads"]


def full_mask(heads: Sequence[int]) -> HeadMask:
    """The mask that keeps every head of a model with ``heads[l]`` heads in layer l + 1."""
    return (torch.arange(max(heads)) < torch.tensor(list(heads))[:, None]).float()


def leave_one_out_masks(heads: Sequence[int]) -> Float[Tensor, "ablations layers heads"]:
    """One mask per head, in layer order, that ablates this head alone."""
    full = full_mask(heads)
    masks = full.expand(sum(heads), -1, -1).clone()
    layer, head = full.nonzero(as_tuple=True)
    masks[torch.arange(sum(heads)), layer, head] = 0
    return masks


def masked_errors(
    predict: Callable[[Tensor], Tensor], f_query: Float[Tensor, "batch queries"], masks: Iterable[Tensor]
) -> Float[Tensor, "masks batch"]:
    """Squared error of each prompt under each head mask; ``predict`` maps a mask to predictions (batch, queries)."""
    return torch.stack([squared_errors(predict(mask), f_query) for mask in masks])


class ImportanceScores(NamedTuple):
    """What ablating each head costs, on one set of prompts; NaN where a layer has no such head.

    Attributes:
        raw: I = excess risk without the head - excess risk of the full model, in squared label units.
        standard_error: of ``raw``, over prompts, paired (both models see the same prompts).
        share: max(I, 0) / sum over the layer of max(I, 0). NaN for a layer whose summed I is not above 1.96 of its
            own standard errors: such a layer's shares would be shares of noise.
        effective_heads: exp(entropy of the shares), from 1 (one head does it all) to the number of heads.
        top_share: the largest share of each layer.
        share_error, effective_error, top_error: standard errors of these three, by the jackknife over prompts.
    """

    raw: Float[Tensor, "layers heads"]
    standard_error: Float[Tensor, "layers heads"]
    share: Float[Tensor, "layers heads"]
    effective_heads: Float[Tensor, " layers"]
    top_share: Float[Tensor, " layers"]
    share_error: Float[Tensor, "layers heads"]
    effective_error: Float[Tensor, " layers"]
    top_error: Float[Tensor, " layers"]


def head_importance(
    full_errors: Float[Tensor, " batch"], ablated_errors: Float[Tensor, "ablations batch"], heads: Sequence[int]
) -> ImportanceScores:
    """Leave-one-out importance from the per-prompt errors of the full model and of each ablation in layer order."""
    cost = (ablated_errors - full_errors).T
    mean, error = mean_and_standard_error(cost)
    total_mean, total_error = mean_and_standard_error(
        torch.stack([layer.sum(dim=1) for layer in cost.split(list(heads), dim=1)], dim=1)
    )
    raw = _by_layer(mean, heads)
    shares, errors = _shares(raw), jackknife_errors(cost, lambda means: _shares(_by_layer(means, heads)))
    within_noise = ~(total_mean > 1.96 * total_error)
    no_share = raw.isnan() | within_noise[:, None]
    masks = (no_share, within_noise, within_noise)
    return ImportanceScores(
        raw,
        _by_layer(error, heads),
        *(value.masked_fill(mask, torch.nan) for value, mask in zip((*shares, *errors), (*masks, *masks), strict=True)),
    )


def _shares(
    raw: Float[Tensor, "*batch layers heads"],
) -> tuple[Float[Tensor, "*batch layers heads"], Float[Tensor, "*batch layers"], Float[Tensor, "*batch layers"]]:
    """Shares, effective number of heads and top share of each layer (NaN where no head has a positive score)."""
    positive = raw.nan_to_num().clamp(min=0)
    share = positive / positive.sum(dim=-1, keepdim=True)
    return share, (-torch.special.xlogy(share, share).sum(dim=-1)).exp(), share.amax(dim=-1)


def _by_layer(values: Float[Tensor, "*batch ablations"], heads: Sequence[int]) -> Float[Tensor, "*batch layers heads"]:
    shape = (*values.shape[:-1], len(heads), max(heads))
    table = torch.full(shape, torch.nan, dtype=values.dtype, device=values.device)
    table[..., full_mask(heads).bool().to(values.device)] = values
    return table
