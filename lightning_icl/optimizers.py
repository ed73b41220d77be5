"""Muon for the hidden matrices and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class Blocks(NamedTuple):
    """A matrix as ``number`` equal blocks of rows (``dim`` 0) or columns (``dim`` 1), such as one for each head."""

    dim: int
    number: int

    def of(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "number block_rows block_columns"]:
        """The blocks, as a view."""
        return matrix.unflatten(self.dim, (self.number, -1)).movedim(self.dim, 0)


WHOLE = Blocks(0, 1)


class BlockMuon(Muon):
    """torch.optim.Muon, with steps of AdamW's size, that takes each block of a matrix for a matrix of its own.

    ``blocks`` has those of each parameter; one that it lacks is a single block. Parameters and momenta stay whole, so
    checkpoints are those of Muon.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, blocks: Mapping[Tensor, Blocks]
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.blocks = blocks

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, group)

    def _step(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """As in torch's Muon, but by block: momentum, orthogonalisation, weight decay, step."""
        momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        blocks = self.blocks.get(weight, WHOLE)
        directions = orthogonalised(blocks.of(update), group["ns_coefficients"], group["ns_steps"], group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(directions.shape[1:]) ** 0.5  # the adjust_lr_fn match_rms_adamw
        blocks.of(weight).sub_(directions, alpha=group["lr"] * size)


def orthogonalised(
    matrices: Float[Tensor, "batch rows columns"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "batch rows columns"]:
    """The matrices with their singular values moved close to 1, by Newton-Schulz in bfloat16 (Jordan et al. 2024).

    What torch.optim.Muon does to one matrix, for many at once; a matrix of zeros stays one.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    wide = (matrices.mT if tall else matrices).bfloat16()
    wide = wide / torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if tall else wide


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon on ``matrices`` and torch.optim.AdamW on ``others``, stepped together.

    Muon orthogonalises the momentum of two-dimensional weights and has no rule for the rest (Jordan et al. 2024);
    its updates are scaled to AdamW's size (``match_rms_adamw``), so that one learning rate serves both. Lightning's
    automatic optimization takes one optimizer, hence this pair: it owns the parameter groups and the state, which
    schedulers, gradient scalers and checkpoints see, and lends each part its own.

    With ``blocks`` of some of the matrices, BlockMuon takes Muon's place.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        blocks: Mapping[Tensor, Blocks] | None = None,
    ) -> None:
        self.muon = (
            Muon(list(matrices), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            if blocks is None
            else BlockMuon(list(matrices), lr, weight_decay, blocks)
        )
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
