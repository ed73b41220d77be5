"""Circuits: what it logs, keeps and draws."""

import json

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_icl.callbacks import Circuits, figures
from lightning_icl.instruments.circuits import coordinates, head_circuits


def test_every_map_is_kept_and_every_scalar_logged(tmp_path):
    module, data, circuits = small_module(), small_data(), Circuits()
    trainer = small_trainer(tmp_path, [circuits])
    trainer.validate(module, datamodule=data, verbose=False)
    kept = json.loads((tmp_path / "results.json").read_text())["Circuits"][0]
    assert kept["coordinates"] == ["x1", "x2", "x3", "x4", "y", "1"]
    for i, layer in enumerate(head_circuits(module.transformer)):
        for name, value in layer._asdict().items():
            np.testing.assert_allclose(kept["layers"][i][name], value.numpy())
            if value.dim() == 1:
                for h, number in enumerate(value.tolist()):
                    logged = trainer.callback_metrics[f"circuits/{name}/layer{i + 1}/head{h + 1}"]
                    assert float(logged) == pytest.approx(number, rel=1e-6)
    names = ("attention_patterns", "circuits_output_value", "circuits_prediction", "circuits_query_key")
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(names)
    assert len(circuits.summary()) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"heads": [0, 2], "norm": "none", "attention": "linear"},
        {"mask": "causal", "layout": "alternating"},
        {"mask": "causal", "layout": "prefixes", "heads": [1], "norm": "post"},
    ],
    ids=str,
)
def test_it_works_for_every_kind_of_model(tmp_path, options, monkeypatch):
    monkeypatch.setattr("lightning_icl.callbacks.circuits.save_figure", lambda *_: None)  # made, but not rendered
    module, circuits = small_module(**options), Circuits()
    with torch.no_grad():
        module.transformer.layers[-1].attention.value.weight.zero_()  # heads that write nothing have no shares
    trainer = small_trainer(tmp_path, [circuits], precision="bf16-mixed")
    trainer.validate(module, datamodule=small_data(), verbose=False)
    last = len(module.transformer.heads)
    assert f"circuits/query_key_identity/layer{last}/head1" in trainer.callback_metrics
    assert f"circuits/prediction_y/layer{last}/head1" not in trainer.callback_metrics
    assert circuits.summary()


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
