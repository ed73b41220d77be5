"""Training from several seeds: where each starts, and the risk over all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.risk import Interval, mean_and_standard_error, t_quantile


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, the CPU's default generator, which modules draw their first weights from, starts from ``seed``.

    Afterwards it goes on from where it was. No other generator is touched: ``torch.manual_seed`` would reseed those of
    every GPU, and ``torch.random.fork_rng`` puts only those back that it is told of.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def over_seeds_and_prompts(errors: Float[Tensor, "seeds prompts"], level: float = 0.95) -> Interval:
    """The mean over seeds and prompts, with an interval for other seeds and other prompts.

    value +- half with half^2 = (t_S std_s(mean_p e) / sqrt(S))^2 + (t_P std_p(mean_s e) / sqrt(P))^2, where e are the
    errors of S seeds on the same P prompts and t_n is Student's quantile for n values at that level: a few seeds say
    little of how much seeds differ. Both parts hold what is particular to one seed on one prompt, so the interval is if
    anything wide. A single seed gives the interval for that seed.
    """
    by_seed, by_prompt = errors.mean(dim=1), errors.mean(dim=0)
    parts = [
        t_quantile(len(values), level) * float(mean_and_standard_error(values)[1])
        for values in (by_seed, by_prompt)
        if len(values) > 1
    ]
    value, half = float(errors.mean()), sum(part**2 for part in parts) ** 0.5
    return Interval(value, value - half, value + half)
