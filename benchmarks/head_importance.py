"""How fast is leave-one-out over all heads, against the plain loop, and how much memory does it need?

    python benchmarks/head_importance.py [--repeats 5] [--prompts 64] [--memory-prompts 256 (0: speed alone)]

One thread. Speed: 4 layers of 8 heads, width 256, softmax, d = n = 16, 4 queries. The peer is what one writes first,
33 forward passes with a head mask each, ``transformer.on_prompt(prompt, mask)`` for the full model and every head. Both
are run in turn, so that whatever else the machine does falls on both; ``ratio`` is the median of the repeats' ratios,
``difference`` the largest between predictions, over the largest prediction.

Memory: 8 layers of 16 heads, width 256, no MLP, 129 masks, 256 prompts unless told, in processes of their own: how far
the peak of the resident memory (ru_maxrss) rises above where it was before, for two values of ``chunk_size``, and for a
pass of the plain loop over all prompts.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_icl import Prompt, SparseLinearRegression, Transformer
from lightning_icl.functional.heads import full_mask, single_removals
from lightning_icl.functional.seeds import seeded
from lightning_icl.instruments.ablation import predictions_under_masks

DIMS, POINTS, QUERIES, WIDTH = 16, 16, 4, 256


def model(heads: list[int], mlp: bool) -> Transformer:
    with seeded(0):
        return Transformer(DIMS, WIDTH, heads, mlp=mlp)


def prompts(n: int) -> Prompt:
    task = SparseLinearRegression(DIMS, sparsity=4, noise_std=0.4)
    return task.sample(n, POINTS, QUERIES, torch.Generator().manual_seed(0))


def all_masks(heads: list[int]) -> Tensor:
    return torch.cat([full_mask(heads)[None], single_removals(full_mask(heads))])


@torch.no_grad()
def plain_loop(transformer: Transformer, prompt: Prompt, masks: Tensor) -> Tensor:
    return torch.stack([transformer.on_prompt(prompt, mask).prediction for mask in masks])


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def speed(mlp: bool, n_prompts: int, repeats: int) -> None:
    heads = [8] * 4
    transformer, prompt, masks = model(heads, mlp), prompts(n_prompts), all_masks(heads)
    loops, ours = [], []
    for _ in range(repeats):
        seconds, expected = timed(lambda: plain_loop(transformer, prompt, masks))
        loops.append(seconds)
        seconds, found = timed(lambda: predictions_under_masks(transformer, prompt, masks))
        ours.append(seconds)
    ratio = statistics.median(loop / our for loop, our in zip(loops, ours, strict=True))
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    print(
        f"| {'yes' if mlp else 'no'} | {statistics.median(loops):.3f} | {statistics.median(ours):.3f} | {ratio:.2f} "
        f"| {difference:.0e} |",
        flush=True,
    )


def peak_rise(chunk_size: int, n_prompts: int) -> float:
    """MiB by which the peak of this process' memory rises in one measurement (of the plain loop for 0)."""
    heads = [16] * 8
    transformer, prompt, masks = model(heads, mlp=False), prompts(n_prompts), all_masks(heads)
    with torch.no_grad():
        transformer.on_prompt(prompt.rows(0, 2))  # what the first pass of any kind allocates
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if chunk_size:
        predictions_under_masks(transformer, prompt, masks, chunk_size=chunk_size)
    else:
        plain_loop(transformer, prompt, masks[:2])  # its peak is that of any of its passes
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--memory-prompts", type=int, default=256)
    parser.add_argument("--peak-of-chunk", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of_chunk is not None:
        print(peak_rise(arguments.peak_of_chunk, arguments.memory_prompts))
        return
    # First, while this process is small: a new process' peak begins at that of the one that starts it.
    print("| 8 layers x 16 heads | peak rises by, MiB |\n|---|---|")
    for chunk_size in (16, 128, 0) if arguments.memory_prompts else ():
        command = [sys.executable, __file__, "--peak-of-chunk", str(chunk_size)]
        command += ["--memory-prompts", str(arguments.memory_prompts)]
        rise = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"| {f'chunk_size {chunk_size}' if chunk_size else 'loop, all prompts'} | {rise:.0f} |", flush=True)
    print("\n| MLP | loop of 33, s | ours, s | ratio | difference |\n|---|---|---|---|---|")
    for mlp in (True, False):
        speed(mlp, arguments.prompts, arguments.repeats)


if __name__ == "__main__":
    main()
