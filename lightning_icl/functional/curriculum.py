"""How the size of training prompts grows while a model trains (Garg et al. 2022)."""

from typing import NamedTuple


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
