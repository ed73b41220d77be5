"""Jobs on Ray Tune: what is finished is not repeated, what crashes is tried again, what fails leaves the others."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from lightning_icl.functional.errors import InputError
from lightning_icl.record import journal
from lightning_icl.studies import worker
from lightning_icl.studies.engine import Progress, run_jobs
from lightning_icl.studies.plan import Cluster, Job

FINISHED = {"event": "finished", "steps": 3}
# Does what it is told instead of training, and keeps count: fake.py FOLDER BEHAVIOUR.
FAKE = """
import pathlib, runpy, sys
folder, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
counter = folder.parent / (folder.name + ".count")
tries = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(tries))
if behaviour == "crashes" or (behaviour == "crashes once" and tries == 1):
    raise RuntimeError("boom")
if behaviour == "is refused":
    print("lightning-icl: there is no option 'model.headz'.", file=sys.stderr)
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
journal = runpy.run_path(JOURNAL)
journal["append"](folder / "record.jsonl", {"event": "finished", "steps": 3})
""".replace("JOURNAL", repr(journal.__file__))


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "trials").mkdir()
    monkeypatch.setattr(worker, "PROGRAM", (str(tmp_path / "fake.py"),))

    monkeypatch.chdir(tmp_path)  # folders are relative to it, as a study's are

    def make(*behaviours):
        folders = [Path("trials", str(i)) for i in range(len(behaviours))]
        return [
            Job(f"{folder.name}_{behaviour}", "fit", folder, [str(folder), behaviour], {}, 1)
            for folder, behaviour in zip(folders, behaviours, strict=True)
        ]

    yield make
    ray.shutdown()


def tries(job):
    counter = job.folder.with_name(job.folder.name + ".count")
    return int(counter.read_text()) if counter.exists() else 0


def error(folder, job):
    return json.loads((folder / "logs" / f"{job.name}.json").read_text())["error"]


def test_jobs_are_run_once_retried_and_told_of(jobs, tmp_path, capfd):
    before = dict(os.environ)
    planned = jobs("works", "crashes", "crashes once", "is refused", "works")
    done = planned[4]
    done.folder.mkdir()
    journal.append(done.folder / journal.NAME, FINISHED)
    run_jobs(planned, tmp_path, {"cpu": 1}, Cluster(retries=1))
    assert [tries(job) for job in planned] == [1, 2, 2, 1, 0]
    assert [job.is_finished() for job in planned] == [True, False, True, False, True]
    assert [error(tmp_path, job) for job in planned[:4]] == [
        None,
        "RuntimeError: boom",
        None,
        "there is no option 'model.headz'.",
    ]
    said = capfd.readouterr().out
    assert said.startswith("5 trials, 1 of them finished before.\n")
    assert "3 done, 0 running, 2 failed of 5; about 0 s left]" in said
    assert "1_crashes: FAILED: RuntimeError: boom" in said
    assert "Traceback" not in said

    run_jobs(planned, tmp_path, {"cpu": 1}, Cluster(retries=0))  # again: the failed ones alone
    assert [tries(job) for job in planned] == [1, 3, 2, 2, 0]
    assert not (tmp_path / "ray").exists()
    assert {k: v for k, v in os.environ.items() if k in before and k != "PYTEST_CURRENT_TEST"} == {
        k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"
    }


def test_what_no_machine_has_is_refused(jobs, tmp_path):
    with pytest.raises(
        InputError, match=r"a trial is given 0.25 GPUs \(resources\), but no machine here has more than 0"
    ):
        run_jobs(jobs("works"), tmp_path, {"cpu": 1, "gpu": 0.25}, Cluster())


def test_a_job_lost_with_its_process_is_told_of(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"attempts": 2, "seconds": 9.0, "ended": false, "error": null}')
    progress = Progress("trial", 1, 0, tmp_path)
    progress.on_trial_error(1, [], SimpleNamespace(trial_id="1", config={"job": "a"}))
    assert "1 failed of 1; about 0 s left] a: FAILED: lost by Ray" in capsys.readouterr().out
    status = json.loads((tmp_path / "a.json").read_text())
    assert status == {"attempts": 2, "seconds": 9.0, "ended": True, "error": "lost by Ray"}


def test_nothing_is_started_where_all_is_done(jobs, tmp_path):
    (job,) = jobs("works")
    job.folder.mkdir()
    journal.append(job.folder / journal.NAME, FINISHED)
    run_jobs([job], tmp_path, {"cpu": 1}, Cluster())
    assert not ray.is_initialized()
    assert tries(job) == 0


def test_progress_tells_the_time_left(tmp_path, capsys):
    progress = Progress("trial", 10, 2, tmp_path)
    progress.done, progress.failed, progress.running = 3, 1, {"a", "b"}
    said = progress.line("heads=1", None, elapsed=200.0)
    assert said == "[5 done, 2 running, 1 failed of 10; about 3 min left] heads=1: done"  # 4 jobs at 50 s
    assert progress.line("x", "boom", elapsed=4.0).endswith("about 4 s left] x: FAILED: boom")
