"""Linear regression with dense, sparse or group-sparse weights: y = <w, x> + noise."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from math import comb
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError, check_at_least, check_choice, check_finite
from lightning_icl.functional.estimators import Moments, Posterior
from lightning_icl.functional.estimators.subsets import refuse_above_limit
from lightning_icl.functional.tasks.law import Constant, Inputs, Law, Targets, Weights
from lightning_icl.functional.tasks.task import Task

WeightLaw = Literal["gaussian", "sign", "unit_norm", "scaled"]
SIGNS = ("sign", "unit_norm")  # a unit vector of one weight is a sign


@dataclass(frozen=True)
class LinearTask(Task):
    """Targets <w, x>; a subclass says which weights are non-zero.

    With s non-zero weights, these are N(0, 1) ("gaussian"), +-1 ("sign"), uniform on the unit sphere ("unit_norm") or
    N(0, 1/s) ("scaled"). ``weight_mean`` is added to each of them (Zhang et al. 2024), which makes
    them N(weight_mean, 1) or N(weight_mean, 1/s); the other two laws have no room for it.

    Args:
        weight_law: law of the non-zero weights.
        weight_mean: mean of the non-zero weights; other than 0 only for gaussian and scaled.
    """

    _: KW_ONLY
    weight_law: WeightLaw = "gaussian"
    weight_mean: float = 0.0

    def __init_subclass__(cls) -> None:
        """A subclass that draws in its own way is of another law, for which only what it says itself holds."""
        super().__init_subclass__()
        own = set(vars(cls))
        if own & {"sample_weights", "sample_targets", "sample_labels"}:
            for name, of in (
                ("ridge_alpha", "ridge_alpha"),
                ("posterior", "posterior"),
                ("posterior_terms", "posterior"),
            ):
                if not own & {name, of}:
                    setattr(cls, name, getattr(Law, name))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weight_law", self.weight_law, get_args(WeightLaw))
        check_finite(weight_mean=self.weight_mean)
        if self.weight_mean != 0 and self.weight_law not in ("gaussian", "scaled"):
            raise InputError(
                f"weight_mean is {self.weight_mean}, but it must be 0 where weight_law is {self.weight_law!r}."
            )

    @property
    @abstractmethod
    def groups(self) -> tuple[int, int]:
        """How many neighbouring weights are zero or not together, and how many such groups are not."""

    @property
    def support_size(self) -> int:
        """Number of non-zero weights."""
        group_size, n_groups = self.groups
        return group_size * n_groups

    @property
    def n_supports(self) -> int:
        """Number of equally likely sets of non-zero weights."""
        group_size, n_groups = self.groups
        return comb(self.n_dims // group_size, n_groups)

    def supports(self) -> Int[Tensor, "supports size"]:
        """Every such set, as increasing indices, in lexicographic order; ``n_supports`` says how many beforehand."""
        return estimators.group_supports(self.n_dims, *self.groups)

    def sample_supports(self, batch_size: int, generator: Generator) -> Bool[Tensor, "batch dims"]:
        """Draw which weights are non-zero, uniformly among ``supports``: the first groups of a uniform permutation."""
        group_size, n_groups = self.groups
        size = (batch_size, self.n_dims // group_size)
        permutation = torch.rand(size, generator=generator, device=generator.device).argsort(dim=-1)
        return (permutation < n_groups).repeat_interleave(group_size, dim=1)

    @property
    def slab_std(self) -> float:
        """Standard deviation of a non-zero weight."""
        return 1.0 if self.weight_law in ("gaussian", "sign") else self.support_size**-0.5

    @property
    def weight_variance(self) -> float:
        """Var(w_j) of one weight, zeros included: p (slab_std^2 + (1 - p) weight_mean^2), p = support_size / n_dims."""
        p = self.support_size / self.n_dims
        return p * (self.slab_std**2 + (1 - p) * self.weight_mean**2)

    @property
    def ridge_alpha(self) -> float | None:
        """sigma^2 / Var(w_j), the strength of the best linear-in-y estimator for this law (isotropic prior).

        None where the weights' mean is not 0, since ridge shrinks to 0, or where sigma differs between prompts.
        """
        if self.weight_mean != 0 or isinstance(self.noise_std, Sequence):
            return None
        return self.noise_std**2 / self.weight_variance

    @property
    def posterior_terms(self) -> int | None:
        """Supports, times sign patterns, times noise levels; None where noise or weights are of another law."""
        unit_vectors = self.weight_law == "unit_norm" and self.support_size > 1
        if self.noise != "gaussian" or unit_vectors:
            return None
        signs = 2**self.support_size if self.weight_law in SIGNS else 1
        return self.n_supports * signs * len(self.noise_levels)

    def posterior(self, m: Moments) -> Posterior:
        """E[w | X, y], averaged over supports, signs and noise levels by their evidence."""
        if self.posterior_terms is None:
            return super().posterior(m)
        refuse_above_limit(self.posterior_terms, "hypotheses behind the posterior of this law")
        supports = self.supports().to(m.gram.device)
        if self.weight_law in SIGNS:
            by_level = [estimators.sign_posterior(m, supports, std) for std in self.noise_levels]
        else:
            slab = (self.slab_std, self.weight_mean)
            by_level = [estimators.gaussian_posterior(m, supports, std, *slab) for std in self.noise_levels]
        return estimators.mixed(by_level, [1.0] * len(by_level))

    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw w for each prompt; return <w, x> and w."""
        w = self.sample_weights(x.shape[0], generator)
        return torch.einsum("bpd,bd->bp", x, w), w

    def sample_weights(self, batch_size: int, generator: Generator) -> Weights:
        """Draw the task weights of each prompt."""
        values = torch.randn(batch_size, self.n_dims, generator=generator, device=generator.device)
        if self.weight_law == "sign":
            values = torch.where(values < 0, -1.0, 1.0)
        if self.weight_law == "scaled":
            values = values * self.slab_std
        w = torch.where(self.sample_supports(batch_size, generator), values + self.weight_mean, 0.0)
        return w / torch.linalg.vector_norm(w, dim=-1, keepdim=True) if self.weight_law == "unit_norm" else w


