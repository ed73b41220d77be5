"""What a surrounding launcher's environment means: SLURM's, torchrun's, MPI's.

Only the standard library, and loaded by its path where a study's jobs are run (studies/worker.py).
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# What tells a process which of several it is. SLURM_TMPDIR is a folder that some clusters name so.
IDENTITY = re.compile(
    r"SLURM_(?!TMPDIR$)|SLURMD_|PMI|OMPI_|MV2_COMM_WORLD_|MPI_LOCAL|JSM_NAMESPACE_|TORCHELASTIC_|MASTER_(ADDR|PORT)$"
    r"|((LOCAL|GROUP|ROLE|NODE)_)?(RANK|WORLD_SIZE)$|ROLE_NAME$"
)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that is none of those which the surrounding launcher has started."""
    return {name: value for name, value in environment.items() if not IDENTITY.match(name)}


@contextmanager
def one_launcher() -> Iterator[None]:
    """Within this, Lightning takes srun's processes for what they are, by torchrun's variables, and knows no SLURM.

    Lightning takes every process of a SLURM job for one that srun has started, though the job's script is not: it would
    wait for the others, or refuse them (--ntasks), or train on one of two GPUs. It saves hpc_ckpt_1.ckpt into the
    working folder at SIGUSR1, where any later run in a SLURM job takes it up. A job with the name interactive is none
    to it, as it says (SLURMEnvironment.detect); a plugin that the user asks for works as ever.
    """
    before = {name: value for name, value in os.environ.items() if IDENTITY.match(name)}
    tasks = os.environ.get("SLURM_NTASKS", "1")
    launched = "LOCAL_RANK" in os.environ
    if not launched and srun_tasks(os.environ) > 1:
        os.environ |= as_torchrun(os.environ)
    elif not launched and _number(tasks) > 1:
        print(
            f"SLURM has given this job {tasks} tasks, but srun did not start this process, which runs as it would "
            "without SLURM; for one process a task: srun lightning-icl ...",
            file=sys.stderr,
        )
    if "SLURM_NTASKS" in os.environ:
        os.environ["SLURM_JOB_NAME"] = "interactive"
    try:
        yield
    finally:
        for name in filter(IDENTITY.match, list(os.environ)):
            del os.environ[name]
        os.environ |= before


def srun_tasks(environment: Mapping[str, str]) -> int:
    """How many processes srun has started of which this is one; the script or the shell of a job is none of them."""
    # ``srun --ntasks=4 --pty bash`` starts four shells to get four cores; what is typed into the first is one process.
    shell = environment.get("SLURM_JOB_NAME") == "bash"
    return 1 if shell else _number(environment.get("SLURM_STEP_NUM_TASKS"))


def is_first(environment: Mapping[str, str]) -> bool:
    """Whether this process does what takes one process only: it is the first of those that a launcher started."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return environment.get("RANK") == "0"
    return srun_tasks(environment) == 1 or environment.get("SLURM_PROCID") == "0"


def as_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have told this process, which srun has started."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment  # not where a study's worker loads this file

    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
    job, step = (_number(environment.get(name)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    told = {
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(nodes),
        "MASTER_PORT": str(15000 + (16 * job + step) % 10000),  # one of its own for each step of a job
    }
    return {name: environment.get(name, value) for name, value in told.items()} | {
        "TORCHELASTIC_RUN_ID": f"srun-{job}.{step}",  # by which Lightning knows torchrun
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "GROUP_RANK": environment["SLURM_NODEID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
    }


def disagreement(devices: int, nodes: int, environment: Mapping[str, str]) -> str | None:
    """What is wrong if this is to be one of ``devices`` processes on each of ``nodes`` machines, in a sentence."""
    # Alone, WORLD_SIZE is a leftover, of which Lightning takes no notice.
    started = environment.get("WORLD_SIZE") if environment.keys() & {"LOCAL_RANK", "TORCHELASTIC_RUN_ID"} else None
    if started is not None and _number(started) != devices * nodes:
        by_srun = environment.get("TORCHELASTIC_RUN_ID", "").startswith("srun-")
        names = "SLURM_STEP_NUM_TASKS" if by_srun else "WORLD_SIZE, RANK, LOCAL_RANK and TORCHELASTIC_RUN_ID"
        return (
            f"this would be one of {started} processes that {'srun has' if by_srun else 'torchrun or another has'} "
            f"started, but trainer.devices is {devices} and trainer.num_nodes {nodes}; let their product be {started} "
            f"or, for a training of its own in each process, unset {names}."
        )
    if nodes > 1 and "SLURM_JOB_ID" in environment and not environment.keys() & {"WORLD_SIZE", "NODE_RANK"}:
        return (
            f"trainer.num_nodes is {nodes}, but srun did not start this process, and nothing will start the others; "
            f"use srun --nodes={nodes} --ntasks-per-node={devices} lightning-icl ..."
        )
    return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1
