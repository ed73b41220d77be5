"""The short table at the end of a run."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_icl.callbacks.analysis import Analysis


class Summary(Callback):
    """Prints what every analysis found, in words and numbers, at the end of ``fit``, ``validate`` and ``test``."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        sections = [c.summary() for c in callbacks if isinstance(c, Analysis)]
        for lines in filter(None, sections):
            print("\n" + "\n".join(lines))
        if folder is not None:
            print(f"\nThis run's figures and numbers are in {folder}; look at all runs with: make tensorboard\n")
