"""A study as SLURM job arrays, for clusters without Ray."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_icl.record import journal
from lightning_icl.studies.plan import Job, Plan, Resources

FINISHED = '^{"event": "finished"'  # a line of a record
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --requeue
#SBATCH --output="{logs}/slurm-%A-%a.txt"

# A job that is requeued goes on from its last checkpoint.
cd "$SLURM_SUBMIT_DIR" || exit 1
export OMP_NUM_THREADS={cpus}
commands=(
{commands}
)
eval "${{commands[$SLURM_ARRAY_TASK_ID]}}"
"""


def slurm_scripts(name: str, planned: Plan, resources: Resources, folder: Path) -> dict[str, str]:
    """Job-array scripts by file name: of the trials and of the P-probings that follow them, those not finished.

    SLURM knows no fractions of a GPU, so each trial is given a whole one.
    """
    cpus, gpus = max(1, math.ceil(resources.get("cpu", 1))), math.ceil(resources.get("gpu", 0))
    trials = [job for job in planned.trials if not job.is_finished()]
    p_probings = [job for job in planned.p_probings if not job.is_finished()]
    scripts = {"slurm_trials.sh": _script(name, trials, cpus, gpus, folder)} if trials else {}
    if p_probings:
        scripts["slurm_p_probing.sh"] = _script(f"{name}-p_probing", p_probings, 1, 0, folder)
    return scripts


def _script(name: str, jobs: Sequence[Job], cpus: int, gpus: int, folder: Path) -> str:
    commands = "\n".join(f"  {shlex.quote(_line(job, folder / 'logs'))}" for job in jobs)
    asked = f"#SBATCH --gpus={gpus}\n" if gpus else ""
    return SCRIPT.format(name=name, last=len(jobs) - 1, cpus=cpus, gpus=asked, logs=folder / "logs", commands=commands)


def _line(job: Job, logs: Path) -> str:
    """The job's command, with what it says in the log that has its name."""
    log = shlex.quote(str(logs / f"{job.name}.txt"))
    command = f"{shlex.join(['lightning-icl', *job.command])} >> {log} 2>&1"
    if job.kind == "fit":
        return command
    folder, record = shlex.quote(str(job.folder)), shlex.quote(str(job.folder / journal.NAME))
    finished = f"grep -qs {shlex.quote(FINISHED)} {record}"
    return f"{finished} || {{ rm -rf {folder}; {command}; }}"  # a P-probing cannot be gone on with
