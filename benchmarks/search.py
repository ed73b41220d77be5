"""Which recipe has the lowest excess risk after so many CPU seconds of training?

    python benchmarks/search.py --config configs/quickstart.yaml [--at_once 2] \
        "" "--model.optimizer adamw" "--model.optimizer adamw --trainer.max_steps 4000"

Each recipe is what one would write after ``lightning-icl fit --config ...``; the first here is the config itself. A row
gives the excess risk on the config's validation prompts after each tenth of the steps, and the CPU seconds of one
thread that training took, prompts included and validation excluded: they hold on a busy machine, wall seconds do not.
Analyses, loggers and checkpoints of the config are left out.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

TENTHS = 10
LEFT_OUT = [
    *("--trainer.callbacks", "[{class_path: search.Curve}]", "--trainer.logger", "false", "--figures.when", "never"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false"),
    *("--trainer.val_check_interval", str(1 / TENTHS), "--cpu_threads", "1", "--trainer.accelerator", "cpu"),
]


class Curve(Callback):
    """Keeps the risk of every validation and the CPU seconds of training before it, and prints them at the end."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float, float]] = []
        self.spent = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.spent += time.process_time() - self.started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            risk = float(trainer.callback_metrics["val/excess_risk/transformer"])
            self.curve.append((trainer.global_step, self.spent, risk))
            self.started = time.process_time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print("\n" + json.dumps(self.curve))


def measured(config: str, recipe: str) -> list[tuple[int, float, float]] | str:
    """The curve of one recipe, in a process of its own, or how that ended."""
    command = [sys.executable, "-m", "lightning_icl", "fit", "--config", config, *shlex.split(recipe), *LEFT_OUT]
    folders = os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": folders}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    curves: Any = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    return curves[-1]


def row(recipe: str, found: list[tuple[int, float, float]] | str) -> str:
    if isinstance(found, str):
        return f"| {recipe or 'the config'} | | | {found} | |"
    steps, seconds, risk = found[-1]
    curve = " ".join(f"{r:.3f}".lstrip("0") for _, _, r in found)
    return f"| {recipe or 'the config'} | {steps:,} | {seconds:.0f} | {risk:.3f} | {curve} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--at_once", type=int, default=2)
    parser.add_argument("recipes", nargs="+")
    options = parser.parse_args()
    ours = {word for word in LEFT_OUT if word.startswith("--")}
    for recipe in options.recipes:
        if taken := ours & {word.partition("=")[0] for word in shlex.split(recipe)}:
            parser.error(f"a recipe has {min(taken)}, which is the same for all here; leave it out.")
    print("| recipe | steps | CPU s | risk | after each tenth |\n|---|---|---|---|---|")
    with ThreadPoolExecutor(options.at_once) as pool:
        found = [(recipe, pool.submit(measured, options.config, recipe)) for recipe in options.recipes]
        for recipe, future in found:
            print(row(recipe, future.result()), flush=True)


if __name__ == "__main__":
    main()
