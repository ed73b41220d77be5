"""What a run says of itself: how it began and ended, and the page a newcomer looks at."""

import signal
import sys
import threading
from importlib.metadata import version
from types import FrameType
from typing import Any, Literal

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_icl.callbacks.analysis import analyses, datamodule, icl_module
from lightning_icl.callbacks.monitors import check_monitors
from lightning_icl.data import PromptDataModule
from lightning_icl.loggers import log_hparams, log_layout, log_text, way_to_look
from lightning_icl.module import ICLModule
from lightning_icl.record import page
from lightning_icl.record.folder import AGREED, run_folder
from lightning_icl.record.writing import ended_by, go_on, note, trained_steps

SIGNALS = (signal.SIGTERM, signal.SIGINT)
BATCHES_BETWEEN = 10  # before several processes ask each other whether a signal has told one to stop


class Recorder(Callback):
    """Writes how a run began, went on and ended to its record, and prints what every analysis found.

    A fit that came to its end, by max_steps, max_time, EarlyStopping or max_epochs, is "finished"; one that a signal or
    an error ended is "stopped". On the first SIGTERM or Ctrl-C a fit ends at its next step (of several processes:
    within ten) with all that is due at the end; the second stops it at once.

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

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        """Refuse to monitor what nothing logs."""
        if stage == "fit":
            check_monitors(trainer, module, data)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check_run(trainer, icl_module(pl_module), datamodule(trainer), stage)
        self._laid_out, self.signalled = False, None
        run_folder(trainer)  # a collective: every rank asks
        ours = version("lightning-icl")
        note(trainer, {"event": "started", "lightning_icl": ours, "command": stage, "argv": sys.argv[1:]})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what a fit that goes on from a checkpoint had measured after it."""
        go_on(trainer, icl_module(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        about = page.about(datamodule(trainer), icl_module(pl_module), trainer.max_steps)
        log_text(trainer, "about", about, trainer.global_step)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
            for number in SIGNALS:
                signal.signal(number, lambda *args: self._stop_soon(trainer, *args))

    def _stop_soon(self, trainer: Trainer, number: int, _: FrameType | None) -> None:
        self.signalled = signal.Signals(number).name
        trainer.should_stop = trainer.should_stop or trainer.world_size == 1
        rank_zero_info(f"{self.signalled}: the run stops soon, with what is due at its end; once more: at once.")
        self._restore_signals()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have all processes stop at one step, whichever of them was told."""
        asked = trainer.world_size > 1 and batch_idx % BATCHES_BETWEEN == 0
        if asked and trainer.strategy.reduce_boolean_decision(self.signalled is not None, all=False):
            trainer.should_stop, self.signalled = True, self.signalled or "SIGTERM"  # rank 0 says how it ended

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if not self._laid_out and (known := measured(trainer)) is not None:
            log_layout(trainer, page.layout(known))
            self._laid_out = True
        module = icl_module(pl_module)
        if trainer.state.fn == "validate":
            (self.finish if module.closing else self._close)(trainer, module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, icl_module(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_signals()  # before Lightning puts back what was there before it

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = icl_module(pl_module)
        if not analyses(trainer) or not trainer.enable_validation or module.validated_at == trainer.global_step:
            self.finish(trainer, module)  # else the command line has a validation to make yet

    def finish(self, trainer: Trainer, module: ICLModule) -> None:
        """Say how a fit ended, and what it found."""
        by = ended_by(trainer)
        signalled = self.signalled if by != "max_steps" else None
        event = "stopped" if signalled else "finished"
        note(trainer, {"event": event, "steps": trainer.global_step, "by": signalled or by})
        self._close(trainer, module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_signals()
        said = " ".join(f"{type(exception).__name__}: {exception}".split()).removesuffix(": ").removesuffix(":")
        if trainer in AGREED:  # else nothing of the run is there yet, and another rank may be elsewhere
            note(trainer, {"event": "stopped", "steps": trainer.global_step, "by": said})

    def _close(self, trainer: Trainer, module: ICLModule) -> None:
        """The closing table, on the terminal and in TEXT, and the row in HPARAMS."""
        if not trainer.is_global_zero:
            return
        folder, step, data, lines = run_folder(trainer), trained_steps(trainer, module), datamodule(trainer), []
        for analysis in analyses(trainer):
            if analysis.rows is not None and (said := analysis.summary(analysis.rows)):
                old = [f"  (as of step {analysis.measured_at})"] * (analysis.measured_at != step)
                lines += ["", *said, *old]
        print(*lines, sep="\n")
        log_text(trainer, "results", "\n".join(["```text", *lines[1:], "```"]), step)
        known = measured(trainer)
        of_fit = trainer.state.fn == "fit" or module.closing
        if not of_fit:  # which says at its start what it is
            log_text(trainer, "about", page.about(data, module, trainer.max_steps), step)
        if of_fit and known is not None and (risks := page.last_risks(known)):
            log_hparams(trainer, page.telling_options(data, module, step), risks)
        if folder is not None:
            print(f"\nThis run is in {folder}\n{way_to_look(trainer, folder)}\n")


def measured(trainer: Trainer) -> pd.DataFrame | None:
    """The last rows of all analyses."""
    known = [analysis.rows for analysis in analyses(trainer) if analysis.rows is not None]
    return pd.concat(known, ignore_index=True) if known else None
