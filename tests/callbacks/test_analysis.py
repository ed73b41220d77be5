"""What every analysis leaves behind: a series in results.json, and figures that are the same file each time."""

import json
import math

import pytest
import torch
from conftest import small_data, small_module, small_trainer
from matplotlib.figure import Figure

from lightning_icl.callbacks import Analysis
from lightning_icl.callbacks.analysis import plain, progress, save_figure
from lightning_icl.functional.risk import mean_and_standard_error
from lightning_icl.transformer import View


class Count(Analysis):
    """Records how often it was asked."""

    def __init__(self):
        super().__init__()
        self.n_times = 0

    def analyse(self, trainer, module):
        self.n_times += 1

    def record(self):
        return {"times": self.n_times, "mean": torch.tensor([1.0, math.nan])}


class Silent(Analysis):
    def analyse(self, trainer, module):
        pass


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_results_hold_one_record_for_each_step_measured(tmp_path):
    trainer = small_trainer(tmp_path, [Count(), Silent()], max_steps=6, val_check_interval=3)
    trainer.fit(small_module(), small_data())
    found = results(tmp_path)
    assert set(found) == {"lightning_icl", "Count"}
    assert found["Count"] == [
        {"step": 3, "times": 1, "mean": [1.0, None]},
        {"step": 6, "times": 2, "mean": [1.0, None]},
    ]


def test_a_resumed_run_and_a_validated_checkpoint_go_on_with_the_series(tmp_path):
    first = small_trainer(tmp_path / "first", [Count()], max_steps=4, val_check_interval=2)
    first.fit(small_module(), small_data())
    first.save_checkpoint(tmp_path / "some.ckpt")
    resumed = small_trainer(tmp_path / "resumed", [Count()], max_steps=6, val_check_interval=2)
    resumed.fit(small_module(), small_data(), ckpt_path=tmp_path / "some.ckpt")
    assert [record["step"] for record in results(tmp_path / "resumed")["Count"]] == [2, 4, 6]
    validated = small_trainer(tmp_path / "validated", [Count()])
    validated.validate(small_module(), small_data(), ckpt_path=tmp_path / "some.ckpt", verbose=False)
    series = results(tmp_path / "validated")["Count"]
    assert [record["step"] for record in series] == [2, 4]
    assert [record["times"] for record in series] == [1, 1]  # that of step 4 measured anew


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([[1.0, math.inf]]), [[1.0, None]]),
        (torch.tensor(True), True),
        (mean_and_standard_error(torch.tensor([1.0, 3.0])), [2.0, 1.0]),
        (View(3, None), {"n_keys": 3, "visible": None}),
        ({1: [math.nan, "text"]}, {"1": [None, "text"]}),
    ],
)
def test_results_are_plain(value, expected):
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_a_figure_is_saved_as_bitmap_and_as_vectors_alike_each_time(tmp_path):
    contents = []
    for _ in range(2):
        figure = Figure()
        figure.subplots().plot([1, 2, 3], label="a")
        save_figure(small_trainer(tmp_path), "a_figure", figure)
        contents.append((tmp_path / "figures" / "a_figure.svg").read_bytes())
        assert (tmp_path / "figures" / "a_figure.png").stat().st_size > 1000
    assert contents[0] == contents[1]
    assert b"<svg" in contents[0]


def test_progress_passes_every_item_on(tmp_path, capsys):
    assert list(progress(small_trainer(tmp_path), range(3), "items")) == [0, 1, 2]
    assert list(progress(small_trainer(tmp_path, enable_progress_bar=True), [5, 6], "items")) == [5, 6]
