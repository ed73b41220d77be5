"""How much faster and smaller is a model after ``lightning-icl prune``, and does it predict the same?

    python benchmarks/pruned_speed.py [--repeats 15] [--threads 1]

The full model, the masked one (every head computed, most times 0) and the pruned one in turn, float32, no gradients, on
the same 64 prompts of 16 examples and 16 queries (the quickstart's: 8 examples); times are medians. ``all`` heads of
layer 1 and one head of each later layer are kept, as in the paper; weights are random, which changes neither time nor
size. ``difference`` is the largest between the predictions of pruned and masked, in root mean squares of these. File
sizes are those of the weights alone; a checkpoint also holds the optimizer's state, which shrinks alike.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.heads import full_mask
from lightning_icl.instruments.removal import remove_heads

MODELS: dict[str, tuple[dict[str, Any], int]] = {  # options and number of examples
    "width 256, 4 x 8 heads, MLP": ({"n_dims": 16, "d_model": 256, "heads": [8, 8, 8, 8]}, 16),
    "width 256, 4 x 8 heads, no MLP": ({"n_dims": 16, "d_model": 256, "heads": [8, 8, 8, 8], "mlp": False}, 16),
    "quickstart: width 64, 3 x 8 heads, no MLP": ({"n_dims": 8, "d_model": 64, "heads": [8, 8, 8], "mlp": False}, 8),
}


def seconds(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time of each, run in turn so that the machine's moods fall on all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def n_bytes(transformer: Transformer) -> int:
    file = io.BytesIO()
    torch.save(transformer.state_dict(), file)
    return file.tell()


def report(name: str, options: dict[str, Any], n_points: int, repeats: int) -> None:
    torch.manual_seed(0)
    full = Transformer(**options)
    mask = full_mask(full.heads)
    mask[1:, 1:] = 0
    pruned = remove_heads(full, mask)
    task = SparseLinearRegression(options["n_dims"], 2, noise_std=0.4)
    prompt = task.sample(64, n_points, 16, torch.Generator().manual_seed(0))
    taken = seconds(
        {
            "full": lambda: full.on_prompt(prompt),
            "masked": lambda: full.on_prompt(prompt, mask),
            "pruned": lambda: pruned.on_prompt(prompt),
        },
        repeats,
    )
    expected, found = full.on_prompt(prompt, mask).prediction, pruned.on_prompt(prompt).prediction
    difference = float((found - expected).abs().max() / expected.square().mean().sqrt())
    parameters = [sum(p.numel() for p in model.parameters()) for model in (full, pruned)]
    sizes = [n_bytes(model) for model in (full, pruned)]
    print(f"{name}: heads {full.heads} -> {pruned.heads}")
    print("  time       " + ", ".join(f"{which} {1e3 * t:.2f} ms" for which, t in taken.items()), end="")
    print(f": full / pruned = {taken['full'] / taken['pruned']:.2f}")
    print(f"  parameters {parameters[0]:,} -> {parameters[1]:,} ({parameters[1] / parameters[0]:.0%})")
    print(f"  file       {sizes[0]:,} -> {sizes[1]:,} bytes ({sizes[1] / sizes[0]:.0%})")
    print(f"  difference {difference:.1g}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        for name, (model, n_points) in MODELS.items():
            report(name, model, n_points, options.repeats)


if __name__ == "__main__":
    main()
