"""Muon on many matrices at once, AdamW, and a pair of optimizers as one."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
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
NO_BLOCKS: Mapping[Tensor, Blocks] = MappingProxyType({})


class BlockMuon(Muon):
    """torch.optim.Muon, with steps of AdamW's size, for many matrices at once.

    It takes each block of a parameter for a matrix of its own: ``blocks`` has those of each parameter, and one that it
    lacks is a single block. Matrices of one shape, whatever their parameters, are orthogonalised together, since at our
    sizes each alone is too small to be worth a call. Parameters and momenta stay whole and apart, so checkpoints are
    those of Muon.

    Newton-Schulz runs in bfloat16 as torch's, but on the CPU in the parameters' own precision: most CPUs have no
    bfloat16 arithmetic, and then its emulation takes 20 to 40 times as long as float32.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, blocks: Mapping[Tensor, Blocks] = NO_BLOCKS
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.blocks = blocks

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """As in torch's Muon: momentum, orthogonalisation, weight decay, step."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            updates = self._updates(weights, group)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            alike: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = {}
            for weight, update in zip(weights, updates, strict=True):
                blocks = self.blocks.get(weight, WHOLE)
                targets, matrices = blocks.of(weight), blocks.of(update)
                if matrices.shape[1] > matrices.shape[2]:
                    targets, matrices = targets.mT, matrices.mT
                same = alike.setdefault(matrices.shape[1:], ([], []))
                same[0].append(targets)
                same[1].append(matrices)
            for shape, (targets_of_shape, matrices_of_shape) in alike.items():
                directions = orthogonalised(
                    torch.cat(matrices_of_shape), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                size = 0.2 * max(shape) ** 0.5  # the adjust_lr_fn match_rms_adamw
                parts = directions.split([len(targets) for targets in targets_of_shape])
                torch._foreach_add_(targets_of_shape, parts, alpha=-group["lr"] * size)

    def _updates(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The momenta with this step's gradients, or what Nesterov makes of both."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, momenta, group["momentum"])) if group["nesterov"] else momenta


def orthogonalised(
    matrices: Float[Tensor, "batch rows columns"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "batch rows columns"]:
    """The matrices with their singular values moved close to 1, by Newton-Schulz (Jordan et al. 2024).

    What torch.optim.Muon does to one matrix, for many at once; a matrix of zeros stays one. It costs least where there
    are no more rows than columns.
    """
    a, b, c = coefficients
    found = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    found = found / torch.linalg.vector_norm(found, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found


def adamw(params: Iterable[Tensor], lr: float, weight_decay: float) -> AdamW:
    """torch.optim.AdamW; on the CPU its fused form, which takes an eighth to a third of the time."""
    params = list(params)
    fused = all(p.device.type == "cpu" for p in params)
    optimizer = AdamW(params, lr=lr, weight_decay=weight_decay, fused=fused or None)
    # A fused step could undo the scale of a gradient scaler, so Lightning refuses to clip before it; none is used here.
    optimizer._step_supports_amp_scaling = False
    return optimizer


class OptimizerPair(Optimizer):
    """Two optimizers on parameters of their own, stepped together: one for the hidden matrices, one for the rest.

    Muon and SOAP have no rule for anything but matrices; their steps are of AdamW's size, so that one learning rate
    serves both. Lightning's automatic optimization takes one optimizer, hence this pair: it owns the parameter groups
    and the state, which schedulers, gradient scalers and checkpoints see, and lends each part its own.
    """

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.parts = (first, second)
        super().__init__(first.param_groups + second.param_groups, defaults={})
        self._lend()

    def _lend(self) -> None:
        n_first = len(self.parts[0].param_groups)
        for part, groups in zip(self.parts, (self.param_groups[:n_first], self.param_groups[n_first:]), strict=True):
            part.param_groups, part.state = groups, self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both parts on the gradients that ``closure``, if given, computes once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._lend()
