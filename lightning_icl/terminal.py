"""What a run says while it works: bars that move on a terminal, plain lines anywhere else, and no adverts."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning_utilities.core import rank_zero
from torch import nn
from tqdm.auto import tqdm

FIRST_LINE = 10  # seconds that something takes before a line says how far it is; the next line is at twice that
BETWEEN = 300  # seconds without a validation after which a line says how far training is
# What Lightning says of its other products, of devices that are not used, and what the command line says in its words.
NOISE = (
    "💡 Tip:",
    "GPU available:",
    "TPU available:",
    "`Trainer(val_check_interval=1.0)`",
    "`Trainer.fit` stopped:",
    "Restoring states from",
    "`weights_only` was not set",  # of what is put into a checkpoint, not of reading one
)


def quiet() -> None:
    """Drop the messages of NOISE; all warnings stay."""
    rank_zero.log.addFilter(_tells)


def _tells(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE)


def moves() -> bool:
    """Whether a bar can move: in a notebook, and where stdout and stderr are both a terminal that has a cursor."""
    if "ipykernel" in sys.modules:
        return True
    streams = (sys.stdout, sys.stderr)
    return os.environ.get("TERM") != "dumb" and all(stream is not None and stream.isatty() for stream in streams)


def progress(items: Sequence[Any], description: str) -> Iterable[Any]:
    """The items behind a bar, or with a line now and then that says how many of them are done."""
    return tqdm(items, desc=description, leave=False, delay=1) if moves() else _with_lines(items, description)


def _with_lines(items: Sequence[Any], description: str) -> Iterator[Any]:
    start, due = time.monotonic(), float(FIRST_LINE)
    for done, item in enumerate(items):
        if done and (passed := time.monotonic() - start) >= due:
            left = _duration(passed / done * (len(items) - done))
            print(f"{description}: {done:,} of {len(items):,}, about {left} left", file=sys.stderr, flush=True)
            due = 2 * passed
        yield item


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def progress_bar() -> ProgressBar:
    """What shows a trainer's progress here."""
    return Bar(refresh_rate=20) if moves() else ProgressLines()  # each refresh waits for the device


class Bar(TQDMProgressBar):
    """Lightning's, without the last letters of the run's folder."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return _metrics(super().get_metrics(trainer, pl_module))

    def on_train_end(self, *given: Any) -> None:
        super().on_train_end(*given)
        sys.stdout.flush()  # the end of its line, before what comes on stderr


class ProgressLines(ProgressBar):
    """A line at each validation of a fit, and every few minutes where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self._shown, self._start, self._first, self._said = True, 0.0, 0, 0.0

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._said = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if time.monotonic() - self._said > BETWEEN:
            self._say(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer, pl_module)

    def _say(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._shown:
            return
        self._said, step, last = time.monotonic(), trainer.global_step, trainer.max_steps
        passed, made = self._said - self._start, step - self._first
        said = f"step {step:,}" + (f" of {last:,}" if last > 0 else "") + f" after {_duration(passed)}"
        if made and last > step:
            said += f", about {_duration(passed / made * (last - step))} left"
        numbers = [f"{name} {value:.4g}" for name, value in _metrics(self.get_metrics(trainer, module)).items()]
        print(": ".join(filter(None, [said, ", ".join(numbers)])), flush=True)


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    found.pop("v_num", None)
    return found


class NetworkSummary(Callback):
    """Says before training which weights the model has."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank_zero_info("\n".join(network_lines(getattr(pl_module, "network", pl_module))))


def network_lines(network: nn.Module) -> list[str]:
    """A line for each part of a network that has weights: its name, what it is, and how many they are."""
    rows = [(name, "Parameter", [weight]) for name, weight in network.named_parameters(recurse=False)]
    rows += [(name, _kind(part), list(part.parameters())) for name, part in network.named_children()]
    rows = [*(row for row in rows if row[2]), ("in all", type(network).__name__, list(network.parameters()))]
    counts = [f"{_number(weights):,}" for _, _, weights in rows]
    wide = [max(map(len, column)) for column in ([r[0] for r in rows], [r[1] for r in rows], counts)]
    lines = []
    for (name, kind, weights), count in zip(rows, counts, strict=True):
        frozen = _number([weight for weight in weights if not weight.requires_grad])
        line = f"  {name:<{wide[0]}}  {kind:<{wide[1]}}  {count:>{wide[2]}} weights"
        lines.append(line + f", {frozen:,} of them not trained" * bool(frozen))
    return lines


def _number(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def _kind(part: nn.Module) -> str:
    """Its class or, of a list of modules, theirs, as in 6 x Layer."""
    kinds = [type(inner).__name__ for inner in part] if isinstance(part, nn.ModuleList) else []
    return f"{len(kinds)} x {kinds[0]}" if len(set(kinds)) == 1 else type(part).__name__
