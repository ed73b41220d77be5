"""How long does LinearProbe take at a run's first validation, and at a later one?

    python benchmarks/linear_probe.py [--prompts 512] [--repeats 3]

CPU seconds on one thread, at the shape of configs/quickstart.yaml: d = n = 8, six layers of eight heads, width 64,
8 queries. The untrained network is probed at the first alone.
"""

import argparse
import time

import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.prompts import Prompt
from lightning_icl.instruments.probing import ProbeTable, Readings, probe_layers

TASK = SparseLinearRegression(8, sparsity=2, noise_std=0.4)


def prompts(seed: int, n_prompts: int) -> Prompt:
    return TASK.sample(n_prompts, 8, 8, torch.Generator().manual_seed(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Transformer(8, 64, [8] * 6, attention="linear", mlp=False)
    sets = [prompts(seed, arguments.prompts) for seed in range(3)]

    def seconds(untrained: Transformer | Readings | None) -> tuple[float, ProbeTable]:
        start = time.process_time()
        table = probe_layers(model, TASK, *sets, untrained=untrained)
        return time.process_time() - start, table

    for _ in range(arguments.repeats):
        first, table = seconds(model.untrained())
        print(f"first {first:.2f} s, later {seconds(table.untrained)[0]:.2f} s", flush=True)


if __name__ == "__main__":
    main()
