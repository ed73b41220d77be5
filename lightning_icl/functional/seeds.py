"""The risk of something that was trained from several seeds."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.risk import mean_and_standard_error, t_quantile


class Interval(NamedTuple):
    """A mean and its interval, of 95 % unless told otherwise, mean +- half_width."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def over_seeds_and_prompts(errors: Float[Tensor, "seeds prompts"], level: float = 0.95) -> Interval:
    """The mean over seeds and prompts, with an interval for other seeds and other prompts.

    half_width^2 = (t_S std_s(mean_p e) / sqrt(S))^2 + (t_P std_p(mean_s e) / sqrt(P))^2, where e are the errors of S
    seeds on the same P prompts and t_n is Student's quantile for n values: a few seeds say little of how much seeds
    differ. Both parts hold what is particular to one seed on one prompt, so the interval is if anything wide. A single
    seed gives the interval for that seed.
    """
    by_seed, by_prompt = errors.mean(dim=1), errors.mean(dim=0)
    parts = [
        t_quantile(len(values), level) * float(mean_and_standard_error(values)[1])
        for values in (by_seed, by_prompt)
        if len(values) > 1
    ]
    return Interval(float(errors.mean()), sum(part**2 for part in parts) ** 0.5)
