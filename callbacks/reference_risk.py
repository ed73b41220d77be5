"""The model's excess risk beside that of the reference estimators."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    all_ranks,
    check_at_least,
    datamodule,
    icl_module,
    log_scalars,
    save_figure,
)
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import (
    Case,
    Reference,
    check_references,
    default_references,
    every_prefix,
    whole_prompts,
)
from lightning_icl.functional.risk import mean_and_standard_error, squared_errors
from lightning_icl.module import ICLModule
from lightning_icl.transformer import TransformerOutput

Errors = dict[str, Tensor]
MODEL = "transformer"


class StreamRisks(NamedTuple):
    """Excess risks (mean, standard error) on one stream of prompts, by estimator.

    ``by_points`` has them for each number of examples; in the layouts that predict every example from those before
    it, for every number up to the largest, on the last ``curve_prompts`` prompts.
    """

    name: str | None
    overall: dict[str, figures.RiskAndError]
    by_points: dict[int, dict[str, figures.RiskAndError]]
    n_points: list[int]


class ReferenceRisk(Analysis):
    """Scores reference estimators on the very prompts the model is validated on.

    Logs val/excess_risk/<reference>, and val/<stream>/excess_risk/<reference> for each named validation stream (then
    the first also without its name); likewise test/... in ``test``. Figures: excess_risk (excess_risk_<stream> for a
    named one), and excess_risk_by_stream where there are several. TensorBoard's CUSTOM SCALARS tab overlays them all.

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
        self.results: list[StreamRisks] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._reset()
        for stream in range(len(datamodule(trainer).streams)):
            for reference in self.references or []:
                reference.check(self._case(trainer, icl_module(pl_module), stream))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(_chart_layout(datamodule(trainer).streams))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Prompt,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._score(trainer, icl_module(pl_module), "val", outputs, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Prompt,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._score(trainer, icl_module(pl_module), "test", outputs, batch, batch_idx, dataloader_idx)

    def _score(
        self,
        trainer: Trainer,
        module: ICLModule,
        stage: str,
        output: TransformerOutput,
        prompt: Prompt,
        batch_idx: int,
        stream: int,
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
        self._report(trainer, icl_module(pl_module), "test")
        self._forget()

    def _forget(self) -> None:
        self._errors.clear()
        self._curves.clear()

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        self._report(trainer, module, "val")

    def _report(self, trainer: Trainer, module: ICLModule, stage: str) -> None:
        self.stage = {"val": "validation", "test": "test"}[stage]
        self.results = []
        for stream, (name, *_) in enumerate(datamodule(trainer).streams):
            by_n = _by_points(self._errors[stream], module)
            curve = _by_points(self._curves[stream], module)
            everywhere = _joined(list(by_n.values()))
            self.results.append(
                StreamRisks(name, _risks(everywhere), {n: _risks(e) for n, e in (curve or by_n).items()}, list(by_n))
            )
            for group in _key_groups(stage, name, stream):
                log_scalars(module, {f"{group}/{k}": e.mean() for k, e in everywhere.items() if k != MODEL})
            save_figure(trainer, "_".join(filter(None, ["excess_risk", name])), self._figure(stream))
        if len(self.results) > 1:
            by_stream = {str(result.name): result.overall for result in self.results}
            save_figure(trainer, "excess_risk_by_stream", figures.risk_by_stream(by_stream, self.labels()))

    def _figure(self, stream: int) -> Figure:
        result = self.results[stream]
        prompts = f"{self.stage} prompts" + (f", stream {result.name}" if result.name else "")
        if len(result.by_points) == 1:
            return figures.risk_by_estimator(result.overall, self.labels(stream), prompts)
        labels = self.labels(stream, prefixes=bool(self._curves[stream]))
        return figures.risk_by_points(result.by_points, labels, prompts)

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

    def record(self) -> dict[str, Any]:
        """Each stream's risks, (mean, standard error) by estimator, overall and by number of examples."""
        labels = [self.labels(stream) for stream in range(len(self.results))]
        return {"streams": [result._asdict() | {"labels": of} for result, of in zip(self.results, labels, strict=True)]}

    def summary(self) -> list[str]:
        tables = [self._table(stream) for stream in range(len(self.results))]
        return [line for table in tables for line in ["", *table]][1:]

    def _table(self, stream: int) -> list[str]:
        result, labels = self.results[stream], self.labels(stream)
        width = max(len(labels[name]) for name in result.overall)
        prompts = f"{self.stage} prompts" + (f" of stream {result.name}" if result.name else "")
        lines = [f"Excess risk on {prompts} ({_numbers(result.n_points)} examples each), lowest first:"]
        for name, (risk, error) in sorted(result.overall.items(), key=lambda item: item[1][0]):
            mark = "  <- the model" if name == MODEL else ""
            lines.append(f"  {labels[name]:<{width}}  {risk:10.4g} +- {error:.2g}{mark}")
        return lines


def _prefix_errors(prefix_prediction: Tensor, prediction: Tensor, prompt: Prompt) -> Tensor:
    """The model's squared errors after 1 .. n examples: at the example that follows, and at the first query."""
    assert prompt.f is not None
    predicted = torch.cat([prefix_prediction[:, 1:], prediction[:, :1]], dim=1)
    f = torch.cat([prompt.f[:, 1:], prompt.f_query[:, :1]], dim=1)
    return squared_errors(predicted[..., None], f[..., None])


def _key_groups(stage: str, name: str | None, stream: int) -> list[str]:
    """Where a stream's risks are logged: a first stream also without its name, as what monitors a run expects."""
    unnamed = [f"{stage}/excess_risk"] if stream == 0 else []
    return unnamed + ([] if name is None else [f"{stage}/{name}/excess_risk"])


def _chart_layout(streams: Sequence[Any]) -> dict[str, dict[str, list[str | list[str]]]]:
    charts: dict[str, list[str | list[str]]] = {"model and references": ["Multiline", ["val/excess_risk/.*"]]}
    for name in (stream.name for stream in streams if stream.name is not None):
        charts[f"model and references, {name}"] = ["Multiline", [f"val/{name}/excess_risk/.*"]]
    return {"excess risk": charts}


def _by_points(batches: Mapping[int, list[Errors]], module: ICLModule) -> dict[int, Errors]:
    return {n: _joined(errors, module) for n, errors in sorted(batches.items())}


def _joined(batches: list[Errors], module: ICLModule | None = None) -> Errors:
    """Per-prompt errors of all batches, and of all ranks where ``module`` is given."""
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return joined if module is None else {name: all_ranks(module, errors) for name, errors in joined.items()}


def _risks(errors: Errors) -> dict[str, figures.RiskAndError]:
    return {name: _risk(e) for name, e in errors.items()}


def _risk(errors: Tensor) -> figures.RiskAndError:
    mean, error = mean_and_standard_error(errors)
    return float(mean), float(error)


def _numbers(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"
