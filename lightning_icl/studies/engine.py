"""Runs the jobs of a study on Ray Tune, which owns scheduling, GPUs and retries."""

import logging
import os
import runpy
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, no_type_check

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lightning_icl.functional.errors import InputError
from lightning_icl.studies import worker
from lightning_icl.studies.plan import Cluster, Job, Resources
from lightning_icl.studies.report import duration
from lightning_icl.studies.worker import PACKAGE

# Ray phones home, and Tune writes logs of its own and tells of each failure in pages, unless told not to.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


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
    share = {"cpu": resources.get("cpu", 1), "gpu": resources.get("gpu", 0)}
    _start(cluster.address)
    _check_resources(share)
    if cluster.address is not None:
        _check_machines(logs)
    options = {
        job.name: {
            "kind": job.kind,
            "folder": str(job.folder),
            "command": [*worker.PROGRAM, *job.command],
            "log": str((logs / f"{job.name}.txt").absolute()),
            "cwd": os.getcwd(),
            "cpu": share["cpu"],
        }
        for job in left
    }
    code = worker.__file__

    @no_type_check  # Ray sends it by value, which it cannot do with a function wrapped by the tests' type checker
    def trainable(config: dict[str, Any]) -> None:
        run_job = runpy.run_path(code)["run_job"]  # by its path: with the package, Ray's process would import torch
        tune.report({"error": run_job(options[config["job"]])})

    try:
        tune.Tuner(
            tune.with_resources(trainable, share),
            param_space={"job": tune.grid_search(list(options))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=kind,
                storage_path=str((folder / "ray").absolute()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=cluster.retries),
                callbacks=[Progress(kind, len(jobs), len(jobs) - len(left), logs)],
            ),
        ).fit()
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)  # what is done stands in the jobs' own folders


def _start(address: str | None) -> None:
    if ray.is_initialized():
        return
    os.environ |= QUIET
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # Ray would count all
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        return
    try:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"address is {address}, but there is no Ray cluster to be reached: {error}; one that asks for a "
            "token needs RAY_AUTH_MODE=token."
        ) from error


def _check_resources(share: Mapping[str, float | int]) -> None:
    """Refuse what no machine has: Tune would wait for it for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, key in (("CPU cores", "CPU"), ("GPUs", "GPU")):
        asked, most = share[key.lower()], max((machine.get(key, 0) for machine in machines), default=0)
        if asked > most:
            raise InputError(
                f"a trial is given {asked:g} {name} (resources), but no machine here has more than {most:g}; name a "
                "cluster that has: --address."
            )


def _check_machines(logs: Path) -> None:
    """Refuse a cluster with a machine that lacks what jobs find by their paths, which are those of this machine."""
    # Of the study's own logs a file that was not there before: a folder of the same name is not yet the same folder.
    with tempfile.NamedTemporaryFile(dir=logs, prefix="seen_by_all_") as seen:
        needed = [seen.name, os.getcwd(), worker.__file__]

        @no_type_check  # sent by value, as in run_jobs
        def lacking() -> list[str]:
            return [path for path in needed if not os.path.exists(path)]

        ask: Any = ray.remote(lacking)
        machines = [node for node in ray.nodes() if node["Alive"]]
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in machines]
        asked = [ask.options(num_cpus=0, scheduling_strategy=where).remote() for where in there]
        for machine, lacks in zip(machines, ray.get(asked), strict=True):
            if lacks:
                raise InputError(
                    f"{machine['NodeManagerHostname']} ({machine['NodeManagerAddress']}) of the Ray cluster does not "
                    f"have {lacks[0]}; its machines must share the study's folder, the folder that the study is "
                    f"started in ({os.getcwd()}) and the code ({PACKAGE}), each at one path, as on a network drive."
                )


class Progress(TrialProgressCallback):  # in the place of Tune's own
    """A line for each job that ends: how many are done, running and failed, and the time left."""

    def __init__(self, kind: str, total: int, before: int, logs: Path) -> None:
        super().__init__()
        self.total, self.before, self.logs = total, before, logs
        self.running: set[str] = set()
        self.done, self.failed, self.started = 0, 0, time.monotonic()
        print(f"{total} {kind}s, {before} of them finished before.", flush=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None: ...

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log = self.logs / f"{trial.config['job']}.txt"
        status = worker.known(log)
        if not status.get("ended"):  # the process that would have told is gone, maybe with its machine
            status = {"attempts": 1, "seconds": None, **status, "ended": True, "error": "lost by Ray"}
            worker.tell(log, status)
        error = status["error"]
        self.running.discard(trial.trial_id)
        self.done, self.failed = self.done + (error is None), self.failed + (error is not None)
        print(self.line(trial.config["job"], error, time.monotonic() - self.started), flush=True)

    on_trial_error = on_trial_complete  # its status tells which

    def line(self, name: str, error: str | None, elapsed: float) -> str:
        """What is said of a job that has ended, ``elapsed`` seconds after the start."""
        ended = self.done + self.failed
        left = elapsed / ended * (self.total - self.before - ended)
        counts = f"{self.before + self.done} done, {len(self.running)} running, {self.failed} failed of {self.total}"
        what = "done" if error is None else f"FAILED: {error}"
        return f"[{counts}; about {duration(left)} left] {name}: {what}"
