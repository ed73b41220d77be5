"""How long until a model predicts as well as ridge does: ours, and the scripts of Garg et al. 2022?

    python benchmarks/time_to_risk.py [--settings easy hard] [--presets NAME ...] [--limit 600] [--seeds 0]
        [--threads 1] [--peer DIR] [--peer-sizes tiny small standard] [--peer-rates 1e-4 1e-3] [--peer-limit 3600]

The settings are sparse linear regression: easy, d = 8, s = 2, n = 16, sigma = .1, to twice ridge's excess risk; hard,
d = 16, s = 4, n = 16, sigma = .4, to ridge's. Risks are of 16,384 held-out queries, 16 for each of 1,024 prompts, the
same for all; above twice the target, of one query of each prompt, which spares the peer's large models hours. A row is
one training run. It ends when the risk was at or below the target at two successive looks, of which the first gives the
time, or at the limit or the end of its schedule, where one look is enough. Looks are 5 % of the time spent apart, but
at least half a second and the time that the last look took; a time may be too long by that much.

Time is that of the training loop alone, prompts included and looks excluded: CPU seconds of the process, all its
threads, which hold on a busy machine, and beside them the wall clock's. Ours are presets trained by Lightning's
Trainer. The peer, a checkout of github.com/dtsip/in-context-learning, runs its own ``train`` with batches of 64
prompts (benchmarks/peers/garg.py says what is changed): no curriculum, as d and n are small from the start; its own
sizes (tiny: 3 layers of 2 heads, width 64; small: 6 x 4, 128; standard: 12 x 8, 256); its own learning rate, 1e-4,
and others. The last line is the peer's fastest time over ours, each the median over the seeds.
"""

import argparse
import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from peers import garg
from step import quiet_trainer
from torch import Tensor

from lightning_icl import ICLModule, Prompt, PromptDataModule, SparseLinearRegression
from lightning_icl.functional.references import Case, Ridge, errors, tuned, whole_prompts
from lightning_icl.functional.risk import excess_risk

PROMPTS, QUERIES = 1024, 16  # held out
HELD_OUT_SEED = 2**31  # any; the training streams mix theirs
BATCH = 64
BETWEEN_LOOKS = 0.5  # seconds, at least


class Preset(NamedTuple):
    """Options of ICLModule, optimizer steps of its schedule, queries of a training prompt, largest gradient norm."""

    model: dict[str, Any]
    steps: int
    queries: int = 16
    clip: float = 1.0


class Setting(NamedTuple):
    task: SparseLinearRegression
    n_points: int
    factor: float  # the target in ridge's risks
    presets: dict[str, Preset]


SHARED: dict[str, Any] = {"d_model": 64, "mlp": False, "target": "noise_free"}
MUON = SHARED | {"optimizer": "muon"}
LINEAR = MUON | {"attention": "linear", "heads": [8] * 4, "learning_rate": 3e-3}
RELU = MUON | {"attention": "relu", "heads": [8] * 6, "learning_rate": 5e-3}
SOAP = SHARED | {"attention": "linear", "optimizer": "soap", "learning_rate": 3e-3, "init": "keys_equal_queries"}
SETTINGS = {
    "easy": Setting(
        SparseLinearRegression(8, 2, noise_std=0.1),
        16,
        2.0,
        {
            "linear 4x8, Muon": Preset(LINEAR, 2000),
            "ReLU 6x8, Muon": Preset(RELU, 3000),
            "linear 4x8, SOAP": Preset(SOAP | {"heads": [8] * 4}, 900, clip=0.1),
        },
    ),
    "hard": Setting(
        SparseLinearRegression(16, 4, noise_std=0.4),
        16,
        1.0,
        {
            "linear 4x8, Muon": Preset(LINEAR, 8000),
            "linear 4x8, SOAP": Preset(SOAP | {"heads": [8] * 4, "d_model": 128}, 4000, clip=0.1),
        },
    ),
}


class Spent(NamedTuple):
    cpu: float
    wall: float

    @classmethod
    def since(cls, start: "Spent") -> "Spent":
        return cls(time.process_time() - start.cpu, time.perf_counter() - start.wall)


class Watch:
    """The clock of one run, which stands while the risk is looked at."""

    def __init__(self, held_out: Prompt, target: float, limit: float) -> None:
        self.held_out, self.target, self.limit = held_out, target, limit

    def begin(self, predict: Callable[[Prompt], Tensor]) -> None:
        """Start the clock of a training loop whose model predicts as ``predict`` does at the time."""
        self.predict, self.start = predict, Spent.since(Spent(0, 0))
        self.steps, self.next_look, self.risk = 0, BETWEEN_LOOKS, math.nan
        self.reached: tuple[int, Spent] | None = None  # since when every look was at or below the target

    def enough(self) -> bool:
        """Whether to stop, asked after every optimizer step."""
        self.steps += 1
        spent = Spent.since(self.start)
        if spent.cpu < min(self.next_look, self.limit):
            return False
        before, start = self.reached, time.process_time()
        self.look()
        took = time.process_time() - start
        self.next_look = spent.cpu + max(BETWEEN_LOOKS, took, 0.05 * spent.cpu)
        return spent.cpu >= self.limit or (before is not None and self.reached is not None)

    def look(self) -> None:
        spent = Spent.since(self.start)
        with torch.no_grad():
            first = self.held_out._replace(**{k: getattr(self.held_out, k)[:, :1] for k in ("x_query", "f_query")})
            self.risk = float(excess_risk(self.predict(first), first.f_query))
            if self.risk <= 2 * self.target:
                self.risk = float(excess_risk(self.predict(self.held_out), self.held_out.f_query))
        self.reached = (self.reached or (self.steps, spent)) if self.risk <= self.target else None
        self.start = Spent.since(spent)


