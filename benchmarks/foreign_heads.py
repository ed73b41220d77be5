"""How much longer do heads take under GatedHeads than in a Transformer, whose layers are run one by one?

    python benchmarks/foreign_heads.py [--repeats 5] [--prompts 512]

One thread, the quickstart's model (6 layers of 8 heads, width 64, linear attention, no MLP; d = n = 8, 8 queries), with
fresh weights. Both are run in turn, so that whatever else the machine does falls on both, and in processor time;
``ratio`` is the median of the repeats' ratios, ``difference`` the largest, over the largest value. What is measured is
what the callbacks have measured: HeadImportance all scores under zero ablation, and with mean and resample beside it;
HeadPruning the paper's model and its controls as they are, and the greedy path. ``plain`` is GatedHeads without giving
again what blocks below the first difference gave: all layers for every mask.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from lightning_icl import GatedHeads, InContextNetwork, Prompt, SparseLinearRegression, Transformer
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.pruning import PaperPruning, pruning_controls
from lightning_icl.functional.seeds import seeded
from lightning_icl.instruments.ablation import AblatedHeads, errors_under_masks
from lightning_icl.instruments.importance import values_by_score
from lightning_icl.instruments.pruning import pruning_case

MEAN_REFERENCE = 8  # as in HeadImportance
N_RANDOM = 8  # as in HeadPruning
Measurement = Callable[[InContextNetwork], Tensor]


def sampled(n: int, seed: int) -> Prompt:
    task = SparseLinearRegression(8, sparsity=2, noise_std=0.4)
    return task.sample(n, 8, 8, torch.Generator().manual_seed(seed))


def measurements(n: int) -> dict[str, Measurement]:
    prompt, other, many = sampled(n, 0), sampled(n, 1), sampled(MEAN_REFERENCE * n, 2)
    ablations = [AblatedHeads(), AblatedHeads("mean", many), AblatedHeads("resample", other)]

    def importance(network: InContextNetwork) -> Tensor:
        return torch.cat([*values_by_score(network, prompt)[1].values()])

    def importance_of_all(network: InContextNetwork) -> Tensor:
        return torch.cat([*values_by_score(network, prompt, ablations=ablations)[1].values()])

    def pruning(network: InContextNetwork) -> Tensor:
        raw = torch.arange(48.0).view(6, 8)  # any importance: which heads are kept changes no time
        controls = pruning_controls(raw, N_RANDOM, torch.Generator().manual_seed(0))
        paper = PaperPruning().keep(pruning_case(network, other, raw))
        masks = torch.cat([full_mask(network.heads)[None], paper[None], *controls.values()])
        return errors_under_masks(network, prompt, masks)

    def greedy(network: InContextNetwork) -> Tensor:
        return torch.stack(pruning_case(network, other.rows(0, n // 8)).path(1).errors)

    return {
        "HeadImportance": importance,
        "HeadImportance, three ablations": importance_of_all,
        "HeadPruning as is": pruning,
        f"greedy path, {n // 8} prompts": greedy,
    }


def timed(run: Measurement, network: InContextNetwork) -> tuple[float, Tensor]:
    start = time.process_time()
    found = run(network)
    return time.process_time() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with seeded(1):
        native = Transformer(8, 64, [8] * 6, attention="linear", init="keys_equal_queries", mlp=False)
    gated = GatedHeads(native, "layers.*.attention.output", 8)
    nothing = patch.object(GatedHeads, "recorded", lambda self, *given: (self.on_prompt(*given), []))
    print("| | native, s | gated, s | ratio | plain, s | ratio | difference |\n|---|---|---|---|---|---|---|")
    for name, run in measurements(arguments.prompts).items():
        times = list[tuple[float, float, float]]()
        for _ in range(arguments.repeats):
            first, expected = timed(run, native)
            second, found = timed(run, gated)
            with nothing:
                third, _ = timed(run, gated)
            times.append((first, second, third))
        native_s, gated_s, plain_s = (statistics.median(column) for column in zip(*times, strict=True))
        ratio, plain_ratio = (statistics.median(of[i] / of[0] for of in times) for i in (1, 2))
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        print(
            f"| {name} | {native_s:.2f} | {gated_s:.2f} | {ratio:.2f} | {plain_s:.2f} | {plain_ratio:.2f} "
            f"| {difference:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
