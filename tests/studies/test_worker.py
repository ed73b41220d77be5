"""One job: run, gone on with, and told of when it fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_icl.endings import way_on
from lightning_icl.record import journal
from lightning_icl.studies import worker
from lightning_icl.studies.worker import JobError, failure, run_job

FINISH = f"""
import pathlib, runpy
pathlib.Path("run").mkdir(exist_ok=True)
append = runpy.run_path({journal.__file__!r})["append"]
append(pathlib.Path("run", "record.jsonl"), {{"event": "finished", "steps": 3}})
"""


@pytest.fixture
def job(tmp_path):
    """A job by its script; its folder is relative, as a study's is, to a folder that is not the process' own."""

    def make(script, kind="fit"):
        command, log = ["-c", script], str(tmp_path / "run.txt")
        return {"kind": kind, "folder": "run", "command": command, "log": log, "cwd": str(tmp_path), "cpu": 2}

    return make


def status(tmp_path):
    return json.loads((tmp_path / "run.json").read_text())


def test_a_job_runs_in_the_studys_folder_with_its_share_of_the_cores(job, tmp_path):
    assert run_job(job("import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])" + FINISH)) is None
    assert (tmp_path / "run.txt").read_text().split() == [str(tmp_path), "2"]
    assert status(tmp_path)["error"] is None
    assert status(tmp_path)["ended"]


def test_a_job_of_a_study_in_a_slurm_job_is_none_of_its_tasks(job, tmp_path, monkeypatch):
    for name in (
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "PMI_RANK",
        "OMPI_COMM_WORLD_SIZE",
    ):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_job(job("import os; print(*sorted(os.environ))" + FINISH))
    found = set((tmp_path / "run.txt").read_text().split())
    assert "WANDB_MODE" in found
    assert not {name for name in found if name.startswith(("SLURM", "RANK", "WORLD", "MASTER", "PMI", "OMPI"))}


def test_a_finished_job_is_not_run_again(job, tmp_path):
    run_job(job(FINISH))
    assert run_job(job("raise AssertionError")) is None
    assert status(tmp_path)["attempts"] == 1


def test_a_job_that_leaves_nothing_is_not_taken_for_finished(job, tmp_path):
    assert run_job(job("pass")) == "it ended without a word in run that it finished"
    assert status(tmp_path)["error"] == "it ended without a word in run that it finished"


@pytest.mark.parametrize("damage", [b"", b"\0" * 9, b'{"event": "finished", "crc": 1}\n'])
def test_a_job_with_a_damaged_record_or_status_is_run_again(job, tmp_path, damage):
    run_job(job(FINISH))
    (tmp_path / "run" / "record.jsonl").write_bytes(damage)
    (tmp_path / "run.json").write_bytes(damage)
    assert run_job(job(FINISH)) is None
    assert status(tmp_path)["attempts"] >= 1
    assert journal.is_finished(tmp_path / "run")


def test_what_waits_for_a_job_imports_no_torch():
    code = f"import runpy, sys; runpy.run_path({worker.__file__!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_usage_error_is_told_and_not_raised_since_it_would_come_again(job, tmp_path):
    script = "import sys; print('Seed set to 1'); print('lightning-icl: heads is 3.', file=sys.stderr); sys.exit(2)"
    assert run_job(job(script)) == "heads is 3."
    assert status(tmp_path)["error"] == "heads is 3."


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL (out of memory?)"),
    ],
)
def test_a_crash_is_raised_for_another_try_and_counted(job, tmp_path, script, error):
    for attempt in (1, 2):
        with pytest.raises(JobError) as raised:
            run_job(job(script))
        assert str(raised.value) == error
        assert status(tmp_path)["attempts"] == attempt
    assert run_job(job(FINISH)) is None
    assert status(tmp_path)["error"] is None


def test_a_run_is_gone_on_with_and_a_p_probing_begun_anew(job, tmp_path):
    left = tmp_path / "run" / "what_was_left"
    for kind, stays in (("fit", True), ("p_probe", False)):
        left.parent.mkdir(exist_ok=True)
        left.write_text("")
        run_job(job("pass", kind))
        assert left.exists() == stays


def test_a_job_that_was_killed_is_known_not_to_have_ended(job, tmp_path):
    run_job(job("import json, pathlib; assert not json.loads(pathlib.Path('run.json').read_text())['ended']" + FINISH))
    assert status(tmp_path)["ended"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_a_job_dies_with_the_process_that_runs_it(job, tmp_path):
    script = "import os, time; open('pid', 'w').write(str(os.getpid())); print('up', flush=True); time.sleep(60)"
    # By its path, as Ray's processes have it, since importing the package takes seconds.
    runner = f"import runpy; runpy.run_path({worker.__file__!r})['run_job']({job(script)!r})"
    with subprocess.Popen([sys.executable, "-c", runner]) as parent:
        _wait_for(lambda: (tmp_path / "run.txt").exists() and (tmp_path / "run.txt").read_text())
        child = int((tmp_path / "pid").read_text())
        assert _alive(child)
        parent.send_signal(signal.SIGKILL)
    _wait_for(lambda: not _alive(child))


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for(condition, seconds=30):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_the_last_sentence_of_a_log_is_told():
    log = "Epoch 0\nlightning-icl: first.\nlightning-icl: training has diverged.\n"
    assert failure(log, 2) == "training has diverged."
    assert failure("Traceback\n  File\nRuntimeError: boom\n\n", 1) == "RuntimeError: boom"
    assert failure("", 3) == "exit status 3"
    assert failure("whatever", -15) == "killed by SIGTERM"
    assert failure(f"OutOfMemoryError: CUDA\n{way_on(5, Path('run'), None)}\n", 1) == "OutOfMemoryError: CUDA"
