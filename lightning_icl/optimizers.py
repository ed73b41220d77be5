"""Muon for the hidden matrices and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon on ``matrices`` and torch.optim.AdamW on ``others``, stepped together.

    Muon orthogonalises the momentum of two-dimensional weights and has no rule for the rest (Jordan et al. 2024);
    its updates are scaled to AdamW's size (``match_rms_adamw``), so that one learning rate serves both. Lightning's
    automatic optimization takes one optimizer, hence this pair: it owns the parameter groups and the state, which
    schedulers, gradient scalers and checkpoints see, and lends each part its own.
    """

    def __init__(self, matrices: Iterable[Tensor], others: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        self.muon = Muon(list(matrices), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(list(others), lr=lr, weight_decay=weight_decay)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, defaults={})
        self._lend()

    def _lend(self) -> None:
        for part, groups in ((self.muon, self.param_groups[:1]), (self.adamw, self.param_groups[1:])):
            part.param_groups, part.state = groups, self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both parts on the gradients that ``closure``, if given, computes once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._lend()
