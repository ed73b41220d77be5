"""Which attention heads matter: ablation and importance.

Everything here is "run with this mask". A head mask is (layers, heads of the widest layer): 1 keeps a head, 0 ablates
it; where a layer has fewer heads, the rest of its row is 0 and ignored. Definitions: docs/explanation/science.md, Head
importance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from lightning_icl.functional import risk
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.risk import Measured, measured_mean

DRAWS = 1000  # of the bootstrap
HeadMask = Float[Tensor, "layers heads"]
HeadMasks = Float[Tensor, "masks layers heads"]


def full_mask(heads: Sequence[int]) -> HeadMask:
    """The mask that keeps every head of a model with ``heads[l]`` heads in layer l + 1.

    Example:
        >>> from lightning_icl.functional.heads import full_mask
        >>> full_mask([1, 2])  # layer 1 has one head, layer 2 has two
        tensor([[1., 0.],
                [1., 1.]])
    """
    return (torch.arange(max(heads, default=0)) < torch.tensor(list(heads))[:, None]).float()


def single_removals(mask: HeadMask) -> HeadMasks:
    """The mask without one of its heads, for each in layer order.

    Example:
        >>> from lightning_icl.functional.heads import full_mask, single_removals
        >>> single_removals(full_mask([1, 2])).flatten(1)
        tensor([[0., 0., 1., 1.],
                [1., 0., 0., 1.],
                [1., 0., 1., 0.]])
    """
    layer, head = mask.nonzero(as_tuple=True)
    masks = mask.expand(len(layer), -1, -1).clone()
    masks[torch.arange(len(layer)), layer, head] = 0
    return masks


def check_mask_shape(said: str, shape: Sequence[int], heads: Sequence[int]) -> None:
    """Refuse a mask of another shape than ``full_mask``; ``said`` is what the sentence says has it ("keep has")."""
    if tuple(shape) != (len(heads), max(heads, default=0)):
        expected = f"{(len(heads), max(heads, default=0))} (layers, heads of the widest layer)"
        raise InputError(f"{said} shape {tuple(shape)}, but this model needs {expected}.")


def layer_ablation_masks(heads: Sequence[int]) -> Float[Tensor, "layers layers heads"]:
    """One mask per layer that ablates all its heads.

    Example:
        >>> from lightning_icl.functional.heads import layer_ablation_masks
        >>> layer_ablation_masks([1, 2]).flatten(1)
        tensor([[0., 0., 1., 1.],
                [1., 0., 0., 0.]])
    """
    return full_mask(heads) * (1 - torch.eye(len(heads)))[..., None]


def leave_one_in_masks(heads: Sequence[int]) -> HeadMasks:
    """One mask per head, in layer order, that ablates all heads of its layer but this one.

    Example:
        >>> from lightning_icl.functional.heads import leave_one_in_masks
        >>> leave_one_in_masks([1, 2]).flatten(1)
        tensor([[1., 0., 1., 1.],
                [1., 0., 1., 0.],
                [1., 0., 0., 1.]])
    """
    full = full_mask(heads)
    return full - single_removals(full) + layer_ablation_masks(heads).repeat_interleave(torch.tensor(heads), 0)


def check_heads(heads: Sequence[int]) -> None:
    """Refuse a network without any."""
    if not any(heads):
        raise InputError("this network has no heads, but heads are what is looked at here.")


class ImportanceScores(NamedTuple):
    """What each head is worth on one set of prompts; NaN where a layer has no such head.

    A score is a mean over prompts of a value v for each head and prompt, such as the cost of leaving the head out.

    Attributes:
        raw: I = mean of v, in the units of the metric (squared label units for the excess risk); (layers, heads). Its
            standard error is over prompts, paired (all models see the same prompts), its interval by Student's t.
        share: max(I, 0) / sum over the layer of max(I, 0); (layers, heads). NaN for a layer whose total is not above
            its interval of zero: such a layer's shares would be shares of noise.
        effective_heads: exp(entropy of the shares), from 1 (one head does it all) to the number of heads; (layers,).
        top_share: the largest share of each layer.
        total: the sum of I over each layer, with errors and intervals like those of ``raw``.

    The standard errors of shares, effective heads and top share are by the jackknife over prompts, their intervals by
    the symmetric bootstrap over prompts: estimate +- the 95 % quantile of how far resampling moves it (for a share, of
    I / sum max(I, 0), which is not cut off at 0; for the top share, of the share that moves most), cut to the values
    these can have. max(I, 0) is positive also for a head whose true I is 0, so that several such heads beside one that
    works make the effective heads too many and the top share too small. The estimates stay as they are, and intervals
    are widened [ours]: the effective heads' also reaches as far down as where the heads whose own interval is not
    above 0 had a score of 0; shares and top share as far up as where those had whose interval is not, with intervals
    that hold at once for the layer's heads (Bonferroni).
    It is all possible values where the total is closer to zero than two of its intervals: that such a layer has shares
    at all is partly luck.
    """

    raw: Measured
    share: Measured
    effective_heads: Measured
    top_share: Measured
    total: Measured


def importance_scores(
    values: Float[Tensor, "ablations batch"],
    heads: Sequence[int],
    weights: Float[Tensor, "draws batch"] | None = None,
) -> ImportanceScores:
    """The scores whose values on each prompt, one row a head in layer order, are ``values``.

    Leave-one-out importance is that of the errors with the head ablated - the errors of the full model.
    ``weights`` are the bootstrap's, ``prompt_weights``, for several scores on the same prompts to share.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.heads import importance_scores
        >>> cost = torch.tensor([[2.0], [1.0], [1.0]]).expand(3, 100)  # of each head on each of 100 prompts
        >>> scores = importance_scores(cost, heads=[1, 2])
        >>> scores.share.value, scores.effective_heads.value
        (tensor([[1.0000,    nan],
                [0.5000, 0.5000]]), tensor([1., 2.]))
    """
    weights = prompt_weights(values) if weights is None else weights
    by_prompt = values.T
    raw = Measured(*(_by_layer(moment, heads) for moment in measured_mean(by_prompt)))
    total = measured_mean(torch.stack([of.sum(dim=1) for of in by_prompt.split(list(heads), dim=1)], dim=1))
    shares = _shares(raw.value)
    errors = risk.jackknife_errors(by_prompt, lambda means: _shares(_by_layer(means, heads)))
    weak = ~(total.interval[0] > total.value - total.interval[0])
    intervals = _share_intervals(raw, _by_layer(weights @ by_prompt, heads), heads, weak)
    within_noise = ~(total.interval[0] > 0)
    hidden = (raw.value.isnan() | within_noise[:, None], within_noise, within_noise)
    share, effective_heads, top_share = (
        Measured(*(part.masked_fill(where, torch.nan) for part in measured))
        for *measured, where in zip(shares, errors, intervals, hidden, strict=True)
    )
    return ImportanceScores(raw, share, effective_heads, top_share, total)


def prompt_weights(values: Float[Tensor, "*rest batch"]) -> Float[Tensor, "draws batch"]:
    """The weights of DRAWS resamples of the prompts, the same for any values of as many prompts.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.heads import prompt_weights
        >>> prompt_weights(torch.zeros(3, 100)).shape
        torch.Size([1000, 100])
    """
    return risk.bootstrap_weights(values.shape[-1], DRAWS, Generator().manual_seed(0)).to(values)


def _share_intervals(
    raw: Measured, resampled: Float[Tensor, "draws layers heads"], heads: Sequence[int], weak: Bool[Tensor, " layers"]
) -> list[Tensor]:
    """Intervals of what ``_shares`` returns, as ImportanceScores says; all possible values in ``weak`` layers."""
    (share, effective, top), (moved_share, moved_effective, _) = _shares(raw.value), _shares(resampled)
    uncut, moved_uncut = (of / of.nan_to_num().clamp(min=0).sum(-1, keepdim=True) for of in (raw.value, resampled))
    # The top share moves no more than the share that moves most. What resampling does to the top share itself says too
    # little of nearly equal heads: whichever is drawn as the top one, it lies above both.
    most_moved = (moved_share - share).abs().nan_to_num().amax(dim=-1)
    moved = moved_uncut - uncut, moved_effective - effective, most_moved
    halves = [risk.bootstrap_half_width(of) for of in moved]
    joint = torch.tensor([[risk.joint_quantile(max(n, 1))] for n in heads]).to(share)
    _, fewest, _ = _shares(raw.value * (raw.interval[0] > 0))
    largest_share, _, largest_top = _shares(raw.value * (raw.value > joint * raw.error))
    # Where no head is above zero there is no such value, which fmin and fmax pass over.
    lows = share - halves[0], effective.fmin(fewest) - halves[1], top - halves[2]
    highs = share.fmax(largest_share) + halves[0], effective + halves[1], top.fmax(largest_top) + halves[2]
    n_heads, one = torch.tensor(list(heads)).to(share), torch.ones(len(heads)).to(share)
    possible = ((0 * one[:, None], one[:, None]), (one, n_heads), (1 / n_heads, one))
    return [
        torch.stack([low.maximum(least).where(~wide, least), high.minimum(most).where(~wide, most)])
        for low, high, (least, most), wide in zip(lows, highs, possible, (weak[:, None], weak, weak), strict=True)
    ]


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
