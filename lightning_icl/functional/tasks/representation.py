"""Regression on a fixed hidden representation."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import leaky_relu

from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.functional.tasks.law import Constant, Inputs, Law, Targets
from lightning_icl.functional.tasks.task import Task

SLOPE = 0.01


@dataclass(frozen=True)
class HiddenRepresentation(Task):
    """f(x) = <w, Phi(x)> with w ~ N(0, I) for each prompt and one Phi for all of them (Guo et al. 2023).

    Phi(x) = s(B_L ... s(B_1 x)) with s the leaky ReLU of slope 0.01. Ours: the entries of B_l are
    N(0, 2 / ((1 + slope^2) inputs of layer l)), so that on average over B, E f^2 = width |x|^2 / n_dims.

    Args:
        width: length of Phi(x) and of each hidden layer.
        n_layers: number of layers L.
        representation_seed: which Phi.
    """

    width: int = 20
    n_layers: int = 3
    representation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, width=self.width, n_layers=self.n_layers)

    @cached_property
    def layers(self) -> list[Constant]:
        """The matrices B_1 ... B_L."""
        generator = torch.Generator().manual_seed(self.representation_seed)
        return [
            Constant(
                (2 / (1 + SLOPE**2) / n_inputs) ** 0.5
                * torch.randn(self.width, n_inputs, generator=generator, dtype=torch.float64)
            )
            for n_inputs in [self.n_dims] + [self.width] * (self.n_layers - 1)
        ]

    def representation(self, x: Float[Tensor, "*batch dims"]) -> Float[Tensor, "*batch width"]:
        """Phi(x), in which the targets are linear."""
        for layer in self.layers:
            x = leaky_relu(x @ layer.like(x).T, SLOPE)
        return x

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; as weights of Phi(x), not of x, they are not returned."""
        w = torch.randn(x.shape[0], self.width, generator=generator, device=generator.device)
        return torch.einsum("bpw,bw->bp", self.representation(x), w), None

    def truncated(self, n_dims: int) -> Law:
        """Refused."""
        raise InputError(f"the representation takes all {self.n_dims} dimensions; they cannot be cut to {n_dims}.")
