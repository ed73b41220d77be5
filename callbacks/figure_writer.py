"""When the figures of a run are drawn."""

from typing import Literal

from lightning.pytorch import Callback, Trainer

from lightning_icl.callbacks.moments import no_training_follows


class FigureWriter(Callback):
    """Says when the analyses draw; what they measure is recorded all the same.

    Drawing takes longer than most analyses of a small model. A run without figures can be drawn later: ``validate``
    with its config and checkpoint and --figures.when last.

    Args:
        when: at every analysis, at the last one of a ``fit`` (and each standalone one), or never.

    Example:
        It is there without being named; its options are

        .. code-block:: yaml

            figures: {when: last}
    """

    def __init__(self, when: Literal["every", "last", "never"] = "every") -> None:
        self.when = when


def figures_due(trainer: Trainer) -> bool:
    """What the trainer's FigureWriter says of this moment; always, where there is none."""
    writers = [c for c in trainer.callbacks if isinstance(c, FigureWriter)]  # type: ignore[attr-defined]
    return all(w.when == "every" or (w.when == "last" and no_training_follows(trainer)) for w in writers)
