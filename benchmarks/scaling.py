"""What do the time and the memory of a training step grow with: points, width, heads, prompts?

    python benchmarks/scaling.py [--tables points width heads batch] [--steps 3] [--threads 1]

One table for each, the rest at the quickstart's like: 4 layers of 8 heads, width 64, no MLP, d = 8, 16 points and 16
queries in pairs, 64 prompts; a single prompt in the table of points. A step is ICLModule's: prompts, forward, backward
and AdamW, in float32; its time is the median CPU time of ``steps`` after a first one. Memory is what the process grew
by at its largest: the peak of its resident set (VmHWM of Linux) less the resident set after two steps with a single
prompt, so model, gradients, the optimizer's moments, activations and the matrix library's buffers, but not interpreter
and code. Each number is from a process of its own, since freed memory does not always go back. MB are 10^6 bytes.
"""

import argparse
import re
import statistics
import time
from multiprocessing import get_context
from pathlib import Path

import torch

from lightning_icl import ICLModule, SparseLinearRegression
from lightning_icl.transformer import Attention

DIMS, QUERIES = 8, 16
KINDS: tuple[Attention, ...] = ("softmax", "relu", "linear")
BASE = {"points": 16, "width": 64, "heads": 8, "batch": 64}
TABLES: dict[str, list[dict[str, int]]] = {
    "points": [{"points": n, "batch": 1} for n in (16, 64, 256, 1024, 4096)],
    "width": [{"width": width} for width in (32, 64, 128, 256, 512)],
    "heads": [{"heads": heads} for heads in (1, 2, 4, 8, 16, 32)],
    "batch": [{"batch": prompts} for prompts in (16, 64, 256, 1024)],
}


def resident(line: str) -> int:
    """Bytes of this process: ``line`` is VmRSS (now) or VmHWM (at most so far)."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def train(steps: int, attention: Attention, points: int, width: int, heads: int, batch: int) -> float:
    """Median CPU seconds of a step after the first."""
    module = ICLModule(DIMS, d_model=width, heads=[heads] * 4, attention=attention, mlp=False)
    optimizer = module.fresh_optimizer()
    task, generator, times = SparseLinearRegression(DIMS, 2, noise_std=0.4), torch.Generator().manual_seed(0), []
    for _ in range(steps + 1):
        start = time.process_time()
        optimizer.zero_grad()
        module.loss(task.sample(batch, points, QUERIES, generator)).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def measured(threads: int, steps: int, attention: Attention, shape: dict[str, int]) -> tuple[float, int]:
    """CPU seconds of a step, and by how many bytes training made this process grow at most."""
    torch.set_num_threads(threads)
    train(1, attention, **BASE | {"batch": 1})  # brings in the code
    before = resident("VmRSS")
    return train(steps, attention, **shape), resident("VmHWM") - before


def table(name: str, shapes: list[dict[str, int]], steps: int, threads: int) -> None:
    print(f"\n| {name} | " + " | ".join(f"{kind}, ms | {kind}, MB" for kind in KINDS) + " |")
    print("|---|" + "---|---|" * len(KINDS))
    for shape in shapes:
        print(f"| {shape[name]:,} |", end="", flush=True)
        for kind in KINDS:
            with get_context("forkserver").Pool(1) as process:  # forked before torch has computed anything
                seconds, memory = process.apply(measured, (threads, steps, kind, BASE | shape))
            print(f" {1e3 * seconds:.1f} | {memory / 1e6:.0f} |", end="", flush=True)
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--largest", type=int, default=4096, help="leave out rows beyond, such as where memory is short"
    )
    arguments = parser.parse_args()
    get_context("forkserver").set_forkserver_preload(["lightning_icl"])  # once, not for every number
    for name in arguments.tables:
        shapes = [shape for shape in TABLES[name] if shape[name] <= arguments.largest]
        table(name, shapes, arguments.steps, arguments.threads)


if __name__ == "__main__":
    main()
