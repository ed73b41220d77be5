"""Two-layer ReLU networks with random weights."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks.task import Task


class ReLUNetwork(Task):
    """f(x) = sqrt(2 / width) sum_i a_i relu(<u_i, x>) with a and u standard gaussian (Garg et al. 2022).

    The scaling gives E f(x)^2 = |x|^2, so n_dims on average, as in linear regression.

    Args:
        width: number of hidden units.
    """

    def __init__(self, n_dims: int, width: int = 100, **options: Any) -> None:
        super().__init__(n_dims, **options)
        if width < 1:
            raise InputError(f"width is {width}, but it must be at least 1.")
        self.width = width

    def sample_targets(
        self, x: Float[Tensor, "batch points dims"], generator: Generator
    ) -> tuple[Float[Tensor, "batch points"], None]:
        """Draw a network for each prompt; there are no linear weights to return."""
        u = torch.randn(x.shape[0], self.width, self.n_dims, generator=generator, device=generator.device)
        a = torch.randn(x.shape[0], self.width, generator=generator, device=generator.device)
        return relu_network(x, u, a), None


def relu_network(
    x: Float[Tensor, "batch points dims"], u: Float[Tensor, "batch width dims"], a: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch points"]:
    """sqrt(2 / width) sum_i a_i relu(<u_i, x>)."""
    hidden = torch.einsum("bpd,bwd->bpw", x, u).relu()
    return (2 / u.shape[1]) ** 0.5 * torch.einsum("bpw,bw->bp", hidden, a)
