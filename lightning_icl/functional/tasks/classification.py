"""Linear classification with labels +-1."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks.features import Rotation
from lightning_icl.functional.tasks.laws import FeatureLaw
from lightning_icl.functional.tasks.linear import SparseLinearRegression
from lightning_icl.functional.tasks.spectrum import Spectrum
from lightning_icl.functional.tasks.task import Task


class LinearClassification(Task):
    """y = sign(<w, x>), flipped with probability p; w ~ N(0, I) on a uniform support (Garg et al. 2022 for p = 0).

    The noise-free target is the mean label, f(x) = (1 - 2p) sign(<w, x>), so excess risk is squared distance from the
    regression function. Prompts carry no w, since neither y nor f is linear in x.

    Args:
        n_dims: length of x.
        sparsity: number of non-zero weights, 1 to n_dims; none means all.
        flip_probability: of each label, 0 to 0.5.
        correlation: correlation of neighbouring features before the rotation, in (-1, 1).
        features: law of the coordinates of z.
        feature_df: degrees of freedom of Student t features, above 2.
        spectrum: variances of the features before the rotation; none means 1 each.
        rotation: none, one fixed rotation for all prompts, or a fresh one for each prompt; uniform (Haar).
    """

    def __init__(
        self,
        n_dims: int,
        sparsity: int | None = None,
        flip_probability: float = 0.0,
        correlation: float = 0.0,
        features: FeatureLaw = "gaussian",
        feature_df: float = 5.0,
        spectrum: Spectrum | None = None,
        rotation: Rotation = "none",
    ) -> None:
        super().__init__(
            n_dims,
            correlation=correlation,
            features=features,
            feature_df=feature_df,
            spectrum=spectrum,
            rotation=rotation,
        )
        if not 0 <= flip_probability <= 0.5:
            raise InputError(f"flip_probability is {flip_probability}, but it must lie between 0 and 0.5.")
        self.sparsity = n_dims if sparsity is None else sparsity
        self.flip_probability = flip_probability
        self._scores = SparseLinearRegression(n_dims, self.sparsity)

    def sample_targets(
        self, x: Float[Tensor, "batch points dims"], generator: Generator
    ) -> tuple[Float[Tensor, "batch points"], None]:
        """Draw w for each prompt; return the mean labels."""
        scores, _ = self._scores.sample_targets(x, generator)
        return (1 - 2 * self.flip_probability) * torch.where(scores < 0, -1.0, 1.0), None

    def sample_labels(self, f: Float[Tensor, "batch points"], generator: Generator) -> Float[Tensor, "batch points"]:
        """Draw +-1 with mean f."""
        uniform = torch.rand(f.shape, generator=generator, device=f.device)
        return torch.where(uniform < (1 + f) / 2, 1.0, -1.0)
