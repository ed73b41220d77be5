"""What a linear estimator needs to know of the examples, for a whole prompt or for each of its prefixes.

An estimator is a function of ``Moments``; ``of_examples`` lets it take prompts, or their examples, as well.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, overload, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators.shapes import PerRow, X, Y
from lightning_icl.functional.prompts import Prompt

__all__ = ["Eigenbasis", "Moments", "eigenbasis", "moments", "over_prefixes", "prefix_moments"]


class Moments(NamedTuple):
    """Sufficient statistics of n examples for every estimator that sees them through inner products; float64.

    ``gram`` is X^T X / n, ``moment`` X^T y / n, ``power`` y^T y / n. Every row is a problem of its own, with its own n.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import moments
        >>> m = moments(x=torch.eye(2)[None], y=torch.tensor([[4.0, 1.0]]))
        >>> m.moment, m.power.item(), m.n_points.item()
        (tensor([[2.0000, 0.5000]], dtype=torch.float64), 8.5, 2.0)
    """

    gram: Float[Tensor, "rows dims dims"]
    moment: Float[Tensor, "rows dims"]
    power: PerRow
    n_points: PerRow

    def rows(self, chosen: Tensor | slice) -> "Moments":
        """Some of the problems."""
        return Moments._make(field[chosen] for field in self)

    def rescaled(self, scale: Float[Tensor, "#rows dims"]) -> "Moments":
        """The problems on the features scale_j x_j."""
        return self._replace(gram=scale[:, :, None] * self.gram * scale[:, None], moment=scale * self.moment)


def in_float64(*parts: Float[Tensor, "batch ..."]) -> tuple[Tensor, ...]:
    """The parts of some prompts, refused where a value is not finite: LAPACK would say something else, or nothing."""
    fine = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
    if not fine.all():
        raise InputError(
            f"prompt {int(fine.int().argmin())} of the batch, counted from 0, holds a value that is not finite; leave "
            "such prompts out."
        )
    return tuple(part.double() for part in parts)


def without_padding(x: X, y: Y, point_mask: Bool[Tensor, "batch points"]) -> tuple[X, Y]:
    """x and y, 0 at padding, whatever it held: even what is no number counts for nothing."""
    return torch.where(point_mask[..., None], x, 0.0), torch.where(point_mask, y, 0.0)


def moments(x: X, y: Y, point_mask: Bool[Tensor, "batch points"] | None = None) -> Moments:
    """The statistics of all examples of each prompt: rows = batch.

    Where ``point_mask`` (a prompt's) is False is padding: it counts for nothing, whatever it holds.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import moments
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> moments(x, y).gram
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.5000]]], dtype=torch.float64)
        >>> moments(x, y, point_mask=torch.tensor([[True, False]])).moment  # of the first example alone
        tensor([[4., 0.]], dtype=torch.float64)
    """
    n = x.new_full(x.shape[:1], x.shape[1], dtype=torch.float64)
    if point_mask is not None:
        n = point_mask.sum(1).double()
        if not n.all():
            raise InputError(f"prompt {int(n.argmin())} of the batch, counted from 0, holds padding only.")
        x, y = without_padding(x, y, point_mask)
    x, y = in_float64(x, y)
    return Moments(
        gram=x.mT @ x / n[:, None, None],
        moment=torch.einsum("bpd,bp->bd", x, y) / n[:, None],
        power=y.square().sum(-1) / n,
        n_points=n,
    )


def prefix_moments(x: X, y: Y) -> Moments:
    """The statistics of the first k examples for k = 1 .. n, by cumulative sums: rows = batch * points, k fastest.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import prefix_moments
        >>> prefix_moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]])).moment  # of one example, and of two
        tensor([[4.0000, 0.0000],
                [2.0000, 0.5000]], dtype=torch.float64)
    """
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
    """w_hat (or a path of iterates) fitted on the first k examples of each prompt, for k = 1 .. n.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import lasso, over_prefixes
        >>> x, y = torch.eye(2)[None], torch.tensor([[4.0, 1.0]])
        >>> over_prefixes(lambda m: lasso(m, alpha=0.25), x, y)  # (prompts, points, features)
        tensor([[[3.7500, 0.0000],
                 [3.5000, 0.5000]]], dtype=torch.float64)
    """
    return estimate(prefix_moments(x, y)).unflatten(-2, x.shape[:2])


class Eigenbasis(NamedTuple):
    """Eigenvalues of X^T X / n, rounding set to 0; X^T y / n in the eigenbasis; the eigenvectors as columns; n.

    There ridge, GD++ and Newton's iteration act on each direction alone.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import eigenbasis, moments
        >>> eigenbasis(moments(2 * torch.eye(2)[None], torch.ones(1, 2))).curvature
        tensor([[2., 2.]], dtype=torch.float64)
    """

    curvature: Float[Tensor, "rows directions"]
    moment: Float[Tensor, "rows directions"]
    vectors: Float[Tensor, "rows dims directions"]
    n_points: PerRow


def eigenbasis(m: Moments | Eigenbasis) -> Eigenbasis:
    """Each problem in its eigenbasis: to be found once where several paths or fits of the same problems are wanted.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.estimators import eigenbasis, moments, newton_path, ridge
        >>> basis = eigenbasis(moments(torch.eye(2)[None], torch.tensor([[4.0, 1.0]])))
        >>> ridge(basis, alpha=1.0), newton_path(basis, n_steps=3).shape
        (tensor([[2.0000, 0.5000]], dtype=torch.float64), torch.Size([4, 1, 2]))
    """
    if isinstance(m, Eigenbasis):
        return m
    eigenvalues, vectors = torch.linalg.eigh(m.gram)
    negligible = eigenvalues <= eigenvalues[:, -1:] * m.gram.shape[-1] * torch.finfo(m.gram.dtype).eps
    moment = torch.einsum("rji,rj->ri", vectors, m.moment)
    return Eigenbasis(torch.where(negligible, 0.0, eigenvalues), moment, vectors, m.n_points)


Answer = TypeVar("Answer", covariant=True)
Statistics = TypeVar("Statistics", contravariant=True)
Settings = ParamSpec("Settings")


@runtime_checkable
class Estimator(Protocol[Statistics, Settings, Answer]):
    """What ``of_examples`` makes of a function of moments."""

    @overload
    def __call__(self, m: Statistics, /, *settings: Settings.args, **named: Settings.kwargs) -> Answer: ...

    @overload
    def __call__(self, prompt: Prompt, /, *settings: Settings.args, **named: Settings.kwargs) -> Answer: ...

    @overload
    def __call__(self, x: X, y: Y, /, *settings: Settings.args, **named: Settings.kwargs) -> Answer: ...


def of_examples(
    estimate: Callable[Concatenate[Statistics, Settings], Answer], statistics: Callable[..., Any] = moments
) -> Estimator[Statistics, Settings, Answer]:
    """Lets an ``estimate(m, ...)`` be called with a Prompt, padded or not, or examples (x, y), of unpadded prompts.

    These are turned into ``statistics(x, y, point_mask)`` and the answer into y's dtype. ``help`` shows the form with x
    and y.
    """
    parameters = [*inspect.signature(estimate).parameters.values()]
    x, y = (inspect.Parameter(name, parameters[0].kind, annotation=kind) for name, kind in (("x", X), ("y", Y)))
    signature = inspect.signature(estimate).replace(parameters=[x, y, *parameters[1:]])

    @wraps(estimate)
    def either(*args: Any, **named: Any) -> Any:
        mask = None
        if args and isinstance(args[0], Prompt):
            mask, args = args[0].point_mask, (args[0].x, args[0].y, *args[1:])
        elif args and not isinstance(args[0], Tensor):
            return estimate(*args, **named)
        settings = signature.bind(*args, **named).arguments
        features, labels = settings.pop("x"), settings.pop("y")
        return estimate(statistics(features, labels, mask), **settings).to(labels.dtype)  # type: ignore[call-arg, attr-defined]

    either.__signature__ = signature  # type: ignore[attr-defined]
    said, *example = (inspect.getdoc(estimate) or "").partition("\n\nExample:")
    either.__doc__ = "".join([said, "\n\nIn place of x and y it takes a Prompt, or ``Moments``.", *example])
    return either
