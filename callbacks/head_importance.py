"""Which heads matter, by several scores, and since when."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    check_at_least,
    datamodule,
    log_scalars,
    plain,
    progress,
    save_figure,
    trained_steps,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import ImportanceScores
from lightning_icl.instruments.ablation import AblatedHeads, Ablation
from lightning_icl.instruments.importance import (
    SCORES,
    HeadScores,
    Score,
    check_scores,
    head_importance,
    head_importance_by_points,
)
from lightning_icl.module import ICLModule

MEAN_REFERENCE = 8  # times the scored prompts; one pass each, so their mean costs little and adds little noise


class HeadImportance(Analysis):
    """What every head is worth, on fixed held-out prompts, paired: since when, and by which score.

    Logs, counting layers and heads from 1: heads/importance/layer{l}/head{h} (rise of the excess risk without the
    head) with heads/standard_error/layer{l}/head{h}, heads/share/layer{l}/head{h}, heads/effective/layer{l} (exp of the
    shares' entropy) and heads/top_share/layer{l}, each with its standard error under heads/share_error,
    heads/effective_error and heads/top_share_error. A layer whose total is within noise of zero gets no shares.
    Those are of leave-one-out under zero ablation; other scores have the same keys under heads/{score}/, such as
    heads/leave_one_in/effective/layer{l}, heads/gradient/... and heads/leave_one_out_mean/..., and the scores of
    prompts with n examples under heads/n{n}/ and heads/n{n}/{score}/. heads/agreement/{score}_and_{score} is the rank
    correlation of two scores over all heads.

    Figures: head_importance, head_scores (all scores side by side, and their agreement) and, once there have been two
    validations, head_specialisation (effective heads and top share of each layer beside the risk, over training).
    Intervals are in results.json. Formulas: lightning_icl.functional.heads.ImportanceScores and
    lightning_icl.instruments.importance.values_by_score.

    Args:
        n_prompts: number of held-out prompts.
        chunk_size: prompts times head masks in one pass through a layer.
        every_n_validations: run at every n-th validation.
        scores: of "leave_one_out", "leave_one_in" and "gradient"; the first is always among them.
        ablations: of "zero", "mean" (over prompts) and "resample" (another prompt's output), for the first two scores;
            "zero" is always among them.
        n_points: numbers of examples to score at besides the largest, on the first examples of the same prompts.
    """

    def __init__(
        self,
        n_prompts: int = 1024,
        chunk_size: int = 512,
        every_n_validations: int = 1,
        scores: Sequence[Score] = SCORES,
        ablations: Sequence[Ablation] = ("zero",),
        n_points: Sequence[int] = (),
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least("n_prompts", n_prompts, 2)
        check_at_least("chunk_size", chunk_size, 1)
        check_scores(scores, ablations)
        for name, given, needed in (("scores", scores, "leave_one_out"), ("ablations", ablations, "zero")):
            if needed not in given:
                raise InputError(f"{name} is {list(given)}, but {needed} must be among them: HeadPruning goes by it.")
        self.n_prompts, self.chunk_size = n_prompts, chunk_size
        self.scores, self.ablations, self.n_points = list(scores), list(ablations), list(n_points)
        self.found: HeadScores | None = None
        self.by_points: dict[int, HeadScores] = {}

    @property
    def result(self) -> ImportanceScores | None:
        """Leave-one-out under zero ablation."""
        return None if self.found is None else self.found.scores["leave_one_out"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.found = None
        largest = datamodule(trainer).streams[0].largest_n
        if wrong := [n for n in self.n_points if not 1 <= n <= largest]:
            raise InputError(f"n_points has {wrong[0]}, but the prompts have 1 to {largest} examples.")

    def measure(self, trainer: Trainer, module: ICLModule) -> ImportanceScores:
        """Importance now; computed once per training step, however many callbacks ask, in each run."""
        if self.found is None or self.measured_at != trainer.global_step:
            prompt = datamodule(trainer).held_out("head_importance", self.n_prompts, module.device)
            ablations = [AblatedHeads(kind, self._reference(trainer, module, kind)) for kind in self.ablations]
            shared: dict[str, Any] = {
                "scores": self.scores,
                "ablations": ablations,
                "chunk_size": self.chunk_size,
                "progress": partial(progress, trainer),
            }
            found = head_importance(module.transformer, prompt, **shared)
            by_points = head_importance_by_points(module.transformer, prompt, self.n_points, **shared)
            # Rank 0's, so that no rank keeps other heads than the rest.
            self.found, self.by_points = trainer.strategy.broadcast((found, by_points))
            self.measured_at = trainer.global_step
        assert self.result is not None
        return self.result

    def _reference(self, trainer: Trainer, module: ICLModule, ablation: Ablation) -> Any:
        if ablation == "zero":
            return None
        n_prompts = self.n_prompts * (MEAN_REFERENCE if ablation == "mean" else 1)
        return datamodule(trainer).held_out("head_importance_reference", n_prompts, module.device)

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        self.measure(trainer, module)
        assert self.found is not None
        log_scalars(module, self._scalars(module.transformer.heads))
        save_figure(trainer, "head_importance", figures.importance_map(self.found.scores["leave_one_out"]))
        if len(self.found.scores) > 1:
            save_figure(trainer, "head_scores", figures.score_maps(self.found))
        series = self._series(trained_steps(trainer, module))
        if len(series) > 1:
            save_figure(trainer, "head_specialisation", figures.specialisation(series))

    def _scalars(self, heads: Sequence[int]) -> dict[str, Tensor]:
        assert self.found is not None
        scalars = {f"heads/agreement/{pair}": a.overall for pair, a in self.found.agreement.items()}
        for place, found in {"": self.found, **{f"n{n}/": at_n for n, at_n in self.by_points.items()}}.items():
            for name, scores in found.scores.items():
                prefix = f"heads/{place}" if name == "leave_one_out" else f"heads/{place}{name}/"
                scalars |= {prefix + key: value for key, value in _by_place(scores, heads).items()}
        return scalars

    def _series(self, step: int) -> list[dict[str, Any]]:
        """What was found at each validation, this one last."""
        return [*(r for r in self.records if r["step"] != step), {"step": step, **plain(self.record())}]

    def record(self) -> dict[str, Any]:
        if self.found is None:
            return {}
        return {"n_prompts": self.n_prompts, **self.found._asdict(), "by_points": self.by_points}

    def summary(self) -> list[str]:
        if self.found is None:
            return []
        lines = ["Heads that matter, by leaving each out (effective number; share of the top head):"]
        lines += [f"  {line}" for line in _layer_lines(self.found.scores["leave_one_out"])]
        if self.found.agreement:
            lines.append("Do the scores agree? (rank correlation over all heads, 95 % interval)")
            lines += [f"  {line}" for line in _agreement_lines(self.found)]
        if spared := _spared(self.found):
            lines.append("Alone as good as their layer's average head, yet not missed: others may do the same work")
            lines.append("  " + ", ".join(f"layer {layer} head {head}" for layer, head in spared))
        return lines


def _by_place(scores: ImportanceScores, heads: Sequence[int]) -> dict[str, Tensor]:
    """One set of scores under their keys."""
    scalars = {}
    for layer, n_heads in enumerate(heads):
        scalars[f"effective/layer{layer + 1}"] = scores.effective_heads[layer]
        scalars[f"effective_error/layer{layer + 1}"] = scores.effective_error[layer]
        scalars[f"top_share/layer{layer + 1}"] = scores.top_share[layer]
        scalars[f"top_share_error/layer{layer + 1}"] = scores.top_error[layer]
        for head in range(n_heads):
            place = f"layer{layer + 1}/head{head + 1}"
            scalars[f"importance/{place}"] = scores.raw[layer, head]
            scalars[f"standard_error/{place}"] = scores.standard_error[layer, head]
            scalars[f"share/{place}"] = scores.share[layer, head]
            scalars[f"share_error/{place}"] = scores.share_error[layer, head]
    return scalars


def _layer_lines(scores: ImportanceScores) -> list[str]:
    lines = []
    for layer, n_heads in enumerate((~scores.raw.isnan()).sum(dim=1).tolist()):
        effective, top = scores.effective_heads[layer], scores.top_share[layer]
        if not n_heads:
            lines.append(f"layer {layer + 1}: no heads")
            continue
        said = "total not above 0 beyond noise"
        if not effective.isnan():
            said = f"{effective:.1f} +- {scores.effective_error[layer]:.1f} effective; "
            said += f"top {top:.0%} +- {scores.top_error[layer]:.0%}"
        lines.append(f"layer {layer + 1}: {said}, of {n_heads} {'head' if n_heads == 1 else 'heads'}")
    return lines


def _agreement_lines(found: HeadScores) -> list[str]:
    """How each score agrees with leave-one-out."""
    return [
        f"{name.replace('_and_', ' and ')}: {a.overall:z.2f} [{a.interval[0]:z.2f}, {a.interval[1]:z.2f}]"
        for name, a in found.agreement.items()
        if name.startswith("leave_one_out_and_") and not a.overall.isnan()  # as of a single head
    ]


def _spared(found: HeadScores) -> list[tuple[int, int]]:
    """(layer, head), from 1, of heads not missed beyond noise though worth their layer's average head alone."""
    if "leave_one_in" not in found.scores:
        return []
    out, alone = found.scores["leave_one_out"], found.scores["leave_one_in"]
    n_heads = (~alone.raw.isnan()).sum(dim=1, keepdim=True)
    spared = (out.interval[0] <= 0) & (alone.interval[0] > 0) & (alone.share >= 1 / n_heads) & (n_heads > 1)
    return [(layer + 1, head + 1) for layer, head in torch.nonzero(spared).tolist()]
