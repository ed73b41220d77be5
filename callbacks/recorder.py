"""What a run says of itself: how it began and ended, and the page a newcomer looks at."""

import shlex
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_info

from lightning_icl.callbacks.analysis import analyses, datamodule, icl_module, trained_steps
from lightning_icl.loggers import log_hparams, log_layout, log_text, way_to_look
from lightning_icl.module import ICLModule
from lightning_icl.record import journal
from lightning_icl.record.context import options
from lightning_icl.record.folder import run_folder
from lightning_icl.record.rows import Row, tag

MODEL, ZERO = "val/excess_risk/transformer", "val/excess_risk/zero"
COMPARED = ("ridge", "lasso", "bayes")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Recorder(Callback):
    """Writes how a run began, went on and ended to its record, and prints what every analysis found.

    A fit that came to its end, by max_steps, max_time, EarlyStopping or max_epochs, is "finished"; one that a signal or
    an error ended is "stopped". On the first SIGTERM or Ctrl-C a fit of one process ends at its next step with all that
    is due at the end; the second stops it at once.

    TensorBoard gets, besides the analyses' scalars and figures: TEXT, what the run is and its closing table; HPARAMS,
    the options that matter with the last risk and its ratio to ridge, lasso and Bayes; CUSTOM SCALARS, the model
    between ridge and Bayes, the references below the zero predictor, effective heads, pruned against full, the probe.

    Args:
        scalars: "main" logs what each analysis names in ``shown``, "all" every row of every analysis.
    """

    def __init__(self, scalars: Literal["main", "all"] = "main") -> None:
        self.scalars = scalars
        self.signalled: str | None = None
        self._laid_out = False
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._laid_out, self.signalled = False, None
        run_folder(trainer)  # a collective: every rank asks
        self._note(trainer, event="started", lightning_icl=version("lightning-icl"), command=stage, argv=sys.argv[1:])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what a fit that goes on from a checkpoint had measured after it."""
        folder, module = run_folder(trainer), icl_module(pl_module)
        if trainer.ckpt_path is None or folder is None or not trainer.is_global_zero:
            return
        before = Path(trainer.ckpt_path).absolute().parent.parent / journal.NAME
        path = folder / journal.NAME
        if before.is_file() and not (path.exists() and before.samefile(path)):
            for line in journal.in_force(journal.read(before).lines):  # its series go on in this folder
                if "rows" in line and line["context"]["command"] == "fit":
                    journal.append(path, line)
        self._note(trainer, event="resumed", kept_to=module.validated_at, step=module.trained_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_text(trainer, "about", about(trainer, icl_module(pl_module)), trainer.global_step)
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
            for number in SIGNALS:
                signal.signal(number, lambda *args: self._stop_soon(trainer, *args))

    def _stop_soon(self, trainer: Trainer, number: int, _: FrameType | None) -> None:
        self.signalled = signal.Signals(number).name
        trainer.should_stop = True
        rank_zero_info(f"{self.signalled}: the run stops after this step and what is due at its end; again: at once.")
        self._restore_signals()

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if not self._laid_out:
            log_layout(trainer, layout(found := _rows(trainer)))
            self._laid_out = not found.empty
        if trainer.state.fn == "validate":
            self._close(trainer, icl_module(pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, icl_module(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_signals()  # before Lightning puts back what was there before it

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, icl_module(pl_module))

    def finish(self, trainer: Trainer, module: ICLModule) -> None:
        """Say how the fit ended, and what it found."""
        by = ended_by(trainer)
        if self.signalled and by != "max_steps":
            self._note(trainer, event="stopped", steps=trainer.global_step, by=self.signalled)
        else:
            self._note(trainer, event="finished", steps=trainer.global_step, by=by)
        self._close(trainer, module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_signals()
        said = " ".join(f"{type(exception).__name__}: {exception}".split()).removesuffix(": ").removesuffix(":")
        self._note(trainer, event="stopped", steps=trainer.global_step, by=said)

    def _note(self, trainer: Trainer, **event: Any) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            journal.append(folder / journal.NAME, event)

    def _close(self, trainer: Trainer, module: ICLModule) -> None:
        """The closing table, on the terminal and in TEXT, and the row in HPARAMS."""
        if not trainer.is_global_zero:
            return
        lines = []
        for analysis in analyses(trainer):
            if analysis.rows is not None and (said := analysis.summary(analysis.rows)):
                old = analysis.measured_at != trained_steps(trainer, module)
                lines += ["", *said, *([f"  (as of step {analysis.measured_at})"] if old else [])]
        print(*lines, sep="\n")
        folder, step = run_folder(trainer), trained_steps(trainer, module)
        log_text(trainer, "results", "```text\n" + "\n".join(lines[1:]) + "\n```", step)
        found = _rows(trainer).set_index("metric")["value"]
        ratios = {name: found.get(f"against/{name}/ratio") for name in COMPARED}
        metrics = {MODEL: found.get(MODEL)} | {f"against/{name}/ratio": ratio for name, ratio in ratios.items()}
        known = {name: float(value) for name, value in metrics.items() if value is not None}
        if known and trainer.state.fn == "fit":
            log_hparams(trainer, _hparams(trainer, module), known)
        if folder is not None:
            print(f"\nThis run is in {folder}\n{way_to_look(trainer, folder)}\n")


def ended_by(trainer: Trainer) -> str:
    """What ended a fit."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if 0 < trainer.max_steps <= trainer.global_step:
        return "max_steps"
    if any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in callbacks):
        return "max_time"
    if trainer.should_stop and any(isinstance(c, EarlyStopping) and c.stopping_reason_message for c in callbacks):
        return "EarlyStopping"
    return "should_stop" if trainer.should_stop else "max_epochs"


