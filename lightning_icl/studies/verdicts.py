"""From the numbers of one comparison to a verdict, and from several comparisons to a finding.

The tests behind the verdicts, both of size at most (1 - level)/2 = 2.5 % for intervals that cover at their level:

- PASS: the interval of every comparison lies wholly on the wanted side of its bound. That is an intersection-union
  test (Berger 1982): where some comparison is not as wanted, PASS needs that very one to err, so many comparisons need
  no correction;
- FAIL: the interval of some comparison lies wholly on the other side, at the level corrected for their number
  (Bonferroni): where all are as wanted, any of them could err.

Both need three seeds with a number. A seed without one, as of a layer whose heads matter no more than noise or of a
trial that failed, may speak against the claim, so with any such seed there is no PASS; the others may still FAIL it.

A few seeds may agree by chance, so no spread between seeds is taken to be smaller than can be known: than the error
that each seed's number has over its own prompts (root mean square), which is a part of the spread; nor than .5 % of
the number, by which three seeds that agree to all digits leave 1.2 % open, five .6 %. That only widens intervals.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lightning_icl.studies.statistics import SeedInterval, bonferroni_level, seed_interval

LEVEL = 0.95
LEAST_SEEDS = 3
LEAST_SPREAD = 0.005  # between seeds, of the number
Verdict = Literal["PASS", "FAIL", "UNDECIDED"]
Side = Literal["above", "below"]
WORST_FIRST: tuple[Verdict, ...] = ("FAIL", "UNDECIDED", "PASS")


class Part(NamedTuple):
    """One comparison that a claim needs: of one number for each seed that has one, and ``missing`` that have none.

    ``wanted`` is the side of the bound on which the mean must lie, with ``log`` the geometric mean, as for ratios.
    ``error`` is the standard error of one seed's number over its prompts, with ``log`` of its logarithm; 0 if unknown.
    """

    label: str
    values: tuple[float, ...]
    wanted: Side
    bound: float
    log: bool = False
    missing: int = 0
    error: float = 0.0

    def interval(self, level: float) -> SeedInterval:
        """Over seeds; without end, and without a mean, where no seed has a number."""
        if not self.values:
            return SeedInterval(math.nan, 0.0 if self.log else -math.inf, math.inf, 0)
        size = 1.0 if self.log else max(abs(self.bound), abs(sum(self.values) / len(self.values)))
        return seed_interval(self.values, level, self.log, max(self.error, LEAST_SPREAD * size))


class Judged(NamedTuple):
    """A comparison with its 95 % interval; its verdict knows of how many comparisons it is one."""

    part: Part
    interval: SeedInterval
    verdict: Verdict

    def clearance(self) -> float:
        """How far the mean lies on the wanted side of the bound, in half-widths of the interval: PASS is above 1."""
        if self.interval.n < 2 or math.isinf(self.interval.high):
            return 0.0
        ends = (self.interval.mean, self.interval.high, self.part.bound)
        mean, high, bound = map(math.log if self.part.log else float, ends)
        wanted = mean - bound if self.part.wanted == "above" else bound - mean
        return wanted / (high - mean) if wanted else 0.0

    def number(self) -> str:
        """The mean with its interval, what was wanted, and what keeps that from being a verdict."""
        n, wanted = self.interval.n, ">=" if self.part.wanted == "above" else "<="
        mean, low, high = map(three_digits, self.interval[:3])
        few = {0: "no seed has a number", 1: f"{mean} of one seed, which has no interval"}
        said = f"{few.get(n, f'{mean} [{low}, {high}]')}, wanted {wanted} {self.part.bound:.3g}"
        if n and self.part.missing:
            said += f", {self.part.missing} of {n + self.part.missing} seeds without a number"
        return said + f", {LEAST_SEEDS} seeds are needed" * (0 < n < LEAST_SEEDS)


class Finding(NamedTuple):
    """What became of a claim in one setting, or over all of them (``setting`` None); a note says what it lacked."""

    claim: str
    statement: str
    setting: dict[str, Any] | None
    verdict: Verdict
    parts: list[Judged]
    note: str = ""

    @property
    def decisive(self) -> Judged | None:
        """The comparison that settles it: the worst one. None where there is nothing to compare."""
        return min(self.parts, key=lambda p: (WORST_FIRST.index(p.verdict), p.clearance()), default=None)

    def number(self) -> str:
        """The decisive comparison's number as text."""
        worst = self.decisive
        number = "nothing to compare" if worst is None else worst.number()
        if worst and worst.interval.n >= LEAST_SEEDS and worst.verdict == "UNDECIDED" and worst.clearance() < -1:
            number += f", beyond chance if it were alone, but it is one of {len(self.parts)} comparisons"
        return f"{number} ({self.note})" if self.note else number


def judged(part: Part, n_parts: int = 1) -> Judged:
    """The verdict on one of ``n_parts`` comparisons."""
    interval = part.interval(LEVEL)
    if interval.n < LEAST_SEEDS:
        return Judged(part, interval, "UNDECIDED")
    if _beyond(interval, part.wanted, part.bound):
        return Judged(part, interval, "UNDECIDED" if part.missing else "PASS")
    other: Side = "below" if part.wanted == "above" else "above"
    corrected = part.interval(bonferroni_level(LEVEL, n_parts))
    return Judged(part, interval, "FAIL" if _beyond(corrected, other, part.bound) else "UNDECIDED")


def finding(
    claim: str, statement: str, setting: dict[str, Any] | None, parts: Sequence[Part], note: str = ""
) -> Finding:
    """The verdict on all comparisons of a claim together, that of the worst; UNDECIDED where there are none."""
    found = Finding(claim, statement, setting, "UNDECIDED", [judged(part, len(parts)) for part in parts], note)
    return found._replace(verdict=found.decisive.verdict) if found.decisive else found


def _beyond(interval: SeedInterval, side: Side, bound: float) -> bool:
    """Whether the interval lies wholly on that side of the bound."""
    return interval.low > bound if side == "above" else interval.high < bound


def three_digits(value: float) -> str:
    """The value as people read it: 1.5 -> "1.50"."""
    return f"{value:#.3g}".rstrip(".")
