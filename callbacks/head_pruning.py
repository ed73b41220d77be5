"""What is lost when only the heads the paper points to are kept."""

from collections.abc import Iterable

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import Analysis, check_at_least, datamodule, log_scalars, save_figure
from lightning_icl.callbacks.head_importance import HeadImportance, errors_under_masks
from lightning_icl.functional.pruning import pruning_masks
from lightning_icl.functional.risk import jackknife_errors, mean_and_standard_error
from lightning_icl.module import ICLModule

LABELS = {
    "full": "full model",
    "pruned": "pruned: all of layer 1, top head of each later layer",
    "prune_layer1_instead": "control: top head of layer 1, all later heads",
    "random_head": "control: all of layer 1, a random head of each later layer",
    "least_important": "control: all of layer 1, least important head of each later layer",
}


class HeadPruning(Analysis):
    """Excess risk of the pruned model, masked as is, beside its controls (PAPER.md section 5).

    Which heads are kept is decided by HeadImportance on its own prompts; the risk is measured on others, so the choice
    is not rewarded for noise. Logs prune/excess_risk/<variant> for full, pruned, prune_layer1_instead, random_head
    (mean of ``n_random`` draws, the same at every validation) and least_important; and prune/ratio, pruned over full,
    with prune/ratio_error, its standard error by the jackknife over prompts (paired).
    Figure: head_pruning.

    Args:
        n_prompts: number of held-out prompts.
        n_random: number of draws behind the random-head control.
        chunk_size: prompts in one forward pass.
        every_n_validations: run at every n-th validation.
    """

    def __init__(
        self, n_prompts: int = 1024, n_random: int = 8, chunk_size: int = 512, every_n_validations: int = 1
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least("n_prompts", n_prompts, 2)
        check_at_least("n_random", n_random, 1)
        check_at_least("chunk_size", chunk_size, 1)
        self.n_prompts, self.n_random, self.chunk_size = n_prompts, n_random, chunk_size
        self.risks: dict[str, tuple[float, float]] = {}

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        importance = self._importance(trainer).measure(trainer, module).raw
        masks = pruning_masks(importance, module.transformer.heads, self.n_random, torch.Generator().manual_seed(0))
        prompt = datamodule(trainer).held_out("head_pruning", self.n_prompts, module.device)
        errors = errors_under_masks(module, prompt, torch.cat(list(masks.values())), self.chunk_size)
        by_variant = torch.stack([e.mean(dim=0) for e in errors.split([len(m) for m in masks.values()])], dim=1)
        means, standard_errors = mean_and_standard_error(by_variant)
        (ratio_errors,) = jackknife_errors(by_variant, lambda means: (means / means[:, :1],))
        self.risks = _pairs(masks, means, standard_errors)
        self.ratios = _pairs(masks, means / means[0], ratio_errors)
        log_scalars(module, {f"prune/excess_risk/{name}": risk for name, (risk, _) in self.risks.items()})
        log_scalars(module, dict(zip(("prune/ratio", "prune/ratio_error"), self.ratios["pruned"], strict=True)))
        save_figure(trainer, "head_pruning", figures.pruning_risks(self.risks, LABELS))

    def _importance(self, trainer: Trainer) -> HeadImportance:
        """The trainer's HeadImportance, so that one measurement serves both, or one of our own."""
        found = [c for c in trainer.callbacks if isinstance(c, HeadImportance)]  # type: ignore[attr-defined]
        return found[0] if found else HeadImportance(self.n_prompts, self.chunk_size)

    def summary(self) -> list[str]:
        if not self.risks:
            return []
        width = max(map(len, LABELS.values()))
        lines = ["Excess risk with heads masked (times the full model's, paired):"]
        for name, (risk, error) in self.risks.items():
            ratio, ratio_error = self.ratios[name]
            times = f"(x{ratio:.2f} +- {ratio_error:.2f})"
            lines.append(f"  {LABELS[name]:<{width}}  {risk:10.4g} +- {error:.2g}  {times}")
        return lines


def _pairs(names: Iterable[str], values: Tensor, errors: Tensor) -> dict[str, tuple[float, float]]:
    return dict(zip(names, zip(values.tolist(), errors.tolist(), strict=True), strict=True))
