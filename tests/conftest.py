"""What the tests share: a small stream and model, and the command line in a process of its own."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_icl import ICLModule, PromptDataModule, SparseLinearRegression
from lightning_icl.callbacks import analysis
from lightning_icl.record import Row, tag

ROOT = Path(__file__).parents[1]
# A job in the background ignores SIGINT, one of nohup SIGHUP, which our commands respect; tests send themselves both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Lightning has its logger propagate, to caplog for one, only where logging was set up before its import.
logging.getLogger("lightning.pytorch").propagate = True
# Merged onto a shipped config, makes it small without changing its model.
TINY = """
data:
  n_queries: 2
  batch_size: 4
  eval_prompts: 8
  eval_batch_size: 4
trainer:
  max_steps: 2
  val_check_interval: 1.0
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
  callbacks:
    - {class_path: ReferenceRisk, init_args: {tuning_prompts: 8}}
    - {class_path: HeadImportance, init_args: {n_prompts: 8}}
    - class_path: HeadPruning
      init_args: {n_prompts: 8, fit_prompts: 8, n_random: 2, finetune_steps: 1, strategies: [PaperPruning]}
    - {class_path: LinearProbe, init_args: {n_prompts: 8}}
"""


def small_data(task=None, **options):
    defaults = {"n_points": 5, "n_queries": 3, "batch_size": 8, "eval_prompts": 16, "eval_batch_size": 8, "seed": 3}
    return PromptDataModule(task or SparseLinearRegression(4, 2, noise_std=0.3), **(defaults | options))


def small_module(**options):
    torch.manual_seed(0)
    return ICLModule(**({"n_dims": 4, "d_model": 16, "heads": [4, 2], "warmup_steps": 2} | options))


def small_trainer(folder, callbacks=(), **options):
    defaults = {"max_steps": 6, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(callbacks=list(callbacks), **(defaults | quiet | options))


def numbers(*analyses):
    """What analyses found last, by tag."""
    rows = [Row(*cells) for a in analyses for cells in a.rows.astype(object).where(a.rows.notna(), None).values]
    return {tag(row): row.value for row in rows}


class Kept(DummyLogger):
    """A logger that keeps what it is given: (step, numbers by tag)."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def log_metrics(self, metrics, step=None):
        self.kept.append((step, dict(metrics)))

    def series(self, name):
        return [(step, metrics[name]) for step, metrics in self.kept if name in metrics]


def run_command(*args, cwd, timeout=240, command=(sys.executable, "-m", "lightning_icl"), check=True):
    """Run the command line as a user would, on one thread, without a terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests"), "COLUMNS": "120"}
    done = subprocess.run(
        [*command, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not rendered, which takes longer than all else in a small run."""
    monkeypatch.setattr(analysis, "write_figure", lambda *_: np.zeros((1, 1, 3), np.uint8))


@pytest.fixture
def unchecked():
    """As users have it, shapes are not checked: where thousands of calls are made, that takes half the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
