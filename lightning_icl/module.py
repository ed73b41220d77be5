"""Training a transformer to predict in context."""

import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt, pair_tokens
from lightning_icl.metrics import ExcessRisk
from lightning_icl.optimizers import MuonWithAdamW
from lightning_icl.transformer import Transformer, TransformerOutput

OptimizerName = Literal["adamw", "muon"]
Target = Literal["noise_free", "noisy"]


class ICLModule(LightningModule):
    """A transformer trained on mean squared error at the queries.

    Logs train/loss (of rank 0's share of the batch) and train/learning_rate each step, val/excess_risk/transformer at
    validation and test/excess_risk/transformer at test.

    Args:
        n_dims: length of x. The command line takes it from the task.
        optimizer: "adamw", or "muon" for the hidden matrices with AdamW for the rest.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
        warmup_steps: optimizer steps of linear warm-up; then a cosine decay to 0 at trainer.max_steps (constant if
            the run has no max_steps).
        target: what the loss compares with: the "noise_free" target f(x_q) or the "noisy" label. Both have the same
            minimiser, the posterior mean of f(x_q) given the examples, and the first has the lower variance.
        **transformer: the options of Transformer: d_model, heads, attention, mask, mlp, norm, head_dim, ...
    """

    def __init__(
        self,
        n_dims: int,
        optimizer: OptimizerName = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        target: Target = "noise_free",
        **transformer: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.transformer = Transformer(n_dims, **transformer)
        self.optimizer, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.warmup_steps = warmup_steps
        self.target = target
        self.val_risk = ExcessRisk()
        self.test_risk = ExcessRisk()
        self._check()

    def _check(self) -> None:
        for name, literal in (("optimizer", OptimizerName), ("target", Target)):
            if getattr(self, name) not in get_args(literal):
                choices = ", ".join(get_args(literal))
                raise InputError(f"{name} is {getattr(self, name)!r}, but it must be one of {choices}.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}, but it must be a finite number above 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"weight_decay is {self.weight_decay}, but it must be a finite number that is 0 or larger."
            )
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps is {self.warmup_steps}, but it must be 0 or larger.")

    def forward(self, prompt: Prompt, head_mask: Tensor | None = None) -> Tensor:
        """Predictions (batch, queries); ``head_mask`` as in Transformer.forward."""
        return self.output(prompt, head_mask).prediction

    def output(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        """Predictions and the residual stream they came from."""
        return self.transformer(
            pair_tokens(prompt), head_mask, n_queries=prompt.x_query.shape[1], point_mask=prompt.point_mask
        )

    def on_train_start(self) -> None:
        """Refuse to go on from the middle of an accumulated step, whose gradients no checkpoint holds."""
        loop = self.trainer.fit_loop.epoch_loop
        done, accumulate = loop.batch_progress.current.ready, self.trainer.accumulate_grad_batches
        if done % accumulate:
            raise InputError(
                f"the checkpoint was saved after {done} batches, which trainer.accumulate_grad_batches, {accumulate}, "
                "does not divide: resume with one that does."
            )

    def training_step(self, prompt: Prompt, batch_idx: int) -> Tensor:
        target = prompt.f_query if self.target == "noise_free" else prompt.y_query
        loss = torch.nn.functional.mse_loss(self(prompt), target)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(target))
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(target))
        return loss

    def validation_step(self, prompt: Prompt, batch_idx: int) -> Tensor:
        """The predictions, which the callbacks score beside the reference estimators."""
        return self._evaluated(prompt, self.val_risk, "val/excess_risk/transformer")

    def test_step(self, prompt: Prompt, batch_idx: int) -> Tensor:
        return self._evaluated(prompt, self.test_risk, "test/excess_risk/transformer")

    def predict_step(self, prompt: Prompt, batch_idx: int) -> Tensor:
        return self(prompt)

    def _evaluated(self, prompt: Prompt, risk: ExcessRisk, name: str) -> Tensor:
        prediction = self(prompt)
        risk.update(prediction, prompt.f_query)
        self.log(name, risk, prog_bar=True, batch_size=len(prediction))
        return prediction

    def on_validation_epoch_end(self) -> None:
        risk = self.val_risk.compute()
        if not torch.isfinite(risk):
            raise InputError(
                f"val/excess_risk/transformer is {risk.item()} at step {self.global_step}: training has diverged; "
                f"lower learning_rate (now {self.learning_rate}) or set trainer.gradient_clip_val. "
                "The last checkpoint is kept."
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # A plain function: LambdaLR pickles the attributes of any other callable into every checkpoint.
        schedule = LambdaLR(optimizer := self._optimizer(), lambda step: self._learning_rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer(self) -> Optimizer:
        if self.optimizer == "adamw":
            return AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        matrices = [p for p in self.transformer.layers.parameters() if p.dim() == 2]
        hidden = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in hidden]
        return MuonWithAdamW(matrices, others, self.learning_rate, self.weight_decay)

    def _learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 at trainer.max_steps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        total = self.trainer.max_steps
        if total <= self.warmup_steps:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / (total - self.warmup_steps))))