@dataclass(frozen=True)
class SparseLinearRegression(LinearTask):
    """Targets <w, x> with ``sparsity`` non-zero weights, their support uniform without replacement.

    Args:
        sparsity: number of non-zero weights, 1 to n_dims.

    Example:
        >>> import torch
        >>> from lightning_icl import SparseLinearRegression
        >>> task = SparseLinearRegression(n_dims=8, sparsity=2, noise_std=0.4)
        >>> prompt = task.sample(3, n_points=5, n_queries=1, generator=torch.Generator().manual_seed(0))
        >>> prompt.x.shape, (prompt.w != 0).sum(dim=1)
        (torch.Size([3, 5, 8]), tensor([2, 2, 2]))
        >>> round(task.ridge_alpha, 4)  # noise_std^2 / Var(w_j) = 0.16 / (2/8)
        0.64
    """

    sparsity: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, sparsity=self.sparsity)
        if self.sparsity > self.n_dims:
            raise InputError(
                f"sparsity is {self.sparsity}, but it must lie between 1 and n_dims, which is {self.n_dims}."
            )

    @property
    def groups(self) -> tuple[int, int]:
        return 1, self.sparsity


@dataclass(frozen=True)
class LinearRegression(SparseLinearRegression):
    """Targets <w, x> with every weight drawn: SparseLinearRegression with sparsity = n_dims, which is no option here.

    Args:
        whitened: draw the weights of the uncorrelated, unit-variance coordinates z behind x = A z instead: w = A^-T v
            with v of the weight law, so that w ~ N(0, Sigma^-1) where v ~ N(0, I) (Ahn et al. 2023).

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> task = LinearRegression(n_dims=4, noise_std=0.5)
        >>> prompt = task.sample(3, n_points=5, n_queries=2, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(prompt.f_query, torch.einsum("bqd,bd->bq", prompt.x_query, prompt.w))
        True
        >>> task.ridge_alpha  # noise_std^2 / Var(w_j), with Var(w_j) = 1
        0.25
    """

    sparsity: int = field(init=False)
    _: KW_ONLY
    whitened: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", self.n_dims)
        super().__post_init__()
        if self.whitened and self.rotation == "per_prompt":
            raise InputError("whitened is true, but rotation is 'per_prompt': use a fixed rotation, or none.")

    @cached_property
    def unmixing(self) -> Constant | None:
        """A^-1, where the weights are whitened and there is something to whiten."""
        return Constant(torch.linalg.inv(self.mixing.value)) if self.whitened and self.mixing is not None else None

    @property
    def ridge_alpha(self) -> float | None:
        """As for every linear law; None where the weights are whitened, as their prior is then not isotropic."""
        return super().ridge_alpha if self.unmixing is None else None

    def posterior(self, m: Moments) -> Posterior:
        """The posterior of v from the examples in its coordinates, taken back to those of x."""
        if self.unmixing is None:
            return super().posterior(m)
        unmixing = self.unmixing.like(m.gram)
        of_v = super().posterior(m._replace(gram=unmixing @ m.gram @ unmixing.T, moment=m.moment @ unmixing.T))
        return of_v._replace(mean=of_v.mean @ unmixing)

    def sample_weights(self, batch_size: int, generator: Generator) -> Weights:
        v = super().sample_weights(batch_size, generator)
        return v if self.unmixing is None else v @ self.unmixing.like(v)


@dataclass(frozen=True)
class GroupSparseLinearRegression(LinearTask):
    """Targets <w, x> whose non-zero weights fill ``n_groups`` of the contiguous groups of ``group_size`` weights.

    The set of active groups is uniform without replacement (the law behind the group lasso, Yuan and Lin 2006).

    Args:
        group_size: number of weights in a group; divides n_dims.
        n_groups: number of groups that are not zero, 1 to n_dims / group_size.

    Example:
        >>> import torch
        >>> from lightning_icl import GroupSparseLinearRegression
        >>> task = GroupSparseLinearRegression(n_dims=6, group_size=2, n_groups=1)
        >>> task.supports()  # of the non-zero weights, equally likely
        tensor([[0, 1],
                [2, 3],
                [4, 5]])
    """

    group_size: int
    n_groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, group_size=self.group_size, n_groups=self.n_groups)
        if self.n_dims % self.group_size:
            raise InputError(f"group_size is {self.group_size}, but it must divide n_dims, which is {self.n_dims}.")
        most = self.n_dims // self.group_size
        if self.n_groups > most:
            raise InputError(
                f"n_groups is {self.n_groups}, but it must lie between 1 and n_dims / group_size, which is {most}."
            )

    @property
    def groups(self) -> tuple[int, int]:
        return self.group_size, self.n_groups
