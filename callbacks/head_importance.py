"""Which heads matter, by several scores, and since when."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, check_at_least, datamodule, icl_module, progress, trained_steps
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import ImportanceScores
from lightning_icl.instruments.ablation import AblatedHeads, Ablation
from lightning_icl.instruments.importance import SCORES, HeadScores, Score, check_scores, head_importance
from lightning_icl.module import ICLModule
from lightning_icl.record.lines import plus_minus, wrapped
from lightning_icl.record.rows import Row

MEAN_REFERENCE = 8  # times the scored prompts; one pass each, so their mean costs little and adds little noise

SPREADS = "muon"  # which orthogonalises across heads


class HeadImportance(Analysis):
    """What every head is worth, on fixed held-out prompts, paired: since when, and by which score.

    Scores are leave_one_out, leave_one_in and gradient, with the ablation after the name where it is not zero
    (leave_one_out_mean). A layer whose total is within noise of zero has no shares; its effective heads are exp of
    their entropy. The agreement of two scores is a rank correlation, over all heads and within each layer.
    Figures: head_importance, head_scores (all scores side by side, and their agreement) and, once there have been two
    validations, head_specialisation (effective heads and top share of each layer beside the risk, over training).
    Formulas: lightning_icl.functional.heads.ImportanceScores and lightning_icl.instruments.importance.values_by_score.

    Args:
        n_prompts: number of held-out prompts.
        chunk_size: prompts times head masks in one pass through a layer.
        every_n_validations: run at every n-th validation.
        scores: of "leave_one_out", "leave_one_in" and "gradient"; the first is always among them.
        ablations: of "zero", "mean" (over prompts) and "resample" (another prompt's output), for the first two scores;
            "zero" is always among them.
        n_points: numbers of examples to score at besides the largest, on the first examples of the same prompts.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - {class_path: HeadImportance, init_args: {ablations: [zero, mean, resample], n_points: [2, 4]}}
    """

    shown = (r"heads/leave_one_out/effective/layer\d+$",)
    course = r"heads/(risk|leave_one_out/(effective|top_share|importance))$"

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
        check_at_least(2, n_prompts=n_prompts)
        check_at_least(1, chunk_size=chunk_size)
        check_scores(scores, ablations)
        for name, given, needed in (("scores", scores, "leave_one_out"), ("ablations", ablations, "zero")):
            if needed not in given:
                raise InputError(f"{name} is {list(given)}, but {needed} must be among them: HeadPruning goes by it.")
        self.n_prompts, self.chunk_size = n_prompts, chunk_size
        self.scores, self.ablations, self.n_points = list(scores), list(ablations), list(n_points)
        self.found: dict[int | None, HeadScores] = {}  # by number of examples, None for all of them
        self._found_at: tuple[str | None, int] = (None, -1)
        self._trained_by: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.found = {}
        self._trained_by = icl_module(pl_module).optimizer if stage == "fit" else None

    def lacks(self, module: ICLModule) -> str | None:
        return None if any(module.network.heads) else "this network has no heads"

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        largest = data.streams[0].largest_n
        if wrong := [n for n in self.n_points if not 1 <= n <= largest]:
            raise InputError(f"n_points has {wrong[0]}, but the prompts have 1 to {largest} examples.")

    def looks_at(self, data: PromptDataModule) -> Sequence[int]:
        return self.n_points

    def measure(self, trainer: Trainer, module: ICLModule) -> ImportanceScores:
        """Leave-one-out importance under zero ablation, computed once per training step, however many ask for it."""
        now = (trainer.state.fn, trained_steps(trainer, module))
        if not self.found or self._found_at != now:
            data, ablations = datamodule(trainer), []
            prompt = data.held_out("head_importance", self.n_prompts, module.device)
            for kind in self.ablations:
                n = self.n_prompts * (MEAN_REFERENCE if kind == "mean" else 1)
                other = None if kind == "zero" else data.held_out("head_importance_reference", n, module.device)
                ablations.append(AblatedHeads(kind, other))
            bar = partial(progress, trainer)
            found = {
                n: head_importance(
                    module.network,
                    prompt,
                    self.scores,
                    ablations,
                    chunk_size=self.chunk_size,
                    progress=bar,
                    n_points=n,
                )
                for n in (None, *self.n_points)
            }
            # Rank 0's, so that no rank keeps other heads than the rest.
            self.found, self._found_at = trainer.strategy.broadcast(found), now
            self._drawn = {name: n for name, n in data.drawn.items() if name.startswith("head_importance")}
        datamodule(trainer).drawn |= self._drawn  # also where another callback had it measured
        return self.found[None].scores["leave_one_out"]

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        self.measure(trainer, module)
        for n_points, found in self.found.items():
            for row in score_rows(found, module.network.heads):
                yield row._replace(n_points=n_points)

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        found = {"head_importance": figures.importance_map(rows)}
        if rows["metric"].str.startswith("heads/agreement/").any():
            found["head_scores"] = figures.score_maps(rows)
        if (course := self.over_training())["step"].nunique() > 1:
            found["head_specialisation"] = figures.specialisation(course)
        return found

    def summary(self, rows: pd.DataFrame) -> list[str]:
        rows = rows[rows["n_points"].isna()]
        (risk,) = _of(rows, "heads/risk")
        lines = [
            f"Heads that matter, by leaving each out, on {self.n_prompts:,} held-out prompts (the full model's",
            f"excess risk there: {plus_minus(risk)}); 95 % intervals:",
            *_layer_lines(rows),
        ]
        if self._trained_by == SPREADS:
            lines += wrapped(
                "Trained by muon, which orthogonalises across a layer's heads and so spreads work over them; AdamW may "
                "leave it to fewer."
            )
        pairs = rows[rows["metric"].str.startswith("heads/agreement/leave_one_out_and_") & rows["layer"].isna()]
        if len(pairs := pairs.dropna(subset="value")):  # of one head: none
            lines.append("Do the scores agree? Rank correlation over all heads, 95 % interval:")
        for pair in pairs.itertuples():
            name = pair.metric.removeprefix("heads/agreement/").replace("_and_", " and ")
            lines.append(f"  {name}: {pair.value:z.2f} [{pair.low:z.2f}, {pair.high:z.2f}]")
        if spared := _spared(rows):
            lines += ["Alone as good as their layer's average head, yet not missed; others may do the", "same work:"]
            lines += wrapped(", ".join(f"layer {layer} head {head}" for layer, head in spared))
        return lines


def score_rows(found: HeadScores, heads: Sequence[int]) -> Iterator[Row]:
    """A row for every number; of heads that are there, also where they have no share."""

    def row(name: str, value: Tensor, interval: Tensor, layer: int | None = None, head: int | None = None) -> Row:
        low, high = interval
        return Row(f"heads/{name}", value, low, high, layer, head)

    yield row("risk", found.risk.value, found.risk.interval)
    for name, scores in found.scores.items():
        by_layer = {"effective": scores.effective_heads, "top_share": scores.top_share, "total": scores.total}
        by_head = {"importance": scores.raw, "share": scores.share}
        for i, n_heads in enumerate(heads):
            for of, measured in by_layer.items():
                yield row(f"{name}/{of}", measured.value[i], measured.interval[:, i], i + 1)
            for h in range(n_heads):
                for of, measured in by_head.items():
                    yield row(f"{name}/{of}", measured.value[i, h], measured.interval[:, i, h], i + 1, h + 1)
    for pair, agreement in found.agreement.items():
        yield row(f"agreement/{pair}", agreement.overall, agreement.interval)
        for i, value in enumerate(agreement.by_layer):
            yield row(f"agreement/{pair}", value, agreement.by_layer_interval[:, i], i + 1)


def _of(rows: pd.DataFrame, metric: str) -> list[Any]:
    """A metric's rows."""
    return list(rows[rows["metric"] == metric].itertuples())


def _layer_lines(rows: pd.DataFrame) -> list[str]:
    heads = rows[rows["metric"] == "heads/leave_one_out/importance"].groupby("layer").size()
    effective, top = (_of(rows, f"heads/leave_one_out/{name}") for name in ("effective", "top_share"))
    lines = []
    for n, share in zip(effective, top, strict=True):
        n_heads = int(heads.get(n.layer, 0))
        said = "total not above 0 beyond noise"
        if not pd.isna(n.value):
            said = f"{n.value:.1f} [{n.low:.1f}, {n.high:.1f}] effective; "
            said += f"top {share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
        of = f"{said}, of {n_heads} {'head' if n_heads == 1 else 'heads'}" if n_heads else "no heads"
        lines.append(f"  layer {n.layer}: {of}")
    return lines


def _spared(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """(layer, head), from 1, of heads not missed beyond noise though worth their layer's average head alone."""
    by_head = rows.dropna(subset=["layer", "head"]).set_index(["layer", "head"])
    out, alone, share = (
        by_head[by_head["metric"] == f"heads/{name}"]
        for name in ("leave_one_out/importance", "leave_one_in/importance", "leave_one_in/share")
    )
    if alone.empty:
        return []
    n_heads = out.groupby("layer")["value"].transform("size")
    fair = (share["value"] >= 1 / n_heads) & (n_heads > 1)
    return out.index[(out["low"] <= 0) & (alone["low"] > 0) & fair].tolist()
