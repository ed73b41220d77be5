"""Do two scores put the heads in the same order?"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.risk import bootstrap_interval


class Agreement(NamedTuple):
    """Spearman's rank correlation of two scores, from -1 to 1, with 95 % intervals over prompts.

    It is of the scores as measured: where their errors are as large as the differences between heads, noise pulls the
    correlation towards 0 and the interval with it.

    Attributes:
        overall: over all heads.
        interval: of ``overall``, lower bound first.
        by_layer: over the heads of each layer; NaN where it has fewer than two, or a score that is the same for all.
        by_layer_interval: of ``by_layer``.
    """

    overall: Float[Tensor, ""]
    interval: Float[Tensor, " bounds"]
    by_layer: Float[Tensor, " layers"]
    by_layer_interval: Float[Tensor, "bounds layers"]


def average_ranks(values: Float[Tensor, "*batch heads"]) -> Float[Tensor, "*batch heads"]:
    """Rank of each value among the last axis, from 1 for the smallest; tied values share the mean of their ranks.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.agreement import average_ranks
        >>> average_ranks(torch.tensor([0.1, 0.5, 0.5, 0.9]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    below = (values[..., None] > values[..., None, :]).sum(dim=-1)
    tied = (values[..., None] == values[..., None, :]).sum(dim=-1)
    return below + 0.5 * (tied + 1.0).to(values)


def rank_correlation(
    first: Float[Tensor, "*batch heads"], second: Float[Tensor, "*batch heads"]
) -> Float[Tensor, "*batch"]:
    """Spearman's rho: the correlation of the average ranks; NaN where all values of one are tied.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.agreement import rank_correlation
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
        tensor(0.5000)
    """
    ranks = [average_ranks(values) - (values.shape[-1] + 1) / 2 for values in (first, second)]
    products = [(a * b).sum(dim=-1) for a, b in ((ranks[0], ranks[1]), (ranks[0], ranks[0]), (ranks[1], ranks[1]))]
    return products[0] / (products[1] * products[2]).sqrt()


def rank_agreement(
    first: Float[Tensor, "heads batch"],
    second: Float[Tensor, "heads batch"],
    heads: Sequence[int],
    weights: Float[Tensor, "draws batch"],
) -> Agreement:
    """Agreement of two scores from each one's value per head (in layer order) and prompt, the same prompts in both.

    ``weights`` are those of a paired bootstrap: both scores are resampled over the same prompts.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.agreement import rank_agreement
        >>> from lightning_icl.functional.heads import prompt_weights
        >>> cost = torch.tensor([[2.0], [1.0], [3.0]]).expand(3, 100)
        >>> rank_agreement(cost, -cost, heads=[3], weights=prompt_weights(cost)).overall
        tensor(-1.)
    """
    means = [values.mean(dim=1) for values in (first, second)]
    resampled = [weights @ values.T for values in (first, second)]
    ends = torch.tensor([0, *heads]).cumsum(0).tolist()
    columns = [slice(0, ends[-1]), *(slice(a, b) for a, b in pairwise(ends))]
    rho = torch.stack([rank_correlation(means[0][c], means[1][c]) for c in columns])
    spread = torch.stack([rank_correlation(resampled[0][:, c], resampled[1][:, c]) for c in columns], dim=1)
    interval = bootstrap_interval(rho, spread).clamp(-1, 1)
    return Agreement(rho[0], interval[:, 0], rho[1:], interval[:, 1:])
