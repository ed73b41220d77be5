"""Heads' maps and attention patterns: each tile holds its head's."""

import numpy as np
import pytest
import torch
from artists import assert_nothing_covers_anything

from lightning_icl.figures import circuits
from lightning_icl.instruments.circuits import coordinates


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return lambda *shapes: [torch.randn(*shape, generator=generator) for shape in shapes]


def layer_axes(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def shown(axes):
    return axes.images[0].get_array().filled(np.nan)


def test_tiles_hold_the_maps_of_the_first_sixteen_heads_eight_to_a_row(maps):
    drawn = maps((18, 4, 4), (0, 4, 4), (2, 4, 4))
    figure = circuits.query_key_maps(drawn, coordinates(2))
    first, second, none, last = layer_axes(figure)
    assert len(figure.axes) == 4 + 2  # a layer without heads has no colour scale
    assert "the first 16 heads" in figure.get_suptitle()
    assert [text.get_text() for text in none.texts] == ["no heads"]
    for axes, heads in ((first, drawn[0][:8]), (second, drawn[0][8:16]), (last, drawn[2])):
        for h, tile in enumerate(heads):
            np.testing.assert_array_equal(shown(axes)[:, 5 * h : 5 * h + 4], tile)
        assert np.isnan(shown(axes)[:, 5 * len(heads) :]).all()
    assert [text.get_text() for text in second.texts] == [f"head {h}" for h in range(9, 17)]
    scales = [(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in (first, second)]
    assert scales[0] == scales[1] == pytest.approx((float(drawn[0][:16].min()), float(drawn[0][:16].max())))
    assert [label.get_text() for label in first.get_yticklabels()] == ["x1", "x2", "y", "1"]
    assert_nothing_covers_anything(figure)


def test_output_value_maps_name_what_is_added(maps):
    (axes,) = layer_axes(circuits.output_value_maps(maps((1, 3, 4)), coordinates(2)))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x1", "x2", "y"]


def test_attention_shows_the_context_and_the_first_queries_below_a_line(maps):
    (pattern,) = maps((2, 3 + 6, 3))
    figure = circuits.attention_maps([pattern.softmax(-1)], first_query=3)
    (axes,) = layer_axes(figure)
    np.testing.assert_array_equal(shown(axes)[:, :3], pattern.softmax(-1)[0, :7])
    assert axes.images[0].norm.vmin == 0
    lines = [segment[:, 1].tolist() for drawn in axes.collections for segment in drawn.get_segments()]
    assert lines == [[2.5, 2.5]] * 2  # one a head
    assert "the first 4 of its queries" in figure.get_suptitle()
    assert_nothing_covers_anything(figure)


def test_predictions_have_a_row_a_head(maps):
    drawn = maps((3, 6), (0, 6), (1, 6))
    figure = circuits.prediction_rows(drawn, coordinates(4))
    first, none, last = layer_axes(figure)
    np.testing.assert_array_equal(shown(first), drawn[0])
    np.testing.assert_array_equal(shown(last), drawn[2])
    assert [text.get_text() for text in none.texts] == ["no heads"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["1", "2", "3"]
    assert_nothing_covers_anything(figure)


def test_many_coordinates_are_named_at_their_kinds_only(maps):
    figure = circuits.prediction_rows(maps(*[(3, 42)] * 5), coordinates(40))
    for axes in layer_axes(figure):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["x1", "y 1"]
