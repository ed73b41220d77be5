"""A tensor that a task holds."""

import torch
from torch import Tensor


class Constant:
    """A tensor made on the CPU, so that a seed means the same everywhere, and copied once to each device it is used on.

    Copied anew for every batch it would make each one wait for the device. Copies of the task start without copies.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The tensor on the device of ``x`` and in its dtype."""
        key = x.device, x.dtype
        if key not in self._copies:
            self._copies[key] = self.value.to(x)
        return self._copies[key]

    def __reduce__(self) -> tuple[type["Constant"], tuple[Tensor]]:
        return Constant, (self.value,)
