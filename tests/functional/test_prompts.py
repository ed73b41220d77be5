"""Prompts and token layouts against arrays spelled out by hand."""

import itertools

import pytest
import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import (
    Prompt,
    concatenated,
    tokens,
)
from lightning_icl.functional.tasks import SparseLinearRegression

SHAPES = [(2, 3, 2, 2), (1, 1, 1, 1), (1, 4, 3, 1), (3, 1, 5, 2)]  # batch, points, dims, queries
LAYOUTS = ["pairs", "prefixes", "alternating"]


def numbered(batch=4, points=3, dims=2, queries=2, with_w=True):
    """A prompt whose entries are all different, so that a misplaced one shows."""
    shapes = [(batch, points, dims), (batch, points), (batch, queries, dims), (batch, queries), (batch, queries)]
    fields = [100.0 * i + 1 + torch.arange(torch.Size(s).numel()).reshape(s) for i, s in enumerate(shapes)]
    return Prompt(*fields, w=500.0 + torch.arange(batch * dims).reshape(batch, dims) if with_w else None)


def assert_same(first, second):
    for name, a, b in zip(Prompt._fields, first, second, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_pair_tokens_by_hand():
    x, y, x_query = [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0], [[7.0, 8.0], [9.0, 10.0]]
    prompt = Prompt(*(torch.tensor([field]) for field in (x, y, x_query, [50.0, 60.0], [70.0, 80.0], [90.0, 91.0])))
    expected = torch.tensor([[[1.0, 2.0, 5.0], [3.0, 4.0, 6.0], [7.0, 8.0, 0.0], [9.0, 10.0, 0.0]]])
    torch.testing.assert_close(tokens(prompt, "pairs"), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("batch", "points", "dims", "queries"), SHAPES)
def test_pair_tokens_equal_a_loop(batch, points, dims, queries):
    prompt = numbered(batch, points, dims, queries)
    pairs = tokens(prompt, "pairs")
    assert pairs.shape == (batch, points + queries, dims + 1)
    for b in range(batch):
        expected = [[*prompt.x[b, i].tolist(), prompt.y[b, i].item()] for i in range(points)]
        expected += [[*prompt.x_query[b, q].tolist(), 0.0] for q in range(queries)]
        assert pairs[b].tolist() == expected


def test_prefix_and_alternating_tokens_by_hand():
    x, y, x_query = [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0], [[7.0, 8.0]]
    prompt = Prompt(*(torch.tensor([field]) for field in (x, y, x_query, [50.0], [70.0], [90.0, 91.0])))
    query = [7.0, 8.0, 0.0]
    prefixes = [[1.0, 2.0, 5.0], [3.0, 4.0, 6.0], [1.0, 2.0, 0.0], [3.0, 4.0, 0.0], query]
    alternating = [[1.0, 2.0, 0.0], [0.0, 0.0, 5.0], [3.0, 4.0, 0.0], [0.0, 0.0, 6.0], query]
    assert tokens(prompt, "prefixes")[0].tolist() == prefixes
    assert tokens(prompt, "alternating")[0].tolist() == alternating


@pytest.mark.parametrize(("batch", "points", "dims", "queries"), SHAPES)
def test_every_layout_equals_a_loop(batch, points, dims, queries):
    prompt = numbered(batch, points, dims, queries)
    found = {layout: tokens(prompt, layout) for layout in LAYOUTS}
    for b in range(batch):
        pairs = [[*prompt.x[b, i].tolist(), prompt.y[b, i].item()] for i in range(points)]
        unlabelled = [[*prompt.x[b, i].tolist(), 0.0] for i in range(points)]
        labels = [[0.0] * dims + [prompt.y[b, i].item()] for i in range(points)]
        questions = [[*prompt.x_query[b, q].tolist(), 0.0] for q in range(queries)]
        alternating = [token for both in zip(unlabelled, labels, strict=True) for token in both]
        assert found["pairs"][b].tolist() == pairs + questions
        assert found["prefixes"][b].tolist() == pairs + unlabelled + questions
        assert found["alternating"][b].tolist() == alternating + questions


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_hold_nothing_of_the_answers(layout):
    prompt = numbered()
    answers = {name: -getattr(prompt, name) for name in ("y_query", "f_query", "w")}
    prompt, other = prompt._replace(f=prompt.y - 1), prompt._replace(f=prompt.y + 1, **answers)
    torch.testing.assert_close(tokens(other, layout), tokens(prompt, layout), rtol=0, atol=0)


@pytest.mark.parametrize("with_w", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (2, 3), (3, 9)])
def test_rows_takes_those_prompts_of_every_field(start, stop, with_w):
    prompt = numbered(with_w=with_w).padded_after(2)
    taken = prompt.rows(start, stop)
    assert (taken.w is not None) == with_w
    for name, field in zip(Prompt._fields, taken, strict=True):
        if field is not None:
            assert field.tolist() == [getattr(prompt, name)[b].tolist() for b in range(start, min(stop, 4))], name


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("n_points", [1, 2, 3])
def test_first_takes_those_examples_of_every_field_that_has_them(n_points, masked):
    prompt = numbered()
    prompt = prompt._replace(f=prompt.y + 50)
    prompt = prompt.padded_after(2) if masked else prompt
    found = prompt.first(n_points)
    for name, before, after in zip(Prompt._fields, prompt, found, strict=True):
        if before is None:
            assert after is None
        elif name in ("x", "y", "point_mask", "f"):
            assert after.tolist() == [row.tolist()[:n_points] for row in before], name
        else:
            assert after is before, name
    assert numbered().first(n_points).f is None


