"""torchmetrics shells over functional/risk.py."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_icl.functional.risk import squared_errors


class ExcessRisk(Metric):
    """Mean squared distance from the noise-free target over all prompts and queries, accumulated in float64."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    total: Tensor
    n_prompts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_prompts", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, f_query: Tensor) -> None:
        """Add a batch of predictions and noise-free targets, both (batch, queries)."""
        # Not in place: after a standalone validate these are inference tensors, which training may not write to.
        self.total = self.total + squared_errors(prediction, f_query).sum()
        self.n_prompts = self.n_prompts + prediction.shape[0]

    def compute(self) -> Tensor:
        return self.total / self.n_prompts
