"""How long does a training step of P-probing take, and how much of it do the fleets save?

    python benchmarks/p_probing.py [--scale quick|paper] [--repeats 3] [--steps 3] [--device cpu|cuda]

One thread on the CPU. Both scales: d = n = 16, softmax, models with 8 heads and with 1 in layer 1, untrained (their
speed is that of trained ones). Quick: width 64, 2 depths, 1 seed; paper: width 256, 4 depths, 3 seeds; each with all
arms, both optimisers and batches of 32 prompts a seed. "All" is ``errors_of_arms`` with every arm, "alone" the same
with one, layer 1 of 8 heads. They are run in turn, so that whatever else the machine does falls on both; the time of a
step is that of a run less that of one of a single step, over the steps between. ``ratio`` is the median of the repeats'
"all" over "alone": the number of arms, where sharing saves nothing.
"""

import argparse
import statistics
import time
from functools import partial

import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.representations import (
    Representation,
    correlation_features,
    correlation_power_features,
    gd_plus_plus_features,
    raw,
)
from lightning_icl.functional.seeds import seeded
from lightning_icl.instruments.p_probing import Training, errors_of_arms, first_layer, read_in

DIMS, POINTS = 16, 16
SCALES = {"quick": (64, 2, 1), "paper": (256, 4, 3)}  # width, depths, seeds


def arms(width: int, device: str) -> dict[str, Representation]:
    with seeded(0):
        many, one, fresh = (Transformer(DIMS, width, [heads]).to(device) for heads in (8, 1, 8))
    return {
        "heads_8": first_layer(many),
        "heads_1": first_layer(one),
        "read_in": read_in(many),
        "untrained": first_layer(fresh),
        "raw": raw,
        "r_hat": correlation_features,
        "r_hat_power": correlation_power_features,
        "gd_plus_plus": partial(gd_plus_plus_features, shrinkage=0.5),
    }


def seconds(probed: dict[str, Representation], depths: int, seeds: int, n_steps: int, device: str) -> float:
    task = SparseLinearRegression(DIMS, sparsity=4, noise_std=0.4)
    training = Training(n_steps=n_steps, n_seeds=seeds, n_choose=256, n_score=2)
    start = time.perf_counter()
    errors_of_arms(probed, task, POINTS, depths, training, device=device)  # its result is on the CPU, so it has waited
    return time.perf_counter() - start


def seconds_a_step(probed: dict[str, Representation], depths: int, seeds: int, n_steps: int, device: str) -> float:
    short = seconds(probed, depths, seeds, 1, device)
    return (seconds(probed, depths, seeds, 1 + n_steps, device) - short) / n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, nargs="*", default=list(SCALES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| scale | arms | all, s a step | one alone, s a step | ratio |\n|---|---|---|---|---|")
    for scale in arguments.scale:
        width, depths, seeds = SCALES[scale]
        probed = arms(width, arguments.device)
        alone = {"heads_8": probed["heads_8"]}
        options = (depths, seeds, arguments.steps, arguments.device)
        times = [[seconds_a_step(one, *options) for one in (probed, alone)] for _ in range(arguments.repeats)]
        ratio = statistics.median(every / single for every, single in times)
        every, single = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {scale} | {len(probed)} | {every:.3f} | {single:.3f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
