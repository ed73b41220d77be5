"""How far the model is a network whose algorithm is known, and whether training from it makes it better."""

import copy
from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, check_at_least, datamodule
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.constructions import Construction
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.risk import mean_with_interval
from lightning_icl.instruments.alignment import state_alignment, weight_alignment, written
from lightning_icl.instruments.head_pattern import HeadPattern, head_pattern
from lightning_icl.instruments.importance import values_by_score
from lightning_icl.module import ICLModule
from lightning_icl.record.lines import plus_minus, wrapped
from lightning_icl.record.rows import Row
from lightning_icl.transformer import Transformer, as_transformer

KEPT = 0.8  # a layer's head pattern has stayed where no more than a fifth of its work has gone to other heads
ALIKE = 0.2  # a risk is called the same where it is so within this part of the construction's


class ConstructionComparison(Analysis):
    """The model beside a construction on the same held-out prompts: risk, states, weights and head pattern.

    Whatever the basis: how states and weights are aligned is told in lightning_icl.instruments.alignment. The
    construction is taken without its weight_noise, so that a model that starts with noise is compared with the
    algorithm itself. Heads are matched as they are numbered where the training started from this construction (the
    checkpoint knows), else by the size of their shares. Both networks compute in float64.
    Figure: construction, over training, once there have been two validations.

    Args:
        construction: what to compare with; the module's own (model.construction) if left out.
        n_prompts: number of held-out prompts to fit changes of basis on, and again as many to score on.
        chunk_size: prompts times head masks in one pass through a layer.
        every_n_validations: run at every n-th validation.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - class_path: ConstructionComparison
                  init_args:
                    construction: {class_path: ConstructedGD, init_args: {steps: 3, step_size: 0.2}}
    """

    shown = (r"construction/(risk/difference$|(weights|beyond_input|heads/overlap)/layer\d+$)",)
    course = r"construction/(risk/difference|weights|beyond_input|heads/overlap)$"

    def __init__(
        self,
        construction: Construction | None = None,
        n_prompts: int = 512,
        chunk_size: int = 512,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(2, n_prompts=n_prompts)
        check_at_least(1, chunk_size=chunk_size)
        self.construction, self.n_prompts, self.chunk_size = construction, n_prompts, chunk_size
        self._starts_from_it = False  # until it is measured: a checkpoint is loaded after setup

    def lacks(self, module: ICLModule) -> str | None:
        if isinstance(module.network, Transformer):
            return None
        return f"constructions are compared with a Transformer, and this network is a {type(module.network).__name__}"

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        compared = self.construction or module.construction
        if compared is None:
            raise InputError(
                "ConstructionComparison has no construction to compare with: give it one, such as {class_path: "
                "ConstructedGD, init_args: {steps: 3, step_size: 0.2}}, or start the model from one "
                "(model.construction)."
            )
        model, needed = as_transformer(module.network, "networks are compared"), compared.options(module.network.n_dims)
        if len(model.heads) != len(needed["heads"]):
            raise InputError(
                f"the construction ({compared}) has {len(needed['heads'])} layers and the model {len(model.heads)}, "
                "but they are compared layer by layer: give it other steps."
            )
        if model.layout == "alternating":
            raise InputError(
                "layout is 'alternating', but a construction's tokens are pairs (x, y): ConstructionComparison needs "
                "layout 'pairs' or 'prefixes'."
            )
        self._compared = compared

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data, size = datamodule(trainer), self.chunk_size
        fit, score = (
            data.held_out(name, self.n_prompts, module.device).double()
            for name in ("construction_fit", "construction_score")
        )
        with torch.autocast(module.device.type, enabled=False):
            model = copy.deepcopy(as_transformer(module.network, "networks are compared")).double()
            # Its weights have the model's precision, so that a model that is the construction differs by nothing.
            other = (
                written(self._compared.network(model.n_dims), model.n_dims)
                .to(module.device, next(module.network.parameters()).dtype)
                .double()
            )
            errors, values = values_by_score(model, score, ["leave_one_out"], chunk_size=size)
            other_errors, other_values = values_by_score(other, score, ["leave_one_out"], chunk_size=size)
            out = values["leave_one_out"], other_values["leave_one_out"]
            started, compared = module.started_as, self._compared.arguments()
            alike = {name: value for name, value in compared.items() if name not in ("weight_noise", "seed")}
            self._starts_from_it = started is not None and alike == {name: started.get(name) for name in alike}
            pattern = head_pattern(*out, model.heads, other.heads, self._starts_from_it)
            states = state_alignment(model, other, fit, score, size)
            weights = weight_alignment(model, other, fit, score, size)
        yield from self._risk_rows(errors, other_errors)
        for layer, of_states in enumerate(states):
            for name, found in (("states", of_states.r2), ("beyond_input", of_states.beyond_input)):
                yield Row(f"construction/{name}", found.value, *found.interval, layer=layer)
        for layer, of_weights in enumerate(weights, start=1):
            for name, found in (("weights", of_weights.cosine), ("step", of_weights.step)):
                yield Row(f"construction/{name}", found.value, *found.interval, layer=layer)
        yield from _pattern_rows(pattern)

    def _risk_rows(self, errors: Tensor, other_errors: Tensor) -> Iterator[Row]:
        yield Row("construction/risk/construction", *mean_with_interval(other_errors), note=str(self._compared))
        yield Row("construction/risk/model", *mean_with_interval(errors), note="the model")
        yield Row("construction/risk/difference", *mean_with_interval(errors - other_errors))
        yield Row("construction/risk/better", *mean_with_interval((errors < other_errors).double()))

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        course = self.over_training()
        return {"construction": figures.construction_course(course)} if course["step"].nunique() > 1 else {}

    def summary(self, rows: pd.DataFrame) -> list[str]:
        known = {str(metric): of.set_index("layer") for metric, of in rows.groupby("metric")}
        ours, theirs, difference, better = (
            known[f"construction/risk/{of}"].iloc[0] for of in ("model", "construction", "difference", "better")
        )
        return [
            f"The construction ({theirs['note']}):",
            f"  excess risk {plus_minus(theirs)} on {self.n_prompts:,} held-out prompts, the model's",
            f"  {plus_minus(ours)}: {self._risk_verdict(difference, theirs['value'])}",
            f"  (difference {plus_minus(difference, '+.3g')}, paired, 95 %);",
            f"  the model's is lower on {better['value']:.0%} of the prompts",
            *wrapped(f"use of heads: {self._heads_verdict(known['construction/heads/overlap'])}"),
            "  layer  states beyond  weights    step  work of the  effective heads of",
            "         the tokens R²   cosine   times   same heads  construction, model",
            *_layer_lines({metric: of["value"] for metric, of in known.items()}),
        ]

    def _risk_verdict(self, difference: pd.Series, theirs: float) -> str:
        """Better or worse beyond chance; the same only where the interval is narrow."""
        if difference["high"] < 0:
            return "it improved" if self._starts_from_it else "lower"
        if difference["low"] > 0:
            return "it rose" if self._starts_from_it else "higher"
        narrow = difference["high"] - difference["low"] < 2 * ALIKE * theirs
        return "the same within noise" if narrow else "these prompts cannot tell which is lower"

    def _heads_verdict(self, overlap: pd.DataFrame) -> str:
        """By layer: at least KEPT of the work beyond chance, or less than that, or neither."""
        alike = "as it was" if self._starts_from_it else "the same but for the order of heads"
        of = {
            alike: overlap["low"] >= KEPT,
            "another": overlap["high"] < KEPT,
            "not to be told": overlap["value"].notna() & (overlap["low"] < KEPT) & (overlap["high"] >= KEPT),
            "without shares to compare": overlap["value"].isna(),
        }
        layers = {said: ", ".join(map(str, overlap.index[at])) for said, at in of.items() if at.any()}
        return "; ".join(f"{said} in layer {places}" for said, places in layers.items())


def _layer_lines(values: Mapping[str, pd.Series]) -> list[str]:
    columns = {  # width and format
        "beyond_input": (13, ".3f"),
        "weights": (9, ".3f"),
        "step": (8, ".3g"),
        "heads/overlap": (13, ".0%"),
        "heads/effective/construction": (15, ".1f"),
        "heads/effective/model": (7, ".1f"),
    }
    lines = []
    for layer in values["construction/weights"].index:
        line = f"  {layer:<5}"
        for name, (width, number) in columns.items():
            value = values[f"construction/{name}"][layer]
            line += f"{'-' if pd.isna(value) else format(value, number):>{width}}"
        lines.append(line)
    return lines


def _pattern_rows(pattern: HeadPattern) -> Iterator[Row]:
    for i, overlap in enumerate(pattern.overlap):
        low, high = pattern.interval[:, i]
        yield Row("construction/heads/overlap", overlap, low, high, layer=i + 1)
        for name, found in (("construction", pattern.other), ("model", pattern.model)):
            effective = found.effective_heads
            low, high = effective.interval[:, i]
            yield Row(f"construction/heads/effective/{name}", effective.value[i], low, high, layer=i + 1)
