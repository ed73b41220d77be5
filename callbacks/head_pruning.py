"""What is lost when only some of the heads are kept."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from textwrap import wrap

import pandas as pd
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, check_at_least, datamodule, progress
from lightning_icl.callbacks.head_importance import HeadImportance
from lightning_icl.callbacks.moments import no_training_follows
from lightning_icl.data import PromptDataModule
from lightning_icl.functional import pruning
from lightning_icl.functional.errors import check_between, check_each_once, check_positive
from lightning_icl.functional.heads import HeadMask
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.pruning import GreedyRemoval, PaperPruning, PruningStrategy
from lightning_icl.functional.risk import mean_with_interval, squared_errors
from lightning_icl.instruments.pruning import pruning_case
from lightning_icl.instruments.treatments import errors_by_model, treatments
from lightning_icl.module import ICLModule
from lightning_icl.record.lines import plus_minus, wrapped
from lightning_icl.record.loading import load_model
from lightning_icl.record.rows import Row
from lightning_icl.streams import MAX_STEPS
from lightning_icl.transformer import Transformer

FULL, PAPER, RANDOM = "full", "paper", "random_head"
CONTROLS = {
    "prune_layer1_instead": "control: top head of layer 1, all later heads",
    RANDOM: "control: random head of each later layer",
    "least_important": "control: least important head of each later layer",
}
COLUMNS = {"as_is": "as is", "read_out": "refitted", "rescaled": "rescaled", "fine_tuned": "fine-tuned"}
MOST_RANDOM = 2**14  # choices of heads, a network each to score
LABEL, COLUMN = 26, 13  # columns of the closing table


class HeadPruning(Analysis):
    """Excess risk of pruned models under several treatments, beside their controls, as Chen et al. 2024 prune.

    Each strategy says which heads to keep, from HeadImportance (on its prompts) and prompts of its own; risks are
    measured on others, so that no choice is rewarded for noise. The controls of the paper's strategy are those of
    functional.pruning.pruning_controls, random_head with the same draws at every validation. Heads that are dead
    already (see PruningSchedule) do not count. Every one of these models, and the full one, is treated in the four ways
    of instruments.treatments: as_is, read_out, rescaled (these two of a Transformer alone), fine_tuned. What takes
    long, GreedyRemoval and all treatments but as_is, is done where no more training follows, and with ``n_random`` of
    the random choices.

    Rows are under prune/; <model> is full, a strategy's key (paper, top, threshold_0.1, greedy, or top_12 where a
    number is given) or a control. Intervals are over prompts and, where not every random choice was made, over these
    (none for a single one). Models of ``checkpoints`` are masked and treated in no way.
    Figures: head_pruning, and greedy_path where there is a GreedyRemoval: excess risk and heads of each layer against
    the number of heads left.

    Args:
        n_prompts: number of held-out prompts that are scored.
        n_random: number of random choices of heads, where there are more than 128 and under the slow treatments.
        chunk_size: prompts in one forward pass.
        every_n_validations: run at every n-th validation.
        strategies: PaperPruning, TopHeads, ImportanceThreshold, GreedyRemoval, each once unless told; the paper's is
            always among them.
        path_to: number of heads down to which the greedy path is followed.
        fit_prompts: number of held-out prompts that treatments are fitted on, and of those that heads (but for
            HeadImportance's part) and ridge strengths are chosen on.
        finetune_steps: steps of the fine-tuned treatment; 0 leaves it out.
        finetune_learning_rate: its learning rate at the start.
        checkpoints: models to show beside, by name, such as {single_head: runs/h1/last.ckpt}; they are scored on the
            same prompts.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - class_path: HeadPruning
                  init_args:
                    strategies: [PaperPruning, {class_path: TopHeads, init_args: {n_heads: 12}}]
                    finetune_steps: 200
    """

    shown = (r"prune/as_is/(full|paper|random_head)/excess_risk$",)
    more_at_end = True

    def __init__(
        self,
        n_prompts: int = 1024,
        n_random: int = 8,
        chunk_size: int = 512,
        every_n_validations: int = 1,
        strategies: list[PruningStrategy] | None = None,
        path_to: int = 1,
        fit_prompts: int = 256,
        finetune_steps: int = 40,
        finetune_learning_rate: float = 1e-3,
        checkpoints: dict[str, str] | None = None,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(2, n_prompts=n_prompts, fit_prompts=fit_prompts)
        check_at_least(1, chunk_size=chunk_size)
        check_between(1, MOST_RANDOM, n_random=n_random)
        check_at_least(0, path_to=path_to)
        check_between(0, MAX_STEPS, finetune_steps=finetune_steps)
        check_positive(finetune_learning_rate=finetune_learning_rate)
        if strategies is None:
            strategies = [pruning.TopHeads(), pruning.ImportanceThreshold(), GreedyRemoval()]
        check_each_once("strategies", [strategy.key for strategy in strategies])
        self.strategies = [PaperPruning(), *(s for s in strategies if not isinstance(s, PaperPruning))]
        self.n_prompts, self.n_random, self.chunk_size, self.path_to = n_prompts, n_random, chunk_size, path_to
        self.fit_prompts = fit_prompts
        self.finetune_steps, self.finetune_learning_rate = finetune_steps, finetune_learning_rate
        self.checkpoints = checkpoints or {}

    def lacks(self, module: ICLModule) -> str | None:
        return None if any(module.network.heads) else "this network has no heads"

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        for strategy in self.strategies:
            strategy.check(sum(module.network.heads))
        found = self.checkpoints.items()
        self._can_be_cut = isinstance(module.network, Transformer)
        self.others = {name: load_model(path, data, f"checkpoints: {name}") for name, path in found}

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data, ends = datamodule(trainer), no_training_follows(trainer)
        # All three each time, so that what is measured at the end is of the same context.
        sizes = {"": self.n_prompts, "_fit": self.fit_prompts, "_choice": self.fit_prompts}
        score, fit, choice = (data.held_out(f"head_pruning{name}", n, module.device) for name, n in sizes.items())
        # Rank 0's, so that no rank keeps other heads than the rest.
        masks, path, possible = trainer.strategy.broadcast(self._choices(trainer, module, choice, ends))

        def batch(step: int) -> Prompt:
            """Training prompts of the far end of the stream, which no run reaches."""
            return data.sample("train", MAX_STEPS - 1 - step, device=module.device)

        tuning, bar = (self.finetune_steps, self.finetune_learning_rate), partial(progress, trainer)
        treated = treatments(module.network, fit, choice, score, batch, *tuning, self.chunk_size, bar)
        labels = {FULL: f"full model ({int(masks[FULL].sum())} heads)"} | CONTROLS
        labels |= {s.key: f"{s.label} ({int(masks[s.key].sum())})" for s in self.strategies if s.key in masks}
        full: dict[str, Tensor] = {}
        for treatment, treat in treated.items() if ends else [("as_is", treated["as_is"])]:
            n = None if treatment == "as_is" else self.n_random
            errors = errors_by_model({name: of[:n] for name, of in masks.items()}, treat)
            full[treatment] = errors[FULL]
            for name, of_model in errors.items():
                beside = pruning.beside_full(of_model, errors[FULL], possible if name == RANDOM else 1)
                yield from _risk_rows(f"prune/{treatment}/{name}", beside, labels[name])
            # The paper's heads are one of the random choices, and are ranked among the others.
            others = errors[RANDOM][(masks[RANDOM] != masks[PAPER]).flatten(1).any(dim=1)[:n]]
            if len(others):
                rank = pruning.rank_among(errors[PAPER][0], others)
                among = len(others) + 1
                note = f"{rank.value:.0f} of {among}" + f" drawn from {possible:,}" * (among < possible)
                yield Row(f"prune/{treatment}/{PAPER}/rank", *rank, note=note)
        for name, other in self.others.items():
            alike = other.to(module.device)
            predicted = torch.cat([alike(part) for part in score.chunks(self.chunk_size)])
            alone = squared_errors(predicted, score.f_query)[None].cpu()
            yield from _risk_rows(f"prune/checkpoint/{name}", pruning.beside_full(alone, full["as_is"]), name)
        for name, of in masks.items():
            if name != RANDOM:
                yield from head_rows(f"prune/{name}/n_heads", of[0])
        if path is not None:  # on prompts other than those it was chosen by
            left = treated["as_is"](torch.stack(path.masks))
            for mask, n, of_mask in zip(path.masks, path.heads_left, left, strict=True):
                yield Row(f"prune/greedy_path/heads_{n}/excess_risk", *mean_with_interval(of_mask))
                yield from head_rows(f"prune/greedy_path/heads_{n}/n_heads", mask)
            for i, (layer, head) in enumerate(path.removed, start=1):
                yield Row("prune/greedy_path/removed", i, layer=layer, head=head)

    def _choices(
        self, trainer: Trainer, module: ICLModule, prompt: Prompt, ends: bool
    ) -> tuple[dict[str, Tensor], pruning.GreedyPath | None, int]:
        """The masks of all models, one for each draw; the greedy path, if any; the number of random choices there are.

        By the trainer's HeadImportance, so that one measurement serves both, or one of our own; and ``prompt``.
        """
        found = [c for c in trainer.callbacks if isinstance(c, HeadImportance)]  # type: ignore[attr-defined]
        measure = found[0] if found else HeadImportance(self.n_prompts, self.chunk_size, scores=["leave_one_out"])
        importance, bar = (
            measure.measure(trainer, module).raw.value,
            partial(progress, trainer, description="greedy removal"),
        )
        case = pruning_case(module.network, prompt, importance, self.chunk_size, bar)
        strategies = [s for s in self.strategies if ends or not isinstance(s, GreedyRemoval)]
        path = case.path(self.path_to) if any(isinstance(s, GreedyRemoval) for s in strategies) else None
        masks = {FULL: case.living[None]} | {s.key: s.keep(case)[None] for s in strategies}
        masks |= pruning.pruning_controls(case.importance, self.n_random, torch.Generator().manual_seed(0))
        return masks, path, pruning.n_choices(case.living.bool())

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        found = {"head_pruning": figures.pruning_risks(rows)}
        if rows["metric"].str.startswith("prune/greedy_path/").any():
            found["greedy_path"] = figures.greedy_path(rows)
        return found

    def summary(self, rows: pd.DataFrame) -> list[str]:
        whole = rows[rows["layer"].isna()].set_index("metric")
        models = [m.split("/")[2] for m in whole.index if m.startswith("prune/as_is/") and m.endswith("/ratio")]
        made = [t for t in COLUMNS if f"prune/{t}/{FULL}/ratio" in whole.index]
        lines = [
            f"Excess risk of pruned models on {self.n_prompts:,} held-out prompts, in units of the",
            "full model's under the same treatment (paired, ± 95 %):",
            " " * (2 + LABEL) + "".join(f"{COLUMNS[t]:>{COLUMN}}" for t in made),
        ]
        for name in models:
            label, *rest = wrap(whole["note"][f"prune/as_is/{name}/excess_risk"], LABEL)
            times = "".join(f"{_times(whole.loc[f'prune/{t}/{name}/ratio']):>{COLUMN}}" for t in made)
            lines += [f"  {label:<{LABEL}}{times}", *(f"    {part}" for part in rest)]
        for name in self.checkpoints:
            lines.append(f"  {name:<{LABEL}}{_times(whole.loc[f'prune/checkpoint/{name}/ratio']):>{COLUMN}}")
        said = f"The full model's is {plus_minus(whole.loc[f'prune/as_is/{FULL}/excess_risk'], '.4g')} as is."
        if (place := f"prune/as_is/{PAPER}/rank") in whole.index:
            rank, times = whole.loc[place], whole["note"][f"prune/as_is/{RANDOM}/ratio"]
            said += f" Random heads come to {times}; the paper's heads are {ranked(rank['note'])} as is"
            said += f" (place {rank.low:.0f} to {rank.high:.0f} at 95 %, 1 the best)."
        lines += wrapped(said, "")
        if not self._can_be_cut:
            return lines
        cut = ["  lightning-icl prune --ckpt_path RUN/checkpoints/last.ckpt \\"]
        cut += [f"    --keep '{whole['note'][f'prune/{PAPER}/n_heads']}'"]
        return [*lines, "To cut for good what the paper's strategy cuts (RUN is this run's folder):", *cut]


def head_rows(metric: str, mask: HeadMask) -> Iterator[Row]:
    """How many heads a mask keeps, with their numbers as ``lightning-icl prune --keep`` takes them, and by layer."""
    yield Row(metric, float(mask.sum()), note=json.dumps(pruning.keep_lists(mask), separators=(",", ":")))
    for layer, n in enumerate(mask.sum(dim=1).tolist(), start=1):
        yield Row(metric, float(n), layer=layer)


def _risk_rows(place: str, found: pruning.BesideFull, label: str) -> Iterator[Row]:
    yield Row(f"{place}/excess_risk", *found.excess_risk, note=label)
    yield Row(f"{place}/difference", *found.difference)
    yield Row(f"{place}/ratio", *found.ratio, note=found.spread)


def ranked(note: str) -> str:
    """A place in words: "63 of 64" is the 2nd worst of 64."""
    place, _, of = note.split(" ", 2)
    from_end = int(of.split()[0]) + 1 - int(place)
    n, end = min((int(place), "best"), (from_end, "worst"))
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{end} of {of}" if n == 1 else f"{n}{suffix} {end} of {of}"


def _times(row: pd.Series) -> str:
    """A ratio and half its interval."""
    if not row["value"] < 1000:
        return ">999" if row["value"] >= 1000 else "no value"
    digits = f".{2 if row['value'] < 10 else 1 if row['value'] < 100 else 0}f"
    return f"{row['value']:{digits}}" if pd.isna(row["low"]) else plus_minus(row, digits, digits)
