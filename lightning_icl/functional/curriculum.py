"""How the size of training prompts grows while a model trains (Garg et al. 2022)."""

from typing import NamedTuple

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import Law


class Growth(NamedTuple):
    """A size that starts at ``start`` and grows by ``increment`` every ``every`` steps until it is ``end``."""

    start: int
    increment: int
    every: int
    end: int

    def at(self, step: int) -> int:
        """The size at optimizer step ``step``, counted from 0: a function of the step alone, so a resume is exact."""
        return min(self.end, self.start + self.increment * (step // self.every))

    def sizes(self) -> list[int]:
        """Every size it takes."""
        return [*range(self.start, self.end, self.increment), self.end]


class Sizes(NamedTuple):
    """The dimensions and examples of training prompts in use at each step; None is all of them, always."""

    dims: Growth | None = None
    points: Growth | None = None


def growing_dims(start: int | None, increment: int, every: int, task: Law) -> Growth | None:
    """The dimensions in use, up to all of the task's, if it can be cut down to each size; None without a start."""
    if start is None:
        return None
    if start > task.n_dims:
        raise InputError(f"dims_start is {start}, but the task has only {task.n_dims} dimensions.")
    growth = Growth(start, increment, every, task.n_dims)
    for smaller in growth.sizes()[:-1]:
        try:
            task.truncated(smaller)
        except InputError as error:
            raise InputError(f"the task cannot grow from {start} to {task.n_dims} dimensions: {error}") from error
    return growth


def growing_points(start: int | None, increment: int, every: int, n_points: tuple[int, int]) -> Growth | None:
    """The examples in use, up to all, of which prompts must have one number; None without a start."""
    smallest, largest = n_points
    if start is None:
        return None
    if smallest < largest:
        raise InputError(
            f"n_points is {[smallest, largest]}, but points_start needs one number of examples to grow to."
        )
    if start > largest:
        raise InputError(f"points_start is {start}, but n_points is only {largest}.")
    return Growth(start, increment, every, largest)
