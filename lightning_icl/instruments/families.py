"""The member of an algorithm's family that is closest to a reading: settings from a grid, then refined, for every t.

Settings are on the CPU, as a reference's grid is: what is compared with what is decided there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.references import Case, LinearReference, Problems
from lightning_icl.functional.references.reference import paths

EQUAL = 1e-12  # relative SPD below which predictions are the same but for rounding
WHOLE = ("steps", "features")  # settings that are counted, all others are refined
Predictions = Float[Tensor, "batch queries"]
Settings = Float[Tensor, "settings parameters"]  # of problems of one size
Members = Callable[[Settings], Float[Tensor, "settings batch dims"]]


class Chosen(NamedTuple):
    """The members closest to one reading, one for each number of steps, which of them is the best, and their scales."""

    settings: Settings
    scales: Float[Tensor, " settings"]
    best: int


class Family(NamedTuple):
    """An algorithm, how many of its settings are free, and which of its members are closest to each reading."""

    algorithm: LinearReference
    n_free: int
    chosen: list[Chosen]


def fitted(
    algorithm: LinearReference,
    case: Case,
    problems: Problems,
    prediction: Float[Tensor, "readings batch queries"],
    scaled: Sequence[bool],
) -> Family:
    """The members of the least SPD from each reading; where a reading is ``scaled``, that of k times its prediction."""
    bound = algorithm.bound(case)
    grid, names, members = bound.grid(problems)[..., 0], bound.setting_names, members_of(bound, problems)
    free = [p for p in range(len(names)) if len(grid[:, p].unique()) > 1]
    refinable = [p for p in free if names[p] not in WHOLE]
    products, squares = _sums(bound, grid, problems, prediction)

    def closest_to(target: Predictions, is_scaled: bool, product: Float[Tensor, " settings"]) -> Chosen:
        scales = best_scale(product, squares) if is_scaled else torch.ones_like(squares)
        spd = scales**2 * squares - 2 * scales * product  # but for what all have in common
        settings = best_of_groups(grid, _starts(grid, names, refinable), spd.cpu())
        compared = partial(_compared, members, problems, target, is_scaled)
        if refinable:
            ends, enough = (grid.amin(dim=0) / 2, 2 * grid.amax(dim=0)), 1e-24 * float(target.square().sum())
            settings = refined(lambda moved: compared(moved)[0], settings, refinable, ends, enough)
            spd = compared(settings)[0].square().sum(dim=1)
            settings = best_of_groups(settings, _starts(settings, names, []), spd.cpu())
        left, scales = compared(settings)
        spd = left.square().mean(dim=1).clamp_min(EQUAL * target.square().mean()).nan_to_num(torch.inf)
        return Chosen(settings, scales, int((spd == spd.min()).nonzero()[0]))  # the fewest steps of equals

    chosen = [closest_to(*of_one) for of_one in zip(prediction, scaled, products.T, strict=True)]
    return Family(bound, len(free), chosen)


def members_of(algorithm: LinearReference, problems: Problems) -> Members:
    """The weights of an algorithm's family, as a function of any settings, for problems of one size."""
    solve = algorithm.solver(problems)
    return lambda settings: solve(settings[..., None])[:, :, 0]


