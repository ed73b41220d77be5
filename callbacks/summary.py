"""The short table at the end of a run."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_icl.callbacks.analysis import Analysis, save_result


class Summary(Callback):
    """Prints what every analysis found, in words and numbers, at the end of ``fit``, ``validate`` and ``test``.

    A ``fit`` that came to its end says so in results.json: "finished": {"steps": optimizer steps}.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save_result(trainer, "finished", {"steps": trainer.global_step})
        self._print(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._print(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        folder = trainer.log_dir  # a collective: every rank asks
        if not trainer.is_global_zero:
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        for analysis in (c for c in callbacks if isinstance(c, Analysis) and c.summary()):
            old = analysis.measured_at not in (-1, trainer.global_step)
            print("", *analysis.summary(), *([f"  (as of step {analysis.measured_at})"] if old else []), sep="\n")
        if folder is not None:
            print(f"\nThis run's figures and numbers are in {folder}")
            print(f"Look at all runs with: make tensorboard (or tensorboard --logdir {Path(folder).parent})\n")
