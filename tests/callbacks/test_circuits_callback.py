"""Circuits: what it logs, keeps and draws."""

import math

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl import figures
from lightning_icl.callbacks import Circuits
from lightning_icl.instruments.circuits import coordinates, head_circuits
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
    for i, layer in enumerate(head_circuits(module.transformer)):
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
        module.transformer.layers[-1].attention.value.weight.zero_()  # heads that write nothing have no shares
    trainer = small_trainer(tmp_path, [circuits], precision="bf16-mixed")
    trainer.validate(module, datamodule=small_data(), verbose=False)
    last = len(module.transformer.heads)
    values = circuits.rows.set_index(["metric", "layer", "head"])["value"]
    assert np.isfinite(values["circuits/query_key_identity", last, 1])
    assert np.isnan(values["circuits/prediction_y", last, 1])
    assert circuits.summary(circuits.rows)


def test_the_closing_table_names_the_head_of_each_layer_that_is_most_a_gradient_step():
    shares = {
        1: [(0.9, 0.1, 3.0), (0.5, 0.5, -0.25)],
        2: [(math.nan, 0.9, 1.0), (0.2, 0.2, 0.5)],
        3: [(0.1, 0.1, None)],
    }
    rows = frame(
        Row(f"circuits/{name}", value, layer=layer, head=head)
        for layer, heads in shares.items()
        for head, values in enumerate(heads, start=1)
        for name, value in zip(("query_key_identity", "prediction_y", "step"), values, strict=True)
    )
    lines = Circuits().summary(rows)
    assert lines[2:] == ["  layer 1: head 2, 50% and 50%, step -0.25", "  layer 2: head 2, 20% and 20%, step 0.5"]
    assert max(map(len, lines)) <= 80


def test_tiles_hold_the_maps_of_the_first_sixteen_heads(generator):
    maps = [torch.randn(n, 4, 4, generator=generator) for n in (18, 0, 2)]
    figure = figures.query_key_maps(maps, coordinates(2))
    assert "the first 16 heads" in figure.get_suptitle()
    tiles, bars = figure.axes[:3], figure.axes[3:]
    assert len(bars) == 2  # a layer without heads has no colour scale
    assert not list(tiles[1].get_yticks())
    drawn = [axes.images[0].get_array().filled(np.nan) for axes in tiles]
    for layer, mosaic in zip(maps, drawn, strict=True):
        for h, tile in enumerate(layer[:16]):
            np.testing.assert_array_equal(mosaic[:, 5 * h : 5 * h + 4], tile)
        assert np.isnan(mosaic[:, 5 * min(len(layer), 16) :]).all()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x1", "x2", "y", "1"]


def test_attention_shows_the_context_and_the_first_queries(generator):
    patterns = [torch.rand(2, 3 + 6, 3, generator=generator).softmax(-1)]
    figure = figures.attention_maps(patterns, first_query=3)
    shown = figure.axes[0].images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(shown[:, :3], patterns[0][0, :7])
    assert figure.axes[0].images[0].norm.vmin == 0
    assert "the first 4 of its queries" in figure.get_suptitle()
    FigureCanvasAgg(figure).draw()
    title = figure._suptitle.get_window_extent()
    assert figure.bbox.x0 <= title.x0
    assert title.x1 <= figure.bbox.x1


def test_many_coordinates_are_named_at_their_kinds_only(generator):
    figure = figures.prediction_rows([torch.randn(3, 42, generator=generator)] * 5, coordinates(40))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x1", "y", "1"]
