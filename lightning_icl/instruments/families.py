"""The member of an algorithm's family that is closest to a reading: settings from a grid, then refined, for every t."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.references import Case, Problems
from lightning_icl.functional.references.reference import (
    LinearReference,
    SearchedReference,
    Settings,
    in_parts,
    predicted,
)

EQUAL = 1e-12  # relative SPD below which predictions are the same but for rounding
WHOLE = ("steps", "features")  # settings that are counted, all others are refined
Predictions = Float[Tensor, "batch queries"]


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

    def member(self, settings: Float[Tensor, " parameters"]) -> LinearReference:
        """The one with these settings."""
        member = copy.copy(self.algorithm)
        if isinstance(member, SearchedReference):
            member.setting = settings[:, None]
        return member


def fitted(
    algorithm: LinearReference,
    case: Case,
    problems: Problems,
    prediction: Float[Tensor, "readings batch queries"],
    scaled: Sequence[bool],
) -> Family:
    """The members of the least SPD from each reading; where a reading is ``scaled``, that of k times its prediction."""
    # All that does not depend on the prompts is settled by one of them; the setting is chosen here.
    settled = algorithm.settled(case, next(problems.chunks(1)))
    assert isinstance(settled, LinearReference)
    fits = several(settled, problems)
    if not isinstance(settled, SearchedReference):
        nothing = prediction.new_zeros(1, 0)
        alone = [_Residuals(fits, problems, *of) for of in zip(prediction, scaled, strict=True)]
        return Family(settled, 0, [Chosen(nothing, of(nothing)[1], 0) for of in alone])
    candidates, names = settled.candidates(case, problems)[..., 0], settled.setting_names
    free = [p for p in range(len(names)) if len(candidates[:, p].unique()) > 1]
    refinable = [p for p in free if names[p] not in WHOLE]
    within = candidates.amin(dim=0) / 2, 2 * candidates.amax(dim=0)
    groups = candidates[:, -1] if "steps" in names else torch.zeros_like(candidates[:, 0])
    if len(refinable) > 1:  # gamma too, with which there are several minima: one start in each third of its grid
        grid = candidates[:, refinable[1]].contiguous()
        thirds = torch.bucketize(
            grid, grid.unique()[[len(grid.unique()) // 3, 2 * len(grid.unique()) // 3]], right=True
        )
        groups = 3 * groups + thirds
    products, squares = _sums(settled, candidates, problems, prediction)
    chosen = []
    for target, is_scaled, by_candidate in zip(prediction, scaled, products.T, strict=True):
        scales = best_scale(by_candidate, squares) if is_scaled else torch.ones_like(squares)
        spd = scales**2 * squares - 2 * scales * by_candidate  # but for what all have in common
        settings = best_of_groups(candidates, groups, spd)
        residuals = _Residuals(fits, problems, target, is_scaled)
        if refinable:
            settings = refined(residuals.of, settings, refinable, within, 1e-24 * float(target.square().sum()))
            by_steps = settings[:, -1] if "steps" in names else torch.zeros_like(settings[:, -1])
            settings = best_of_groups(settings, by_steps, residuals.of(settings).square().sum(dim=1))
        left, scales = residuals(settings)
        spd = left.square().mean(dim=1).clamp_min(EQUAL * float(target.square().mean())).nan_to_num(torch.inf)
        chosen.append(Chosen(settings, scales, int((spd == spd.min()).nonzero()[0])))  # the fewest steps of equals
    return Family(settled, len(free), chosen)


def several(
    algorithm: LinearReference, problems: Problems
) -> Callable[[Settings], Float[Tensor, "settings batch dims"]]:
    """The weights, as a function of any settings; as they are where there is nothing to set."""
    if isinstance(algorithm, SearchedReference):
        return algorithm.several(problems)
    w_hat = algorithm.weights(problems)[None, :, 0]
    return lambda settings: w_hat


class _Residuals(NamedTuple):
    """What some settings leave of a reading, (settings, batch * queries), and the scales of their predictions."""

    fits: Callable[[Settings], Tensor]
    problems: Problems
    target: Predictions
    is_scaled: bool

    def __call__(self, settings: Settings) -> tuple[Tensor, Float[Tensor, " settings"]]:
        other = torch.einsum("kbd,bqd->kbq", self.fits(settings), self.problems.targets[:, 0])
        squares = other.square().sum(dim=(1, 2))
        products = (other * self.target).sum(dim=(1, 2))
        scales = best_scale(products, squares) if self.is_scaled else torch.ones_like(squares)
        return (self.target - scales[:, None, None] * other).flatten(1), scales

    def of(self, settings: Settings) -> Float[Tensor, "settings residuals"]:
        return self(settings)[0]


def best_scale(products: Tensor, squares: Tensor) -> Tensor:
    """The best k >= 0 from the sums of yhat yhat_a and of yhat_a^2; 0 where the algorithm predicts 0."""
    return torch.where(squares > 0, products / squares, 0.0).clamp_min(0)


def _sums(
    algorithm: SearchedReference,
    candidates: Settings,
    problems: Problems,
    prediction: Float[Tensor, "readings batch queries"],
) -> tuple[Float[Tensor, "candidates readings"], Float[Tensor, " candidates"]]:
    """Over prompts and queries those of yhat yhat_a and of yhat_a^2; a candidate's weights serve all readings."""
    products = prediction.new_zeros(len(candidates), len(prediction))
    squares, start = prediction.new_zeros(len(candidates)), 0
    for part in in_parts(problems):
        read = prediction[:, start : start + len(part.x)].flatten(1)
        for i, w_hat in enumerate(algorithm.fits(part, candidates[..., None])):
            other = predicted(w_hat, part).flatten()
            products[i] += read @ other
            squares[i] += other @ other
        start += len(part.x)
    return products, squares


