"""The model's excess risk beside that of the reference estimators."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, all_ranks, check_at_least, datamodule, icl_module
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import check_each_once
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import (
    Case,
    Reference,
    default_references,
    errors,
    every_prefix,
    tuned,
    whole_prompts,
)
from lightning_icl.functional.risk import mean_with_interval, paired_ratio, squared_errors
from lightning_icl.module import ICLModule
from lightning_icl.record.lines import plus_minus
from lightning_icl.record.rows import Row

Errors = dict[str, Tensor]
MODEL = "transformer"
RATIOS = ("zero", "ridge", "lasso", "bayes")  # that go to the loggers


class ReferenceRisk(Analysis):
    """Scores reference estimators on the very prompts the model is validated on.

    The risks are over all prompts and at each number of examples: in the layouts that predict every example from those
    before it, at every number up to the largest, on the last ``curve_prompts`` prompts. A free setting of a reference
    follows from the law or is tuned on separate prompts, for each stream and each number of examples.
    Figures: excess_risk (excess_risk_<stream> for a named one), excess_risk_by_stream where there are several, and
    excess_risk_over_training.

    Without ``references`` these are zero, least_squares, ridge, lasso, gd_at_depth, gd_best,
    preprocess_then_gd_at_depth, preprocess_then_gd_best (all with steps of 1/lambda_max of each prompt); bayes where
    the law's posterior can be computed; and for tasks with weights oracle_support, which is told the support. Each
    reference's docstring has its formula.

    Args:
        tuning_prompts: number of separate prompts the free settings are tuned on.
        references: the reference estimators, such as [Ridge, {class_path: NearestNeighbours, init_args: {k: 3}}].
        curve_prompts: prompts of each stream on which every prefix is predicted, in the layouts that do so: the last
            ones, which are the longest.
        every_n_validations: run at every n-th validation.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - class_path: ReferenceRisk
                  init_args:
                    references: [ZeroPredictor, Ridge, {class_path: Lasso, init_args: {alpha: 0.1}}, Bayes]
    """

    shown = (
        r"(val|test)/([\w-]+/)?excess_risk/[^/]+$",
        rf"against/([\w-]+/)?({'|'.join(RATIOS)})/ratio$",
    )
    course = r"val/excess_risk/"

    def __init__(
        self,
        tuning_prompts: int = 512,
        references: list[Reference] | None = None,
        curve_prompts: int = 1024,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(1, tuning_prompts=tuning_prompts)
        check_at_least(2, curve_prompts=curve_prompts)
        check_each_once("references", [reference.key for reference in references or []])
        self.tuning_prompts, self.curve_prompts, self.references = tuning_prompts, curve_prompts, references
        self._reset()

    def _reset(self) -> None:
        self._tuned: dict[tuple[int, int, bool], list[Reference]] = {}
        # Validation replays its prompts, so each batch's targets and the references' errors there are computed once.
        self._scores: dict[tuple[bool, int, int, bool], tuple[Tensor, Errors]] = {}
        # Of the batches so far, by stream, whether of all prefixes, and number of examples.
        self._errors: dict[tuple[int, bool, int], list[Errors]] = defaultdict(list)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._reset()
        self.eval_prompts = datamodule(trainer).eval_prompts

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        self._model = type(module.network).__name__
        for stream in range(len(data.streams)):
            for reference in self.references or []:
                reference.check(_case(data, module, stream))

    def shows(self, data: PromptDataModule) -> Sequence[str]:
        streams = [f"{name}/" for name, *_ in data.streams if name]
        of = f"({'|'.join(streams)})" if streams else ""
        references = default_references(data.streams[0].task) if self.references is None else self.references
        keys = [reference.key for reference in references]
        ratios = [key for key in keys if key in RATIOS]
        return [rf"val/{of}excess_risk/({'|'.join(keys)})$", rf"against/{of}({'|'.join(ratios)})/ratio$"]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Prompt,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            return
        module, data, n_points = icl_module(pl_module), datamodule(trainer), batch.x.shape[1]
        # A TransformerOutput's predictions (batch, sizes, queries): from whole prompts, and from all prefixes.
        read = {False: outputs.prediction[:, None]}
        # All ranks agree on which batches these are, as they all have a share of each.
        n_batches = (trainer.num_test_batches if trainer.testing else trainer.num_val_batches)[dataloader_idx]
        on_curve = (n_batches - batch_idx - 1) * data.eval_batch_size < self.curve_prompts
        if on_curve and outputs.prefix_prediction is not None:
            # After 1 .. n examples: at the example that follows, and at the first query.
            read[True] = torch.cat([outputs.prefix_prediction[:, 1:], outputs.prediction[:, :1]], dim=1)[..., None]
        for prefixes, prediction in read.items():
            key = (trainer.testing, dataloader_idx, batch_idx, prefixes)
            with torch.autocast(module.device.type, enabled=False):
                if key not in self._scores:
                    problems = every_prefix(batch) if prefixes else whole_prompts(batch)
                    largest = data.streams[dataloader_idx].largest_n if prefixes else n_points
                    references = self.tuned(trainer, module, largest, dataloader_idx, prefixes)
                    self._scores[key] = problems.f, errors(references, problems)
                f, known = self._scores[key]
                found = {MODEL: squared_errors(prediction, f)} | known
            for i, n in enumerate(range(1, n_points + 1) if prefixes else [n_points]):
                self._errors[dataloader_idx, prefixes, n].append({name: of[:, i] for name, of in found.items()})

    on_test_batch_end = on_validation_batch_end

    def tuned(
        self, trainer: Trainer, module: ICLModule, n_points: int, stream: int = 0, prefixes: bool = False
    ) -> list[Reference]:
        """The references with their settings for a stream's prompts of ``n_points`` examples, or all its prefixes."""
        key = (stream, n_points, prefixes)
        if key not in self._tuned:
            data = datamodule(trainer)
            case = _case(data, module, stream)
            of_stream = n_points, data.streams[stream]
            prompt = data.held_out("reference_tuning", self.tuning_prompts, module.device, *of_stream)
            tuning = every_prefix(prompt, at_queries=True) if prefixes else whole_prompts(prompt)
            references = default_references(case.task, case.depth) if self.references is None else self.references
            self._tuned[key] = tuned([reference.bound(case) for reference in references], tuning)
        return self._tuned[key]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._errors.clear()

    on_test_epoch_end = on_validation_epoch_end

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data, stage = datamodule(trainer), "test" if trainer.testing else "val"
        # Whether this run had the settings tuned just now or before.
        data.drawn |= {"test" if trainer.testing else "validate": data.eval_prompts}
        data.drawn["reference_tuning"] = self.tuning_prompts
        # Of every rank; the order is the same on all, since gathering is a collective.
        mine = {key: _joined(batches) for key, batches in sorted(self._errors.items())}
        found = {key: {name: all_ranks(module, each) for name, each in of.items()} for key, of in mine.items()}
        for stream, (name, *_) in enumerate(data.streams):
            whole, curve = (
                {n: errors for (of, each, n), errors in found.items() if (of, each) == (stream, prefixes)}
                for prefixes in (False, True)
            )
            self.n_points = list(whole)
            labels = self.labels(stream, prefixes=bool(curve))
            places: list[tuple[int | None, Errors, dict[str, str]]] = [
                (None, _joined(list(whole.values())), self.labels(stream)),
                *((n, at_n, labels) for n, at_n in (curve or whole).items()),
            ]
            for n, at_n, labels in places:
                for key, of_each in at_n.items():
                    risk = mean_with_interval(of_each)
                    yield Row(f"{stage}/excess_risk/{key}", *risk, n_points=n, stream=name, note=labels[key])
                    if n is None and key != MODEL:
                        yield Row(f"against/{key}/ratio", *paired_ratio(at_n[MODEL], of_each), stream=name)
                        yield Row(f"against/{key}/difference", *mean_with_interval(of_each - at_n[MODEL]), stream=name)

    def _is_shown(self, trainer: Trainer, name: str) -> bool:
        return not name.endswith(f"/{MODEL}") and super()._is_shown(trainer, name)  # the module logs its own

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        found = {}
        for name, of_stream in _by_stream(rows):
            prompts = self._prompts(of_stream) + (f", stream {name}" if name else "")
            draw = figures.risk_by_points if of_stream["n_points"].nunique() > 1 else figures.risk_by_estimator
            found["_".join(filter(None, ["excess_risk", name]))] = draw(of_stream, prompts)
        if len(found) > 1:
            found["excess_risk_by_stream"] = figures.risk_by_stream(rows)
        if (course := self.over_training())["step"].nunique() > 1:
            found["excess_risk_over_training"] = figures.risk_by_step(course)
        return found

    @staticmethod
    def _prompts(rows: pd.DataFrame) -> str:
        return "test prompts" if rows["metric"].str.startswith("test/").any() else "validation prompts"

    def labels(self, stream: int, prefixes: bool = False) -> dict[str, str]:
        """What each estimator is called in figures and tables, with its settings for whole prompts or ``prefixes``."""
        alike = [found for (of, _, each), found in self._tuned.items() if (of, each) == (stream, prefixes)]
        return {MODEL: self._model} | {same[0].key: same[0].label(same) for same in zip(*alike, strict=True)}

    def summary(self, rows: pd.DataFrame) -> list[str]:
        return [line for name, part in _by_stream(rows) for line in ["", *self._table(name, part)]][1:]

    def _table(self, name: str | None, rows: pd.DataFrame) -> list[str]:
        whole = rows[rows["n_points"].isna()]
        risks = whole[whole["metric"].str.contains("/excess_risk/")].sort_values("value")
        differences = whole[whole["metric"].str.endswith("/difference")].set_index("metric")
        prompts = f"{self.eval_prompts:,} {self._prompts(rows)}" + (f" of stream {name}" if name else "")
        numbers = "-".join(map(str, sorted({min(self.n_points), max(self.n_points)})))
        lines = [
            f"Excess risk on {prompts} ({numbers} examples each),",
            "± 95 %, lowest first; and paired, the estimator's minus the model's:",
        ]
        for row in risks.itertuples():
            key = row.metric.rpartition("/")[2]
            first, *rest = wrap(row.note, 38)
            paired = "  <- the model"
            if key != MODEL:
                paired = plus_minus(differences.loc[f"against/{key}/difference"], ">+9.3g")
            lines.append(f"  {first:<38} {plus_minus(row, '>9.4g', '<7.2g')} {paired}".rstrip())
            lines += [f"    {part}" for part in rest]
        return lines


def _case(data: PromptDataModule, module: ICLModule, stream: int) -> Case:
    return Case(data.streams[stream].task, data.task, module.depth)


def _joined(batches: list[Errors]) -> Errors:
    """Per-prompt errors of all batches."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _by_stream(rows: pd.DataFrame) -> list[tuple[str | None, pd.DataFrame]]:
    """The rows of each stream and its name, in order."""
    names = rows["stream"].drop_duplicates()
    return [(None, rows)] if names.isna().all() else [(name, rows[rows["stream"] == name]) for name in names.dropna()]
