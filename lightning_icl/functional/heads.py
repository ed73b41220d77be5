"""Which attention heads matter: ablation, importance, and which heads to keep.

Everything here is "run with this mask". A head mask is (layers, heads of the widest layer): 1 keeps a head, 0 ablates
it; where a layer has fewer heads, the rest of its row is 0 and ignored. Definitions: PAPER.md sections 4 and 5.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
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


def keep_top(raw: Float[Tensor, "layers heads"], n: int = 1) -> Bool[Tensor, "layers heads"]:
    """The ``n`` most important heads of each layer (all of a layer that has fewer)."""
    return _keep_extreme(raw.nan_to_num(nan=-torch.inf), n, largest=True) & ~raw.isnan()


def keep_least(raw: Float[Tensor, "layers heads"]) -> Bool[Tensor, "layers heads"]:
    """The least important head of each layer."""
    return _keep_extreme(raw.nan_to_num(nan=torch.inf), 1, largest=False)


def _keep_extreme(scores: Tensor, n: int, largest: bool) -> Tensor:
    best = scores.topk(min(n, scores.shape[1]), dim=1, largest=largest).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


def keep_random(heads: Sequence[int], generator: Generator) -> Bool[Tensor, "layers heads"]:
    """One uniformly drawn head of each layer (CPU generator)."""
    drawn: Int[Tensor, " layers"] = torch.stack([torch.randint(h, (), generator=generator) for h in heads])
    return torch.nn.functional.one_hot(drawn, max(heads)).bool()


def pruning_masks(
    raw: Float[Tensor, "layers heads"], heads: Sequence[int], n_random: int, generator: Generator
) -> dict[str, Float[Tensor, "variants layers heads"]]:
    """The pruned model of PAPER.md section 5 and its mask-only controls.

    full: every head. pruned: all of layer 1, the top head of each later layer. prune_layer1_instead: the top head of
    layer 1, all later heads. random_head: all of layer 1, a random head of each later layer (``n_random`` draws).
    least_important: all of layer 1, the least important head of each later layer. One mask each but for random_head.
    """
    if n_random < 1:
        raise InputError(f"n_random is {n_random}, but the random-head control needs at least 1 draw.")
    full = full_mask(heads).to(raw.device)

    def later_layers_keep(kept: Tensor) -> Tensor:
        return torch.cat([full[:1], kept[1:].to(full)])

    top = keep_top(raw)
    draws = [keep_random(heads, generator).to(raw.device) for _ in range(n_random)]
    return {
        "full": full[None],
        "pruned": later_layers_keep(top)[None],
        "prune_layer1_instead": torch.cat([top[:1].to(full), full[1:]])[None],
        "random_head": torch.stack([later_layers_keep(kept) for kept in draws]),
        "least_important": later_layers_keep(keep_least(raw))[None],
    }
