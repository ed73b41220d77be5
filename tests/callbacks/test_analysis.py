"""What becomes of an analysis' rows, and when it runs, however a fit ends and goes on."""

import math
import os
import re
import signal

import pytest
import torch
from conftest import small_data, small_module, small_trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lightning_icl import SparseLinearRegression
from lightning_icl.callbacks import Analysis, FigureWriter, HeadImportance, Recorder
from lightning_icl.callbacks.analysis import progress
from lightning_icl.figures.files import write_figure
from lightning_icl.functional.errors import InputError
from lightning_icl.record import Row, journal, load_run
from lightning_icl.record.folder import set_run_folder
from lightning_icl.record.rows import plain_rows


class Count(Analysis):
    """Measures how often it was asked."""

    course = "count/times$"

    def __init__(self, prompts=4, every_n_validations=1):
        super().__init__(every_n_validations)
        self.prompts, self.n_times, self.drawn = prompts, 0, []

    def analyse(self, trainer, module):
        trainer.datamodule.held_out("count", self.prompts)
        self.n_times += 1
        yield Row("count/times", self.n_times)
        yield Row("count/mean", torch.tensor(1.5), torch.tensor(1.0), math.nan, layer=1)

    def figures(self, rows):
        self.drawn.append(self.over_training()["step"].tolist())
        return {"count": Figure()}


class AtEnd(Count):
    more_at_end = True


class Silent(Analysis):
    def analyse(self, trainer, module):
        """Nothing to tell."""


def run(folder, callbacks=(), validate=None, ckpt_path=None, task=None, **options):
    trainer = small_trainer(folder, [*callbacks, Recorder()], **({"val_check_interval": 2} | options))
    set_run_folder(trainer, folder)
    if validate:
        trainer.validate(small_module(), small_data(task), ckpt_path=validate, verbose=False)
    else:
        trainer.fit(small_module(), small_data(task), ckpt_path=ckpt_path)
    return trainer


def steps(folder, analysis="Count", metric="count/times"):
    table = load_run(folder).table
    return table[(table["analysis"] == analysis) & (table["metric"] == metric)]["step"].tolist()


def ending(folder):
    return load_run(folder).events[-1]


def test_rows_are_recorded_with_what_they_were_measured_on(tmp_path, undrawn):
    run(tmp_path, [Count(prompts=7), Silent()], max_steps=4)
    found = load_run(tmp_path)
    assert found.damaged == []
    assert set(found.table["analysis"]) == {"Count", "Silent"} - {"Silent"}
    row = found.table[found.table["metric"] == "count/mean"].iloc[0]
    assert (row["step"], row["command"], row["seed"], row["layer"], row["value"], row["low"]) == (
        2,
        "fit",
        3,
        1,
        1.5,
        1,
    )
    assert math.isnan(row["high"])  # NaN is no number in JSON, and none in the table
    context = found.contexts[row["context"]]
    assert context["prompts"] == {"count": 7}
    assert context["options"] == {"prompts": 7}
    (law,) = context["law"]
    assert "SparseLinearRegression(" in law["task"]
    assert law["n_points"] == [5, 5]


def test_the_loggers_get_what_is_shown_at_its_own_step(tmp_path, undrawn):
    class Shown(Count):
        shown = ("count/mean",)

    for scalars, tags in (("main", {"count/mean/layer1"}), ("all", {"count/mean/layer1", "count/times"})):
        logger = CSVLogger(tmp_path / scalars)
        trainer = small_trainer(tmp_path, [Shown(), Recorder(scalars)], val_check_interval=3, logger=logger)
        trainer.fit(small_module(), small_data())
        text = (tmp_path / scalars / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
        header, *lines = (line.split(",") for line in text)
        assert tags <= set(header)
        assert ("count/times" in header) == (scalars == "all")
        assert "epoch" not in header
        at = header.index("count/mean/layer1")
        assert [line[header.index("step")] for line in lines if line[at]] == ["3", "6"]


def test_one_without_super_init_runs_at_every_validation(tmp_path, undrawn):
    class OfItsOwn(Count):
        def __init__(self, size=3):
            self.size = self.prompts = size
            self.n_times, self.drawn = 0, []

    trainer = run(tmp_path, [own := OfItsOwn()], max_steps=4)
    assert (own.n_times, own.measured_at) == (2, 4)
    assert steps(tmp_path, "OfItsOwn") == [2, 4]
    trainer.validate(small_module(), small_data(), verbose=False)
    assert own.n_times == 3


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (0.5, "an analysis found 0.5, but it must return or yield several rows"),
        (Row("a/b", 1.0), "an analysis found Row(metric='a/b', value=1.0, "),
        ({"a/b": 1.0}, "an analysis found 'a/b', but it must find rows, such as Row('a/risk', 0.1, layer=1)."),
        ([Row("a/b", torch.ones(2, 3))], "a/b is a tensor of shape (2, 3), but a row holds one number."),
        ([Row("a/b", 1, layer=2), Row("a/b", 2, layer=2)], "an analysis found a/b/layer2 more than once: rows of one"),
    ],
)
def test_what_are_no_rows_is_told(found, message):
    with pytest.raises(InputError, match=re.escape(message)):
        plain_rows(found)


