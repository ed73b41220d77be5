"""How many small trials should share one device? Trials an hour with 1, 2, 4, 8 of them at once.

    python benchmarks/packing.py --accelerator gpu [--base FILE ...] [--at_once 1 2 4 8] [--trials 8] [--steps 5000]

The trials of a study (by default the laptop scale's model and analyses, of different seeds) on Ray Tune, as
``lightning-icl study`` runs them, each with 1/k of the GPU (resources: {gpu: 0.25} for k = 4) or, with ``--accelerator
cpu``, of the cores. Start-up and analyses count, as in a study, so ``--steps`` must be many enough for training to be
most of a trial. Trials an hour are over the wall time of all, Ray's own start apart; a last round that is not full
costs what it costs. Set a study's resources by the k with most. Steps captured in CUDA graphs are left out: there are
none here yet.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import ray
import torch

from lightning_icl.studies.engine import QUIET, run_jobs
from lightning_icl.studies.plan import Cluster, Resources, Scale, plan


def seconds(k: int, options: argparse.Namespace, folder: Path) -> float:
    """Wall time of all trials, k at once; raises RuntimeError where one of them did not finish."""
    cores = len(os.sched_getaffinity(0))
    gpu = options.accelerator == "gpu"
    resources: Resources = {"cpu": min(1.0, cores / k) if gpu else cores / k, "gpu": 1 / k if gpu else 0.0}
    overrides = {"trainer.max_steps": options.steps, "trainer.accelerator": options.accelerator, "trainer.devices": 1}
    scale: Scale = {"base": options.base, "overrides": overrides, "seeds": list(range(1, options.trials + 1))}
    trials = plan(scale, folder).trials
    start = time.perf_counter()
    run_jobs(trials, folder, resources, Cluster(retries=0))
    taken = time.perf_counter() - start
    if failed := [job.name for job in trials if not job.is_finished()]:
        raise RuntimeError(f"{k} at once: {len(failed)} of {len(trials)} trials failed; see the logs in {folder}/logs.")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--base", nargs="+", default=["configs/studies/base_laptop.yaml"])
    parser.add_argument("--at_once", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    gpu = options.accelerator == "gpu"
    if gpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --accelerator cpu measures the cores.")
    os.environ |= QUIET
    # One GPU, whatever the machine has, and fractions of it and of the cores.
    ray.init(address="local", num_gpus=int(gpu), include_dashboard=False, log_to_driver=False)
    print(torch.cuda.get_device_name() if gpu else f"{len(os.sched_getaffinity(0))} CPU cores", flush=True)
    # Not in a temporary folder that goes: where a trial fails, its log is needed.
    folder, alone = Path(tempfile.mkdtemp(prefix="packing_")), None
    lines = [f"{'at once':>8} {'seconds':>8} {'trials an hour':>15} {'times one at once':>18}"]
    for k in options.at_once:
        taken = seconds(k, options, folder / f"at_once_{k}")
        rate = 3600 * options.trials / taken
        alone = alone or rate
        lines.append(f"{k:>8} {taken:>8.0f} {rate:>15.1f} {rate / alone:>18.2f}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
