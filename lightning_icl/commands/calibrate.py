"""lightning-icl calibrate: do the instruments find what is there, on networks whose algorithm is known?"""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from tqdm.auto import tqdm

from lightning_icl.functional.errors import check_at_least
from lightning_icl.instruments.calibration import (
    Line,
    known_networks,
    lines_of,
    p_probing_lines,
    planted_lines,
    wrong_lines,
)
from lightning_icl.instruments.p_probing import Training
from lightning_icl.record.lines import WIDTH


class Size(NamedTuple):
    """How large a calibration is."""

    n_dims: int
    n_points: int
    n_prompts: int
    training: Training  # of P-probing
    seeds: int
    depths: int


SIZES = {
    "small": Size(4, 40, 128, Training(n_steps=150, n_seeds=2, n_choose=512, n_score=1024), 1, 2),
    "full": Size(8, 40, 1024, Training(), 5, 3),
}


def calibrate(scale: Literal["small", "full"] = "full", p_probing: bool = True, cpu_threads: int = 1) -> None:
    """Run every instrument on networks whose algorithm is known, and say of each whether it found it: PASS or FAIL.

    The networks are written down, not trained (docs/constructions.md). Then heads are planted whose part is known, and
    networks are taken for what they are not, which the instruments must notice. Exit status 1 where a line fails.

    Args:
        scale: "small", d = 4, in a minute or two, or "full", d = 8, in a quarter of an hour of a CPU core.
        p_probing: also P-probing, which trains and takes most of the time.
        cpu_threads: threads; 1 is fastest for networks this small.
    """
    check_at_least(1, cpu_threads=cpu_threads)
    torch.set_num_threads(cpu_threads)
    found = []
    for line in calibration(SIZES[scale], p_probing):
        found.append(line)
        tqdm.write("\n".join(said(line)))
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
        yield from p_probing_lines(size.n_dims, size.n_points, size.training, range(size.seeds), size.depths)


def said(line: Line) -> Sequence[str]:
    """The line on a terminal."""
    words = f"{line.instrument}, {line.network}: expected {line.expected}; found {line.found}"
    return textwrap.wrap(f"{'PASS' if line.passed else 'FAIL'}  {words}", WIDTH, subsequent_indent=" " * 6)
