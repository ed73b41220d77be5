"""k nearest neighbours: the estimator that knows nothing of lines."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.moments import in_float64, without_padding
from lightning_icl.functional.estimators.shapes import X, Y

__all__ = ["nearest_neighbours", "nearest_neighbours_prefixes"]

DISTANCES_AT_ONCE = 2**22  # a prompt's points x queries, 32 MB; sorting them takes some three times that


def nearest_neighbours(
    x: X,
    y: Y,
    x_query: Float[Tensor, "batch queries dims"],
    k: int = 3,
    point_mask: Bool[Tensor, "batch points"] | None = None,
) -> Float[Tensor, "batch queries"]:
    """The mean label of the k examples nearest to each query in Euclidean distance; of all where there are fewer.

    Of examples equally far the earlier is nearer. Where ``point_mask`` is False is padding. Garg et al. 2022 compare
    with k = 3.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import nearest_neighbours
        >>> x, y = torch.tensor([[[0.0], [1.0], [10.0]]]), torch.tensor([[1.0, 2.0, 30.0]])
        >>> nearest_neighbours(x, y, x_query=torch.tensor([[[0.4]]]), k=2)
        tensor([[1.5000]])
    """
    if point_mask is None:
        point_mask = torch.ones_like(y, dtype=torch.bool)
    x, y = without_padding(x, y, point_mask)
    return _mean_labels(x, y, x_query, point_mask[:, None].expand(-1, x_query.shape[1], -1), k)


def nearest_neighbours_prefixes(
    x: X, y: Y, targets: Float[Tensor, "batch points+1 dims"], k: int = 3
) -> Float[Tensor, "batch points+1"]:
    """``nearest_neighbours`` at every prefix: entry i is predicted from the first i examples, entry 0 without any is 0.

    ``targets`` holds the inputs to predict at, such as the examples followed by a query.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import nearest_neighbours_prefixes
        >>> x, y = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[1.0, 2.0]])
        >>> nearest_neighbours_prefixes(x, y, targets=torch.zeros(1, 3, 1), k=2)  # from 0, 1 and 2 examples
        tensor([[0.0000, 1.0000, 1.5000]])
    """
    earlier = torch.ones(targets.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(-1)
    return _mean_labels(x, y, targets, earlier.expand(len(x), -1, -1), k)


def _mean_labels(
    x: X, y: Y, x_query: Float[Tensor, "batch queries dims"], seen: Bool[Tensor, "batch queries points"], k: int
) -> Float[Tensor, "batch queries"]:
    """The mean label of the k nearest of the examples that each query sees; 0 where it sees none."""
    if k < 1:
        raise InputError(f"k is {k}, but there must be at least 1 neighbour.")
    problems = (*in_float64(x, y, x_query), seen)
    n_prompts = max(1, DISTANCES_AT_ONCE // seen[0].numel())  # whose distances fit in memory together
    means = []
    for points, labels, queries, visible in zip(*(part.split(n_prompts) for part in problems), strict=True):
        distance = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.where(visible, distance, torch.inf).sort(stable=True).indices[..., :k]
        counted = visible.gather(2, nearest)
        total = (labels[:, None].expand_as(distance).gather(2, nearest) * counted).sum(-1)
        means.append(total / counted.sum(-1).clamp(min=1))
    return torch.cat(means).to(y.dtype)
