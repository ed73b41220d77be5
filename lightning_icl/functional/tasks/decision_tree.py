"""Random decision trees."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from lightning_icl.functional.errors import check_at_least
from lightning_icl.functional.tasks.law import Inputs, Labels, Targets
from lightning_icl.functional.tasks.task import Task


@dataclass(frozen=True)
class DecisionTree(Task):
    """f is a full binary tree whose inner nodes test the sign of one feature and whose leaves are N(0, 1).

    The feature of each node is uniform, with replacement (Garg et al. 2022).

    Args:
        depth: number of tests from the root to a leaf, at least 1.
    """

    depth: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, depth=self.depth)

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
