"""Regression on squares, polynomials of single features, random ReLU networks and trees, and a fixed representation."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import leaky_relu

from lightning_icl.functional.errors import MOST_SEED, InputError, check_between
from lightning_icl.functional.tasks.law import Constant, Inputs, Labels, Law, Targets
from lightning_icl.functional.tasks.task import Task

SLOPE = 0.01  # of the leaky ReLU
# Every prompt has a function of its own, whose numbers grow with these: width x n_dims of them, 2^depth, and so on.
MOST_DEGREE, MOST_WIDTH, MOST_DEPTH, MOST_LAYERS = 100, 2**16, 16, 100


@dataclass(frozen=True)
class QuadraticRegression(Task):
    """f(x) = sum_j w_j x_j^2 / sqrt 3 with w ~ N(0, I), as in the code of Garg et al. 2022.

    Since E x^4 = 3, the scaling gives E f^2 = n_dims for x ~ N(0, I), as in linear regression.

    Example:
        >>> import torch
        >>> from lightning_icl import QuadraticRegression
        >>> task = QuadraticRegression(n_dims=4)
        >>> prompt = task.sample(3, n_points=5, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> prompt.y.shape, prompt.w  # no weights: f is not linear in x
        (torch.Size([3, 5]), None)
    """

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; there are no linear weights to return."""
        w = torch.randn(x.shape[0], self.n_dims, generator=generator, device=generator.device)
        return torch.einsum("bpd,bd->bp", x.square(), w) / 3**0.5, None


@dataclass(frozen=True)
class PolynomialRegression(Task):
    """f(x) = sum_j sum_k w_jk h_k(x_j) / sqrt(degree), k = 1 ... degree, with w ~ N(0, I).

    h_k are the Hermite polynomials orthonormal under N(0, 1) (probabilists' He_k / sqrt(k!)), so Var f = n_dims for
    x ~ N(0, I), as in linear regression, which is degree 1. Our choice: the literature has no one normalisation.

    Args:
        degree: highest power of a feature, at least 1. There are no products of two features.

    Example:
        >>> import torch
        >>> from lightning_icl import PolynomialRegression
        >>> task = PolynomialRegression(n_dims=4, degree=3)
        >>> prompt = task.sample(20000, n_points=1, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> round(prompt.f.var().item())  # Var f = n_dims
        4
    """

    degree: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(1, MOST_DEGREE, degree=self.degree)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; there are no linear weights to return."""
        w = torch.randn(x.shape[0], self.degree, self.n_dims, generator=generator, device=generator.device)
        return hermite_sum(x, w) / self.degree**0.5, None


def hermite_sum(x: Inputs, w: Float[Tensor, "batch degree dims"]) -> Labels:
    """sum_jk w_kj h_k(x_j), k = 1 ... degree, by h_(k+1)(x) = (x h_k(x) - sqrt(k) h_(k-1)(x)) / sqrt(k + 1)."""
    previous, current = torch.zeros_like(x), torch.ones_like(x)  # h_-1 and h_0
    total = torch.zeros_like(x[..., 0])
    for k in range(w.shape[1]):
        previous, current = current, (x * current - k**0.5 * previous) / (k + 1) ** 0.5
        total = total + torch.einsum("bpd,bd->bp", current, w[:, k])
    return total


@dataclass(frozen=True)
class ReLUNetwork(Task):
    """f(x) = sqrt(2 / width) sum_i a_i relu(<u_i, x>) with a and u standard gaussian (Garg et al. 2022).

    The scaling gives E f(x)^2 = |x|^2, so n_dims on average, as in linear regression.

    Args:
        width: number of hidden units.

    Example:
        >>> import torch
        >>> from lightning_icl import ReLUNetwork
        >>> task = ReLUNetwork(n_dims=4, width=20)
        >>> prompt = task.sample(20000, n_points=1, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> round(prompt.f.square().mean().item())  # E f^2 = n_dims
        4
    """

    width: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(1, MOST_WIDTH, width=self.width)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw a network for each prompt; there are no linear weights to return."""
        u = torch.randn(x.shape[0], self.width, self.n_dims, generator=generator, device=generator.device)
        a = torch.randn(x.shape[0], self.width, generator=generator, device=generator.device)
        return relu_network(x, u, a), None


def relu_network(x: Inputs, u: Float[Tensor, "batch width dims"], a: Float[Tensor, "batch width"]) -> Labels:
    """sqrt(2 / width) sum_i a_i relu(<u_i, x>)."""
    hidden = torch.einsum("bpd,bwd->bpw", x, u).relu()
    return (2 / u.shape[1]) ** 0.5 * torch.einsum("bpw,bw->bp", hidden, a)


@dataclass(frozen=True)
class DecisionTree(Task):
    """f is a full binary tree whose inner nodes test the sign of one feature and whose leaves are N(0, 1).

    The feature of each node is uniform, with replacement (Garg et al. 2022).

    Args:
        depth: number of tests from the root to a leaf, at least 1.

    Example:
        >>> import torch
        >>> from lightning_icl import DecisionTree
        >>> task = DecisionTree(n_dims=4, depth=2)
        >>> prompt = task.sample(1, n_points=500, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> len(prompt.f.unique())  # leaves that some point falls into
        4
    """

    depth: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(1, MOST_DEPTH, depth=self.depth)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw a tree for each prompt; there are no linear weights to return."""
        batch, device, n_leaves = x.shape[0], generator.device, 2**self.depth
        tested = torch.randint(self.n_dims, (batch, n_leaves - 1), generator=generator, device=device)
        leaves = torch.randn(batch, n_leaves, generator=generator, device=device)
        return tree_values(x, tested, leaves), None


def tree_values(x: Inputs, tested: Int[Tensor, "batch nodes"], leaves: Float[Tensor, "batch leaves"]) -> Labels:
    """The leaf that each point falls into: node i goes on to 2i + 2 where its feature is above 0, else to 2i + 1.

    Nodes are numbered from the root, 0, level by level; the leaves come last.
    """
    node = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    for _ in range(leaves.shape[1].bit_length() - 1):
        feature = tested.gather(1, node)
        above = x.gather(2, feature[..., None])[..., 0] > 0
        node = 2 * node + 1 + above
    return leaves.gather(1, node - tested.shape[1])


@dataclass(frozen=True)
class HiddenRepresentation(Task):
    """f(x) = <w, Phi(x)> with w ~ N(0, I) for each prompt and one Phi for all of them (Guo et al. 2023).

    Phi(x) = s(B_L ... s(B_1 x)) with s the leaky ReLU of slope 0.01. Ours: the entries of B_l are
    N(0, 2 / ((1 + slope^2) inputs of layer l)), so that on average over B, E f^2 = width |x|^2 / n_dims.

    Args:
        width: length of Phi(x) and of each hidden layer.
        n_layers: number of layers L.
        representation_seed: which Phi.

    Example:
        >>> import torch
        >>> from lightning_icl import HiddenRepresentation
        >>> task = HiddenRepresentation(n_dims=4, width=10, n_layers=2)
        >>> task.representation(torch.ones(3, 4)).shape
        torch.Size([3, 10])
    """

    width: int = 20
    n_layers: int = 3
    representation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(1, MOST_WIDTH, width=self.width)
        check_between(1, MOST_LAYERS, n_layers=self.n_layers)
        check_between(0, MOST_SEED, representation_seed=self.representation_seed)

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
