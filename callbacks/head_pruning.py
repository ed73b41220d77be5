"""What is lost when only some of the heads are kept."""

import json
import pickle
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import figures
from lightning_icl.callbacks.analysis import WIDTH, Analysis, check_at_least, datamodule, icl_module, progress
from lightning_icl.callbacks.head_importance import HeadImportance
from lightning_icl.callbacks.moments import no_training_follows
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import HeadMask, full_mask
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.pruning import (
    GreedyPath,
    GreedyRemoval,
    ImportanceThreshold,
    PaperPruning,
    PruningCase,
    PruningStrategy,
    TopHeads,
    check_strategies,
    keep_lists,
    mean_half_width,
    n_choices,
    pruning_controls,
    rank_among,
)
from lightning_icl.instruments.ablation import errors_under_masks
from lightning_icl.instruments.pruning import fine_tuned, pruning_case, read_out_refitted, rescaled_masks
from lightning_icl.module import ICLModule
from lightning_icl.record.rows import Row
from lightning_icl.streams import MAX_STEPS

FULL, PAPER, RANDOM = "full", "paper", "random_head"
CONTROLS = {
    "prune_layer1_instead": "control: top head of layer 1, all later heads",
    RANDOM: "control: random head of each later layer",
    "least_important": "control: least important head of each later layer",
}
COLUMNS = {"as_is": "as is", "read_out": "refitted", "rescaled": "rescaled", "fine_tuned": "fine-tuned"}
LABEL, COLUMN = 26, 13  # columns of the closing table
Errors = dict[str, Tensor]  # (draws, batch) of each model


