"""Each head's circuits in input coordinates, and where it attends."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, datamodule
from lightning_icl.instruments.circuits import LayerCircuits, attention_patterns, coordinates, head_circuits
from lightning_icl.module import ICLModule
from lightning_icl.record.rows import Row
from lightning_icl.transformer import Transformer, as_transformer

MAPS = ("query_key", "output_value", "prediction")
SCALARS = ("query_key_identity", "output_value_y", "prediction_y", "within_input", "step")


class Circuits(Analysis):
    """Every head's query-key and output-value maps in the coordinates (x, y, 1) of the tokens, and attention patterns.

    The maps are of the weights alone, exact for a first layer without norm, else the direct path without the norms'
    scales; what they and the rows' scalars are: lightning_icl.instruments.circuits. The record has the maps in full, by
    layer and head, beside the names of their coordinates.
    Figures: circuits_query_key, circuits_output_value, circuits_prediction, and attention_patterns on one held-out
    prompt.

    Args:
        every_n_validations: run at every n-th validation.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - {class_path: Circuits, init_args: {every_n_validations: 10}}
    """

    shown = ()

    def lacks(self, module: ICLModule) -> str | None:
        if isinstance(module.network, Transformer):
            return None
        return f"circuits are read from a Transformer's weights, and this network is a {type(module.network).__name__}"

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        transformer = as_transformer(module.network, "circuits are")
        with torch.autocast(module.device.type, enabled=False):
            self.found = [LayerCircuits._make(m.cpu() for m in layer) for layer in head_circuits(transformer)]
        self.names = coordinates(transformer.n_dims)
        prompt = datamodule(trainer).held_out("attention_patterns", 2, module.device).rows(0, 1)
        self.patterns = [pattern[0].float().cpu() for pattern in attention_patterns(transformer, prompt)]
        self.first_query = self.patterns[0].shape[1] - prompt.x_query.shape[1]
        for name in SCALARS:
            for layer, found in enumerate(self.found, start=1):
                for head, value in enumerate(getattr(found, name), start=1):
                    yield Row(f"circuits/{name}", float(value), layer=layer, head=head)

    def arrays(self) -> Mapping[str, Any]:
        return {"coordinates": self.names} | {name: self._maps(name) for name in MAPS}

    def _maps(self, name: str) -> list[torch.Tensor]:
        return [getattr(layer, name) for layer in self.found]

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        return {
            "circuits_query_key": figures.query_key_maps(self._maps("query_key"), self.names),
            "circuits_output_value": figures.output_value_maps(self._maps("output_value"), self.names),
            "circuits_prediction": figures.prediction_rows(self._maps("prediction"), self.names),
            "attention_patterns": figures.attention_maps(self.patterns, self.first_query),
        }

    def summary(self, rows: pd.DataFrame) -> list[str]:
        lines = [
            "Circuits: the head of each layer that is most a gradient step (share of the",
            "identity in x-x, of y in the prediction):",
        ]
        places = rows.set_index(["metric", "layer", "head"])["value"]
        identity, y, step = (places[f"circuits/{name}"] for name in ("query_key_identity", "prediction_y", "step"))
        for layer, shares in (identity * y)[step.notna()].groupby(level="layer"):
            said = "no head compares x with x and writes to the prediction, directly"
            if shares.notna().any():
                at = shares.idxmax()
                said = f"head {at[1]}, {identity[at]:.0%} and {y[at]:.0%}, step {step[at]:.3g}"
            lines.append(f"  layer {layer}: {said}")
        return lines
