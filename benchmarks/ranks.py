"""Do 1, 2 and 4 processes find the same numbers and train the same weights?

    python benchmarks/ranks.py [--config configs/debug.yaml] [--processes 1 2 4] [--steps 40]

On the CPU, by gloo. One fit for each number of processes, and for each a validate of the first fit's last checkpoint.
The record's numbers (values, ends of intervals, maps of heads) and the weights are compared one by one with those of
one process. A gradient is a sum over prompts, which several processes add in another order: weights agree to rounding.
The difference is |a - b| / max(|a|, |b|), and of a weight relative to the largest of its tensor: one that is nearly 0
has no digits of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_icl.record import load_run
from lightning_icl.record.rows import NUMBERS

Numbers = dict[str, tuple[float, float]]  # by its place: the number, and what a difference is relative to


def leaves(found: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What nested lists hold, by its place."""
    if not isinstance(found, list):
        yield place, found
        return
    for i, value in enumerate(found):
        yield from leaves(value, f"{place}/{i}")


def recorded(folder: Path) -> Numbers:
    """The values and ends of intervals of every row, and every array."""
    found: dict[str, Any] = {}
    for measured in load_run(folder).measurements:
        place = f"{measured.analysis}/{measured.step}"
        for i, row in enumerate(measured.rows):
            found |= {f"{place}/{i}/{row.metric}/{name}": getattr(row, name) for name in NUMBERS}
        for name, values in measured.arrays.items():
            found |= dict(leaves(values, f"{place}/{name}"))
    return {place: (value, abs(value)) for place, value in found.items() if isinstance(value, int | float)}


def weights(folder: Path) -> Numbers:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    named = [(value.abs().max().item(), leaves(value.tolist(), name)) for name, value in state.items()]
    return {place: (value, most) for most, values in named for place, value in values}


def row(what: str, processes: int, one: Numbers, other: Numbers) -> str:
    if one.keys() != other.keys():
        raise SystemExit(f"{what}, {processes} processes: other places, {sorted(one.keys() ^ other.keys())[:3]}.")
    pairs = [(*one[place], *other[place]) for place in one]
    differences = [abs(a - b) / max(of_a, of_b) if a != b else 0 for a, of_a, b, of_b in pairs]
    return f"| {what} | {processes} | {len(pairs):,} | {differences.count(0):,} | {max(differences):.1e} |"


def run(command: str, folder: Path, processes: int, *options: str) -> Path:
    strategy = "ddp" if processes > 1 else "auto"
    options += ("--trainer.accelerator", "cpu", "--trainer.devices", str(processes), "--trainer.strategy", strategy)
    options += ("--cpu_threads", "1", "--figures.when", "never", "--run_folder", str(folder))
    arguments = [sys.executable, "-m", "lightning_icl", command, *options, "--trainer.enable_progress_bar", "false"]
    done = subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/debug.yaml")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="the first is compared with")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    config = ("--config", arguments.config, "--trainer.max_steps", str(arguments.steps))
    first, *others = arguments.processes
    print("| what | processes | compared | exactly equal | largest difference |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit = run("fit", folder / "fit", first, *config)
        config += ("--ckpt_path", str(fit / "checkpoints" / "last.ckpt"))
        validate = run("validate", folder / "validate", first, *config)
        for processes in others:
            mine = run("validate", folder / f"validate_{processes}", processes, *config)
            print(row("validate, record", processes, recorded(validate), recorded(mine)), flush=True)
        for processes in others:
            mine = run("fit", folder / f"fit_{processes}", processes, *config[:4])
            print(row("fit, weights", processes, weights(fit), weights(mine)), flush=True)


if __name__ == "__main__":
    main()
