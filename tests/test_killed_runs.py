"""Runs that are killed at random moments and gone on with are, at their end, the run that nothing disturbed.

The figure in docs/explanation/reliability.md: pytest -m slow -s tests/test_killed_runs.py
"""

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_icl.record import load_run
from lightning_icl.record.loggers import TABLE

CONFIG = """
cpu_threads: 1
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 4, sparsity: 2, noise_std: 0.1}}
  n_points: 6
  n_queries: 4
  batch_size: 16
  eval_prompts: 64
  eval_batch_size: 32
model: {d_model: 16, heads: [2, 2], optimizer: muon}
checkpoint: {every_n_train_steps: 20}
figures: {when: never}
trainer:
  max_steps: 300
  val_check_interval: 50
  log_every_n_steps: 5
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    - {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: .}}
    - {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: .}}
  callbacks:
    - {class_path: ReferenceRisk, init_args: {references: [ZeroPredictor], tuning_prompts: 4, curve_prompts: 16}}
    - {class_path: HeadImportance, init_args: {n_prompts: 32}}
"""
KILLS = 20
FORKS = get_context("forkserver")  # of a process that has imported all, so that a start costs little
FORKS.set_forkserver_preload(["lightning_icl.cli"])


def fit(folder: Path, name: str) -> None:
    """What a process does: the run of this name, from its last checkpoint if it has one."""
    os.chdir(folder)
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from lightning_icl.cli import main

    main(["fit", "--config", "config.yaml", "--run_folder", name, "--ckpt_path", "last"])


def started(folder: Path, name: str):
    process = FORKS.Process(target=fit, args=(folder, name))
    process.start()
    return process


def finished(folder: Path, name: str) -> Path:
    """The run's folder, when a process has brought it to its end."""
    process = started(folder, name)
    process.join()
    assert process.exitcode == 0, (folder / f"{name}.log").read_text()
    return folder / name


def state(run: Path) -> dict:
    """Weights and the optimizer's state, by name."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    of = {f"{i} {key}": value for i, known in optimizer["state"].items() for key, value in known.items()}
    return {"steps": torch.tensor(checkpoint["global_step"])} | checkpoint["state_dict"] | of


def curves(run: Path) -> dict:
    """What TensorBoard shows, and the CSV file, by tag: each point once."""
    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    table = pd.read_csv(run / TABLE).set_index("step")
    return shown | {f"csv {tag}": list(table[tag].dropna().items()) for tag in table}


def difference(run: Path, whole: Path) -> str | None:
    """What is not as in the undisturbed run, to the last bit."""
    mine, others = state(run), state(whole)
    if mine.keys() != others.keys() or not all(torch.equal(mine[name], others[name]) for name in mine):
        return "weights"
    found, expected = (
        load_run(folder).table.sort_values(["analysis", "step"], kind="stable") for folder in (run, whole)
    )
    if not found.reset_index(drop=True).equals(expected.reset_index(drop=True)):
        return "results"
    mine, others = curves(run), curves(whole)
    return next((f"curve {tag}" for tag in mine | others if mine.get(tag) != others.get(tag)), None)


@pytest.mark.timeout(3600)
@pytest.mark.slow  # test_cli.py has one kill, of weights alone
def test_killed_runs_end_as_the_undisturbed_one(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    finished(tmp_path, "first")  # with all imports made
    began = time.monotonic()
    whole = finished(tmp_path, "whole")
    lasted, draw, told, made = time.monotonic() - began, random.Random(0), [], 0
    for number in range(10 * KILLS):
        name = f"killed_{number}"
        for _ in range(min(2, KILLS - made)):  # the second hits a run that goes on
            process = started(tmp_path, name)
            process.join(draw.uniform(0, lasted))
            process.kill()
            process.join()
            made += process.exitcode == -signal.SIGKILL
        last = sorted(path.name for path in tmp_path.glob(f"{name}/checkpoints/*"))
        if wrong := difference(finished(tmp_path, name), whole):
            told.append(f"{wrong} of {name}, killed with {last}")
        if made == KILLS:
            break
    print(f"{made} kills in {number + 1} runs: {number + 1 - len(told)} runs as the undisturbed one")
    assert made == KILLS
    assert told == []
