"""How well a probe reads a target: risk, share of the variance explained, area under the ROC curve."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["UNDEFINED", "Estimate", "area_under_roc", "deviations", "explained_share", "mean_estimate", "selectivity"]


class Estimate(NamedTuple):
    """A number found on a sample of prompts, with its standard error; NaN where it is not defined."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The normal 95 % interval."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


UNDEFINED = Estimate(float("nan"), float("nan"))


def deviations(targets: Float[Tensor, "batch tokens outputs"]) -> Float[Tensor, " batch"]:
    """Squared distance (summed over outputs, averaged over tokens) of each prompt's targets from the overall mean.

    Their mean is the variance that R^2 divides by. Exactly 0 where the targets are constant up to rounding.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import deviations
        >>> deviations(torch.tensor([[[1.0]], [[3.0]]]))  # two prompts of one token; the mean is 2
        tensor([1., 1.], dtype=torch.float64)
    """
    targets = targets.double()
    size = targets.square().sum(dim=-1).mean()
    spread = (targets - targets.mean(dim=(0, 1))).square().sum(dim=-1).mean(dim=1)
    return torch.where(spread.mean() > 1e-20 * size, spread, 0.0)


def mean_estimate(values: Float[Tensor, " batch"]) -> Estimate:
    """The mean over prompts; for squared errors of f, the excess risk.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import mean_estimate
        >>> mean_estimate(torch.tensor([1.0, 3.0]))
        Estimate(value=2.0, standard_error=1.0)
    """
    return Estimate(float(values.mean()), _standard_error(values - values.mean()))


def explained_share(errors: Float[Tensor, " batch"], deviation: Float[Tensor, " batch"]) -> Estimate:
    """R^2 = 1 - mean squared error / variance of the targets, both summed over outputs.

    ``errors`` are each prompt's squared errors, ``deviation`` its ``deviations``: those of the mean, over which R^2 is
    the selectivity. Undefined where the targets do not vary.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import explained_share
        >>> explained_share(errors=torch.tensor([0.5, 0.5]), deviation=torch.tensor([2.0, 2.0])).value
        0.75
    """
    return selectivity(errors, deviation, deviation)


def selectivity(
    errors: Float[Tensor, " batch"], control_errors: Float[Tensor, " batch"], deviation: Float[Tensor, " batch"]
) -> Estimate:
    """R^2 of a probe minus that of its control, paired: both are scored on the same prompts.

    The standard error is that of a ratio of two means over the same prompts, by linearisation.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import selectivity
        >>> errors, deviation = torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])
        >>> selectivity(errors, control_errors=3 * errors, deviation=deviation).value  # (1.5 - 0.5) / 2
        0.5
    """
    gain, scale = control_errors - errors, deviation.mean()
    if scale == 0:
        return UNDEFINED
    share = gain.mean() / scale
    return Estimate(float(share), _standard_error((gain - share * deviation) / scale))


def area_under_roc(
    scores: Float[Tensor, "batch tokens outputs"], positive: Bool[Tensor, "batch tokens outputs"]
) -> Estimate:
    """AUC: how often a positive scores above a negative, equal scores counting half, all tokens and outputs pooled.

    Each score's part is the share of the other class on its right side (DeLong et al. 1988); the standard error is of
    their sums over each prompt (Obuchowski 1997). Undefined where one class is empty.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import area_under_roc
        >>> scores = torch.tensor([[[0.9, 0.8, 0.3]], [[0.7, 0.2, 0.1]]])
        >>> positive = torch.tensor([[[True, False, False]], [[True, False, False]]])
        >>> area_under_roc(scores, positive).value  # 7 of 8 pairs are in order
        0.875
    """
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return UNDEFINED
    part = _shares_beaten(scores.flatten(), positive.flatten()).view_as(scores)
    area = part[positive].mean()
    weight = positive.to(scores) / n_positive + (~positive).to(scores) / n_negative
    by_prompt = ((part - area) * weight).sum(dim=(1, 2))
    return Estimate(float(area), _standard_error(len(scores) * by_prompt))


def _shares_beaten(scores: Float[Tensor, " samples"], positive: Bool[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Of each positive the share of the negatives below it, of each negative the share of the positives above it.

    Equal scores count half. One sort serves both.
    """
    values, order = scores.sort()
    _, group = values.unique_consecutive(return_inverse=True)
    classes = torch.stack([~positive, positive])[:, order].to(scores)
    counts = classes.new_zeros(2, int(group[-1]) + 1).index_add_(1, group, classes)
    negatives, positives = ((counts.cumsum(dim=1) - counts / 2) / counts.sum(dim=1, keepdim=True))[:, group]
    shares = torch.where(positive[order], negatives, 1 - positives)
    return torch.empty_like(shares).scatter_(0, order, shares)


def _standard_error(centred: Float[Tensor, " batch"]) -> float:
    """Of a mean, from deviations that sum to zero; NaN for a single prompt."""
    n = len(centred)
    return float((centred.square().sum() / (n - 1) / n).sqrt()) if n > 1 else float("nan")
