"""Problems in the eigenbasis of X^T X, where ridge, GD++ and Newton's iteration act on each direction alone."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.estimators.moments import Moments, PerRow, X, Y, in_float64

__all__ = ["Eigenbasis", "eigenbasis"]


class Eigenbasis(NamedTuple):
    """Eigenvalues of X^T X / n, rounding set to 0; X^T y / n in the eigenbasis; the eigenvectors as columns; n."""

    curvature: Float[Tensor, "rows directions"]
    moment: Float[Tensor, "rows directions"]
    vectors: Float[Tensor, "rows dims directions"]
    n_points: PerRow


def eigenbasis(m: Moments | Eigenbasis) -> Eigenbasis:
    """Each problem in its eigenbasis: to be found once where several paths or fits of the same problems are wanted."""
    if isinstance(m, Eigenbasis):
        return m
    eigenvalues, vectors = torch.linalg.eigh(m.gram)
    negligible = eigenvalues <= eigenvalues[:, -1:] * m.gram.shape[-1] * torch.finfo(m.gram.dtype).eps
    moment = torch.einsum("rji,rj->ri", vectors, m.moment)
    return Eigenbasis(torch.where(negligible, 0.0, eigenvalues), moment, vectors, m.n_points)


def singular_basis(x: X, y: Y) -> Eigenbasis:
    """The same from the singular values of X, which keep the digits that X^T X loses; min(points, dims) directions."""
    x, y = in_float64(x, y)
    n_points = x.new_full(x.shape[:1], x.shape[1])
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = torch.where(s <= s[:, :1] * max(x.shape[1:]) * torch.finfo(s.dtype).eps, 0.0, s)
    moment = s * torch.einsum("bpr,bp->br", u, y)
    return Eigenbasis(s.square() / n_points[:, None], moment / n_points[:, None], vh.mT, n_points)
