"""What each layer's states know, read out linearly."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, check_at_least, datamodule, progress
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import Estimate, check_strength, mean_estimate
from lightning_icl.functional.risk import squared_errors
from lightning_icl.instruments.probing import Readings, descent_curves, probe_layers, reference_levels
from lightning_icl.module import ICLModule
from lightning_icl.network import InContextNetwork
from lightning_icl.record.lines import plus_minus, wrapped
from lightning_icl.record.rows import Row

CONTEXT_POINTS = 8  # or all, where prompts have fewer
TOLD = ("w", "support", "r_hat", "preprocessed", "ridge")  # targets of the closing table besides f


class LinearProbe(Analysis):
    """Closed-form ridge probes of the states after the read-in (layer 0) and after each layer, with controls.

    Fitted on one set of prompts, their strength chosen on a second, scored on a third. What is probed for, where and
    beside which controls: ``lightning_icl.instruments.probing.probe_layers``; the untrained network has the model's
    architecture and weights of a fixed seed (no such control, where none can be made).

    In the rows' names <token> is query or context, <target> f, w, support, r_hat, preprocessed (R_hat x),
    least_squares, ridge, gd_{t} or preprocess_then_gd_{t} (the algorithms' predictions at the token's x;
    t = 1 .. depth) and <arm> trained, untrained or shuffled. Beside the risk of f: the curves of gd and
    preprocess_then_gd after layer - 1 steps, and the levels of ridge, of Bayes where its posterior can be computed, and
    of the model (transformer). An R^2 of what is constant has no value.
    Figures: linear_probe, these risks; probe_map, R^2 of every target and layer.

    Args:
        n_prompts: number of prompts to fit on, and again as many to choose the strength on and to score on.
        alpha: a fixed ridge strength, multiplying the sum of squared weights against the sum of squared errors; chosen
            for each target and layer if left out.
        context_points: examples of a prompt, spread evenly, whose tokens are probed.
        chunk_size: prompts in one forward pass.
        every_n_validations: run at every n-th validation.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - {class_path: LinearProbe, init_args: {n_prompts: 1024, every_n_validations: 2}}
    """

    shown = (r"probe/query/f/trained/risk/layer\d+$",)

    def __init__(
        self,
        n_prompts: int = 1024,
        alpha: float | None = None,
        context_points: int = CONTEXT_POINTS,
        chunk_size: int = 512,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(2, n_prompts=n_prompts)
        check_at_least(1, context_points=context_points, chunk_size=chunk_size)
        if alpha is not None:
            check_strength(alpha)
        self.n_prompts, self.alpha, self.context_points, self.chunk_size = n_prompts, alpha, context_points, chunk_size
        self._architecture: dict[str, Any] | None = None
        self._untrained: InContextNetwork | Readings | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._architecture = None  # the prompts may be others

    def lacks(self, module: ICLModule) -> str | None:
        return None if module.has_states else "this network shows no states"

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        n_points = data.streams[0].largest_n
        if self.context_points > max(n_points, CONTEXT_POINTS):
            raise InputError(f"context_points is {self.context_points}, but the prompts have {n_points} examples.")

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data, network = datamodule(trainer), module.network
        names = ("probe_fit", "probe_choose", "probe_score")
        fit, choose, score = (data.held_out(name, self.n_prompts, module.device) for name in names)
        if self._architecture != network.options:
            self._architecture, self._untrained = dict(network.options), network.untrained()
        task, bar, sizes = data.streams[0].task, partial(progress, trainer), (self.context_points, self.chunk_size)
        table = probe_layers(network, task, fit, choose, score, self._untrained, self.alpha, *sizes, bar)
        self._untrained = table.untrained  # the same at every validation
        for probe in table.rows:
            for name, found, note in probe.numbers():
                yield _row(f"probe/{probe.token}/{probe.target}/{name}", found, probe.layer, note)
        predicted = torch.cat([module(part) for part in score.chunks(self.chunk_size)])
        yield _row("probe/level/transformer", mean_estimate(squared_errors(predicted, score.f_query)), note="the model")
        with torch.autocast(module.device.type, enabled=False):
            for name, (risk, label) in reference_levels(task, fit, score).items():
                yield _row(f"probe/level/{name}", risk, note=label)
            for name, curve in descent_curves(score, module.depth).items():
                for layer, risk in enumerate(curve, start=1):
                    yield _row(f"probe/curve/{name}", risk, layer)

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        return {"linear_probe": figures.probe_risks(rows), "probe_map": figures.probe_map(rows)}

    def summary(self, rows: pd.DataFrame) -> list[str]:
        known = {metric: of for metric, of in rows.set_index("layer").groupby("metric") if metric.startswith("probe/")}
        risks = known["probe/query/f/trained/risk"]["value"]
        by_layer = ", ".join(f"{layer}: {risk:.3g}" for layer, risk in risks.items())
        return [
            "Excess risk of a linear probe of the query's state for f(x_q), by layer (0 is",
            f"the read-in), on {self.n_prompts:,} held-out prompts:",
            *wrapped(by_layer),
            "What else the query's state knows: R^2 where it is highest, and how far that is",
            "above the untrained network's there (± 95 %):",
            *(_best_layer(target, known) for target in TOLD if f"probe/query/{target}/trained/r2" in known),
        ]


def _best_layer(target: str, known: Mapping[str, pd.DataFrame]) -> str:
    r2, place = known[f"probe/query/{target}/trained/r2"], f"probe/query/{target}"
    name = "R_hat x_q" if target == "preprocessed" else target
    if r2["value"].isna().all():
        return f"  {name}: constant on these prompts"
    layer = r2["value"].idxmax()
    at = plus_minus(r2.loc[layer], ".3f")
    if r2["low"][layer] <= 0:
        said = f"  {name}: not above 0 in any layer, {at} at most"
    else:
        said = f"  {name}: {at} in layer {layer}"
        if (selectivity := f"{place}/selectivity/untrained") in known:
            said += f", {plus_minus(known[selectivity].loc[layer], '.3f')} above"
    if (auc := f"{place}/trained/auc") in known:
        said += f"; AUC {plus_minus(known[auc].loc[layer], '.3f')}"
    return said


def _row(metric: str, estimate: Estimate, layer: int | None = None, note: str | None = None) -> Row:
    return Row(metric, estimate.value, *estimate.interval, layer=layer, note=note)
