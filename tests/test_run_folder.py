"""A run in a folder of its own: begun, gone on with, and with or without figures."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml

from lightning_icl.callbacks import analysis
from lightning_icl.cli import main
from lightning_icl.record import journal, load_run
from lightning_icl.record.folder import analysed_run

CONFIG = """
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 4, sparsity: 2, noise_std: 0.1}}
  n_points: 3
  n_queries: 2
  batch_size: 4
  eval_prompts: 8
  eval_batch_size: 4
model: {d_model: 8, heads: [2], schedule: constant}
trainer:
  max_steps: 2
  val_check_interval: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: ReferenceRisk, init_args: {references: [ZeroPredictor], tuning_prompts: 4}}]
"""


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return lambda *args: main(["fit", "--config", "config.yaml", *args])


def lines(folder):
    """What stands in a run's record."""
    return journal.in_force(journal.read(folder / journal.NAME).lines)


def steps(folder):
    """The steps at which ReferenceRisk measured."""
    return [line["step"] for line in lines(folder) if line.get("analysis") == "ReferenceRisk"]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run_is_begun_and_gone_on_with_by_the_same_command(fit, tmp_path, undrawn):
    again = ("--run_folder", "runs/mine", "--ckpt_path", "last")
    fit(*again)
    run = tmp_path / "runs" / "mine"
    assert journal.is_finished(run)
    assert steps(run) == [1, 2]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["run_folder"] is None  # else validate with this config would write here
    assert saved["ckpt_path"] is None
    assert list(run.glob("events.*"))
    assert not (tmp_path / "lightning_logs").exists()
    fit(*again, "--trainer.max_steps", "4")
    assert lines(run)[-1].items() >= {"event": "finished", "steps": 4}.items()
    assert steps(run) == [1, 2, 3, 4]
    fit("--run_folder", "runs/whole", "--trainer.max_steps", "4")
    for key, tensor in weights(tmp_path / "runs" / "whole")["state_dict"].items():
        assert torch.equal(tensor, weights(run)["state_dict"][key])


def test_a_run_has_a_name_and_its_analyses_lie_in_it(fit, tmp_path, capsys, undrawn):
    where = "This run is in lightning_logs/{}\n  all runs: tensorboard --logdir lightning_logs\n"
    logger = "{class_path: TensorBoardLogger, init_args: {save_dir: ., version: other}}"
    fit("--run_name", "mine", "--trainer.logger", logger)
    assert where.format("mine") in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fit("--run_name", "mine")
    assert "run_name is mine, but there is such a run already: go on with it by" in capsys.readouterr().err
    analysis = ["validate", "--ckpt_path", "lightning_logs/mine/checkpoints/last.ckpt"]  # with the run's own config
    main(analysis)
    assert where.format("mine/validate_0") in capsys.readouterr().out
    fit("--run_name", "mine", "--ckpt_path", "last", "--trainer.max_steps", "3")
    main([*analysis, "--seed_everything", "7"])
    main(["validate", "--run_name", "mine", "--ckpt_path", "last"])
    runs = tmp_path / "lightning_logs"
    assert [path.name for path in runs.iterdir()] == ["mine"]
    assert {path.name for path in (runs / "mine").glob("*_*")} == {"validate_0", "validate_1"}
    assert steps(runs / "mine") == [1, 2, 3, 3]
    found = [load_run(runs / "mine" / f"validate_{i}").table for i in (0, 1)]
    assert [(set(table["step"]), set(table["seed"])) for table in found] == [({2}, {0}), ({3}, {7})]
    for run in ("mine", "mine/validate_0"):
        saved = yaml.safe_load((runs / run / "config.yaml").read_text())
        assert saved["run_name"] is saved["run_folder"] is None
        assert "verbose" not in saved  # predict and fit, which have no such option, take the config too


