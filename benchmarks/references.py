"""What do the references of a validation cost?

    python benchmarks/references.py [--checkout DIR] [--repeats 3]

A validation of 1,024 prompts of 8 queries, with the default references of ``ReferenceRisk`` tuned on 512, on two laws:
the quickstart's (8 examples in 8 dimensions, 2 non-zero weights, noise .4; 6 layers), and 40 examples in 20 dimensions,
3 non-zero weights, noise .5, for 12 layers. From whole prompts, as in the pairs layout, and from every prefix as well,
as in the layouts that predict every example from those before it; there on the last 256 prompts.

Times are CPU seconds, on one thread, of ReferenceRisk's batches in the first validation, which tunes and scores; later
ones know all but the model's errors. With ``--checkout``, the same is done by the code in that folder in turn, so that
a busy machine falls on both; medians over repeats, and the ratio of the two.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_icl import ICLModule, PromptDataModule, SparseLinearRegression
from lightning_icl.callbacks import ReferenceRisk

LAWS = {"quickstart": (8, 2, 0.4, 8, 6), "d = 20, n = 40": (20, 3, 0.5, 40, 12)}  # dims, sparsity, noise, n, layers
LAYOUTS: dict[str, dict[str, Any]] = {"whole prompts": {}, "every prefix": {"layout": "prefixes", "mask": "causal"}}


class Clocked(ReferenceRisk):
    """One that counts its CPU seconds."""

    seconds = 0.0

    def on_validation_batch_end(self, *of_batch: Any, **more: Any) -> None:
        start = time.process_time()
        super().on_validation_batch_end(*of_batch, **more)
        self.seconds += time.process_time() - start


def seconds(law: str, layout: str) -> float:
    """Of the first validation."""
    n_dims, sparsity, noise_std, n_points, depth = LAWS[law]
    task = SparseLinearRegression(n_dims, sparsity, noise_std=noise_std)
    data = PromptDataModule(task, n_points=n_points, n_queries=8, eval_prompts=1024, eval_batch_size=512)
    module = ICLModule(n_dims=n_dims, d_model=8, heads=[1] * depth, mlp=False, **LAYOUTS[layout])
    clocked = Clocked(curve_prompts=256)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[clocked], enable_checkpointing=False, **quiet)
    trainer.validate(module, datamodule=data, verbose=False)
    return clocked.seconds


def elsewhere(checkout: Path, law: str, layout: str) -> float:
    """The same in a process of its own, by the code of this or another checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--alone", law, layout]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="a folder with another state of this repository")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        print(seconds(*given.alone))
        return
    folders = {"here": Path(__file__).parent.parent} | ({"there": given.checkout} if given.checkout else {})
    print(f"{'law':<16} {'predicted from':<14} " + " ".join(f"{name:>8}" for name in folders))
    for law in LAWS:
        for layout in LAYOUTS:
            runs = [[elsewhere(folder, law, layout) for folder in folders.values()] for _ in range(given.repeats)]
            times = [statistics.median(of_folder) for of_folder in zip(*runs, strict=True)]
            ratio = f"  {times[0] / times[1]:.2f} times" if len(times) > 1 else ""
            cells = " ".join(f"{time:>7.2f}s" for time in times)
            print(f"{law:<16} {layout:<14} {cells}{ratio}", flush=True)


if __name__ == "__main__":
    main()