def best_of_groups(
    candidates: Settings, groups: Float[Tensor, " candidates"], spd: Float[Tensor, " candidates"]
) -> Settings:
    """The candidate of the least SPD in each group, such as those with one number of steps, in order."""
    spd = spd.nan_to_num(torch.inf)
    alike = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    return candidates[torch.stack([group[spd[group].argmin()] for group in alike])]


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
    spd = left.square().sum(dim=1)
    damping = torch.full_like(spd, 1e-3)
    going = spd.isfinite() & (spd > enough)
    for _ in range(most):
        at = going.nonzero()[:, 0]
        if not len(at):
            break
        old = settings[at]
        unit = old[:, moved].amax(dim=1, keepdim=True)
        slopes = []
        for p in moved:
            ahead = old.clone()
            ahead[:, p] += 1e-6 * unit[:, 0]
            slopes.append((residuals(ahead) - left[at]) / 1e-6)
        jacobian = torch.stack(slopes, dim=2)
        downhill = -torch.einsum("knp,kn->kp", jacobian, left[at])
        # One at its end that would go beyond it stays, else it would turn the others' way.
        held = (old[:, moved] <= low) & (downhill < 0) | (old[:, moved] >= high) & (downhill > 0)
        jacobian, downhill = jacobian * ~held[:, None], downhill * ~held
        curvature = jacobian.mT @ jacobian
        curvature = curvature + torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[at, None] + 1e-300)
        move = torch.linalg.solve_ex(curvature, downhill[..., None])[0][..., 0] * unit
        new = old.clone()
        new[:, moved] = (old[:, moved] + move).clamp(low, high)
        trial = residuals(new)
        reached = trial.square().sum(dim=1)
        better = reached < spd[at]
        gain = torch.where(better, 1 - reached / spd[at], 0)
        won = at[better]
        settings[won], left[won], spd[won] = new[better], trial[better], reached[better]
        damping[at] *= torch.where(better, 0.1, 10.0)
        going[at] = torch.where(better, (gain > 1e-6) & (reached > enough), damping[at] < 1e3)
    return settings
