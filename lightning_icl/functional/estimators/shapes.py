"""The shapes of what estimators take and give."""

import torch
from jaxtyping import Float
from torch import Tensor

X = Float[Tensor, "batch points dims"]
Y = Float[Tensor, "batch points"]
Weights = Float[Tensor, "rows dims"]
Path = Float[Tensor, "iterates rows dims"]
PerRow = Float[Tensor, " rows"]
OneOrEach = float | PerRow  # one number for all problems, or one for each


def per_row(value: OneOrEach, like: Float[Tensor, "rows ..."]) -> PerRow:
    """A number for each row of ``like``, in its dtype and on its device."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(len(like))
