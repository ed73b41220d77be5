"""What does a training step cost: a bare loop over our modules, our Trainer, and the scripts of Garg et al. 2022?

    python benchmarks/step.py [--peer DIR] [--precisions fp32 bf16] [--repeats 5] [--steps 5] [--batch 64] [--threads 1]

The same function for all: a GPT-2 of width 256, 4 layers of 8 heads, MLP, learned positions and causal mask, on x_1,
y_1, x_2, ... in 20 dimensions, predicting at each of 41 points from those before it, batches of 64 prompts (ours has 81
tokens, the peer's 82: it also reads the last label). A step is everything: prompts, forward, backward, Adam. "Bare" is
a loop over the loss and the optimizer of an ICLModule; the Trainer trains one on a PromptDataModule without logger, bar
or checkpoints; the peer runs its own ``train`` (benchmarks/peers/garg.py says what is changed). bf16 is autocast around
the forward pass of "bare" and the peer, and the Trainer's bf16-mixed.

Times are CPU seconds of the process. The contestants run in turn, ``repeats`` blocks of ``steps`` steps after one that
is not counted, and beside them a matrix product of 1,024 x 1,024, so that a busy machine falls on all alike; medians
are over blocks, ratios are medians of the blocks' ratios. ``of peak`` is the share of the matrix product's speed in the
same precision, counting all multiplications of the whole function for each (three times the forward pass's, masked keys
included), whatever a contestant leaves out.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from peers import garg

from lightning_icl import ICLModule, PromptDataModule, SparseLinearRegression

DIMS, POINTS, WIDTH, LAYERS, HEADS = 20, 40, 256, 4, 8
TASK = SparseLinearRegression(DIMS, 3)
SHAPE: dict[str, Any] = {
    "d_model": WIDTH,
    "heads": [HEADS] * LAYERS,
    "layout": "alternating",
    "mask": "causal",
    "position": "learned",
    "max_points": POINTS,
}
GEMM = 1024
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}

Block = Callable[[], float]  # CPU seconds a step


class Clock:
    """The mean time of ``steps`` steps after a first one, told of the end of each."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[float] = []

    def enough(self) -> bool:
        self.ends.append(time.process_time())
        return len(self.ends) > self.steps

    @property
    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[0]) / self.steps


class Ticks(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.enough()


def quiet_trainer(callback: Callback, **options: Any) -> Trainer:
    """A Trainer on the CPU that trains and says nothing: no validation, logger, bar or checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return Trainer(
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **options,
    )


def bare(precision: str, batch: int, steps: int) -> Block:
    module = ICLModule(DIMS, learning_rate=1e-4, **SHAPE)
    loss = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")(module.loss)
    optimizer = module.fresh_optimizer()
    generator = torch.Generator().manual_seed(0)

    def block() -> float:
        clock = Clock(steps)
        while True:
            optimizer.zero_grad()
            loss(TASK.sample(batch, POINTS, 1, generator)).backward()
            optimizer.step()
            if clock.enough():
                return clock.seconds

    return block


def with_trainer(precision: str, batch: int, steps: int) -> Block:
    module = ICLModule(DIMS, learning_rate=1e-4, **SHAPE)
    data = PromptDataModule(TASK, POINTS, 1, batch)

    def block() -> float:
        clock = Clock(steps)
        quiet_trainer(Ticks(clock), max_steps=steps + 1, precision=PRECISIONS[precision]).fit(module, data)
        return clock.seconds

    return block


def peer(folder: Path, precision: str, batch: int, steps: int) -> Block:
    scripts = garg.Garg(folder, TASK, POINTS)
    model = scripts.model(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    model.forward = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")(model.forward)

    def block() -> float:
        clock = Clock(steps)
        scripts.train(model, 1e-4, batch, clock.enough)
        return clock.seconds

    return block


def matrix_product(precision: str) -> Block:
    a = torch.randn(GEMM, GEMM).to(DTYPES[precision])

    def block() -> float:
        start = time.process_time()
        a @ a
        return time.process_time() - start

    return block


def flops(batch: int) -> float:
    """Of a step: three times the forward pass's, 2 for each multiplication, without read-in and read-out."""
    tokens = 2 * POINTS + 1
    return 3 * batch * tokens * LAYERS * (24 * WIDTH**2 + 4 * tokens * WIDTH)


def compare(precision: str, arguments: argparse.Namespace) -> None:
    size = arguments.batch, arguments.steps
    contestants = {"bare": bare(precision, *size), "Trainer": with_trainer(precision, *size)}
    if arguments.peer is not None:
        contestants["peer"] = peer(arguments.peer, precision, *size)
    contestants["matrix product"] = matrix_product(precision)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):
        for name, block in contestants.items():
            taken[name].append(block())
    peak = 2 * GEMM**3 / statistics.median(taken.pop("matrix product"))
    print(f"\n{precision}: a matrix product runs at {peak / 1e9:.1f} GFLOP/s\n")
    print("| loop | ms a step | of peak | over bare | over Trainer |")
    print("|---|---|---|---|---|")
    for name, times in taken.items():
        milliseconds = 1e3 * statistics.median(times)
        share = flops(arguments.batch) / statistics.median(times) / peak
        over_bare, over_trainer = (ratio(times, taken[other]) for other in ("bare", "Trainer"))
        print(f"| {name} | {milliseconds:.1f} | {share:.0%} | {over_bare:.3f} | {over_trainer:.3f} |", flush=True)


def ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(t / o for t, o in zip(times, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of github.com/dtsip/in-context-learning")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for precision in arguments.precisions:
        compare(precision, arguments)


if __name__ == "__main__":
    main()