def test_two_analyses_of_one_class_have_names_of_their_own(tmp_path, undrawn):
    run(tmp_path, [Count(prompts=3), Count(prompts=5), Count(prompts=9)], max_steps=2)
    table = load_run(tmp_path).table
    assert set(table["analysis"]) == {"Count", "Count_2", "Count_3"}
    assert {"count/times", "count_2/times", "count_3/times"} <= set(table["metric"])


@pytest.mark.parametrize("every", [1, 20])
@pytest.mark.parametrize("kind", ["max_steps", "EarlyStopping", "max_time", "SIGTERM", "SIGINT", "unfit_interval"])
def test_what_is_due_at_the_end_is_measured_however_it_comes(tmp_path, undrawn, kind, every):
    class Signal(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                os.kill(os.getpid(), getattr(signal, kind))

    count, figures = AtEnd(every_n_validations=every), FigureWriter("last")
    options = {"max_steps": 1000}
    others = []
    if kind == "max_steps":
        options, last = {"max_steps": 6}, 6
    elif kind == "unfit_interval":
        options, last = {"max_steps": 5}, 5
    elif kind == "EarlyStopping":
        others = [EarlyStopping("val/excess_risk/transformer", min_delta=1e9, patience=2, mode="min")]
        last = 6
    elif kind == "max_time":
        options |= {"max_time": {"seconds": 1}}
        last = None
    else:
        others, last = [Signal()], 5
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = run(tmp_path, [count, figures, *others], **options)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    last = last or trainer.global_step
    assert trainer.global_step == last
    found = steps(tmp_path, "AtEnd")
    assert found == sorted(set(found))  # no step twice
    assert found[-1] == last
    assert len(count.drawn) == 1
    by = {"unfit_interval": "max_steps"}.get(kind, kind)
    expected = {"event": "stopped" if kind.startswith("SIG") else "finished", "steps": last, "by": by}
    assert ending(tmp_path) == expected
    assert journal.is_finished(tmp_path) == (not kind.startswith("SIG"))


def test_a_fit_that_breaks_is_not_finished(tmp_path, undrawn):
    class Breaks(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, [Count(), Breaks()])
    assert ending(tmp_path) == {"event": "stopped", "steps": 3, "by": "ZeroDivisionError: by zero"}
    assert not journal.is_finished(tmp_path)
    assert steps(tmp_path) == [2]


class KilledError(Exception):
    pass


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KilledError


@pytest.mark.parametrize(
    ("killed_at", "resumed_from", "elsewhere"),
    [(34, 30, False), (45, 30, True), (67, 60, False), (67, 60, True), (31, 30, False)],
)
def test_a_resume_takes_back_what_came_after_and_makes_up_what_is_missing(
    tmp_path, undrawn, killed_at, resumed_from, elsewhere
):
    """Checkpoints every 30 steps, saved before the validation at that step; validations every 10."""
    first, second = tmp_path / "first", tmp_path / ("second" if elsewhere else "first")
    saved = ModelCheckpoint(first / "checkpoints", "{step}", every_n_train_steps=30, save_top_k=-1)
    options = {"max_steps": 80, "val_check_interval": 10, "enable_checkpointing": True}
    with pytest.raises(KilledError):
        run(first, [Count(every_n_validations=2), Count(prompts=3), saved, KillAt(killed_at)], **options)
    again = Count(every_n_validations=2)
    checkpoint = first / "checkpoints" / f"step={resumed_from}.ckpt"
    run(second, [again, Count(prompts=3)], ckpt_path=checkpoint, **options)
    assert steps(second) == [20, 40, 60, 80]
    assert steps(second, "Count_2", "count_2/times") == [10, 20, 30, 40, 50, 60, 70, 80]
    assert again.drawn[-1] == [20, 40, 60, 80]  # its course over training, whole again
    assert journal.is_finished(second)


def test_a_resume_from_a_whole_validation_makes_none_up(tmp_path, undrawn):
    saved = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    options = {"val_check_interval": 2, "enable_checkpointing": True}
    run(tmp_path, [Count(), saved], max_steps=4, **options)
    assert journal.is_finished(tmp_path)
    run(tmp_path, [Count()], ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_steps=6, **options)
    assert steps(tmp_path) == [2, 4, 6]
    lines = journal.read(tmp_path / journal.NAME).lines
    assert len([line for line in lines if "rows" in line]) == 3


def test_history_stays_out_of_checkpoints(tmp_path, undrawn):
    trainer = run(tmp_path, [Count(), HeadImportance(n_prompts=8, scores=["leave_one_out"])], max_steps=6)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    checkpoint = torch.load(tmp_path / "some.ckpt", weights_only=True)
    assert checkpoint["callbacks"] == {}
    assert checkpoint["lightning_icl"] == {"validations": 3, "validated_at": 6}


def test_a_checkpoint_of_an_older_version_goes_on_with_its_count(tmp_path, undrawn):
    trainer = run(tmp_path / "a", [], max_steps=4)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    del checkpoint["lightning_icl"]
    records = [{"step": 2, "times": 1}]
    checkpoint["callbacks"] = {"Count": {"validations": 3, "records": records}}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    run(tmp_path / "b", [Count(every_n_validations=4)], ckpt_path=tmp_path / "old.ckpt", max_steps=10)
    assert steps(tmp_path / "b") == [6, 10]  # the fourth validation of the fit, and its end


def test_validating_on_another_law_starts_a_series_of_its_own(tmp_path, undrawn):
    trainer = run(tmp_path / "fit", [Count()], max_steps=4)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    count = Count()
    run(tmp_path / "fit", [count], validate=tmp_path / "some.ckpt", task=SparseLinearRegression(4, 2, noise_std=2.0))
    table = load_run(tmp_path / "fit").table
    of_fit, of_other = table[table["command"] == "fit"], table[table["command"] == "validate"]
    assert set(of_fit["context"]).isdisjoint(of_other["context"])
    assert of_other["step"].unique().tolist() == [4]  # the checkpoint's, not 0
    assert of_fit["step"].unique().tolist() == [2, 4]
    assert count.drawn == [[4]]


def test_what_a_validate_measures_is_not_taken_back_by_a_resume(tmp_path, undrawn):
    trainer = run(tmp_path, [Count()], max_steps=4)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    run(tmp_path, [Count()], validate=tmp_path / "some.ckpt")
    run(tmp_path, [Count()], ckpt_path=tmp_path / "some.ckpt", max_steps=6)
    table = load_run(tmp_path).table
    assert table[table["command"] == "validate"]["step"].unique().tolist() == [4]


def test_the_cost_of_a_measurement_does_not_grow_with_history(tmp_path, undrawn):
    run(tmp_path, [HeadImportance(n_prompts=8, scores=["leave_one_out"])], max_steps=24)
    lines = [len(line) for line in (tmp_path / journal.NAME).read_bytes().splitlines() if b'"rows"' in line]
    assert len(lines) == 12
    assert max(lines[6:]) < 1.2 * max(lines[:6])


def test_a_full_disk_costs_the_measurement_and_not_the_run(tmp_path, undrawn, monkeypatch):
    append = journal.append

    def full(path, line):
        if line.get("step") == 2:
            raise OSError(28, "No space left on device")
        append(path, line)

    monkeypatch.setattr(journal, "append", full)
    with pytest.warns(UserWarning, match=r"Count at step 2 could not be written to .*No space left"):
        run(tmp_path, [Count()], max_steps=6)
    assert steps(tmp_path) == [4, 6]


def test_a_figure_is_saved_as_bitmap_and_as_vectors_alike_each_time(tmp_path):
    contents = []
    for _ in range(2):
        figure = Figure()
        figure.subplots().plot([1, 2, 3], label="a")
        assert write_figure(tmp_path, "a_figure", figure).shape[2] == 3
        contents.append((tmp_path / "a_figure.svg").read_bytes())
        assert (tmp_path / "a_figure.png").stat().st_size > 1000
    assert contents[0] == contents[1]
    assert b"<svg" in contents[0]


def test_progress_passes_every_item_on(tmp_path):
    assert list(progress(small_trainer(tmp_path), range(3), "items")) == [0, 1, 2]
    assert list(progress(small_trainer(tmp_path, enable_progress_bar=True), [5, 6], "items")) == [5, 6]


def test_a_module_of_another_kind_is_refused(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(InputError, match="the module is BoringModel"):
        small_trainer(tmp_path, [Count()]).fit(BoringModel(), small_data())
