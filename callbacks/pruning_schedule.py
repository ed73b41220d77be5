"""Heads cut while the model trains."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_icl.callbacks.analysis import check_at_least, datamodule, icl_module, record_rows
from lightning_icl.callbacks.head_pruning import head_rows
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.pruning import PruningStrategy
from lightning_icl.instruments.pruning import cut_heads_, living_heads, pruning_case
from lightning_icl.loggers import log_scalars, logs_this_step
from lightning_icl.module import ICLModule
from lightning_icl.transformer import as_transformer


class PruningSchedule(Callback):
    """Cuts heads at given points of the training, which then goes on.

    A cut writes zeros into the value rows and output columns of a head and into the optimizer's moments there
    (instruments.pruning.cut_heads_), so the head stays exactly dead and every checkpoint is an ordinary one. It falls
    between a validation and the next batch: analyses and checkpoints of that validation see the model before the cut.
    Each strategy chooses among the heads that are still alive, by their importance on held-out prompts of its own. A
    resumed run cuts as the whole one would.
    Logs prune/schedule/n_heads; rows of each cut: that, with the heads it kept, and by layer.

    Args:
        strategies: who chooses, one for each cut, such as [{class_path: GreedyRemoval, init_args: {n_heads: 16}}].
        validations: after which validations of the run to cut, counting from 1, one for each strategy; or else
        steps: after which optimizer steps.
        n_prompts: number of held-out prompts the heads are chosen on.
        chunk_size: prompts in one forward pass.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - class_path: PruningSchedule
                  init_args:
                    validations: [2, 3]
                    strategies:
                      - {class_path: GreedyRemoval, init_args: {n_heads: 16}}
                      - {class_path: TopHeads, init_args: {n_heads: 10}}
    """

    def __init__(
        self,
        strategies: list[PruningStrategy],
        validations: list[int] | None = None,
        steps: list[int] | None = None,
        n_prompts: int = 1024,
        chunk_size: int = 512,
    ) -> None:
        check_at_least(2, n_prompts=n_prompts)
        check_at_least(1, chunk_size=chunk_size)
        if (validations is None) == (steps is None):
            raise InputError("PruningSchedule cuts after some validations or after some steps: set one of the two.")
        self.unit = "validations" if steps is None else "steps"
        self.times: list[int] = (validations if steps is None else steps) or []
        self.strategies, self.n_prompts, self.chunk_size = strategies, n_prompts, chunk_size
        self.steps: list[int] = []
        self.n_cuts = 0
        if len(self.times) != len(self.strategies) or not self.times:
            raise InputError(
                f"PruningSchedule has {len(self.strategies)} strategies for {len(self.times)} {self.unit}, but each "
                "cut needs one of both."
            )
        if sorted({0, *self.times}) != [0, *self.times]:
            raise InputError(f"{self.unit} is {self.times}, but it must rise, from 1 on.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check_run(trainer, icl_module(pl_module), datamodule(trainer), stage)

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        """Refuse cuts that cannot be made, and say at which steps the others are."""
        if stage != "fit":
            return
        as_transformer(module.network, "heads are cut in training")
        left = sum(module.network.heads)
        for n_heads in [s.n_heads for s in self.strategies if s.n_heads is not None]:
            if n_heads >= left:
                raise InputError(
                    f"PruningSchedule is to keep {n_heads} heads where {left} are left: make n_heads fall from cut to "
                    "cut."
                )
            left = n_heads
        every = self._steps_between(trainer)
        # In steps, since a run that is killed between a step and its validation resumes without this validation.
        self.steps = [time * every for time in self.times]
        if 0 <= trainer.max_steps <= self.steps[-1]:
            last = -(-trainer.max_steps // every) - 1
            raise InputError(
                f"{self.unit} has {self.times[-1]}, but training goes on only after the first {last} of them; to cut "
                "heads at the end use lightning-icl prune."
            )

    def _steps_between(self, trainer: Trainer) -> int:
        """Optimizer steps from one time to the next."""
        interval = getattr(trainer, "val_check_interval", None)  # None where validations go by the clock
        n_batches = trainer.max_steps * trainer.accumulate_grad_batches
        if self.unit == "steps":
            return 1
        endless = isinstance(interval, float) and n_batches < 0
        if interval is None or trainer.limit_train_batches != 1.0 or endless:
            raise InputError(
                "PruningSchedule cannot say when validations come if trainer.limit_train_batches is set, max_steps is "
                "not, or val_check_interval is a time: give it steps."
            )
        batches = max(1, int(n_batches * interval)) if isinstance(interval, float) else interval
        assert isinstance(batches, int)
        return batches // trainer.accumulate_grad_batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Counted here and at each cut, not at every step: looking at the weights waits for the device.
        self.left = living_heads(icl_module(pl_module).network).sum().cpu()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        while self.n_cuts < len(self.steps) and self.steps[self.n_cuts] <= trainer.global_step:
            data, module = datamodule(trainer), icl_module(pl_module)
            data.drawn.clear()
            prompt = data.held_out("pruning_schedule", self.n_prompts, module.device)
            with trainer.precision_plugin.forward_context():
                case = pruning_case(module.network, prompt, chunk_size=self.chunk_size)
                kept = self.strategies[self.n_cuts].keep(case)
            kept = trainer.strategy.broadcast(kept)  # rank 0's, so that no rank keeps other heads than the rest
            cut_heads_(module.network, kept, trainer.optimizers[0])
            record_rows(trainer, module, self, list(head_rows("prune/schedule/n_heads", kept)))
            self.left = kept.sum().cpu()
            self.n_cuts += 1
        trainer.callback_metrics["prune/schedule/n_heads"] = self.left  # self.log would copy it to the device

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if logs_this_step(trainer):
            log_scalars(trainer, {"prune/schedule/n_heads": float(self.left)}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"n_cuts": self.n_cuts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_cuts = state_dict["n_cuts"]
