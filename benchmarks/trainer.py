"""What does our Trainer add to a bare loop over the same module, prompts and optimizer?

    python benchmarks/trainer.py [--sizes quickstart wide] [--repeats 15] [--steps 20] [--threads 1]

``quickstart`` is the recipe of configs/quickstart.yaml, ``wide`` the function of benchmarks/step.py (width 256, 4
layers, 40 points, 64 prompts). Both loops draw prompts of one law, take ``ICLModule.loss``, clip where the recipe does
and step ``ICLModule.fresh_optimizer``; the Trainer has neither logger, bar nor checkpoints. CPU seconds of the process,
in turn, ``repeats`` blocks of ``steps`` steps after one that is not counted; medians over blocks, of their ratios too.
"""

import argparse
import logging
import statistics
import warnings
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from step import DIMS, POINTS, SHAPE, TASK, Block, Clock, Ticks, ratio

from lightning_icl import ICLModule, PromptDataModule, SparseLinearRegression
from lightning_icl.streams import stream_generator


class Size(NamedTuple):
    """A module, its prompts and the norm its gradients are clipped to, if they are."""

    n_dims: int
    options: dict[str, Any]
    data: PromptDataModule
    clip: float | None


QUICKSTART = {"heads": [8] * 6, "attention": "linear", "init": "keys_equal_queries", "mlp": False}
TRAINED = {"optimizer": "soap", "learning_rate": 3e-3, "target": "noise_free"}
SIZES = {
    "quickstart": Size(
        8, QUICKSTART | TRAINED, PromptDataModule(SparseLinearRegression(8, 2, noise_std=0.4), 8, 8, 128), 0.1
    ),
    "wide": Size(DIMS, {"learning_rate": 1e-4, **SHAPE}, PromptDataModule(TASK, POINTS, 1, 64), None),
}


def bare(size: Size, steps: int) -> Block:
    module, data = ICLModule(size.n_dims, **size.options), size.data
    optimizer = module.fresh_optimizer()

    def block() -> float:
        clock = Clock(steps)
        for step in range(steps + 1):
            generator = stream_generator(data.seed, "train", step, 0, "cpu")
            loss = module.loss(data.task.sample(data.batch_size, data.largest_n, data.n_queries, generator))
            optimizer.zero_grad()
            loss.backward()
            if size.clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), size.clip)
            optimizer.step()
            clock.enough()
        return clock.seconds

    return block


def with_trainer(size: Size, steps: int) -> Block:
    module = ICLModule(size.n_dims, **size.options)

    def block() -> float:
        clock = Clock(steps)
        trainer = Trainer(
            max_steps=steps + 1,
            gradient_clip_val=size.clip,
            accelerator="cpu",
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Ticks(clock)],
        )
        trainer.fit(module, size.data)
        return clock.seconds

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print("| size | bare, ms a step | Trainer, ms a step | ratio | added, ms |")
    print("|---|---|---|---|---|")
    for name in arguments.sizes:
        blocks = [make(SIZES[name], arguments.steps) for make in (bare, with_trainer)]
        alone, trained = zip(*([1e3 * block() for block in blocks] for _ in range(arguments.repeats)), strict=True)
        added = statistics.median(t - a for t, a in zip(trained, alone, strict=True))
        milliseconds = [f"{statistics.median(times):.1f}" for times in (alone, trained)]
        print(f"| {name} | {' | '.join(milliseconds)} | {ratio(trained, alone):.3f} | {added:.2f} |", flush=True)


if __name__ == "__main__":
    main()
