"""Does a long training take more and more memory, files or threads?

    python benchmarks/endurance.py [--steps 20000] [--every 500]

A fit of configs/debug.yaml, made smaller, through the command line: TensorBoard and CSV files, a checkpoint and a
validation every so many steps, four analyses at each validation, their figures at the end. Every hundred steps the
process is asked for its resident set, its open files and its threads. The first quarter fills caches and is left out.
Growth is the slope of a line through the rest, with its standard error, from the means of ten stretches: within one,
what one moment holds too much the next does too. A kB is 1,000 bytes. Reads /proc of Linux.
"""

import argparse
import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from lightning_icl.cli import main as command

SMALL = """
data: {n_queries: 2, batch_size: 2, eval_prompts: 8, eval_batch_size: 8}
figures: {when: last}
trainer:
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    - {class_path: TensorBoardLogger, init_args: {save_dir: .}}
    - {class_path: CSVLogger, init_args: {save_dir: .}}
  callbacks:
    - {class_path: ReferenceRisk, init_args: {tuning_prompts: 8}}
    - {class_path: HeadImportance, init_args: {n_prompts: 8}}
    - {class_path: HeadPruning, init_args: {n_prompts: 8, fit_prompts: 8, n_random: 2, finetune_steps: 1}}
    - {class_path: LinearProbe, init_args: {n_prompts: 8}}
    - {class_path: __main__.Watch}
"""
STRETCHES = 10
seen: list[tuple[int, ...]] = []  # steps, bytes, files, threads


class Watch(Callback):
    """Writes down every hundred steps what the process holds."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % 100 == 0:
            status = Path("/proc/self/status").read_text()
            kib, threads = (int(found) for found in re.findall(r"(?:VmRSS|Threads):\s+(\d+)", status))
            seen.append((trainer.global_step, 1024 * kib, len(os.listdir("/proc/self/fd")), threads))


def slope(steps: np.ndarray, held: np.ndarray) -> tuple[float, float]:
    """By how much a thousand steps raise what is held, and the standard error of that."""
    x, y = (np.array([part.mean() for part in np.array_split(values, STRETCHES)]) for values in (steps / 1000, held))
    design = np.stack([x - x.mean(), np.ones(STRETCHES)], 1)
    (found, _), (squares,), *_ = np.linalg.lstsq(design, y)
    return found, np.sqrt(squares / (STRETCHES - 2) / (design[:, 0] ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=500, help="steps between two validations")
    arguments = parser.parse_args()
    config, often = Path(__file__).resolve().parents[1] / "configs" / "debug.yaml", str(arguments.every)
    options = ["--trainer.max_steps", str(arguments.steps), "--trainer.val_check_interval", often]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("small.yaml").write_text(SMALL)
        options += ["--checkpoint.every_n_train_steps", often, "--run_folder", "run"]
        command(["fit", "--config", str(config), "--config", "small.yaml", *options])
    steps, *held = np.array(seen[len(seen) // 4 :], dtype=float).T
    print("| | at the end | growth in 1,000 steps | standard error |\n|---|---|---|---|")
    for name, values in zip(("resident set, kB", "open files", "threads"), (held[0] / 1000, *held[1:]), strict=True):
        growth, error = slope(steps, values)
        print(f"| {name} | {values[-1]:,.0f} | {growth:.2f} | {error:.2f} |")


if __name__ == "__main__":
    main()
