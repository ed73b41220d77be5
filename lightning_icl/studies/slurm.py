"""A study as SLURM job arrays, for clusters without Ray."""

import math
import shlex
from pathlib import Path

from lightning_icl.record import journal
from lightning_icl.studies.plan import Job, Plan, Scale, p_probing_resources

FINISHED = '^{"event": "finished"'  # a line of a record
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --requeue
#SBATCH --output="{logs}/slurm-%A-%a.txt"

# A job that is requeued goes on from its last checkpoint. One with several GPUs starts a process for each by itself.
cd "$SLURM_SUBMIT_DIR" || exit 1
export OMP_NUM_THREADS={cpus}
commands=(
{commands}
)
eval "${{commands[$SLURM_ARRAY_TASK_ID]}}"
"""


def slurm_scripts(name: str, planned: Plan, size: Scale, folder: Path) -> dict[str, str]:
    """Job-array scripts by file name: of the trials and of the P-probings that follow them, those not finished.

    SLURM knows no fractions of a GPU, so each trial is given a whole one.
    """
    logs, scripts = folder / "logs", {}
    for kind, title, jobs, resources in (
        ("trials", name, planned.trials, size.get("resources", {})),
        ("p_probing", f"{name}-p_probing", planned.p_probings, p_probing_resources(size)),
    ):
        gpus = math.ceil(resources.get("gpu", 0))
        share = {
            "cpus": max(1, math.ceil(resources.get("cpu", 1))),
            "gpus": f"#SBATCH --gpus={gpus}\n" if gpus else "",
        }
        if lines := [f"  {shlex.quote(_line(job, logs))}" for job in jobs if not job.is_finished()]:
            told = {"name": title, "last": len(lines) - 1, "logs": logs, "commands": "\n".join(lines)}
            scripts[f"slurm_{kind}.sh"] = SCRIPT.format(**told, **share)
    return scripts


def _line(job: Job, logs: Path) -> str:
    """The job's command, with what it says in the log that has its name."""
    log = shlex.quote(str(logs / f"{job.name}.txt"))
    command = f"{shlex.join(['lightning-icl', *job.command])} >> {log} 2>&1"
    if job.kind == "fit":
        return command
    folder, record = shlex.quote(str(job.folder)), shlex.quote(str(job.folder / journal.NAME))
    finished = f"grep -qs {shlex.quote(FINISHED)} {record}"
    return f"{finished} || {{ rm -rf {folder}; {command}; }}"  # a P-probing cannot be gone on with