@pytest.mark.parametrize("with_w", [True, False])
def test_double_changes_the_type_of_numbers_alone(with_w):
    prompt = numbered(with_w=with_w).padded_after(2)
    doubled = prompt.double()
    assert doubled.point_mask.dtype == torch.bool
    assert {field.dtype for field in doubled[:5]} == {torch.float64}
    assert_same(doubled, Prompt(*(f if f is None or f.dtype == torch.bool else f.to(torch.float64) for f in prompt)))
    assert numbered().double().point_mask is None


@pytest.mark.parametrize("with_w", [True, False])
@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 4), (0, 1, 2, 3, 4)])
def test_concatenated_undoes_rows(cuts, with_w):
    for prompt in (numbered(with_w=with_w), numbered(with_w=with_w).padded_after(2)):
        parts = [prompt.rows(a, b) for a, b in itertools.pairwise(cuts)]
        assert_same(concatenated(parts), prompt)


@pytest.mark.parametrize("padded_first", [True, False])
def test_concatenated_with_unpadded_prompts_keeps_padding_masked(padded_first):
    parts, masks = [numbered(2).padded_after(1), numbered(1)], [[[True, False, False]] * 2, [[True] * 3]]
    order = [0, 1] if padded_first else [1, 0]
    joined = concatenated([parts[i] for i in order])
    assert joined.point_mask is not None
    assert joined.point_mask.tolist() == masks[order[0]] + masks[order[1]]


@pytest.mark.parametrize("n_points", [0, 1, 2, 3, 7])
def test_padded_after_blanks_and_masks_the_rest(n_points):
    prompt = numbered(points=3)
    padded = prompt.padded_after(n_points)
    assert padded.point_mask.tolist() == [[i < n_points for i in range(3)]] * 4
    assert not padded.x[:, n_points:].any()
    assert not padded.y[:, n_points:].any()
    assert_same(
        padded._replace(x=padded.x[:, :n_points], y=padded.y[:, :n_points], point_mask=None),
        prompt._replace(x=prompt.x[:, :n_points], y=prompt.y[:, :n_points]),
    )


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 2)])
def test_padding_twice_keeps_the_shorter(first, second):
    prompt = numbered(points=3)
    assert_same(prompt.padded_after(first).padded_after(second), prompt.padded_after(min(first, second)))


@pytest.mark.parametrize("with_w", [True, False])
@pytest.mark.parametrize("n_dims", [2, 3, 5])
def test_widened_appends_zeros_to_the_dimensions_alone(n_dims, with_w):
    prompt = numbered(dims=2, with_w=with_w)
    wide = prompt.widened(n_dims)
    changed = ("x", "x_query", "w") if with_w else ("x", "x_query")
    for name in changed:
        assert getattr(wide, name).shape[-1] == n_dims
        assert not getattr(wide, name)[..., 2:].any()
    assert_same(wide._replace(**{name: getattr(wide, name)[..., :2] for name in changed}), prompt)


def test_chunks_are_the_rows_in_order_and_copies_share_no_memory():
    prompt = SparseLinearRegression(3, 2).sample(5, 4, 2, torch.Generator().manual_seed(0))
    parts = prompt.chunks(2)
    assert [len(part.x) for part in parts] == [2, 2, 1]
    for whole, *pieces in zip(prompt, *parts, strict=True):
        assert (whole is None and not any(pieces)) or torch.equal(torch.cat(pieces), whole)
    copied = prompt.copied()
    for field, other in zip(prompt, copied, strict=True):
        assert (field is None and other is None) or (torch.equal(field, other) and field.data_ptr() != other.data_ptr())


@pytest.mark.parametrize("n_real", [1, 3, 5])
def test_padding_does_not_count_as_points_and_is_refused_where_all_are_needed(n_real):
    whole = numbered(batch=4, points=5)
    assert whole.n_points().tolist() == 4 * [5.0]
    assert whole.unpadded() is whole
    padded = concatenated([whole.rows(0, 3), whole.padded_after(n_real).rows(3, 4)])
    assert padded.n_points().tolist() == [5.0, 5.0, 5.0, n_real]
    if n_real == 5:
        assert padded.unpadded().point_mask is None
        return
    with pytest.raises(InputError, match=rf"all 5 examples .* prompt.first\({n_real}\)"):
        padded.unpadded()
    assert padded.first(n_real).unpadded().x.shape[1] == n_real


def test_what_is_padded_is_zero_whatever_it_held():
    prompt = numbered()
    held = prompt._replace(x=prompt.x.index_fill(1, torch.tensor([2]), torch.nan)).padded_after(2)
    assert (held.x[:, 2] == 0).all()
    assert torch.equal(held.x[:, :2], prompt.x[:, :2])
