"""The options of an analysis, whatever a user's own takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_icl.functional.references import Ridge
from lightning_icl.record.context import options


class Mine:
    def __init__(self, option):
        self.option = option


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (np.arange(2), [0, 1]),
        (Path("a") / "b", "a/b"),
        ({3}, "{3}"),
        ([Ridge(0.5), None], [{"Ridge": {"alpha": 0.5}}, None]),
        (float("inf"), None),
    ],
)
def test_options_are_kept_by_value(value, kept):
    assert json.loads(json.dumps(options(Mine(value)), allow_nan=False)) == {"option": kept}