class HeadPruning(Analysis):
    """Excess risk of pruned models under several treatments, beside their controls (PAPER.md section 5).

    Each strategy says which heads to keep, from HeadImportance (on its prompts) and prompts of its own; risks are
    measured on others, so that no choice is rewarded for noise. The controls of the paper's strategy are
    prune_layer1_instead (the top head of layer 1, all later heads), random_head (all of layer 1, a random head of each
    later layer; the mean of every such choice where there are at most 128, else of ``n_random`` draws, the same at
    every validation) and least_important. Heads that are dead already (see PruningSchedule) do not count. Every one of
    these models, and the full one, is treated in four ways:

    - as_is: masked, nothing else.
    - read_out: the read-out refitted in closed form (instruments.pruning.read_out_refitted).
    - rescaled: the kept heads rescaled in closed form (instruments.pruning.rescaled_masks).
    - fine_tuned: trained ``finetune_steps`` more (instruments.pruning.fine_tuned).

    What takes long, GreedyRemoval and all treatments but as_is, is done where no more training follows, and with
    ``n_random`` of the random choices.

    Rows, where <model> is full, a strategy's key (paper, top, threshold_0.1, greedy, or top_12 where a number is given)
    or a control: prune/<treatment>/<model>/excess_risk, ratio (over the full model's risk under the same treatment) and
    difference (from it), paired, with intervals over prompts and, where not every random choice was made, over these
    (none for a single one); prune/<treatment>/paper/rank of the paper's heads among the random choices by risk;
    prune/<model>/n_heads; and those of the greedy path. Models of ``checkpoints``, which are masked and treated in no
    way, have the treatment "checkpoint".
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
        for name, value, smallest in (
            ("n_prompts", n_prompts, 2),
            ("n_random", n_random, 1),
            ("chunk_size", chunk_size, 1),
            ("path_to", path_to, 0),
            ("fit_prompts", fit_prompts, 2),
            ("finetune_steps", finetune_steps, 0),
        ):
            check_at_least(name, value, smallest)
        if not 0 < finetune_learning_rate < torch.inf:
            raise InputError(
                f"finetune_learning_rate is {finetune_learning_rate}, but it must be a finite number above 0."
            )
        self.strategies = _with_paper(strategies)
        self.n_prompts, self.n_random, self.chunk_size, self.path_to = n_prompts, n_random, chunk_size, path_to
        self.fit_prompts = fit_prompts
        self.finetune_steps, self.finetune_learning_rate = finetune_steps, finetune_learning_rate
        self.checkpoints = checkpoints or {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for strategy in self.strategies:
            strategy.check(sum(icl_module(pl_module).transformer.heads))
        self.others = {name: loaded(name, Path(path), datamodule(trainer)) for name, path in self.checkpoints.items()}

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data, ends = datamodule(trainer), no_training_follows(trainer)
        # All three each time, so that what is measured at the end is of the same context.
        sizes = {"": self.n_prompts, "_fit": self.fit_prompts, "_choice": self.fit_prompts}
        score, fit, choice = (data.held_out(f"head_pruning{name}", n, module.device) for name, n in sizes.items())
        case = self._case(trainer, module, choice)
        # Rank 0's, so that no rank keeps other heads than the rest.
        masks, path = trainer.strategy.broadcast(self._choices(case, ends))
        treatments: dict[str, Callable[[Tensor], Tensor]] = {"as_is": self._masked(module, score)}
        if ends:
            treatments |= self._treatments(trainer, module, fit, choice, score)
        labels = self.labels({name: int(of[0].sum()) for name, of in masks.items()})
        possible = {name: n_choices(case.living.bool()) if name == RANDOM else 1 for name in masks}
        as_is: Errors = {}
        for treatment, treat in treatments.items():
            some = masks if treatment == "as_is" else {name: of[: self.n_random] for name, of in masks.items()}
            errors = _by_model(some, treat)
            as_is = as_is or errors
            for name, of_model in errors.items():
                yield from _risk_rows(f"prune/{treatment}/{name}", of_model, errors[FULL], labels[name], possible[name])
            yield from _rank_row(treatment, some, errors, possible[RANDOM])
        for name, other in self.others.items():
            whole = full_mask(other.transformer.heads)[None]
            of_model = self._masked(other.to(module.device), score)(whole).cpu()
            yield from _risk_rows(f"prune/checkpoint/{name}", of_model, as_is[FULL], name)
        for name, of in masks.items():
            if name != RANDOM:
                yield from head_rows(f"prune/{name}/n_heads", of[0])
        if path is not None:
            yield from _path_rows(path, self._masked(module, score)(torch.stack(path.masks)).cpu())

    def _masked(self, module: ICLModule, prompt: Prompt) -> Callable[[Tensor], Tensor]:
        return lambda masks: errors_under_masks(module.transformer, prompt, masks, chunk_size=self.chunk_size)

    def _case(self, trainer: Trainer, module: ICLModule, choice: Prompt) -> PruningCase:
        """The trainer's HeadImportance, so that one measurement serves both, or one of our own; and other prompts."""
        found = [c for c in trainer.callbacks if isinstance(c, HeadImportance)]  # type: ignore[attr-defined]
        measure = found[0] if found else HeadImportance(self.n_prompts, self.chunk_size, scores=["leave_one_out"])
        importance = measure.measure(trainer, module).raw
        datamodule(trainer).drawn["head_importance"] = measure.n_prompts  # also where HeadImportance had measured it
        return pruning_case(
            module.transformer,
            choice,
            importance,
            self.chunk_size,
            lambda rounds: progress(trainer, rounds, "greedy removal"),
        )

    def _choices(self, case: PruningCase, ends: bool) -> tuple[dict[str, Tensor], GreedyPath | None]:
        """The masks of all models, one for each draw, and the greedy path where there is one."""
        strategies = [s for s in self.strategies if ends or not isinstance(s, GreedyRemoval)]
        path = case.path(self.path_to) if any(isinstance(s, GreedyRemoval) for s in strategies) else None
        masks = {FULL: case.living[None]} | {s.key: s.keep(case)[None] for s in strategies}
        return masks | pruning_controls(case.importance, self.n_random, torch.Generator().manual_seed(0)), path

    def _treatments(
        self, trainer: Trainer, module: ICLModule, fit: Prompt, choice: Prompt, score: Prompt
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """What takes long: from masks to each prompt's squared error."""
        transformer, size, data = module.transformer, self.chunk_size, datamodule(trainer)

        def batch(step: int) -> Prompt:
            """Training prompts of the far end of the stream, which no run reaches."""
            return data.sample("train", MAX_STEPS - 1 - step, device=module.device)

        def read_out(masks: Tensor) -> Tensor:
            every = progress(trainer, list(masks), "read-outs refitted")
            refitted = (read_out_refitted(transformer, mask, fit, choice, size) for mask in every)
            return torch.stack([model.errors(score, size) for model in refitted])

        def trained(masks: Tensor) -> Tensor:
            steps, rate = self.finetune_steps, self.finetune_learning_rate
            every = progress(trainer, list(masks), "fine-tuning")
            return torch.stack([fine_tuned(transformer, m, batch, steps, rate).errors(score, size) for m in every])

        masked = self._masked(module, score)
        found = {"read_out": read_out, "rescaled": lambda masks: masked(rescaled_masks(transformer, masks, fit, size))}
        return found | ({"fine_tuned": trained} if self.finetune_steps else {})

    def labels(self, n_heads: Mapping[str, int]) -> dict[str, str]:
        """What each model is called in figures and tables."""
        of_strategies = {s.key: f"{s.label} ({n_heads[s.key]})" for s in self.strategies if s.key in n_heads}
        return {FULL: f"full model ({n_heads[FULL]} heads)"} | of_strategies | CONTROLS

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        found = {"head_pruning": figures.pruning_risks(rows)}
        if rows["metric"].str.startswith("prune/greedy_path/").any():
            found["greedy_path"] = figures.greedy_path(rows)
        return found

    def summary(self, rows: pd.DataFrame) -> list[str]:
        whole = rows[rows["layer"].isna()].set_index("metric")
        models = [m.split("/")[2] for m in whole.index if m.startswith("prune/as_is/") and m.endswith("/ratio")]
        treatments = [t for t in COLUMNS if f"prune/{t}/{FULL}/ratio" in whole.index]
        lines = [
            f"Excess risk of pruned models on {self.n_prompts:,} held-out prompts, in units of the",
            "full model's under the same treatment (paired, ± 95 %):",
            " " * (2 + LABEL) + "".join(f"{COLUMNS[t]:>{COLUMN}}" for t in treatments),
        ]
        for name in models:
            label, *rest = textwrap.wrap(whole["note"][f"prune/as_is/{name}/excess_risk"], LABEL)
            times = "".join(f"{_times(whole.loc[f'prune/{t}/{name}/ratio']):>{COLUMN}}" for t in treatments)
            lines += [f"  {label:<{LABEL}}{times}", *(f"    {part}" for part in rest)]
        for name in self.checkpoints:
            lines.append(f"  {name:<{LABEL}}{_times(whole.loc[f'prune/checkpoint/{name}/ratio']):>{COLUMN}}")
        full = whole.loc[f"prune/as_is/{FULL}/excess_risk"]
        said = f"The full model's is {full.value:.4g} ± {(full.high - full.low) / 2:.2g} as is."
        if (place := f"prune/as_is/{PAPER}/rank") in whole.index:
            rank, times = whole.loc[place], whole["note"][f"prune/as_is/{RANDOM}/ratio"]
            said += f" Random heads come to {times}; the paper's heads are {ranked(rank['note'])} as is"
            said += f" (place {rank.low:.0f} to {rank.high:.0f} at 95 %, 1 the best)."
        lines += textwrap.wrap(said, WIDTH)
        kept = whole["note"][f"prune/{PAPER}/n_heads"]
        return [
            *lines,
            "To cut for good what the paper's strategy cuts:",
            f"  lightning-icl prune --keep '{kept}'",
        ]


def head_rows(metric: str, mask: HeadMask) -> Iterator[Row]:
    """How many heads a mask keeps, with their numbers as ``lightning-icl prune --keep`` takes them, and by layer."""
    yield Row(metric, float(mask.sum()), note=json.dumps(keep_lists(mask), separators=(",", ":")))
    for layer, n in enumerate(mask.sum(dim=1).tolist(), start=1):
        yield Row(metric, float(n), layer=layer)


def _by_model(masks: Mapping[str, Tensor], treat: Callable[[Tensor], Tensor]) -> Errors:
    """Squared errors under all masks, each computed once: draws may coincide with what a strategy keeps."""
    different, which = torch.cat(list(masks.values())).unique(dim=0, return_inverse=True)
    parts = treat(different).cpu()[which].split([len(draws) for draws in masks.values()])
    return dict(zip(masks, parts, strict=True))


def _risk_rows(place: str, errors: Tensor, full: Tensor, label: str, possible: int = 1) -> Iterator[Row]:
    """A model's risk, and beside the full one's, paired; a mean over draws, ``possible`` in all.

    The ratio's interval is that of its logarithm, whose error is that of the mean of error / risk - full / full risk.
    """
    risk, whole = errors.mean(), full.mean()
    ratio, spread = float(risk / whole), errors.mean(dim=1) / whole
    for name, values in (("excess_risk", errors), ("difference", errors - full)):
        mean, half = float(values.mean()), mean_half_width(values, possible)
        yield Row(f"{place}/{name}", mean, mean - half, mean + half, note=label if name == "excess_risk" else None)
    factor = float(torch.tensor(mean_half_width(errors / risk - full / whole, possible)).exp())
    choices = f"the {possible:,} choices" if len(errors) == possible else f"{len(errors)} of {possible:,} choices"
    note = f"{spread.min():.2f} to {spread.max():.2f} times over {choices}" if possible > 1 else None
    yield Row(f"{place}/ratio", ratio, ratio / factor, ratio * factor, note=note)


def _rank_row(treatment: str, masks: Mapping[str, Tensor], errors: Errors, possible: int) -> Iterator[Row]:
    """The place of the paper's heads among the random choices, by risk."""
    others = (masks[RANDOM] != masks[PAPER]).flatten(1).any(dim=1)
    if others.any():
        rank = rank_among(errors[PAPER][0], errors[RANDOM][others])
        of = f" drawn from {possible:,}" if rank.n < possible else ""
        yield Row(
            f"prune/{treatment}/{PAPER}/rank", rank.place, rank.low, rank.high, note=f"{rank.place} of {rank.n}{of}"
        )


def _path_rows(path: GreedyPath, errors: Tensor) -> Iterator[Row]:
    """Greedy removal on prompts other than those it was chosen by."""
    for mask, n, of_mask in zip(path.masks, path.heads_left, errors, strict=True):
        mean, half = float(of_mask.mean()), mean_half_width(of_mask[None], 1)
        yield Row(f"prune/greedy_path/heads_{n}/excess_risk", mean, mean - half, mean + half)
        yield from head_rows(f"prune/greedy_path/heads_{n}/n_heads", mask)
    for i, (layer, head) in enumerate(path.removed, start=1):
        yield Row("prune/greedy_path/removed", i, layer=layer, head=head)


def _times(row: pd.Series) -> str:
    """A ratio and half its interval."""
    if not row["value"] < 1000:
        return ">999" if row["value"] >= 1000 else "no value"
    digits = 2 if row["value"] < 10 else 1 if row["value"] < 100 else 0
    half = (row["high"] - row["low"]) / 2
    return f"{row['value']:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else "")


def ranked(note: str) -> str:
    """A place in words: "63 of 64" is the 2nd worst of 64."""
    place, _, of = note.split(" ", 2)
    from_end = int(of.split()[0]) + 1 - int(place)
    n, end = min((int(place), "best"), (from_end, "worst"))
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{end} of {of}" if n == 1 else f"{n}{suffix} {end} of {of}"


def _with_paper(strategies: list[PruningStrategy] | None) -> list[PruningStrategy]:
    """The strategies, the paper's first; all of them where none are named."""
    if strategies is None:
        return [PaperPruning(), TopHeads(), ImportanceThreshold(), GreedyRemoval()]
    check_strategies(strategies)
    return [PaperPruning(), *(s for s in strategies if not isinstance(s, PaperPruning))]


def loaded(name: str, path: Path, data: PromptDataModule) -> ICLModule:
    """The model of a checkpoint, if it is one and can predict on these prompts."""
    if not path.is_file():
        raise InputError(f"checkpoints: {name} is {path}, but there is no such file.")
    try:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn before they are loaded
            module = ICLModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"checkpoints: {name} is {path}, but that is not a checkpoint of lightning_icl.") from error
    transformer, longest = module.transformer, data.streams[0].largest_n
    if transformer.n_dims != data.task.n_dims:
        raise InputError(
            f"checkpoints: {name} was trained on n_dims {transformer.n_dims}, but the task has {data.task.n_dims}."
        )
    if transformer.max_points is not None and transformer.max_points < longest:
        raise InputError(
            f"checkpoints: {name} has positions for {transformer.max_points} examples, but the prompts have {longest}."
        )
    return module.eval()