def _starts(grid: Settings, names: Sequence[str], refinable: Sequence[int]) -> Float[Tensor, " settings"]:
    """By which group each setting is in: the best of each is refined. One for each number of steps at least."""
    steps = grid[:, -1] if "steps" in names else grid.new_zeros(len(grid))
    if len(refinable) < 2:
        return steps
    # gamma too, with which there are several minima: one start in each third of its grid
    gamma = grid[:, refinable[1]].contiguous()
    values = gamma.unique()
    return 3 * steps + torch.bucketize(gamma, values[[len(values) // 3, 2 * len(values) // 3]], right=True)


def _compared(
    members: Members, problems: Problems, target: Predictions, is_scaled: bool, settings: Settings
) -> tuple[Float[Tensor, "settings residuals"], Float[Tensor, " settings"]]:
    """What some settings leave of what is read, and the scales of their predictions."""
    other = torch.einsum("kbd,bqd->kbq", members(settings), problems.targets[:, 0])
    squares, products = other.square().sum(dim=(1, 2)), (other * target).sum(dim=(1, 2))
    scales = best_scale(products, squares) if is_scaled else torch.ones_like(squares)
    return (target - scales[:, None, None] * other).flatten(1), scales


def best_scale(products: Tensor, squares: Tensor) -> Tensor:
    """The best k >= 0 from the sums of yhat yhat_a and of yhat_a^2; 0 where the algorithm predicts 0."""
    return torch.where(squares > 0, products / squares, 0.0).clamp_min(0)


def _sums(
    algorithm: LinearReference,
    grid: Settings,
    problems: Problems,
    prediction: Float[Tensor, "readings batch queries"],
) -> tuple[Float[Tensor, "settings readings"], Float[Tensor, " settings"]]:
    """Over prompts and queries those of yhat yhat_a and of yhat_a^2; a setting's weights serve all readings."""
    products = prediction.new_zeros(len(grid), len(prediction))
    squares, start = prediction.new_zeros(len(grid)), 0
    for part in problems.parts():
        read = prediction[:, start : start + len(part.x)].flatten(1)
        solve = algorithm.solver(part)
        for path in paths(grid[..., None]):
            other = part.predictions(solve(grid[path][..., None])).flatten(1)
            products[path] += other @ read.T
            squares[path] += other.square().sum(dim=1)
        start += len(part.x)
    return products, squares


def best_of_groups(
    settings: Settings, groups: Float[Tensor, " settings"], spd: Float[Tensor, " settings"]
) -> Float[Tensor, "groups parameters"]:
    """The one of the least SPD in each group, such as those with one number of steps, in order."""
    spd = spd.nan_to_num(torch.inf)
    alike = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    return settings[torch.stack([group[spd[group].argmin()] for group in alike])]


def refined(
    residuals: Callable[[Settings], Float[Tensor, "settings residuals"]],
    settings: Settings,
    moved: Sequence[int],
    within: tuple[Float[Tensor, " parameters"], Float[Tensor, " parameters"]],
    enough: float = 0.0,
    most: int = 20,
) -> Settings:
    """Each of the settings moved to a local minimum of its sum of squared residuals, in the parameters ``moved``.

    Levenberg and Marquardt's method with forward differences, which settles near a minimum of 0 as Newton's does. The
    parameters are of one unit and stay ``within`` these ends; a sum of ``enough`` is left alone.
    """
    low, high = (ends[moved] for ends in within)
    settings = settings.clone()
    left = residuals(settings)
    spd = left.square().sum(dim=1).cpu()
    damping = torch.full_like(spd, 1e-3)
    going = spd.isfinite() & (spd > enough)
    for _ in range(most):
        at = going.nonzero()[:, 0]
        if not len(at):
            break
        old = settings[at]
        unit = old[:, moved].amax(dim=1, keepdim=True)
        ahead = old.repeat(len(moved), 1, 1)
        for i, p in enumerate(moved):
            ahead[i, :, p] += 1e-6 * unit[:, 0]
        slopes = (residuals(ahead.flatten(0, 1)).unflatten(0, ahead.shape[:2]) - left[at]) / 1e-6
        jacobian = slopes.permute(1, 2, 0)
        curvature, downhill = (jacobian.mT @ jacobian).cpu(), -torch.einsum("knp,kn->kp", jacobian, left[at]).cpu()
        # One at its end that would go beyond it stays, else it would turn the others' way.
        held = (old[:, moved] <= low) & (downhill < 0) | (old[:, moved] >= high) & (downhill > 0)
        curvature, downhill = curvature * ~(held[:, None] | held[:, :, None]), downhill * ~held
        curvature = curvature + torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[at, None] + 1e-300)
        move = torch.linalg.solve_ex(curvature, downhill[..., None])[0][..., 0] * unit
        new = old.clone()
        new[:, moved] = (old[:, moved] + move).clamp(low, high)
        trial = residuals(new)
        reached = trial.square().sum(dim=1).cpu()
        better = reached < spd[at]
        gain = torch.where(better, 1 - reached / spd[at], 0)
        won = at[better]
        settings[won], left[won], spd[won] = new[better], trial[better], reached[better]
        damping[at] *= torch.where(better, 0.1, 10.0)
        going[at] = torch.where(better, (gain > 1e-5) & (reached > enough), damping[at] < 1e3)
    return settings
