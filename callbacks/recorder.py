"""What a run says of itself: how it began and ended, and the page a newcomer looks at."""

import os
import signal
import sys
from importlib.metadata import version
from typing import Any, Literal

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from lightning_icl.callbacks.analysis import analyses, datamodule, icl_module
from lightning_icl.callbacks.moments import back_to_whole_step, no_training_follows
from lightning_icl.callbacks.monitors import check_monitors
from lightning_icl.checkpoint import CheckpointFiles
from lightning_icl.data import PromptDataModule
from lightning_icl.divergence import DivergedError
from lightning_icl.endings import listen, stop
from lightning_icl.loggers import log_hparams, log_layout, log_text
from lightning_icl.module import ICLModule
from lightning_icl.record import page
from lightning_icl.record.folder import AGREED, run_folder
from lightning_icl.record.lines import wrapped
from lightning_icl.record.writing import ended_by, go_on, note, trained_steps

STEPS_BETWEEN = 10  # before several processes ask each other whether a signal has told one to stop


class Recorder(Callback):
    """Writes how a run began, went on and ended to its record, and prints what every analysis found.

    A fit that came to its end, by max_steps, max_time, EarlyStopping or max_epochs, is "finished"; one that a signal or
    an error ended is "stopped". On the first SIGTERM, SIGUSR1, SIGUSR2, SIGHUP or Ctrl-C a fit ends at its next step
    (of several processes: within ten), whatever min_steps says: it saves last.ckpt, with the optimizer's state, where
    any ModelCheckpoint saves; then it does all that is due at the end. The second signal stops it at once. The exit
    status that tells of a signal is the command line's: in Python ``trainer.fit`` returns, and ``signalled`` says which
    it was. With this callback Lightning's checkpoints are written whole or not at all (CheckpointFiles).

    TensorBoard gets, besides the analyses' scalars and figures: TEXT, what the run is and its closing table; HPARAMS,
    the options that matter with the last risk and its ratio to ridge, lasso and Bayes; CUSTOM SCALARS, the model
    between ridge and Bayes, the references below the zero predictor, effective heads, pruned against full, the probe.

    Args:
        scalars: "main" logs what each analysis names in ``shown``, "all" every row of every analysis.

    Example:
        It is there without being named; its options are

        .. code-block:: yaml

            record: {scalars: all}
    """

    def __init__(self, scalars: Literal["main", "all"] = "main") -> None:
        self.scalars = scalars
        self.signalled = 0  # the number of the signal that has ended the fit
        self._told = 0  # of the one that came, maybe when the fit was at its end already
        self._laid_out = False
        self._saved_at = -1

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        """Refuse to monitor what nothing logs."""
        if stage == "fit":
            check_monitors(trainer, module, data)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check_run(trainer, icl_module(pl_module), datamodule(trainer), stage)
        self._laid_out, self.signalled, self._told, self._saved_at = False, 0, 0, -1
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the user or the strategy has another
            trainer.strategy.checkpoint_io = CheckpointFiles()
        run_folder(trainer)  # a collective: every rank asks
        ours = version("lightning-icl")
        note(trainer, {"event": "started", "lightning_icl": ours, "command": stage, "argv": sys.argv[1:]})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what a fit that goes on from a checkpoint had measured after it."""
        go_on(trainer, icl_module(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        about = page.about(datamodule(trainer), icl_module(pl_module), trainer.max_steps)
        log_text(trainer, "about", about, trainer.global_step)
        self._listen(trainer)

    def _listen(self, trainer: Trainer) -> None:
        listen(stop if self._told else lambda number, _: self._stop_soon(trainer, number))

    def _stop_soon(self, trainer: Trainer, number: int) -> None:
        self._told = number
        # In a validation, so that it is the last; else at the end of the step, which may be of several batches.
        if trainer.world_size == 1 and trainer.validating:
            self._stop(trainer)
        saves = "saves a checkpoint and " * bool(_savers(trainer))
        rank_zero_info(f"{signal.Signals(number).name}: the run {saves}stops; once more: at once.")
        self._listen(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """Have the fit end after this step or validation, unless it is at its end."""
        loop = trainer.fit_loop
        if not no_training_follows(trainer):
            self.signalled, trainer.should_stop = self._told, True
            loop.min_epochs = loop.epoch_loop.min_steps = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have all processes stop after one step, whichever of them was told."""
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.world_size > 1 and trainer.global_step % STEPS_BETWEEN == 0:
            told = torch.tensor(self._told, device=pl_module.device)
            self._told = int(trainer.strategy.reduce(told, reduce_op="max"))
        if self._told and (trainer.world_size == 1 or trainer.global_step % STEPS_BETWEEN == 0):
            self._stop(trainer)
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """The last checkpoint, before what is due at the end, which may take longer than a signal leaves."""
        if self._saved_at == trainer.global_step:
            return
        self._saved_at = trainer.global_step
        for saver in _savers(trainer):  # all of it, and so again at the end: it is there to be gone on with
            saver.save_weights_only = False
        paths = {os.path.join(str(s.dirpath), s.CHECKPOINT_NAME_LAST + s.FILE_EXTENSION) for s in _savers(trainer)}
        for path in sorted(paths):
            trainer.save_checkpoint(path)

    # Lightning's own handlers, which wait for all processes, are there since the hook before.
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        listen(stop)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            listen(stop)
        elif not trainer.sanity_checking:  # that which a killed run has missed is made before on_train_start
            self._listen(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        listen(stop)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        listen(stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self._told and trainer.world_size == 1 and trainer.state.fn == "fit":
            self._save(trainer)
        if not self._laid_out and (known := measured(trainer)) is not None:
            log_layout(trainer, page.layout(known))
            self._laid_out = True
        module = icl_module(pl_module)
        if trainer.state.fn == "validate":
            (self.finish if module.closing else self._close)(trainer, module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, icl_module(pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = icl_module(pl_module)
        if not analyses(trainer) or not trainer.enable_validation or module.validated_at == trainer.global_step:
            self.finish(trainer, module)  # else the command line has a validation to make yet

    def finish(self, trainer: Trainer, module: ICLModule) -> None:
        """Say how a fit ended, and what it found."""
        event = "stopped" if self.signalled else "finished"
        by = signal.Signals(self.signalled).name if self.signalled else ended_by(trainer)
        note(trainer, {"event": event, "steps": trainer.global_step, "by": by})
        self._close(trainer, module)
        if not self.signalled:
            rank_zero_info(f"The run has come to its end at step {trainer.global_step:,}, by {by}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, DivergedError) and exception.before_it:
            back_to_whole_step(trainer)
            self._save(trainer)
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
            elif analysis.lacking:
                lines += ["", *wrapped(f"{analysis.name}: {analysis.lacking}.", "")]
        print(*lines, sep="\n")
        log_text(trainer, "results", "\n".join(["```text", *lines[1:], "```"]), step)
        known = measured(trainer)
        of_fit = trainer.state.fn == "fit" or module.closing
        if not of_fit:  # which says at its start what it is
            log_text(trainer, "about", page.about(data, module, trainer.max_steps), step)
        if of_fit and known is not None and (risks := page.last_risks(known)):
            log_hparams(trainer, page.telling_options(data, module, step), risks)
        if folder is not None:
            print(f"\n{page.way_to_look(trainer, folder)}\n")


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    """What saves checkpoints, into folders that may be remote."""
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]


def measured(trainer: Trainer) -> pd.DataFrame | None:
    """The last rows of all analyses."""
    known = [analysis.rows for analysis in analyses(trainer) if analysis.rows is not None]
    return pd.concat(known, ignore_index=True) if known else None
