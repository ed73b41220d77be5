"""Which heads matter, by leaving each one out."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    check_at_least,
    chunks,
    datamodule,
    log_scalars,
    save_figure,
)
from lightning_icl.functional import heads as head_functions
from lightning_icl.functional.prompts import Prompt
from lightning_icl.module import ICLModule


class HeadImportance(Analysis):
    """Leave-one-out importance of every head (zero ablation), on fixed held-out prompts, paired.

    Logs, counting layers and heads from 1: heads/importance/layer{l}/head{h} (rise of the excess risk without the
    head) with heads/standard_error/layer{l}/head{h}, heads/share/layer{l}/head{h}, heads/effective/layer{l} (exp of the
    shares' entropy) and heads/top_share/layer{l}, each with its standard error under heads/share_error,
    heads/effective_error and heads/top_share_error. A layer whose total is within noise of zero gets no shares.
    Figure: head_importance. Formulas: lightning_icl.functional.heads.ImportanceScores.

    Args:
        n_prompts: number of held-out prompts.
        chunk_size: prompts in one forward pass.
        every_n_validations: run at every n-th validation.
    """

    def __init__(self, n_prompts: int = 1024, chunk_size: int = 512, every_n_validations: int = 1) -> None:
        super().__init__(every_n_validations)
        check_at_least("n_prompts", n_prompts, 2)
        check_at_least("chunk_size", chunk_size, 1)
        self.n_prompts, self.chunk_size = n_prompts, chunk_size
        self.result: head_functions.ImportanceScores | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.result = None

    def measure(self, trainer: Trainer, module: ICLModule) -> head_functions.ImportanceScores:
        """Importance now; computed once per training step, however many callbacks ask, in each run."""
        if self.result is None or self.measured_at != trainer.global_step:
            heads = module.transformer.heads
            prompt = datamodule(trainer).held_out("head_importance", self.n_prompts, module.device)
            masks = torch.cat([head_functions.full_mask(heads)[None], head_functions.leave_one_out_masks(heads)])
            errors = errors_under_masks(module, prompt, masks, self.chunk_size)
            scores = head_functions.head_importance(errors[0].cpu(), errors[1:].cpu(), heads)
            # Rank 0's, so that no rank keeps other heads than the rest.
            self.result = trainer.strategy.broadcast(scores)
            self.measured_at = trainer.global_step
        return self.result

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        result = self.measure(trainer, module)
        scalars = {}
        for layer, n_heads in enumerate(module.transformer.heads):
            scalars[f"heads/effective/layer{layer + 1}"] = result.effective_heads[layer]
            scalars[f"heads/effective_error/layer{layer + 1}"] = result.effective_error[layer]
            scalars[f"heads/top_share/layer{layer + 1}"] = result.top_share[layer]
            scalars[f"heads/top_share_error/layer{layer + 1}"] = result.top_error[layer]
            for head in range(n_heads):
                place = f"layer{layer + 1}/head{head + 1}"
                scalars[f"heads/importance/{place}"] = result.raw[layer, head]
                scalars[f"heads/standard_error/{place}"] = result.standard_error[layer, head]
                scalars[f"heads/share/{place}"] = result.share[layer, head]
                scalars[f"heads/share_error/{place}"] = result.share_error[layer, head]
        log_scalars(module, scalars)
        save_figure(trainer, "head_importance", figures.importance_map(result))

    def summary(self) -> list[str]:
        if self.result is None:
            return []
        scores = self.result
        lines = ["Heads that matter, by leaving each out (effective number; share of the top head):"]
        for layer, n_heads in enumerate((~scores.raw.isnan()).sum(dim=1).tolist()):
            effective, top = scores.effective_heads[layer], scores.top_share[layer]
            said = (
                "no head matters beyond noise"
                if effective.isnan()
                else f"{effective:.1f} +- {scores.effective_error[layer]:.1f} effective; "
                f"top {top:.0%} +- {scores.top_error[layer]:.0%}"
            )
            lines.append(f"  layer {layer + 1}: {said}, of {n_heads} {'head' if n_heads == 1 else 'heads'}")
        return lines


def errors_under_masks(module: ICLModule, prompt: Prompt, masks: Tensor, chunk_size: int) -> Tensor:
    """(masks, prompts) squared errors of the module's predictions under each head mask, chunk by chunk."""
    masks = masks.to(module.device)

    def errors(part: Prompt) -> Tensor:
        return head_functions.masked_errors(lambda mask: module(part, mask), part.f_query, masks)

    return torch.cat([errors(part) for part in chunks(prompt, chunk_size)], dim=1)
