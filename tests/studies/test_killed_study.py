"""A study on Ray with real trials: killed half-way and started again; and with trials that cannot work."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from conftest import run_command

from lightning_icl.record import journal

BASE = """
cpu_threads: 1
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 4, sparsity: 2, noise_std: 0.1}}
  n_points: [3, 6]
  n_queries: 4
  batch_size: 16
  eval_prompts: 64
  eval_batch_size: 32
model: {d_model: 16, heads: [2, 2], warmup_steps: 5}
trainer:
  max_steps: 600
  val_check_interval: 0.05
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - {class_path: ReferenceRisk, init_args: {tuning_prompts: 16, references: [ZeroPredictor, Ridge]}}
    - {class_path: HeadImportance, init_args: {n_prompts: 64, scores: [leave_one_out], every_n_validations: 5}}
"""
STUDY = {
    "name": "killed",
    "claims": ["RiskFallsWithHeads"],
    "figures": ["RiskByPoints"],
    "scales": {"quick": {"base": ["base.yaml"], "grids": [{"model.heads": [[1, 1], [2, 2]]}], "seeds": [1, 2]}},
}
CRASH = """
import os, signal
from lightning.pytorch import Callback

class Crash(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def study(folder, *args, check=True):
    return run_command("study", "--config", "study.yaml", *args, cwd=folder, timeout=500, check=check)


def finished(folder):
    return {path.parent.name for path in folder.glob(f"trials/*/{journal.NAME}") if journal.is_finished(path.parent)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_study_goes_on_and_ends_in_the_table_of_one_that_was_not(folder):
    killed = folder / "studies" / "killed-quick"
    command = [sys.executable, "-m", "lightning_icl", "study", "--config", "study.yaml"]
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}) as driver:
        deadline = time.monotonic() + 500
        while not finished(killed) and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(3)  # into the next trials
        driver.send_signal(signal.SIGKILL)
    done = finished(killed)
    assert 0 < len(done) < 4
    before = {name: (killed / "trials" / name / journal.NAME).stat().st_mtime_ns for name in done}
    said = study(folder).stdout
    assert f"4 trials, {len(done)} of them finished before." in said
    assert len(finished(killed)) == 4
    assert {n: (killed / "trials" / n / journal.NAME).stat().st_mtime_ns for n in done} == before
    study(folder, "--output", "whole")
    tables = [pd.read_parquet(path / "results.parquet") for path in (killed, folder / "whole")]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_that_cannot_work_are_named_and_the_others_stand(folder):
    (folder / "crashing.py").write_text(CRASH)
    wrong = [{"model.headz": 3}, {"model.learning_rate": 1e6, "trainer.gradient_clip_val": None}]
    scale = STUDY["scales"]["quick"] | {"trials": [*wrong, {"trainer.callbacks": ["crashing.Crash"]}], "seeds": [1]}
    scale["overrides"] = {"trainer.max_steps": 60}
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": scale}}))
    done = study(folder, check=False)
    assert done.returncode == 1
    out = folder / "studies" / "killed-quick"
    trials = pd.read_csv(out / "trials.csv")
    errors = trials[trials["status"] == "failed"]["error"].tolist()
    assert errors[0] == "there is no option 'model.headz'; did you mean 'model.heads'?"
    assert "training has diverged" in errors[1]
    assert "lower learning_rate (now 1000000.0)" in errors[1]
    assert errors[2] == "killed by SIGSEGV"
    assert (trials["status"] == "done").sum() == 2
    assert pd.read_parquet(out / "results.parquet")["trial"].nunique() == 2
    report = (out / "report.html").read_text()
    assert all(name in report for name in trials["trial"])
    assert "did you mean" in report
    assert json.loads((out / "logs" / f"{trials['trial'].iloc[-1]}.json").read_text())["attempts"] == 2