def test_only_the_run_of_a_checkpoint_has_analyses_of_it(tmp_path, monkeypatch):
    for name in ("run", "bare"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    inside = tmp_path / "run" / "checkpoints" / "step=2.ckpt"
    monkeypatch.chdir(tmp_path / "run")
    assert analysed_run(str(inside)) == analysed_run("checkpoints/last.ckpt") == tmp_path / "run"
    others = (
        tmp_path / "run" / "last.ckpt",
        tmp_path / "bare" / "checkpoints" / "last.ckpt",
        "s3://a/run/checkpoints/a.ckpt",
    )
    assert not any(analysed_run(str(path)) for path in others)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write where a mode forbids it
    assert analysed_run(str(inside)) is None


def test_a_run_is_not_written_over(fit, tmp_path, capsys, undrawn):
    fit("--run_folder", "mine")
    before = (tmp_path / "mine" / journal.NAME).read_text()
    with pytest.raises(SystemExit):
        fit("--run_folder", "mine")
    assert (
        "run_folder is mine, but there is such a run already: go on with it by --ckpt_path" in capsys.readouterr().err
    )
    assert (tmp_path / "mine" / journal.NAME).read_text() == before


def test_a_finished_run_says_that_nothing_is_left_to_train(fit, tmp_path, undrawn, caplog):
    fit("--run_folder", "mine")
    whole = weights(tmp_path / "mine")["state_dict"]
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit("--run_folder", "mine", "--ckpt_path", "last")
    said = "nothing was left to train: mine/checkpoints/last.ckpt has 2 steps behind it, and max_steps allows no more."
    assert said in caplog.messages
    for key, tensor in weights(tmp_path / "mine")["state_dict"].items():
        assert torch.equal(tensor, whole[key])


@pytest.mark.parametrize(("when", "times"), [("every", 2), ("last", 1), ("never", 0)])
def test_a_run_without_figures_measures_all_the_same(fit, tmp_path, monkeypatch, when, times):
    drawn = []
    monkeypatch.setattr(
        analysis, "write_figure", lambda _, name, __: drawn.append(name) or np.zeros((1, 1, 3), np.uint8)
    )
    fit("--run_folder", "mine", "--figures.when", when)
    assert drawn.count("excess_risk") == times
    assert (drawn == []) == (times == 0)
    assert steps(tmp_path / "mine") == [1, 2]


@pytest.mark.parametrize("steps", ["2", "3"])
def test_what_was_due_after_a_step_is_made_up(fit, tmp_path, undrawn, steps):
    """A kill between a step, with its checkpoint, and the validation of it: nothing is left to train, or a step."""
    fit(
        "--run_folder",
        "mine",
        "--checkpoint.every_n_train_steps",
        "1",
        "--checkpoint.save_top_k",
        "-1",
        "--trainer.max_steps",
        steps,
    )
    checkpoint = tmp_path / "mine" / "checkpoints" / "step=2.ckpt"
    assert torch.load(checkpoint, weights_only=True)["lightning_icl"] == {"validations": 1, "validated_at": 1}
    fit("--run_folder", "again", "--ckpt_path", str(checkpoint), "--trainer.max_steps", steps)
    whole, again = load_run(tmp_path / "mine"), load_run(tmp_path / "again")
    assert again.table["step"].tolist() == whole.table["step"].tolist()
    assert again.table["value"].tolist() == whole.table["value"].tolist()
    assert set(again.table["command"]) == {"fit"}
    closing = ["started"] * (steps == "2")  # a validation of its own
    assert [event["event"] for event in again.events] == ["started", "resumed", *closing, "finished"]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_is_told_by_the_exit_status_and_the_run_goes_on(fit, tmp_path, undrawn, name, status):
    signal = json.dumps([{"class_path": "recorder.Signal", "init_args": {"step": 1, "name": name}}])
    options = ("--run_folder", "mine", "--ckpt_path", "last", "--trainer.max_steps", "4")
    with pytest.raises(SystemExit) as stopped:
        fit(*options, "--trainer.callbacks+", signal, "--trainer.val_check_interval", "4")
    assert stopped.value.code == status
    assert load_run(tmp_path / "mine").events[-1] == {"event": "stopped", "steps": 1, "by": name}
    fit(*options, "--trainer.val_check_interval", "4")
    run = load_run(tmp_path / "mine")
    assert run.events[-1] == {"event": "finished", "steps": 4, "by": "max_steps"}
    assert sorted(set(run.table["step"])) == [1, 4]


def test_a_run_that_was_begun_from_a_checkpoint_begins_from_it_again(fit, tmp_path, monkeypatch, undrawn):
    """It ends before its first checkpoint, and is gone on with elsewhere; then its checkpoints are moved away."""
    fit("--run_folder", "first", "--trainer.callbacks", "[]")
    options = ("--run_folder", str(tmp_path / "second"), "--trainer.max_steps", "3")
    killed = json.dumps([{"class_path": "test_endings.SignalAt", "init_args": {"hook": "setup", "name": "SIGTERM"}}])
    with pytest.raises(SystemExit):
        fit(*options, "--ckpt_path", "first/checkpoints/last.ckpt", "--trainer.callbacks", killed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for _ in range(2):
        again = ("--ckpt_path", "last", "--trainer.callbacks", "[]")
        main(["fit", "--config", str(tmp_path / "second" / "config.yaml"), *options, *again])
        events = [event for event in load_run(tmp_path / "second").events if event["event"] == "resumed"]
        assert events[-1]["step"] == 2
        shutil.rmtree(tmp_path / "second" / "checkpoints")


def test_what_batch_size_finder_found_is_gone_on_with(fit, tmp_path, undrawn):
    found = json.dumps([{"class_path": "BatchSizeFinder", "init_args": {"init_val": 4, "max_trials": 2}}])
    fit("--run_folder", "mine", "--trainer.callbacks", found)
    assert weights(tmp_path / "mine")["PromptDataModule"]["batch_size"] == 8
    again = ("--run_folder", "mine", "--ckpt_path", "last", "--trainer.max_steps", "3")
    main(["fit", "--config", "mine/config.yaml", *again])
    assert [event["step"] for event in load_run("mine").events if event["event"] == "resumed"] == [2]
    assert weights(tmp_path / "mine")["PromptDataModule"]["batch_size"] == load_run("mine").data.batch_size == 8
    assert weights(tmp_path / "mine")["global_step"] == 3
