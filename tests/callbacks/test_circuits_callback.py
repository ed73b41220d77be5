"""Circuits: what it logs, keeps and draws."""

import math

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import Circuits
from lightning_icl.instruments.circuits import head_circuits
from lightning_icl.record import Row, frame, load_run
from lightning_icl.record.folder import set_run_folder


def test_every_map_is_kept_and_every_scalar_is_a_row(tmp_path):
    module, data, circuits = small_module(), small_data(), Circuits()
    trainer = small_trainer(tmp_path, [circuits])
    set_run_folder(trainer, tmp_path)
    trainer.validate(module, datamodule=data, verbose=False)
    (measured,) = load_run(tmp_path).measurements
    assert measured.arrays["coordinates"] == ["x1", "x2", "x3", "x4", "y", "1"]
    values = circuits.rows.set_index(["metric", "layer", "head"])["value"]
    assert len(values) == 5 * (4 + 2)
    for i, layer in enumerate(head_circuits(module.network)):
        for name, value in layer._asdict().items():
            if value.dim() == 1:
                for h, number in enumerate(value.tolist()):
                    assert values[f"circuits/{name}", i + 1, h + 1] == pytest.approx(number, rel=1e-6)
            else:
                np.testing.assert_allclose(measured.arrays[name][i], value.numpy())
    names = ("attention_patterns", "circuits_output_value", "circuits_prediction", "circuits_query_key")
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(names)
    assert not [name for name in trainer.callback_metrics if name.startswith("circuits")]


@pytest.mark.parametrize(
    "options",
    [
        {"heads": [0, 2], "norm": "none", "attention": "linear"},
        {"mask": "causal", "layout": "alternating"},
        {"mask": "causal", "layout": "prefixes", "heads": [1], "norm": "post"},
    ],
    ids=str,
)
def test_it_works_for_every_kind_of_model(tmp_path, options, undrawn):
    module, circuits = small_module(**options), Circuits()
    with torch.no_grad():
        module.network.layers[-1].attention.value.weight.zero_()  # heads that write nothing have no shares
    trainer = small_trainer(tmp_path, [circuits], precision="bf16-mixed")
    trainer.validate(module, datamodule=small_data(), verbose=False)
    last = len(module.network.heads)
    values = circuits.rows.set_index(["metric", "layer", "head"])["value"]
    assert np.isfinite(values["circuits/query_key_identity", last, 1])
    assert np.isnan(values["circuits/prediction_y", last, 1])
    assert circuits.summary(circuits.rows)


def test_the_closing_table_names_the_head_of_each_layer_that_is_most_a_gradient_step():
    shares = {
        1: [(0.9, 0.1, 3.0), (0.5, 0.5, -0.25)],
        2: [(math.nan, 0.9, 1.0), (0.2, 0.2, 0.5)],
        3: [(0.1, 0.1, None)],
        4: [(math.nan, 1.0, 0.0)],
    }
    rows = frame(
        Row(f"circuits/{name}", value, layer=layer, head=head)
        for layer, heads in shares.items()
        for head, values in enumerate(heads, start=1)
        for name, value in zip(("query_key_identity", "prediction_y", "step"), values, strict=True)
    )
    lines = Circuits().summary(rows)
    assert lines[2:] == [
        "  layer 1: head 2, 50% and 50%, step -0.25",
        "  layer 2: head 2, 20% and 20%, step 0.5",
        "  layer 4: no head compares x with x and writes to the prediction, directly",
    ]
    assert max(map(len, lines)) <= 80
