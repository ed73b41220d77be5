"""Which differences between a checkpoint's options and a config's are differences."""

import pytest

from lightning_icl import ICLModule
from lightning_icl.checkpoint import check_options, step_of
from lightning_icl.functional.errors import InputError

SHAPE = {"d_model": 16, "heads": [4, 2], "mlp": True}


def checked(saved, asked, resuming=False):
    check_options("some.ckpt", SHAPE | saved, SHAPE | asked, resuming)


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ({"head_dim": [4, 8]}, {"head_dim": [4, 8]}),
        ({"head_dim": None}, {"head_dim": [4, 8]}),
        ({"head_dim": [3, 3]}, {"head_dim": 3}),
        ({"head_dim": 5}, {"head_dim": (5, 5)}),
        ({}, {"head_dim": None, "layout": "pairs"}),
        ({}, {"head_dim": [4, 8]}),
        ({"heads": (4, 0), "head_dim": [4, 8]}, {"heads": [4, 0], "head_dim": [4, 8]}),
    ],
)
def test_head_sizes_that_are_the_same_written_otherwise_agree(saved, asked):
    checked(saved, asked)


@pytest.mark.parametrize(
    ("saved", "asked", "said"),
    [
        ({"head_dim": [4, 8]}, {"head_dim": [4, 4]}, r"model.head_dim = \[4, 8\], but the config asks for \[4, 4\]"),
        ({"head_dim": [4, 8]}, {"head_dim": 4}, r"model.head_dim = \[4, 8\], but the config asks for 4"),
        ({}, {"head_dim": 4}, "model.head_dim = None, but the config asks for 4"),
        ({}, {"layout": "prefixes"}, "model.layout = pairs, but the config asks for prefixes"),
        ({"heads": [4, 1], "head_dim": [4, 8]}, {}, r"model.heads = \[4, 1\], but the config asks for \[4, 2\]"),
    ],
)
def test_another_shape_is_refused_also_where_an_old_checkpoint_does_not_say(saved, asked, said):
    with pytest.raises(InputError, match=said):
        checked(saved, asked)


def test_a_checkpoint_of_before_the_noisy_default_is_evaluated_but_does_not_go_on_with_another_target():
    asked = {"target": ICLModule(n_dims=3, **SHAPE).target}
    checked({"target": "noise_free"}, asked)
    with pytest.raises(InputError, match=r"with model.target = noise_free, but the config asks for noisy; use the con"):
        checked({"target": "noise_free"}, asked, resuming=True)
    checked({"target": "noise_free"}, {"target": "noise_free"}, resuming=True)


@pytest.mark.parametrize(
    ("state", "whole"),
    [({}, True), ({"validated_at": 4}, True), ({"validated_at": 2}, False), ({"validated_at": -1}, False)],
)
def test_whether_the_validation_of_its_step_is_behind_a_checkpoint(state, whole):
    assert step_of({"global_step": 4} | ({"lightning_icl": state} if state else {})) == (4, whole)
