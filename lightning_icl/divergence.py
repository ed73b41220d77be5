"""Whether every training step is made of numbers: told at the step itself, or one later on a GPU, not waited for."""

import math

import torch
from torch import Tensor

from lightning_icl.functional.errors import InputError


class DivergedError(InputError):
    """A step whose loss or gradient is no number; ``before_it`` is whether the weights are still those before it."""

    def __init__(self, message: str, before_it: bool = False) -> None:
        super().__init__(message)
        self.before_it = before_it


class Watch:
    """Looks at one number of each step.

    On a CPU at once. On a GPU the number is copied while the next step is made and looked at after that one's backward
    pass, by when it is there: the loop, which runs ahead of the GPU, is held to one step and never waits for this one.
    """

    def __init__(self) -> None:
        self.pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def add(self, step: int, number: Tensor) -> int | None:
        """Take in a step's number; says which step had one that is not finite, of those that are known by now."""
        if number.device.type != "cuda":
            return None if math.isfinite(number.numpy()) else step  # where it lies; .item() is for what is elsewhere
        known = self.settle()
        copied = torch.empty_like(number, device="cpu", pin_memory=True).copy_(number, non_blocking=True)
        (event := torch.cuda.Event()).record()
        self.pending = step, copied, event
        return known

    def settle(self) -> int | None:
        """Wait for what is under way."""
        if self.pending is None:
            return None
        (step, copied, event), self.pending = self.pending, None
        event.synchronize()
        return None if math.isfinite(copied) else step
