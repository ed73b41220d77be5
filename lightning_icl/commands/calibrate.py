"""lightning-icl calibrate: do the instruments find what is there, on networks whose algorithm is known?"""

import sys
import textwrap
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from lightning_icl.functional.errors import MOST_THREADS, check_between
from lightning_icl.functional.tasks import SparseLinearRegression
from lightning_icl.instruments.calibration import Line, known_networks, lines_of
from lightning_icl.instruments.p_probing import Training
from lightning_icl.instruments.planted import p_probing_lines, planted_lines, wrong_lines
from lightning_icl.record.lines import WIDTH


class Size(NamedTuple):
    """How large a calibration is: of all but P-probing, and then of that."""

    n_dims: int
    n_points: int
    n_prompts: int
    probed: SparseLinearRegression
    probed_points: int
    depths: int
    training: Training
    seeds: int


# P-probing wants few examples, where preprocess-then-GD is better than GD at every number of steps
# (docs/explanation/theory.md).
SIZES = {
    "small": Size(
        4, 40, 128, SparseLinearRegression(4, 1, noise_std=0.2), 8, 1, Training(60, n_queries=4, n_score=512), 1
    ),
    "full": Size(8, 40, 1024, SparseLinearRegression(8, 2, noise_std=0.2), 12, 2, Training(200), 5),
}


def calibrate(scale: Literal["small", "full"] = "full", skip_p_probing: bool = False, cpu_threads: int = 1) -> None:
    """Run every instrument on networks whose algorithm is known, and say of each whether it found it: PASS or FAIL.

    The networks are written down, not trained (docs/explanation/constructions.md). Then heads are planted whose part is
    known, and networks are taken for what they are not, which the instruments must notice. Exit status 1 where a line
    fails.

    Args:
        scale: "small", d = 4, in a minute, or "full", d = 8, in six minutes of a CPU core.
        skip_p_probing: leave out P-probing, which trains and takes most of the time.
        cpu_threads: threads; 1 is fastest for networks this small.
    """
    check_between(1, MOST_THREADS, cpu_threads=cpu_threads)
    torch.set_num_threads(cpu_threads)
    found: list[Line] = []
    for line in calibration(SIZES[scale], not skip_p_probing):
        if not found or line.network != found[-1].network:
            print(f"\n{line.network}")
        found.append(line)
        print("\n".join(said(line)), flush=True)  # each as soon as it is found
    failed = [line for line in found if not line.passed]
    print(f"\n{len(found) - len(failed)} of {len(found)} lines PASS.")
    if failed:
        sys.exit(1)


def calibration(size: Size, p_probing: bool = True) -> Iterator[Line]:
    """All lines, each as soon as it is found."""
    known = known_networks(size.n_dims, size.n_points)
    for name, one in known.items():
        yield from lines_of(name, one, one.network(), size.n_prompts)
    yield from planted_lines(known["preprocess-then-GD"], size.n_prompts)
    yield from wrong_lines(known, size.n_prompts)
    if p_probing:
        yield from p_probing_lines(size.probed, size.probed_points, size.depths, size.training, range(size.seeds))


def said(line: Line) -> list[str]:
    """The line on a terminal, below its network's name."""
    words = f"{line.instrument}: expected {line.expected}; found {line.found}"
    return textwrap.wrap(f"  {'PASS' if line.passed else 'FAIL'}  {words}", WIDTH, subsequent_indent=" " * 8)
