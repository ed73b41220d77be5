"""What runs one job, in a process of Ray: the same command that a person would type, in a process of its own.

Only the standard library, and loaded by its path (engine.py), so that a process that waits need not import torch; and
so it loads record/journal.py, which knows whether a run is finished, and launcher.py, which knows SLURM's variables.
"""

import contextlib
import ctypes
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM = ("-m", "lightning_icl")
USAGE_ERROR = 2  # the exit status for one sentence about what is wrong: trying again would not help
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before any fork, after which loading can deadlock
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
PACKAGE = Path(__file__).resolve().parents[1]
JOURNAL = runpy.run_path(str(PACKAGE / "record" / "journal.py"))
LAUNCHER = runpy.run_path(str(PACKAGE / "launcher.py"))


class JobError(RuntimeError):
    """A job that failed, and may be tried again."""


def run_job(job: dict[str, Any]) -> str | None:
    """Run a job; None, or the sentence it stopped with. Raises JobError where it crashed.

    ``job`` has kind, folder, command (of Python), log, cwd and cpu. Beside the log a file NAME.json tells how often and
    how long it was tried, whether the last try ended, and how it failed.
    """
    folder, log = Path(job["cwd"], job["folder"]), Path(job["log"])
    with log.open("ab") as output:
        _lock(output)
        if JOURNAL["is_finished"](folder):
            tell(log, known(log) | {"ended": True, "error": None})
            return None
        if job["kind"] == "p_probe":  # which cannot be gone on with
            shutil.rmtree(folder, ignore_errors=True)
        status = {"attempts": 0, "seconds": 0.0} | known(log)
        status["attempts"] += 1
        tell(log, status | {"ended": False, "error": None})
        started = time.monotonic()
        # What started the study, or Ray on this machine, did not start the job, and its command has all its options.
        environment = LAUNCHER["without_launcher"](os.environ)
        environment = {name: value for name, value in environment.items() if not re.match("PL_[A-Z_]+__", name)}
        done = subprocess.run(
            [sys.executable, *job["command"]],
            cwd=job["cwd"],
            env=environment | {"OMP_NUM_THREADS": str(max(1, int(job["cpu"])))},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    error = None if done.returncode == 0 else failure(log.read_text(errors="replace"), done.returncode)
    if error is None and not JOURNAL["is_finished"](folder):
        error = f"it ended without a word in {folder.name} that it finished"
    status["seconds"] = round(status["seconds"] + time.monotonic() - started, 1)
    tell(log, status | {"ended": True, "error": error})
    if done.returncode not in (0, USAGE_ERROR):
        raise JobError(error)
    return error


def known(log: Path) -> dict[str, Any]:
    """What NAME.json beside a log says of its job; nothing where there is none, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(log.with_suffix(".json").read_text()))
    return {}


def failure(log: str, status: int) -> str:
    """One sentence for how a command ended: what it said itself, or its last line, or the signal that killed it."""
    if status < 0:
        killed = signal.Signals(-status).name
        return f"killed by {killed}" + (" (out of memory?)" if killed == "SIGKILL" else "")
    # Without what a fit says last, which is how to go on.
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("It was at step ")]
    said = [line.removeprefix("lightning-icl: ") for line in lines if line.startswith("lightning-icl: ")]
    return said[-1] if said and status == USAGE_ERROR else (lines[-1] if lines else f"exit status {status}")


def tell(log: Path, status: dict[str, Any]) -> None:
    """Write NAME.json beside a log, so that a kill leaves the old one or the new one."""
    partial = log.with_suffix(".json.partial")
    partial.write_text(json.dumps(status) + "\n")
    partial.replace(log.with_suffix(".json"))


def _lock(file: BinaryIO) -> None:
    """Wait until no other process has the file open; the command holds it too, so two never share a run's folder."""
    with contextlib.suppress(ImportError, OSError):  # Windows, and network folders, have no such locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _die_with_parent() -> None:
    """Have Linux kill the command with the worker, which goes with the study's own process, however that ends."""
    if LIBC is not None:
        LIBC.prctl(DIE_WITH_PARENT, signal.SIGKILL)
