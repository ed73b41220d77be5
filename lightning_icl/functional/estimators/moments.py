"""What a linear estimator needs to know of the examples, for a whole prompt or for each of its prefixes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError

X = Float[Tensor, "batch points dims"]
Y = Float[Tensor, "batch points"]
Weights = Float[Tensor, "batch dims"]
Path = Float[Tensor, "iterates batch dims"]


class Moments(NamedTuple):
    """Sufficient statistics of n examples for every estimator that sees them through inner products; float64.

    ``gram`` is X^T X / n, ``moment`` X^T y / n, ``power`` y^T y / n. Every row is a problem of its own, with its own n.
    """

    gram: Float[Tensor, "rows dims dims"]
    moment: Float[Tensor, "rows dims"]
    power: Float[Tensor, " rows"]
    n_points: Float[Tensor, " rows"]

    def rows(self, chosen: Tensor | slice) -> "Moments":
        """Some of the problems."""
        return Moments._make(field[chosen] for field in self)


def in_float64(*parts: Float[Tensor, "batch ..."]) -> tuple[Tensor, ...]:
    """The parts of some prompts, refused where a value is not finite: LAPACK would say something else, or nothing."""
    fine = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
    if not fine.all():
        raise InputError(
            f"prompt {int(fine.int().argmin())} of the batch, counted from 0, holds a value that is not finite; leave "
            "such prompts out."
        )
    return tuple(part.double() for part in parts)


def moments(x: X, y: Y) -> Moments:
    """The statistics of all examples of each prompt: rows = batch."""
    (x, y), n = in_float64(x, y), x.shape[1]
    return Moments(
        gram=x.mT @ x / n,
        moment=torch.einsum("bpd,bp->bd", x, y) / n,
        power=y.square().mean(-1),
        n_points=x.new_full(x.shape[:1], n),
    )


def prefix_moments(x: X, y: Y) -> Moments:
    """The statistics of the first k examples for k = 1 .. n, by cumulative sums: rows = batch * points, k fastest."""
    x, y = in_float64(x, y)
    k = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    products = x[..., :, None] * x[..., None, :]  # summed in place: much the largest thing here
    return Moments(
        gram=products.cumsum_(1).div_(k[:, None, None]).flatten(0, 1),
        moment=((x * y[..., None]).cumsum(1) / k[:, None]).flatten(0, 1),
        power=(y.square().cumsum(1) / k).flatten(),
        n_points=k.repeat(x.shape[0]),
    )


def over_prefixes(
    estimate: Callable[[Moments], Float[Tensor, "*path rows dims"]], x: X, y: Y
) -> Float[Tensor, "*path batch points dims"]:
    """w_hat (or a path of iterates) fitted on the first k examples of each prompt, for k = 1 .. n."""
    return estimate(prefix_moments(x, y)).unflatten(-2, x.shape[:2])
