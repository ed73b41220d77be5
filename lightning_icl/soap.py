"""SOAP: Adam in the eigenbasis of each matrix's gradients."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

Matrices = Float[Tensor, "matrices rows columns"]
Square = Float[Tensor, "matrices size size"]

STATE = ("average", "average_square", "left", "right", "left_basis", "right_basis")


class SOAP(Optimizer):
    """Adam on the gradients as seen in the eigenbases of their second moments (Vyas et al. 2024, algorithm 3).

    For a matrix with gradients G, L and R are moving averages of G G^T and G^T G, of which every ``basis_every`` steps
    one step of orthogonal iteration keeps the eigenvectors Q_L and Q_R up to date. Adam's second moment is that of
    Q_L^T G Q_R. As in the authors' code, the first step only finds the bases, and both moments and L and R share
    their decay rates. Matrices of one shape are stepped together.

    A step's elements are of Adam's size, so learning rates are those of AdamW. Weight decay is decoupled.

    Early gradients lack full rank, and of a null space any basis is as good, so rounding chooses one: runs that add up
    a batch in another order, such as on another number of processes, part by some 1e-4 of their risk in 50 steps.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        basis_every: int = 10,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "basis_every": basis_every}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, int], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    steps = self.state[weight].setdefault("steps", 0)
                    alike.setdefault((weight.shape, steps), []).append(weight)
            for (_, steps), weights in alike.items():
                self._step(weights, torch.stack([w.grad for w in weights if w.grad is not None]), steps, group)

    def _step(self, weights: list[Tensor], gradient: Matrices, steps: int, group: dict[str, Any]) -> None:
        """The next step of some weights of one shape that have had as many of them."""
        (beta, beta_square), every = group["betas"], group["basis_every"]
        for weight in weights:
            self.state[weight]["steps"] = steps + 1
        if steps == 0:
            left, right = (1 - beta_square) * gradient @ gradient.mT, (1 - beta_square) * gradient.mT @ gradient
            bases = (torch.linalg.eigh(moment).eigenvectors.flip(-1) for moment in (left, right))
            fresh = (torch.zeros_like(gradient), torch.zeros_like(gradient), left, right, *bases)
            for name, whole in zip(STATE, fresh, strict=True):
                self._hand_out(weights, name, whole)
            return
        average, average_square, left, right, left_basis, right_basis = (self._together(weights, n) for n in STATE)
        average.lerp_(gradient, 1 - beta)
        average_square.lerp_((left_basis.mT @ gradient @ right_basis).square(), 1 - beta_square)
        scale = (average_square / (1 - beta_square**steps)).sqrt() + group["eps"]
        direction = (left_basis.mT @ average @ right_basis) / (1 - beta**steps) / scale
        # An entry that has had no gradient stays, as under Adam: here rounding, over a scale of eps, would move it.
        direction = (left_basis @ direction @ right_basis.mT) * (average != 0)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(direction), alpha=-group["lr"])

        left.lerp_(gradient @ gradient.mT, 1 - beta_square)
        right.lerp_(gradient.mT @ gradient, 1 - beta_square)
        if steps % every == 0:
            rows, columns = _iterate(left, left_basis), _iterate(right, right_basis)
            reordered = average_square.gather(1, rows[:, :, None].expand_as(average_square))
            average_square.copy_(reordered.gather(2, columns[:, None, :].expand_as(average_square)))

    def _together(self, weights: list[Tensor], name: str) -> Matrices:
        """A state of these weights as one tensor, of which each weight's own is a view.

        So it is from one step to the next, and nothing is copied; only after a checkpoint, or where other weights were
        stepped together before, is it put together again.
        """
        parts = [self.state[weight][name] for weight in weights]
        whole = parts[0]._base
        if whole is not None and len(whole) == len(parts):
            rows = (whole.data_ptr() + i * part.nbytes for i, part in enumerate(parts))
            if all(part._base is whole and part.data_ptr() == row for part, row in zip(parts, rows, strict=True)):
                return whole
        return self._hand_out(weights, name, torch.stack(parts))

    def _hand_out(self, weights: list[Tensor], name: str, whole: Matrices) -> Matrices:
        for weight, part in zip(weights, whole, strict=True):
            self.state[weight][name] = part
        return whole


def _iterate(moment: Square, basis: Square) -> Tensor:
    """Take the basis a step of orthogonal iteration on, and return the order that its vectors were put in for it."""
    order = (basis * (moment @ basis)).sum(dim=1).argsort(dim=-1, descending=True)
    ordered = basis.gather(2, order[:, None, :].expand_as(basis))
    basis.copy_(torch.linalg.qr(moment @ ordered).Q)
    return order
