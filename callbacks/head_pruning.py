"""What is lost when only some of the heads are kept."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    check_at_least,
    datamodule,
    icl_module,
    log_scalars,
    progress,
    save_figure,
)
from lightning_icl.callbacks.head_importance import HeadImportance
from lightning_icl.callbacks.moments import no_training_follows
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
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
    pruning_controls,
)
from lightning_icl.functional.risk import jackknife_errors, mean_and_standard_error
from lightning_icl.instruments.ablation import errors_under_masks
from lightning_icl.instruments.pruning import fine_tuned, pruning_case, read_out_refitted, rescaled_masks
from lightning_icl.module import ICLModule
from lightning_icl.streams import MAX_STEPS

FULL, PAPER = "full", "paper"
LABELS = {
    FULL: "full model",
    "prune_layer1_instead": "control: top head of layer 1, all later heads",
    "random_head": "control: all of layer 1, a random head of each later layer",
    "least_important": "control: all of layer 1, least important head of each later layer",
}
VARIANTS = {
    "as_is": "masked as is",
    "read_out": "read-out refitted",
    "rescaled": "kept heads rescaled",
    "fine_tuned": "fine-tuned",
}
COLUMNS = {"as_is": "as is", "read_out": "refitted", "rescaled": "rescaled", "fine_tuned": "fine-tuned"}


class PrunedRisk(NamedTuple):
    """Excess risk of a pruned model, and beside the full model's under the same treatment, each with standard error.

    ``ratio`` is pruned / full and ``difference`` pruned - full, paired over prompts.
    """

    risk: float
    risk_error: float
    ratio: float
    ratio_error: float
    difference: float
    difference_error: float


class HeadPruning(Analysis):
    """Excess risk of pruned models under several treatments, beside their controls (PAPER.md section 5).

    Each strategy says which heads to keep, from HeadImportance (on its prompts) and prompts of its own; risks are
    measured on others, so that no choice is rewarded for noise. The controls of the paper's strategy are
    prune_layer1_instead (the top head of layer 1, all later heads), random_head (all of layer 1, a random head of each
    later layer; mean of ``n_random`` draws, the same at every validation) and least_important. Heads that are dead
    already (see PruningSchedule) do not count. Every one of these models, and the full one, is treated in four ways:

    - as_is: masked, nothing else.
    - read_out: the read-out refitted in closed form (instruments.pruning.read_out_refitted).
    - rescaled: the kept heads rescaled in closed form (instruments.pruning.rescaled_masks).
    - fine_tuned: trained ``finetune_steps`` more (instruments.pruning.fine_tuned); of the random draws the first alone.

    What takes long, GreedyRemoval and all treatments but as_is, is done where no more training follows: in validate and
    at the end of fit.

    Logs prune/<model>/<treatment>/excess_risk, .../ratio (over the full model's risk under the same treatment) and
    .../ratio_error, its standard error by the jackknife over prompts (paired), where <model> is full, a strategy's key
    (paper, top, threshold_0.1, greedy, or top_12 where a number is given) or a control; and prune/<strategy>/n_heads.
    Models of ``checkpoints``, which are masked and treated in no way: prune/checkpoint/<name>/excess_risk, .../ratio
    and .../ratio_error. Of the paper's strategy as is also, under shorter keys, prune/excess_risk/<model> for full,
    pruned and the controls, prune/ratio and prune/ratio_error.
    Figures: head_pruning, and greedy_path where there is a GreedyRemoval: excess risk and heads of each layer against
    the number of heads left.

    Args:
        n_prompts: number of held-out prompts that are scored.
        n_random: number of draws behind the random-head control.
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
        self.checkpoints = {name: Path(path) for name, path in (checkpoints or {}).items()}
        self.results: dict[str, dict[str, PrunedRisk]] = {}
        self.masks: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.results, self.masks = {}, {}
        for strategy in self.strategies:
            strategy.check(sum(icl_module(pl_module).transformer.heads))
        self.others = {name: loaded(name, path, datamodule(trainer)) for name, path in self.checkpoints.items()}

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        case = self._case(trainer, module)
        # Rank 0's, so that no rank keeps other heads than the rest.
        ends = no_training_follows(trainer)
        self.masks, path = trainer.strategy.broadcast(self._choices(case, ends))
        prompt = datamodule(trainer).held_out("head_pruning", self.n_prompts, module.device)
        errors = self._errors(trainer, module, prompt, ends)
        self.results = {treatment: _risks(of_models) for treatment, of_models in errors.items()}
        self.beside = self._beside(module, prompt, errors["as_is"][FULL])
        self.path = None if path is None else self._scored(path, module, prompt)
        self._log(module)
        self._draw(trainer)

    def _case(self, trainer: Trainer, module: ICLModule) -> PruningCase:
        importance = self._importance(trainer).measure(trainer, module).raw
        choice = self._held_out(trainer, module, "choice")
        return pruning_case(
            module.transformer,
            choice,
            importance,
            self.chunk_size,
            lambda rounds: progress(trainer, rounds, "greedy removal"),
        )

    def _importance(self, trainer: Trainer) -> HeadImportance:
        """The trainer's HeadImportance, so that one measurement serves both, or one of our own."""
        found = [c for c in trainer.callbacks if isinstance(c, HeadImportance)]  # type: ignore[attr-defined]
        return found[0] if found else HeadImportance(self.n_prompts, self.chunk_size, scores=["leave_one_out"])

    def _choices(self, case: PruningCase, ends: bool) -> tuple[dict[str, Tensor], GreedyPath | None]:
        """The masks of all models, one for each draw, and the greedy path where there is one."""
        strategies = [s for s in self.strategies if ends or not isinstance(s, GreedyRemoval)]
        path = case.path(self.path_to) if any(isinstance(s, GreedyRemoval) for s in strategies) else None
        masks = {FULL: case.living[None]} | {s.key: s.keep(case)[None] for s in strategies}
        return masks | pruning_controls(case.importance, self.n_random, torch.Generator().manual_seed(0)), path

    def _errors(self, trainer: Trainer, module: ICLModule, prompt: Prompt, ends: bool) -> dict[str, dict[str, Tensor]]:
        """Squared error of each prompt, by treatment and model; a mean over the draws."""
        transformer, size = module.transformer, self.chunk_size
        # Draws may coincide with each other and with what a strategy keeps.
        masks, which = torch.cat(list(self.masks.values())).unique(dim=0, return_inverse=True)
        errors = {"as_is": errors_under_masks(transformer, prompt, masks, chunk_size=size)}
        if ends:
            fit, choice = self._held_out(trainer, module, "fit"), self._held_out(trainer, module, "choice")
            errors["read_out"] = torch.stack(
                [
                    read_out_refitted(transformer, mask, fit, choice, size).errors(prompt, size)
                    for mask in progress(trainer, list(masks), "read-outs refitted")
                ]
            )
            scales = rescaled_masks(transformer, masks, fit, size)
            errors["rescaled"] = errors_under_masks(transformer, prompt, scales, chunk_size=size)
        by_model = {treatment: self._by_model(of_all[which]) for treatment, of_all in errors.items()}
        if ends and self.finetune_steps:
            by_model["fine_tuned"] = self._fine_tuned(trainer, module, prompt)
        return by_model

    def _by_model(self, errors: Tensor) -> dict[str, Tensor]:
        parts = errors.split([len(draws) for draws in self.masks.values()])
        return {name: part.mean(dim=0) for name, part in zip(self.masks, parts, strict=True)}

    def _held_out(self, trainer: Trainer, module: ICLModule, name: str) -> Prompt:
        return datamodule(trainer).held_out(f"head_pruning_{name}", self.fit_prompts, module.device)

    def _fine_tuned(self, trainer: Trainer, module: ICLModule, prompt: Prompt) -> dict[str, Tensor]:
        data = datamodule(trainer)

        def batch(step: int) -> Prompt:
            """Training prompts of the far end of the stream, which no run reaches."""
            return data.sample("train", MAX_STEPS - 1 - step, device=module.device)

        errors: dict[str, Tensor] = {}
        for name in progress(trainer, list(self.masks), "fine-tuning"):
            mask = self.masks[name][0]
            model = fine_tuned(module.transformer, mask, batch, self.finetune_steps, self.finetune_learning_rate)
            errors[name] = model.errors(prompt, self.chunk_size)
        return errors

    def _beside(self, module: ICLModule, prompt: Prompt, full: Tensor) -> dict[str, PrunedRisk]:
        """The models of the checkpoints, as they are."""
        errors = {FULL: full}
        for name, other in self.others.items():
            whole = full_mask(other.transformer.heads)[None]
            transformer = other.transformer.to(module.device)
            errors[name] = errors_under_masks(transformer, prompt, whole, chunk_size=self.chunk_size)[0]
        return {name: risk for name, risk in _risks(errors).items() if name != FULL}

    def _scored(self, path: GreedyPath, module: ICLModule, prompt: Prompt) -> figures.ScoredPath:
        masks = torch.stack(path.masks)
        errors = errors_under_masks(module.transformer, prompt, masks, chunk_size=self.chunk_size)
        risks = torch.stack(mean_and_standard_error(errors.T), dim=1).tolist()
        return figures.ScoredPath(path.heads_left, [(r, e) for r, e in risks], path.allocation, path.removed)

    def _log(self, module: ICLModule) -> None:
        scalars: dict[str, float | Tensor] = {
            f"prune/{model}/{treatment}/{key}": value
            for treatment, of_models in self.results.items()
            for model, risk in of_models.items()
            for key, value in _logged(risk).items()
        }
        for name, risk in self.beside.items():
            scalars |= {f"prune/checkpoint/{name}/{key}": value for key, value in _logged(risk).items()}
        scalars |= {f"prune/{s.key}/n_heads": float(self.masks[s.key].sum()) for s in self._chosen()}
        as_is = self.results["as_is"]
        for name in (FULL, PAPER, *list(LABELS)[1:]):
            scalars[f"prune/excess_risk/{'pruned' if name == PAPER else name}"] = as_is[name].risk
        scalars |= {"prune/ratio": as_is[PAPER].ratio, "prune/ratio_error": as_is[PAPER].ratio_error}
        log_scalars(module, scalars)

    def _draw(self, trainer: Trainer) -> None:
        risks = {
            VARIANTS[treatment]: {name: (r.risk, r.risk_error) for name, r in of_models.items()}
            for treatment, of_models in self.results.items()
        }
        beside = {name: (r.risk, r.risk_error) for name, r in self.beside.items()}
        labels = self.labels()
        save_figure(trainer, "head_pruning", figures.pruning_risks(risks, labels, beside))
        if self.path is not None:
            as_is = risks[VARIANTS["as_is"]]
            marked = {
                labels[s.key]: (int(self.masks[s.key].sum()), as_is[s.key])
                for s in self._chosen()
                if not isinstance(s, GreedyRemoval)
            }
            save_figure(trainer, "greedy_path", figures.greedy_path(self.path, marked))

    def _chosen(self) -> list[PruningStrategy]:
        return [strategy for strategy in self.strategies if strategy.key in self.masks]

    def labels(self) -> dict[str, str]:
        """What each model is called in figures and tables."""
        of_strategies = {s.key: f"{s.label} ({int(self.masks[s.key].sum())})" for s in self._chosen()}
        total = int(self.masks[FULL].sum())
        return {FULL: f"{LABELS[FULL]} ({total} heads)"} | of_strategies | {k: LABELS[k] for k in list(LABELS)[1:]}

    def record(self) -> dict[str, Any]:
        """Risks by treatment and model, which heads were kept, and the greedy path."""
        return {
            "keep": {name: keep_lists(masks[0]) for name, masks in self.masks.items() if name != "random_head"},
            "risks": self.results,
            "checkpoints": self.beside,
            "greedy_path": self.path,
        }

    def summary(self) -> list[str]:
        if not self.results:
            return []
        labels = self.labels()
        width = max(map(len, [*labels.values(), *self.beside]))
        lines = [
            "Excess risk of pruned models, times the full model's under the same treatment (paired):",
            " " * width + "".join(f"  {COLUMNS[treatment]:>13}" for treatment in self.results),
        ]
        for name, label in labels.items():
            times = [_times(of_models[name]) for of_models in self.results.values()]
            lines.append(f"  {label:<{width}}" + "".join(f"  {ratio:>13}" for ratio in times)[2:])
        lines += [f"  {name:<{width}}{_times(risk):>13}" for name, risk in self.beside.items()]
        full = self.results["as_is"][FULL]
        kept = str(keep_lists(self.masks[PAPER][0])).replace(" ", "")
        return [
            *lines,
            f"The full model's is {full.risk:.4g} +- {full.risk_error:.2g}.",
            f"To cut for good what the paper's strategy cuts: lightning-icl prune --keep '{kept}'",
        ]


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


def _risks(errors: Mapping[str, Tensor]) -> dict[str, PrunedRisk]:
    """Risks of all models, paired with that of the full one."""
    stacked = torch.stack([e.cpu() for e in errors.values()], dim=1)
    at = list(errors).index(FULL)
    risk = mean_and_standard_error(stacked)
    difference = mean_and_standard_error(stacked - stacked[:, at : at + 1])
    (ratio_error,) = jackknife_errors(stacked, lambda means: (means / means[:, at : at + 1],))
    values = torch.stack([*risk, risk[0] / risk[0][at], ratio_error, *difference], dim=1).tolist()
    return {name: PrunedRisk(*row) for name, row in zip(errors, values, strict=True)}


def _logged(risk: PrunedRisk) -> dict[str, float]:
    return {"excess_risk": risk.risk, "ratio": risk.ratio, "ratio_error": risk.ratio_error}


def _times(risk: PrunedRisk) -> str:
    return f"{risk.ratio:.2f} +- {risk.ratio_error:.2f}"
