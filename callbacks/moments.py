"""Where in a run a validation is, and the validations that Lightning itself would leave out."""

from lightning.pytorch import LightningModule, Trainer


def no_training_follows(trainer: Trainer) -> bool:
    """Whether this is a standalone run or the end of a fit, so that what takes long is done too.

    A fit ends at max_steps, and where something has told it to stop, as Timer (max_time) and a signal do before its
    last validation. EarlyStopping tells it after that; then another one is made for what is due (``closing``).
    """
    if trainer.state.fn != "fit":
        return True
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    return (
        stops or 0 < trainer.max_steps <= trainer.global_step or bool(getattr(trainer.lightning_module, "closing", 0))
    )


def validate_within_fit(trainer: Trainer) -> None:
    """One more validation at the present step, as the training loop makes them."""
    trainer.validating, loop = True, trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it counts the batches of the validation before the checkpoint as some of this one
    loop.run()
    trainer.training = True


def validation_was_missed(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a fit that goes on from a checkpoint lacks the validation that was due at its step.

    A checkpoint saved at a step and a run killed in the validation that follows: Lightning would skip it. So it is
    where that was the last step of a run which is now given more, for Lightning counts the batches of such a run anew.
    """
    loop, interval = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    whole = trainer.check_val_every_n_epoch is None
    batches = (loop.batch_progress.total if whole else loop.batch_progress.current).ready
    due = isinstance(interval, int) and batches > 0 and batches % interval == 0 and loop._should_check_val_epoch()
    due = due and not loop.batch_progress.is_last_batch
    return bool(due and getattr(module, "validated_at", trainer.global_step) < trainer.global_step)


def back_to_whole_step(trainer: Trainer) -> None:
    """Count no batch of the step that is being made, so that a checkpoint goes on with all of it."""
    progress, accumulate = trainer.fit_loop.epoch_loop.batch_progress, trainer.accumulate_grad_batches
    for counts in (progress.total, progress.current):
        vars(counts).update(dict.fromkeys(vars(counts), counts.completed // accumulate * accumulate))
