"""The lasso at many strengths in one pass: the homotopy path of LARS in Gram form, batched over problems."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.estimators.moments import Moments

DEPENDENT = 1e-11  # a feature with less than this share of its square outside the span of the active ones stays out
COMPACT_BELOW = 0.8  # finished problems are dropped once this share or less is left: dropping copies the tableau


def lasso_homotopy(
    m: Moments, alphas: Float[Tensor, "alphas rows"], max_pivots: int
) -> Float[Tensor, "alphas rows dims"]:
    """Minimises (1/2n) ||y - X w||^2 + alpha ||w||_1 at all ``alphas``, following each problem from alpha = inf down.

    With the active set A, its signs s, G = X^T X / n and b = X^T y / n, the solution is a line in alpha:

        w_A = u_A - alpha v_A         u_A = G_AA^-1 b_A          v_A = G_AA^-1 s_A
        c_I = u_I - alpha v_I         u_I = b_I - G_IA u_A       v_I = -G_IA v_A         c = X^T (y - X w) / n

    until an active weight reaches 0 and leaves, or an inactive correlation c_j reaches +-alpha and joins (Osborne,
    Presnell & Turlach 2000; Efron et al. 2004). Either is one pivot of the sweep operator (Goodnight 1979) on the
    tableau of G over u over v, so that no system is ever solved anew. A feature in the span of the active ones, such
    as a duplicate, never joins. 0 where ``max_pivots`` came first. Rounding builds up over the pivots and ties can
    mislead: check the answer by its duality gap.
    """
    path = torch.zeros(*alphas.shape, m.moment.shape[1], dtype=m.moment.dtype, device=m.moment.device)
    nothing = torch.zeros_like(m.moment)
    track = Track(
        tableau=torch.cat([m.gram, m.moment[:, None], nothing[:, None]], dim=1),
        sign=nothing,
        alpha=torch.full_like(m.power, torch.inf),
        least_pivot=DEPENDENT * m.gram.diagonal(dim1=-2, dim2=-1),
        problem=torch.arange(len(m.power), device=m.power.device),
    )
    for _ in range(max_pivots + 1):
        event = next_event(track)
        wanted = alphas[:, track.problem]
        level, row = ((wanted <= track.alpha) & (wanted > event.alpha)).nonzero(as_tuple=True)
        u, v = track.tableau[row, -2], track.tableau[row, -1]
        path[level, track.problem[row]] = torch.where(track.sign[row] != 0, u - wanted[level, row, None] * v, 0.0)
        going = (wanted <= event.alpha).any(0)
        n_going = int(going.sum())
        if n_going == 0:
            break
        if n_going <= COMPACT_BELOW * len(going):
            track, event = Track._make(part[going] for part in track), Event._make(part[going] for part in event)
        track = pivoted(track, event)
    return path


class Track(NamedTuple):
    """Where each problem stands: ``tableau`` is G, u and v as rows after the pivots; ``sign`` is s, 0 if inactive.

    ``alpha`` is where the present line began, ``least_pivot`` what a pivot must exceed to be more than rounding, and
    ``problem`` the row of the Moments.
    """

    tableau: Float[Tensor, "rows dims+2 dims"]
    sign: Float[Tensor, "rows dims"]
    alpha: Float[Tensor, " rows"]
    least_pivot: Float[Tensor, "rows dims"]
    problem: Tensor


class Event(NamedTuple):
    """The strength at which the active set changes next, the feature that joins or leaves, and its sign."""

    alpha: Float[Tensor, " rows"]
    feature: Tensor
    joins: Tensor
    sign: Float[Tensor, " rows"]


def next_event(track: Track) -> Event:
    """The largest alpha on the line at which a feature joins or leaves; 0 where none does."""
    u, v = track.tableau[:, -2], track.tableau[:, -1]
    active = track.sign != 0
    sign = torch.where(active, track.sign, u.sign())
    # As alpha falls, an active weight's sign * w = sign * u - alpha * slope falls too if slope < 0; an inactive
    # feature's distance alpha - sign * c = alpha * slope - sign * u does if slope > 0. Both vanish at sign * u / slope.
    slope = sign * v + ~active
    independent = track.tableau[:, :-2].diagonal(dim1=-2, dim2=-1) > track.least_pivot
    happens = torch.where(active, slope < 0, (slope > 0) & independent)
    alpha, feature = torch.where(happens, sign * u / slope, -torch.inf).max(-1)
    row = torch.arange(len(feature), device=feature.device)
    return Event(
        alpha=torch.minimum(alpha.clamp(min=0), track.alpha),
        feature=feature,
        joins=~active[row, feature],
        sign=sign[row, feature],
    )


def pivoted(track: Track, event: Event) -> Track:
    """The line after the event: its feature swept into the active set or out of it. The tableau is reused."""
    row, feature = torch.arange(len(event.feature), device=event.feature.device), event.feature
    direction = event.joins.to(track.sign.dtype) * 2 - 1  # 1 in, -1 out
    new_sign = torch.where(event.joins, event.sign, 0.0)
    column = track.tableau[row, :, feature]
    pivot = column[row, feature]
    column[row, feature] = pivot - direction  # so that the update of rank one divides row and column by the pivot
    column[:, -1] += new_sign  # v of a feature that joins counts its own sign from here on
    tableau = track.tableau.addcmul_((column / pivot[:, None])[:, :, None], column[:, None, :-2], value=-1)
    tableau[row, feature, feature] -= 2 * direction
    tableau[row, -1, feature] += direction * event.sign
    sign = track.sign.clone()
    sign[row, feature] = new_sign
    return track._replace(tableau=tableau, sign=sign, alpha=event.alpha)
