"""Runs the jobs of a study on Ray Tune, which owns scheduling, GPUs and retries."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import cloudpickle, tune

from lightning_icl.studies import worker
from lightning_icl.studies.plan import Job, Resources


class Cluster(NamedTuple):
    """Where jobs run: on a Ray cluster's ``address`` or, without one, on this machine; and how often one is retried."""

    address: str | None = None
    retries: int = 1


def run_jobs(jobs: Sequence[Job], folder: Path, resources: Resources, cluster: Cluster, kind: str = "trial") -> None:
    """Run the jobs that are not finished; what became of them stands in their folders and logs.

    A crashed job is tried again, from its last checkpoint; one that a usage error or a divergence stopped is not, as it
    would stop there again. Others are not touched by it. Interrupted at any point and called again, this goes on.
    """
    left = [job for job in jobs if not job.is_finished()]
    if not left:
        return
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    _start(cluster.address)
    cpu, gpu = resources.get("cpu", 1), resources.get("gpu", 0)
    options = {
        job.name: {
            "kind": job.kind,
            "folder": str(job.folder),
            "command": job.command,
            "log": str((logs / f"{job.name}.txt").absolute()),
            "cwd": os.getcwd(),
            "cpu": cpu,
        }
        for job in left
    }
    run_job = worker.run_job

    def trainable(config: dict[str, Any]) -> None:
        tune.report({"error": run_job(options[config["job"]])})

    cloudpickle.register_pickle_by_value(worker)  # so that Ray's processes need not import torch with our package
    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": cpu, "gpu": gpu}),
            param_space={"job": tune.grid_search(list(options))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=kind,
                storage_path=str((folder / "ray").absolute()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=cluster.retries),
                callbacks=[Progress(kind, len(jobs), len(jobs) - len(left), gpu)],
            ),
        ).fit()
    finally:
        cloudpickle.unregister_pickle_by_value(worker)


def _start(address: str | None) -> None:
    if ray.is_initialized():
        return
    # Tune says at length what our progress says in a line, and Ray phones home and opens a web page unless told.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)


class Progress(tune.Callback):
    """A line for each job that ends: how many are done, running and failed, and the time left."""

    def __init__(self, kind: str, total: int, before: int, gpu: float) -> None:
        self.kind, self.total, self.before = kind, total, before
        self.running: set[str] = set()
        self.done, self.failed, self.started = 0, 0, time.monotonic()
        print(f"{total} {kind}s, {before} of them finished before.", flush=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, (trial.last_result or {}).get("error"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, "crashed")

    def _ended(self, trial: Any, error: str | None) -> None:
        self.running.discard(trial.trial_id)
        self.done, self.failed = self.done + (error is None), self.failed + (error is not None)
        print(self.line(trial.config["job"], error, time.monotonic() - self.started), flush=True)

    def line(self, name: str, error: str | None, elapsed: float) -> str:
        """What is said of a job that has ended, ``elapsed`` seconds after the start."""
        ended = self.done + self.failed
        left = elapsed / ended * (self.total - self.before - ended)
        counts = f"{self.before + self.done} done, {len(self.running)} running, {self.failed} failed of {self.total}"
        what = "done" if error is None else f"FAILED: {error}"
        return f"[{counts}; about {duration(left)} left] {name}: {what}"


def duration(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
