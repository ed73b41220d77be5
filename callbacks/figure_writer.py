"""When the figures of a run are drawn."""

from typing import Literal

from lightning.pytorch import Callback, Trainer

from lightning_icl.callbacks.moments import no_training_follows

When = Literal["every", "last", "never"]


class FigureWriter(Callback):
    """Says when the analyses draw; what they measure is logged and kept in results.json all the same.

    Drawing takes longer than most analyses of a small model. A run without figures can be drawn later: ``validate``
    with its config and checkpoint and --figures.when last.

    Args:
        when: at every analysis, at the last one of a ``fit`` (and each standalone one), or never.
    """

    def __init__(self, when: When = "every") -> None:
        self.when = when

    def due(self, trainer: Trainer) -> bool:
        """Whether figures are drawn at this moment."""
        if self.when == "last":
            return no_training_follows(trainer)
        return self.when == "every"


def figures_due(trainer: Trainer) -> bool:
    """What the trainer's FigureWriter says; always, where there is none."""
    writers = [c for c in trainer.callbacks if isinstance(c, FigureWriter)]  # type: ignore[attr-defined]
    return all(writer.due(trainer) for writer in writers)
