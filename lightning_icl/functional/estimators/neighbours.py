"""k nearest neighbours: the estimator that knows nothing of lines."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import X, Y, in_float64

DISTANCES_AT_ONCE = 2**22  # a prompt's points x queries, 32 MB; sorting them takes some three times that


def nearest_neighbours(
    x: X, y: Y, x_query: Float[Tensor, "batch queries dims"], k: int = 3
) -> Float[Tensor, "batch queries"]:
    """The mean label of the k examples nearest to each query in Euclidean distance; of all where there are fewer.

    Of examples equally far the earlier is nearer. Garg et al. 2022 compare with k = 3.
    """
    seen = torch.ones(x_query.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
    return _in_parts(x, y, x_query, seen, k)


def nearest_neighbours_prefixes(
    x: X, y: Y, targets: Float[Tensor, "batch points+1 dims"], k: int = 3
) -> Float[Tensor, "batch points+1"]:
    """``nearest_neighbours`` at every prefix: entry i is predicted from the first i examples, entry 0 without any is 0.

    ``targets`` holds the inputs to predict at, such as the examples followed by a query.
    """
    seen = torch.ones(targets.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(-1)
    return _in_parts(x, y, targets, seen, k)


def _in_parts(
    x: X, y: Y, x_query: Float[Tensor, "batch queries dims"], seen: Bool[Tensor, "queries points"], k: int
) -> Float[Tensor, "batch queries"]:
    """Some prompts after others, so that their distances fit in memory."""
    if k < 1:
        raise InputError(f"k is {k}, but there must be at least 1 neighbour.")
    dtype, (x, y, x_query) = y.dtype, in_float64(x, y, x_query)
    size = max(1, DISTANCES_AT_ONCE // seen.numel())
    parts = zip(x.split(size), y.split(size), x_query.split(size), strict=True)
    return torch.cat([_mean_label(*part, seen, k) for part in parts]).to(dtype)


def _mean_label(
    x: X, y: Y, x_query: Float[Tensor, "batch queries dims"], seen: Bool[Tensor, "queries points"], k: int
) -> Float[Tensor, "batch queries"]:
    distance = torch.cdist(x_query, x, compute_mode="donot_use_mm_for_euclid_dist")
    distance = torch.where(seen, distance, torch.inf)
    nearest = distance.sort(stable=True).indices[..., :k]
    labels = y[:, None].expand(-1, x_query.shape[1], -1).gather(2, nearest)
    counted = seen.expand_as(distance).gather(2, nearest)
    return (labels * counted).sum(-1) / counted.sum(-1).clamp(min=1)
