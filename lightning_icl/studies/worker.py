"""What runs one job, in a process of Ray: the same command that a person would type, in a process of its own.

Only the standard library, and loaded by its path (engine.py), so that a process that waits need not import torch.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

PROGRAM = ("-m", "lightning_icl")
USAGE_ERROR = 2  # the exit status for one sentence about what is wrong: trying again would not help


class JobError(RuntimeError):
    """A job that failed, and may be tried again."""


def run_job(job: dict[str, Any]) -> str | None:
    """Run a job; None, or the sentence it stopped with. Raises JobError where it crashed.

    ``job`` has kind, folder, command (of Python), log, cwd and cpu. Beside the log a file NAME.json tells how often and
    how long it was tried, and how it failed.
    """
    folder, log = Path(job["folder"]), Path(job["log"])
    _clear(job["kind"], folder)
    started = time.monotonic()
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, *job["command"]],
            cwd=job["cwd"],
            env=os.environ | {"OMP_NUM_THREADS": str(max(1, int(job["cpu"])))},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    error = None if done.returncode == 0 else failure(log.read_text(errors="replace"), done.returncode)
    status = log.with_suffix(".json")
    known = json.loads(status.read_text()) if status.exists() else {"attempts": 0, "seconds": 0.0}
    known["attempts"] += 1
    known["seconds"] = round(known["seconds"] + time.monotonic() - started, 1)
    status.write_text(json.dumps(known | {"error": error}) + "\n")
    if error is not None and done.returncode != USAGE_ERROR:
        raise JobError(error)
    return error


def failure(log: str, status: int) -> str:
    """One sentence for how a command ended: what it said itself, or its last line, or the signal that killed it."""
    if status < 0:
        killed = signal.Signals(-status).name
        return f"killed by {killed}" + (" (out of memory?)" if killed == "SIGKILL" else "")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = [line.removeprefix("lightning-icl: ") for line in lines if line.startswith("lightning-icl: ")]
    return said[-1] if said and status == USAGE_ERROR else (lines[-1] if lines else f"exit status {status}")


def _clear(kind: str, folder: Path) -> None:
    """Remove what cannot be gone on with: a run without a whole checkpoint, and any P-probing."""
    last = folder / "checkpoints" / "last.ckpt"
    # A kill while it was written leaves a file without the directory that ends every zip file.
    if kind == "p_probe" or not zipfile.is_zipfile(last):
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    """Have Linux kill the command with the worker, which goes with the study's own process, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