def about(trainer: Trainer, module: ICLModule) -> str:
    """What a run is, as TEXT shows it."""
    data, transformer = datamodule(trainer), module.transformer
    n_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    n_points = f"{data.smallest_n}" if data.smallest_n == data.largest_n else f"{data.smallest_n} to {data.largest_n}"
    command = shlex.join(["lightning-icl", *sys.argv[1:]]) if Path(sys.argv[0]).name != "-c" else "(from Python)"
    model = {name: value for name, value in module.hparams.items() if name != "n_dims"}
    size = f"{len(transformer.heads)} layers, heads {transformer.heads}, {n_parameters:,} parameters"
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| task | `{data.task!r}`, {n_points} examples, {data.n_queries} queries |",
            f"| model | {size}: `{model}` |",
            f"| training | batches of {data.batch_size} prompts, max_steps {trainer.max_steps}, seed {data.seed} |",
            f"| the same again | `{command}` |",
        ]
    )  # fmt: skip


def layout(rows: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """The charts of CUSTOM SCALARS: their axes are linear, so what lies above the zero predictor is left out."""
    risks = rows[rows["metric"].str.startswith("val/excess_risk/")]
    tags = dict(
        zip(
            risks["metric"],
            (
                tag(Row(m, 0.0, stream=None if pd.isna(s) else s))
                for m, s in zip(risks["metric"], risks["stream"], strict=True)
            ),
            strict=True,
        )
    )
    values = dict(zip(risks["metric"], risks["value"], strict=True))
    low = [m for m, value in values.items() if m not in (MODEL, ZERO) and value <= values.get(ZERO, float("inf"))]
    charts: dict[str, list[Any]] = {}
    band = [MODEL, "val/excess_risk/bayes", "val/excess_risk/ridge"]
    if set(band) <= set(tags):
        charts["model (line) between Bayes and ridge (band)"] = ["Margin", [tags[m] for m in band]]
    charts["model and references below the zero predictor"] = ["Multiline", [tags.get(m, m) for m in [MODEL, *low]]]
    return {
        "excess risk": charts | {"model over reference, 1: equal": ["Multiline", ["against/.*/ratio"]]},
        "heads": {"effective heads by layer": ["Multiline", [r"heads/leave_one_out/effective/layer\d+"]]},
        "pruning": {"pruned against full": ["Multiline", ["prune/as_is/(full|paper)/excess_risk"]]},
        "probe": {"probe for f(x_q) by layer": ["Multiline", [r"probe/query/f/trained/risk/layer\d+"]]},
    }


def _rows(trainer: Trainer) -> pd.DataFrame:
    """The last rows of all analyses that are not about a part: over all examples, on the first stream."""
    known = [a.rows for a in analyses(trainer) if a.rows is not None]
    if not known:
        return pd.DataFrame(columns=["metric", "value", "n_points", "stream", "layer"])
    rows = pd.concat(known, ignore_index=True)
    streams = rows["stream"].dropna()
    first = rows["stream"].isna() | rows["stream"].eq(streams.iloc[0] if len(streams) else "")
    whole = rows["n_points"].isna() & rows["layer"].isna() & rows["head"].isna()
    return rows[first & whole]


def _hparams(trainer: Trainer, module: ICLModule) -> dict[str, Any]:
    """The options that tell one run from another, as HPARAMS takes them."""
    data = datamodule(trainer)
    task = {f"task.{name}": value for name, value in options(data.task).items()}
    known = {**module.hparams, "task": type(data.task).__name__, **task, "n_points": data.largest_n, "seed": data.seed}
    known |= {"batch_size": data.batch_size, "steps": trainer.global_step}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in known.items()}
