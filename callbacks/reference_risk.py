"""The model's excess risk beside that of the reference estimators."""

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, all_ranks, check_at_least, datamodule, icl_module
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import (
    Case,
    Reference,
    check_references,
    default_references,
    every_prefix,
    whole_prompts,
)
from lightning_icl.functional.risk import jackknife_errors, mean_and_standard_error, mean_interval, squared_errors
from lightning_icl.module import ICLModule
from lightning_icl.record.rows import Row
from lightning_icl.transformer import TransformerOutput

Errors = dict[str, Tensor]
MODEL = "transformer"


class ReferenceRisk(Analysis):
    """Scores reference estimators on the very prompts the model is validated on.

    Rows: val/excess_risk/<estimator>, over all prompts and at each number of examples (in the layouts that predict
    every example from those before it, at every number up to the largest, on the last ``curve_prompts`` prompts);
    against/<reference>/ratio, the model's risk over the reference's, and against/<reference>/difference, the
    reference's minus the model's, both paired. Those of a named validation stream have its name. In ``test`` the risks
    are test/excess_risk/<estimator>.
    Figures: excess_risk (excess_risk_<stream> for a named one), excess_risk_by_stream where there are several, and
    excess_risk_over_training.

    Without ``references`` these are zero, least_squares, ridge, lasso, gd_at_depth, gd_best,
    preprocess_then_gd_at_depth, preprocess_then_gd_best (all with steps of 1/lambda_max of each prompt); bayes where
    the law's posterior can be computed; and for tasks with weights oracle_support, which is told the support. Each
    reference's docstring has its formula. A free setting follows from the law or is tuned on separate prompts, for
    each stream and each number of examples.

    Args:
        tuning_prompts: number of separate prompts the free settings are tuned on.
        references: the reference estimators, such as [Ridge, {class_path: NearestNeighbours, init_args: {k: 3}}].
        curve_prompts: prompts of each stream on which every prefix is predicted, in the layouts that do so: the last
            ones, which are the longest.
        every_n_validations: run at every n-th validation.
    """

    shown = (
        r"(val|test)/([\w-]+/)?excess_risk/[^/]+$",
        r"against/([\w-]+/)?(zero|ridge|lasso|bayes)/ratio$",
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
        check_at_least("tuning_prompts", tuning_prompts, 1)
        check_at_least("curve_prompts", curve_prompts, 2)
        check_references(references or [])
        self.tuning_prompts, self.curve_prompts = tuning_prompts, curve_prompts
        self.references = references
        self._reset()

    def _reset(self) -> None:
        self._settled: dict[tuple[int, int, bool], list[Reference]] = {}
        # Validation replays its prompts, so each batch's references are computed once.
        self._scores: dict[tuple[str, int, int], tuple[Errors, Errors]] = {}
        self._errors: dict[int, dict[int, list[Errors]]] = defaultdict(lambda: defaultdict(list))
        self._curves: dict[int, dict[int, list[Errors]]] = defaultdict(lambda: defaultdict(list))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._reset()
        self.eval_prompts = datamodule(trainer).eval_prompts
        for stream in range(len(datamodule(trainer).streams)):
            for reference in self.references or []:
                reference.check(self._case(trainer, icl_module(pl_module), stream))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if not trainer.sanity_checking:
            self._score(trainer, icl_module(pl_module), "val", *args, **kwargs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._score(trainer, icl_module(pl_module), "test", *args, **kwargs)

    def _score(
        self,
        trainer: Trainer,
        module: ICLModule,
        stage: str,
        output: TransformerOutput,
        prompt: Prompt,
        batch_idx: int,
        stream: int = 0,
    ) -> None:
        # All ranks agree on which batches these are, as they all have a share of each.
        n_batches = (trainer.num_val_batches if stage == "val" else trainer.num_test_batches)[stream]
        curve = (n_batches - batch_idx - 1) * datamodule(trainer).eval_batch_size < self.curve_prompts
        prefixes = output.prefix_prediction if curve else None
        with torch.autocast(module.device.type, enabled=False):
            if (stage, stream, batch_idx) not in self._scores:
                whole = self._reference_errors(trainer, module, stream, prompt, prefixes=False)
                by_prefix = (
                    self._reference_errors(trainer, module, stream, prompt, True) if prefixes is not None else {}
                )
                self._scores[stage, stream, batch_idx] = ({k: e[:, 0] for k, e in whole.items()}, by_prefix)
            whole, by_prefix = self._scores[stage, stream, batch_idx]
            errors = {MODEL: squared_errors(output.prediction, prompt.f_query)}
            self._errors[stream][prompt.x.shape[1]].append(errors | whole)
            if prefixes is not None:
                by_prefix = {MODEL: _prefix_errors(prefixes, output.prediction, prompt)} | by_prefix
                for k in range(prompt.x.shape[1]):
                    self._curves[stream][k + 1].append({name: e[:, k] for name, e in by_prefix.items()})

    def _reference_errors(
        self, trainer: Trainer, module: ICLModule, stream: int, prompt: Prompt, prefixes: bool
    ) -> Errors:
        problems = every_prefix(prompt) if prefixes else whole_prompts(prompt)
        n_points = datamodule(trainer).streams[stream].largest_n if prefixes else prompt.x.shape[1]
        settled = self.settled(trainer, module, n_points, stream, prefixes)
        return {reference.key: reference.errors(problems) for reference in settled}

    def settled(
        self, trainer: Trainer, module: ICLModule, n_points: int, stream: int = 0, prefixes: bool = False
    ) -> list[Reference]:
        """The references with their settings for a stream's prompts of ``n_points`` examples, or all its prefixes."""
        key = (stream, n_points, prefixes)
        if key not in self._settled:
            case = self._case(trainer, module, stream)
            data = datamodule(trainer)
            prompt = data.held_out(
                "reference_tuning", self.tuning_prompts, module.device, n_points, data.streams[stream]
            )
            tuning = every_prefix(prompt, at_queries=True) if prefixes else whole_prompts(prompt)
            references = default_references(case.task) if self.references is None else self.references
            self._settled[key] = [reference.settled(case, tuning) for reference in references]
        return self._settled[key]

    def _case(self, trainer: Trainer, module: ICLModule, stream: int) -> Case:
        data = datamodule(trainer)
        return Case(data.streams[stream].task, data.task, len(module.transformer.heads))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._forget()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep_up(trainer, icl_module(pl_module))
        self._forget()

    def _forget(self) -> None:
        self._errors.clear()
        self._curves.clear()

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data, stage = datamodule(trainer), "test" if trainer.testing else "val"
        # Whether this run had the settings tuned just now or before.
        data.drawn |= {"test" if trainer.testing else "validate": data.eval_prompts}
        data.drawn["reference_tuning"] = self.tuning_prompts
        for stream, (name, *_) in enumerate(data.streams):
            by_n = _by_points(self._errors[stream], module)
            curve = _by_points(self._curves[stream], module)
            everywhere = _joined(list(by_n.values()))
            self.n_points = list(by_n)
            labels = self.labels(stream)
            for key, errors in everywhere.items():
                yield _risk(f"{stage}/excess_risk/{key}", errors, None, name, labels[key])
                if key != MODEL:
                    yield from _against(key, everywhere[MODEL], errors, name)
            labels = self.labels(stream, prefixes=bool(curve))
            for n, at_n in (curve or by_n).items():
                for key, errors in at_n.items():
                    yield _risk(f"{stage}/excess_risk/{key}", errors, n, name, labels[key])

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

    def labels(self, stream: int | None = None, prefixes: bool = False) -> dict[str, str]:
        """What each estimator is called in figures and tables, with its settings on one stream or on all.

        The settings are those for whole prompts, or for their ``prefixes``.
        """
        same = defaultdict(list)
        for (of_stream, _, of_prefixes), references in self._settled.items():
            if stream in (None, of_stream) and prefixes == of_prefixes:
                for reference in references:
                    same[reference.key].append(reference)
        return {MODEL: MODEL} | {key: references[0].label(references) for key, references in same.items()}

    def summary(self, rows: pd.DataFrame) -> list[str]:
        tables = [self._table(name, of_stream) for name, of_stream in _by_stream(rows)]
        return [line for table in tables for line in ["", *table]][1:]

    def _table(self, name: str | None, rows: pd.DataFrame) -> list[str]:
        whole = rows[rows["n_points"].isna()]
        risks = whole[whole["metric"].str.contains("/excess_risk/")].sort_values("value")
        differences = whole[whole["metric"].str.endswith("/difference")].set_index("metric")
        prompts = f"{self.eval_prompts:,} {self._prompts(rows)}" + (f" of stream {name}" if name else "")
        lines = [
            f"Excess risk on {prompts} ({_numbers(self.n_points)} examples each),",
            "± 95 %, lowest first; and paired, the estimator's minus the model's:",
        ]
        for row in risks.itertuples():
            key = row.metric.rpartition("/")[2]
            first, *rest = textwrap.wrap(row.note, 38)
            paired = "  <- the model"
            if key != MODEL:
                d = differences.loc[f"against/{key}/difference"]
                paired = f"{d.value:>+9.3g} ± {(d.high - d.low) / 2:.2g}"
            lines.append(f"  {first:<38} {row.value:>9.4g} ± {(row.high - row.low) / 2:<7.2g} {paired}".rstrip())
            lines += [f"    {part}" for part in rest]
        return lines


def _prefix_errors(prefix_prediction: Tensor, prediction: Tensor, prompt: Prompt) -> Tensor:
    """The model's squared errors after 1 .. n examples: at the example that follows, and at the first query."""
    assert prompt.f is not None
    predicted = torch.cat([prefix_prediction[:, 1:], prediction[:, :1]], dim=1)
    f = torch.cat([prompt.f[:, 1:], prompt.f_query[:, :1]], dim=1)
    return squared_errors(predicted[..., None], f[..., None])


def _by_points(batches: Mapping[int, list[Errors]], module: ICLModule) -> dict[int, Errors]:
    return {n: _joined(errors, module) for n, errors in sorted(batches.items())}


def _joined(batches: list[Errors], module: ICLModule | None = None) -> Errors:
    """Per-prompt errors of all batches, and of all ranks where ``module`` is given."""
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return joined if module is None else {name: all_ranks(module, errors) for name, errors in joined.items()}


def _risk(metric: str, errors: Tensor, n_points: int | None, stream: str | None, note: str) -> Row:
    mean, error = mean_and_standard_error(errors)
    low, high = mean_interval(mean, error, len(errors)).tolist()
    return Row(metric, float(mean), low, high, n_points=n_points, stream=stream, note=note)


def _against(key: str, model: Tensor, other: Tensor, stream: str | None) -> Iterator[Row]:
    """Paired over prompts; the ratio's interval is that of its logarithm, since risks have long tails above."""
    both = torch.stack([model, other], dim=1)
    (log_error,) = jackknife_errors(both, lambda means: ((means[:, 0] / means[:, 1]).log(),))
    ratio = model.mean() / other.mean()
    low, high = mean_interval(ratio.log(), log_error, len(model)).exp().tolist()
    yield Row(f"against/{key}/ratio", float(ratio), low, high, stream=stream)
    yield _risk(f"against/{key}/difference", other - model, None, stream, "")._replace(note=None)


def _by_stream(rows: pd.DataFrame) -> list[tuple[str | None, pd.DataFrame]]:
    """The rows of each stream and its name, in order."""
    names = rows["stream"].drop_duplicates()
    return [(None, rows)] if names.isna().all() else [(name, rows[rows["stream"] == name]) for name in names.dropna()]


def _numbers(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"
