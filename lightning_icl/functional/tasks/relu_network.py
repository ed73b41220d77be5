"""Two-layer ReLU networks with random weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import check_at_least
from lightning_icl.functional.tasks.law import Inputs, Labels, Targets
from lightning_icl.functional.tasks.task import Task


@dataclass(frozen=True)
class ReLUNetwork(Task):
    """f(x) = sqrt(2 / width) sum_i a_i relu(<u_i, x>) with a and u standard gaussian (Garg et al. 2022).

    The scaling gives E f(x)^2 = |x|^2, so n_dims on average, as in linear regression.

    Args:
        width: number of hidden units.
    """

    width: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, width=self.width)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw a network for each prompt; there are no linear weights to return."""
        u = torch.randn(x.shape[0], self.width, self.n_dims, generator=generator, device=generator.device)
        a = torch.randn(x.shape[0], self.width, generator=generator, device=generator.device)
        return relu_network(x, u, a), None


def relu_network(x: Inputs, u: Float[Tensor, "batch width dims"], a: Float[Tensor, "batch width"]) -> Labels:
    """sqrt(2 / width) sum_i a_i relu(<u_i, x>)."""
    hidden = torch.einsum("bpd,bwd->bpw", x, u).relu()
    return (2 / u.shape[1]) ** 0.5 * torch.einsum("bpw,bw->bp", hidden, a)
