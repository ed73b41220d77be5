"""Linear classification with labels +-1."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator

from lightning_icl.functional.errors import InputError, check_not_negative
from lightning_icl.functional.tasks.features import NoiseLaw
from lightning_icl.functional.tasks.law import Inputs, Labels, Targets
from lightning_icl.functional.tasks.linear import SparseLinearRegression
from lightning_icl.functional.tasks.task import Task


@dataclass(frozen=True)
class LinearClassification(Task):
    """y = sign(<w, x>), flipped with probability p; w ~ N(0, I) on a uniform support (Garg et al. 2022 for p = 0).

    The noise-free target is the mean label, f(x) = (1 - 2p) sign(<w, x>), so excess risk is squared distance from the
    regression function. Prompts carry no w, since neither y nor f is linear in x.

    Args:
        sparsity: number of non-zero weights, 1 to n_dims; none means all.
        flip_probability: of each label, 0 to 0.5.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearClassification
        >>> task = LinearClassification(n_dims=4, flip_probability=0.1)
        >>> prompt = task.sample(3, n_points=50, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> prompt.y.unique(), prompt.f.unique()  # labels, and their means
        (tensor([-1.,  1.]), tensor([-0.8000,  0.8000]))
    """

    sparsity: int | None = None
    flip_probability: float = 0.0
    # Labels are drawn and not disturbed, so that noise is no option here.
    noise_std: float = field(init=False, default=0.0)
    noise: NoiseLaw = field(init=False, default="gaussian")
    noise_df: float = field(init=False, default=5.0)
    scores: SparseLinearRegression = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(flip_probability=self.flip_probability)
        if self.flip_probability > 0.5:
            raise InputError(f"flip_probability is {self.flip_probability}, but it must lie between 0 and 0.5.")
        sparsity = self.n_dims if self.sparsity is None else self.sparsity
        object.__setattr__(self, "sparsity", sparsity)
        object.__setattr__(self, "scores", SparseLinearRegression(self.n_dims, sparsity))

    def shifted(self, **changes: Any) -> "LinearClassification":
        """As for every task; where all weights are drawn, so are those of other dimensions."""
        every = {"sparsity": None} if self.sparsity == self.n_dims else {}
        return super().shifted(**every | changes)

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; return the mean labels."""
        scores, _ = self.scores.sample_targets(x, generator)
        return (1 - 2 * self.flip_probability) * torch.where(scores < 0, -1.0, 1.0), None

    def sample_labels(self, f: Labels, generator: Generator) -> Labels:
        """Draw +-1 with mean f."""
        uniform = torch.rand(f.shape, generator=generator, device=f.device)
        return torch.where(uniform < (1 + f) / 2, 1.0, -1.0)
