"""A tensor that a task holds."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor made on the CPU, so that a seed means the same everywhere, and copied once to each device it is used on.

    Copied anew for every batch it would make each one wait for the device. Copies of the task start without copies.
    """

    value: Tensor
    _copies: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    def like(self, x: Tensor) -> Tensor:
        """The tensor on the device of ``x`` and in its dtype."""
        key = x.device, x.dtype
        if key not in self._copies:
            self._copies[key] = self.value.to(x)
        return self._copies[key]

    def __reduce__(self) -> tuple[type["Constant"], tuple[Tensor]]:
        return Constant, (self.value,)
