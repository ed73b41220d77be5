"""Each head's circuits in input coordinates, and where it attends."""

import torch
from lightning.pytorch import Trainer

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import Analysis, datamodule, log_scalars, save_figure
from lightning_icl.instruments.circuits import LayerCircuits, attention_patterns, coordinates, head_circuits
from lightning_icl.module import ICLModule

SCALARS = ("query_key_identity", "output_value_y", "prediction_y", "within_input", "step")


class Circuits(Analysis):
    """Every head's query-key and output-value maps in the coordinates (x, y, 1) of the tokens, and attention patterns.

    The maps are of the weights alone, exact for a first layer without norm, else the direct path without the norms'
    scales: see lightning_icl.instruments.circuits. results.json has them in full.

    Logs, counting from 1, circuits/<scalar>/layer{l}/head{h}: query_key_identity (share of the query-key map from x to
    x that is a multiple of the identity), output_value_y (share of the output-value map that takes y to y),
    prediction_y (share of its direct effect on the prediction that weighs y), within_input (share of what it writes
    that lies in the span of the read-in) and step (size of the gradient step that these add up to). Formulas:
    lightning_icl.instruments.circuits.LayerCircuits.
    Figures: circuits_query_key, circuits_output_value, circuits_prediction, and attention_patterns on one held-out
    prompt.

    Args:
        every_n_validations: run at every n-th validation.
    """

    def __init__(self, every_n_validations: int = 1) -> None:
        super().__init__(every_n_validations)
        self.result: list[LayerCircuits] = []

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        transformer = module.transformer
        with torch.autocast(module.device.type, enabled=False):
            self.result = [LayerCircuits._make(m.cpu() for m in layer) for layer in head_circuits(transformer)]
        self._names = coordinates(transformer.n_dims)
        log_scalars(module, self._scalars())
        query_key = [layer.query_key for layer in self.result]
        save_figure(trainer, "circuits_query_key", figures.query_key_maps(query_key, self._names))
        output_value = [layer.output_value for layer in self.result]
        save_figure(trainer, "circuits_output_value", figures.output_value_maps(output_value, self._names))
        prediction = [layer.prediction for layer in self.result]
        save_figure(trainer, "circuits_prediction", figures.prediction_rows(prediction, self._names))
        prompt = datamodule(trainer).held_out("attention_patterns", 2, module.device).rows(0, 1)
        patterns = [pattern[0].float().cpu() for pattern in attention_patterns(transformer, prompt)]
        first_query = patterns[0].shape[1] - prompt.x_query.shape[1]
        save_figure(trainer, "attention_patterns", figures.attention_maps(patterns, first_query))

    def _scalars(self) -> dict[str, float]:
        return {
            f"circuits/{name}/layer{i + 1}/head{h + 1}": float(value)
            for i, layer in enumerate(self.result)
            for name in SCALARS
            for h, value in enumerate(getattr(layer, name))
        }

    def record(self) -> dict[str, object]:
        return {"coordinates": self._names, "layers": self.result} if self.result else {}

    def summary(self) -> list[str]:
        if not self.result:
            return []
        lines = ["Circuits: the head of each layer that is most a gradient step (share of identity in x-x, of y in v):"]
        for i, layer in enumerate(self.result):
            if not len(layer.step) or layer.step.isnan().all():
                continue
            h = int((layer.query_key_identity * layer.prediction_y).nan_to_num().argmax())
            identity, y = float(layer.query_key_identity[h]), float(layer.prediction_y[h])
            lines.append(f"  layer {i + 1}: head {h + 1}, {identity:.0%} and {y:.0%}, step {float(layer.step[h]):.3g}")
        return lines
