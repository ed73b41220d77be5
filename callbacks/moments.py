"""Where in a run a validation is."""

from lightning.pytorch import Trainer


def no_training_follows(trainer: Trainer) -> bool:
    """Whether this is a standalone run or the end of a fit's max_steps, so that what takes long is done too."""
    return trainer.state.fn != "fit" or 0 < trainer.max_steps <= trainer.global_step
