"""What a first layer may have made of the examples: maps from prompts to prompts, the arms of P-probing.

A representation replaces x and x_query by features of each point and keeps the labels, so that whatever learns from a
prompt can learn from its representation; n is each prompt's own, and padding stays zero.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.prompts import Prompt

Representation = Callable[[Prompt], Prompt]

# of 1/lambda_max, for gamma and for the step size of the gradient descent that gamma is tuned with
SHRINKAGES = tuple(k / 10 for k in range(1, 11))
STEPS = (0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8)

LEAST_VARIANCE = 1e-6  # of the largest: what varies less is rounding
CHUNK_SIZE = 256  # prompts represented at once


def raw(prompt: Prompt) -> Prompt:
    """The examples as they are."""
    return prompt


def correlation_features(prompt: Prompt) -> Prompt:
    """R_hat x with R_hat = diag(r_hat), r_hat = X^T y / n: the preprocessing of Chen et al. 2024."""
    return _rescaled(prompt, _moments(prompt).moment)


def correlation_power_features(prompt: Prompt, power: float = 0.5) -> Prompt:
    """|r_hat|^power x, coordinate by coordinate."""
    return _rescaled(prompt, estimators.feature_scale(_moments(prompt), power))


def gd_plus_plus_features(prompt: Prompt, shrinkage: float) -> Prompt:
    """(I - gamma C) x with C = X^T X / n and gamma = shrinkage / lambda_max(C) of each prompt.

    What a layer of GD++ (von Oswald et al. 2023) makes of the inputs. It needs no labels and one head, so it is the
    main rival of R_hat x as an account of the first layer.
    """
    m = _moments(prompt)
    taken = (shrinkage * estimators.inverse_curvature(m)[:, None, None] * m.gram).to(prompt.x.dtype)  # gamma C
    x, x_query = (points - points @ taken for points in (prompt.x, prompt.x_query))
    return prompt._replace(x=x, x_query=x_query)


def tuned_shrinkage(prompt: Prompt, n_steps: int) -> float:
    """The shrinkage, of SHRINKAGES, after which gradient descent has the lowest risk on these prompts.

    The risk is summed over 1 .. n_steps steps, each number of steps with its own best step size of STEPS / lambda_max.
    """
    double = prompt.double()

    def risk(shrinkage: float) -> float:
        shrunk = gd_plus_plus_features(double, shrinkage)
        m = _moments(shrunk)
        unit = estimators.inverse_curvature(m)
        paths = torch.stack([estimators.gradient_descent_path(m, n_steps, step * unit) for step in STEPS])
        errors = torch.einsum("ktbd,bqd->ktbq", paths[:, 1:], shrunk.x_query) - shrunk.f_query
        return float(errors.square().mean(dim=(-2, -1)).amin(dim=0).sum())

    return min(SHRINKAGES, key=risk)


def leading_first(representation: Representation, prompts: Prompt) -> Representation:
    """The representation in other coordinates, fitted to these prompts: first those that descent can use at once.

    phi' = V^T L (phi - mean), where L whitens the features of all examples and queries and V are the eigenvectors,
    largest eigenvalue first, of the symmetric part of E[f(x_q) phi_q b^T] with b = (1/n) sum_i y_i phi_i, of each
    prompt's whitened and then ``scaled`` features. One step of descent on A phi predicts phi_q^T M b with M = A^T A, so
    E[f phi_q b^T] is the way in which M is best changed from 0, and its leading eigenvectors are the best rows of A to
    start from. The change of coordinates is linear and has an inverse, so it adds nothing to a representation and takes
    nothing away; without it, training stays for long at a poor map. Directions of hardly any variance become features
    that are 0, so that the width stays.
    """
    chunks = [representation(chunk).double() for chunk in prompts.chunks(CHUNK_SIZE)]
    points = torch.cat([_points(chunk) for chunk in chunks])
    mean = points.mean(dim=0)
    variance, directions = torch.linalg.eigh((points - mean).T @ (points - mean) / len(points))
    kept = variance > LEAST_VARIANCE * variance[-1]
    whitening = directions * torch.where(kept, variance.clamp(min=0).rsqrt(), 0.0)

    agreement = torch.zeros_like(whitening)
    for chunk in chunks:
        white = scaled(_mapped(chunk, mean, whitening))
        agreement += torch.einsum("bq,bqi,bj->ij", white.f_query, white.x_query, _moments(white).moment)
    turned = torch.linalg.eigh(agreement + agreement.T).eigenvectors.flip(-1)
    return lambda prompt: _mapped(representation(prompt), mean, whitening @ turned)


def _points(prompt: Prompt) -> Float[Tensor, "points features"]:
    """Every example and query of all prompts."""
    points = torch.cat([prompt.x, prompt.x_query], dim=1)
    if prompt.point_mask is None:
        return points.flatten(0, 1)
    return points[torch.nn.functional.pad(prompt.point_mask, (0, prompt.x_query.shape[1]), value=True)]


def _mapped(prompt: Prompt, mean: Float[Tensor, " features"], coordinates: Float[Tensor, "features others"]) -> Prompt:
    """Every point's features less ``mean``, times ``coordinates``."""
    mean, coordinates = mean.to(prompt.x.dtype), coordinates.to(prompt.x.dtype)
    x, x_query = ((points - mean) @ coordinates for points in (prompt.x, prompt.x_query))
    return prompt._replace(x=x if prompt.point_mask is None else x * prompt.point_mask[..., None], x_query=x_query)


def _moments(prompt: Prompt) -> estimators.Moments:
    return estimators.moments(prompt.x, prompt.y, prompt.point_mask)


def _rescaled(prompt: Prompt, scale: Float[Tensor, "batch dims"]) -> Prompt:
    """Every point's features times the prompt's scale of each."""
    scale = scale.to(prompt.x.dtype)[:, None]
    return prompt._replace(x=prompt.x * scale, x_query=prompt.x_query * scale)


def scaled(prompt: Prompt) -> Prompt:
    """Each prompt's features divided by the root mean square of those of its examples; zero stays zero.

    So no representation wins by its scale, nor by its scale's variation over prompts, which for R_hat x is large and
    would make one step size wrong for most (docs/explanation/science.md, The step size decides).
    """
    size = (prompt.x.square().sum(dim=(1, 2)) / (prompt.n_points() * prompt.x.shape[2])).sqrt()
    return _rescaled(prompt, torch.where(size > 0, 1 / size, 0.0)[:, None])