class Stop(Callback):
    """Begins the watch with training and asks it after every step."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.watch.begin(lambda prompt: torch.cat([module(part) for part in prompt.chunks(128)]))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = self.watch.enough()


def ours(setting: Setting, preset: Preset, seed: int, watch: Watch) -> None:
    torch.manual_seed(seed)
    module = ICLModule(setting.task.n_dims, **preset.model)
    data = PromptDataModule(setting.task, setting.n_points, preset.queries, BATCH, seed=seed)
    quiet_trainer(Stop(watch), max_steps=preset.steps, gradient_clip_val=preset.clip).fit(module, data)
    watch.look()  # where the schedule ended first


def theirs(peer: garg.Garg, size: str, learning_rate: float, seed: int, watch: Watch) -> None:
    torch.manual_seed(seed)
    model = peer.model(size)
    watch.begin(lambda prompt: garg.predictions(model, prompt))
    peer.train(model, learning_rate, BATCH, watch.enough)


def ridge_risk(setting: Setting, held_out: Prompt) -> float:
    problems = whole_prompts(held_out)
    ridge = tuned([Ridge().bound(Case(setting.task, setting.task, 1))], problems)
    return float(errors(ridge, problems)["ridge"].mean())


def seconds(name: str, seed: int, watch: Watch) -> float:
    """CPU seconds to the target, infinite if it was not reached; prints the run's row."""
    steps, spent = watch.reached or (watch.steps, Spent.since(watch.start))
    reached = "yes" if watch.reached else "no"
    print(
        f"| {name} | {seed} | {reached} | {spent.cpu:.1f} | {spent.wall:.1f} | {steps:,} | {watch.risk:.4f} |",
        flush=True,
    )
    return spent.cpu if watch.reached else math.inf


def fastest(times: dict[str, list[float]]) -> tuple[float, str]:
    """The lowest median over seeds, and whose."""
    return min((statistics.median(each), name) for name, each in times.items())


def compare(name: str, arguments: argparse.Namespace) -> None:
    setting = SETTINGS[name]
    held_out = setting.task.sample(PROMPTS, setting.n_points, QUERIES, torch.Generator().manual_seed(HELD_OUT_SEED))
    ridge = ridge_risk(setting, held_out)
    target = setting.factor * ridge
    print(f"\n{name}: ridge's risk {ridge:.4f}, target {target:.4f}\n")
    print("| run | seed | reached | CPU s | wall s | steps | risk at the end |")
    print("|---|---|---|---|---|---|---|")
    mine: dict[str, list[float]] = defaultdict(list)
    for preset in setting.presets if arguments.presets is None else arguments.presets:
        for seed in arguments.seeds:
            watch = Watch(held_out, target, arguments.limit)
            ours(setting, setting.presets[preset], seed, watch)
            mine[preset].append(seconds(preset, seed, watch))
    if arguments.peer is None:
        return
    peer = garg.Garg(arguments.peer, setting.task, setting.n_points)
    peers: dict[str, list[float]] = defaultdict(list)
    for size, rate, seed in itertools.product(arguments.peer_sizes, arguments.peer_rates, arguments.seeds):
        watch = Watch(held_out, target, arguments.peer_limit)
        theirs(peer, size, rate, seed, watch)
        peers[f"peer, {size}, {rate:g}"].append(seconds(f"peer, {size}, {rate:g}", seed, watch))
    if not mine:
        return
    (best, ours_name), (peers_best, peers_name) = fastest(mine), fastest(peers)
    if best == math.inf:
        print("\nNone of ours got there.")
    elif peers_best == math.inf:
        limit = arguments.peer_limit
        print(f"\nThe peer never got there in {limit:g} s, {limit / best:.0f} times what {ours_name} takes.")
    else:
        print(f"\n{peers_name} / {ours_name} = {peers_best / best:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--presets", nargs="*", help="names of ours; all unless told, none if empty")
    parser.add_argument("--limit", type=float, default=600, help="CPU seconds of training of each of our runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", type=Path, help="a checkout of github.com/dtsip/in-context-learning")
    parser.add_argument("--peer-sizes", nargs="+", choices=("tiny", "small", "standard"), default=["tiny", "small"])
    parser.add_argument("--peer-rates", type=float, nargs="+", default=[1e-4, 1e-3])
    parser.add_argument("--peer-limit", type=float, default=3600)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.settings:
        compare(name, arguments)


if __name__ == "__main__":
    main()
