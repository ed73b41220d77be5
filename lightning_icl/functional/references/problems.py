"""The estimation problems a batch of prompts poses: from all its examples, or from each of its prefixes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_icl.functional.estimators import Eigenbasis, Moments, eigenbasis, feature_scale, moments, prefix_moments
from lightning_icl.functional.prompts import Prompt

__all__ = ["Problems", "every_prefix", "whole_prompts"]

ENTRIES_AT_ONCE = 2**24  # numbers in the largest tensor that an estimator makes of a part, 128 MB
ITERATES = 256  # about as many as a path of solutions has


@dataclass(frozen=True, eq=False)
class Problems:
    """What the reference estimators predict from what, in float64.

    There is one problem for each prompt and each of ``sizes`` (on the CPU): predict f at ``targets`` from the prompt's
    first sizes[i] examples; with a ``point_mask``, from all of its examples that are no padding. Problems are rows:
    prompts times sizes, sizes fastest. What several estimators need of them is computed when it is first asked for,
    and kept: ask it of ``parts``, which bounds the memory.
    """

    x: Float[Tensor, "batch points dims"]
    y: Float[Tensor, "batch points"]
    targets: Float[Tensor, "batch sizes queries dims"]
    f: Float[Tensor, "batch sizes queries"]
    w: Float[Tensor, "batch dims"] | None
    sizes: Int[Tensor, " sizes"]
    point_mask: Bool[Tensor, "batch points"] | None = None
    _rescaled: dict[float, Eigenbasis] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def moments(self) -> Moments:
        """The statistics of every problem's examples."""
        if len(self.sizes) > 1:
            return prefix_moments(self.x, self.y)
        return moments(self.x, self.y, self.point_mask)

    def eigenbasis(self, power: float = 0.0) -> Eigenbasis:
        """That of every problem with features rescaled by |X^T y / n|^power; its vectors lead back to weights of x."""
        if power not in self._rescaled:
            scale = feature_scale(self.moments, power)
            basis = eigenbasis(self.moments.rescaled(scale))
            self._rescaled[power] = basis._replace(vectors=scale[:, :, None] * basis.vectors)
        return self._rescaled[power]

    def parts(self) -> Iterator["Problems"]:
        """The problems of some prompts at a time, few enough for their moments or a path of solutions in memory."""
        n_dims = self.x.shape[2]
        per_row = n_dims**2 + ITERATES * max(n_dims, self.f.shape[2])
        size = max(1, ENTRIES_AT_ONCE // (per_row * len(self.sizes)))
        if size >= len(self.x):
            yield self
            return
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            w, mask = (None if of_each is None else of_each[rows] for of_each in (self.w, self.point_mask))
            x, y, targets, f = self.x[rows], self.y[rows], self.targets[rows], self.f[rows]
            yield Problems(x, y, targets, f, w, self.sizes, mask)

    def by_size(self, rows: Float[Tensor, "*path rows dims"]) -> Float[Tensor, "*path batch sizes dims"]:
        """One vector for each prompt and size, from one for each problem."""
        return rows.unflatten(-2, (len(self.x), len(self.sizes)))

    def per_row(self, values: Float[Tensor, "*settings sizes"]) -> Float[Tensor, "*settings rows"]:
        """A setting of each size, repeated for every prompt."""
        return values.to(self.x).repeat(*[1] * (values.ndim - 1), len(self.x))

    def predictions(
        self, w_hat: Float[Tensor, "*settings batch sizes dims"]
    ) -> Float[Tensor, "*settings batch sizes queries"]:
        """<w_hat, x_q> at the targets."""
        return torch.einsum("...bsd,bsqd->...bsq", w_hat, self.targets)


def whole_prompts(prompt: Prompt) -> Problems:
    """Predict the queries from all examples, which may be fewer in some prompts: padding does not count.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.references import whole_prompts
        >>> prompt = LinearRegression(n_dims=4).sample(64, 8, 3, torch.Generator().manual_seed(0))
        >>> whole_prompts(prompt).targets.shape  # (prompts, sizes, queries, features)
        torch.Size([64, 1, 3, 4])
    """
    prompt, largest = prompt.double(), prompt.x.shape[1]
    if prompt.point_mask is not None:
        prompt, largest = prompt.padded_after(largest), int(prompt.n_points().max())  # zero, whatever padding held
    targets, f, sizes = prompt.x_query[:, None], prompt.f_query[:, None], torch.tensor([largest])
    return Problems(prompt.x, prompt.y, targets, f, prompt.w, sizes, prompt.point_mask)


def every_prefix(prompt: Prompt, at_queries: bool = False) -> Problems:
    """Predict from the first k examples, for k = 1 .. n; raises InputError where an example is padding.

    The target is the example that follows, as in a causal layout, and after the last one the first query; or
    ``at_queries`` all queries of the prompt for every k, which says the same of the law with less variance (but for
    SparseRecovery's fixed design, where examples and queries are of different laws).

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.references import every_prefix
        >>> prompt = LinearRegression(n_dims=4).sample(64, 8, 3, torch.Generator().manual_seed(0))
        >>> every_prefix(prompt).sizes
        tensor([1, 2, 3, 4, 5, 6, 7, 8])
    """
    prompt = prompt.unpadded().double()
    n_points = prompt.x.shape[1]
    if at_queries:
        targets = prompt.x_query[:, None].expand(-1, n_points, -1, -1)
        f = prompt.f_query[:, None].expand(-1, n_points, -1)
    else:
        assert prompt.f is not None, "the prompt does not know the noise-free targets at its examples"
        targets = torch.cat([prompt.x[:, 1:], prompt.x_query[:, :1]], dim=1)[:, :, None]
        f = torch.cat([prompt.f[:, 1:], prompt.f_query[:, :1]], dim=1)[:, :, None]
    return Problems(prompt.x, prompt.y, targets, f, prompt.w, torch.arange(1, n_points + 1))
