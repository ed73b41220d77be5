"""The estimation problems a batch of prompts poses: from all its examples, or from each of its prefixes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_icl.functional.estimators import Moments, moments, prefix_moments
from lightning_icl.functional.prompts import Prompt


class Problems(NamedTuple):
    """What the reference estimators predict from what, in float64.

    There is one problem for each prompt and each of ``sizes``: predict f at ``targets`` from the prompt's first
    sizes[i] examples, whose statistics are rows of ``moments`` (prompts times sizes, sizes fastest).
    """

    x: Float[Tensor, "batch points dims"]
    y: Float[Tensor, "batch points"]
    targets: Float[Tensor, "batch sizes queries dims"]
    f: Float[Tensor, "batch sizes queries"]
    w: Float[Tensor, "batch dims"] | None
    sizes: Int[Tensor, " sizes"]
    moments: Moments

    def chunks(self, n_prompts: int) -> Iterator["Problems"]:
        """The problems of at most ``n_prompts`` prompts at a time, which bounds the memory of a path of iterates."""
        n_sizes = len(self.sizes)
        for start in range(0, len(self.x), n_prompts):
            stop = min(start + n_prompts, len(self.x))
            yield Problems(
                self.x[start:stop],
                self.y[start:stop],
                self.targets[start:stop],
                self.f[start:stop],
                None if self.w is None else self.w[start:stop],
                self.sizes,
                self.moments.rows(slice(start * n_sizes, stop * n_sizes)),
            )

    def by_size(self, rows: Float[Tensor, "*path rows dims"]) -> Float[Tensor, "*path batch sizes dims"]:
        """One vector for each prompt and size, from one for each row of the moments."""
        return rows.unflatten(-2, (len(self.x), len(self.sizes)))

    def per_row(self, setting: Float[Tensor, " sizes"]) -> Float[Tensor, " rows"]:
        """A setting of each size, repeated for every prompt."""
        return setting.to(self.x).repeat(len(self.x))


def whole_prompts(prompt: Prompt) -> Problems:
    """Predict at the queries from all examples (pass unpadded prompts): a single size, n."""
    prompt = prompt.double()
    return Problems(
        prompt.x,
        prompt.y,
        prompt.x_query[:, None],
        prompt.f_query[:, None],
        prompt.w,
        torch.tensor([prompt.x.shape[1]], device=prompt.x.device),
        moments(prompt.x, prompt.y),
    )


def every_prefix(prompt: Prompt, at_queries: bool = False) -> Problems:
    """Predict from the first k examples, for k = 1 .. n.

    The target is the example that follows, as in a causal layout, and after the last one the first query; or
    ``at_queries`` all queries of the prompt for every k, which says the same of the law with less variance (but for
    SparseRecovery's fixed design, where examples and queries are of different laws).
    """
    prompt = prompt.double()
    n_points = prompt.x.shape[1]
    if at_queries:
        targets = prompt.x_query[:, None].expand(-1, n_points, -1, -1)
        f = prompt.f_query[:, None].expand(-1, n_points, -1)
    else:
        assert prompt.f is not None, "the prompt does not know the noise-free targets at its examples"
        targets = torch.cat([prompt.x[:, 1:], prompt.x_query[:, :1]], dim=1)[:, :, None]
        f = torch.cat([prompt.f[:, 1:], prompt.f_query[:, :1]], dim=1)[:, :, None]
    sizes = torch.arange(1, n_points + 1, device=prompt.x.device)
    return Problems(prompt.x, prompt.y, targets, f, prompt.w, sizes, prefix_moments(prompt.x, prompt.y))
