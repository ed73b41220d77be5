"""A step whose loss or gradient is no number ends the run there, and one command makes it again."""

import json
import shlex

import pytest
import torch
from conftest import run_command
from lightning.pytorch import Callback
from test_run_folder import CONFIG, lines, weights

from lightning_icl.cli import main
from lightning_icl.divergence import Watch


class Spoils(Callback):
    """Makes a number of one step's batch, or of its gradient, infinite or NaN."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.what == "loss" and trainer.global_step == self.step:
            batch.y_query[0, 0] = float("inf")

    def on_after_backward(self, trainer, module):
        if self.what == "gradient" and trainer.global_step == self.step:
            next(module.parameters()).grad[0, 0] = float("nan")


class SpoilsOneProcess(Spoils):
    """On the second process alone, under a scaler, which passes over gradients that are not finite."""

    def on_train_start(self, trainer, module):
        trainer.precision_plugin.scaler = object()

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_rank == 1:
            super().on_train_batch_start(trainer, *args)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    options = ("--trainer.max_steps", "7", "--trainer.callbacks", "[]", "--trainer.val_check_interval", "1.0")
    return lambda *args: main(["fit", "--config", "config.yaml", *options, *args])


def spoiling(step, what):
    harm = {"class_path": "test_divergence.Spoils", "init_args": {"step": step, "what": what}}
    return "--trainer.callbacks", json.dumps([harm])


@pytest.mark.parametrize(("what", "accumulate"), [("loss", "1"), ("gradient", "2")])
def test_training_stops_at_the_step_and_one_command_makes_it_again(fit, tmp_path, capsys, what, accumulate):
    of_two = ("--trainer.accumulate_grad_batches", accumulate)
    with pytest.raises(SystemExit) as stopped:
        fit("--run_folder", "mine", *of_two, *spoiling(5, what))
    assert stopped.value.code == 2
    said, replay, way_on = capsys.readouterr().err.splitlines()[-3:]
    assert said.startswith("lightning-icl: the loss or gradient of step 5 (from 0) is not finite")
    assert "the batch of seed 0, stream train, step 5, all blocks" in said
    assert weights(tmp_path / "mine")["global_step"] == 5
    assert lines(tmp_path / "mine")[-1]["event"] == "stopped"
    if what == "gradient":  # which torch does not see go wrong
        with pytest.raises(SystemExit):
            main(shlex.split(replay.partition("lightning-icl ")[2]))
        assert "the loss or gradient of step 5 (from 0) is not finite" in capsys.readouterr().err
        assert not (tmp_path / "mine" / "replay" / "checkpoints" / "step=6.ckpt").exists()
    main([*shlex.split(way_on.partition("lightning-icl ")[2])[:-2], "--trainer.callbacks", "[]"])
    fit("--run_folder", "whole", *of_two)
    for key, tensor in weights(tmp_path / "whole")["state_dict"].items():
        assert torch.equal(tensor, weights(tmp_path / "mine")["state_dict"][key])


@pytest.mark.slow  # two processes
def test_of_processes_with_losses_of_their_own_all_stop(fit, tmp_path):
    harm = json.dumps([{"class_path": "test_divergence.SpoilsOneProcess", "init_args": {"step": 5, "what": "loss"}}])
    options = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.max_steps", 7, "--run_folder", "mine"]
    options += ["--trainer.callbacks", harm]
    done = run_command("fit", "--config", "config.yaml", *options, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert weights(tmp_path / "mine")["global_step"] == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_told_of_a_step_later_and_no_spoiled_weights_are_saved(fit, tmp_path, capsys):
    every = ("--checkpoint.every_n_train_steps", "1", "--trainer.accelerator", "gpu", "--trainer.max_steps", "50")
    with pytest.raises(SystemExit):
        fit("--run_folder", "mine", *every, *spoiling(5, "gradient"))
    assert "the loss or gradient of step 5 (from 0) is not finite" in capsys.readouterr().err
    saved = weights(tmp_path / "mine")
    assert saved["global_step"] == 5
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_number_on_a_gpu_is_looked_at_with_the_next():
    watch = Watch()
    numbers = [watch.add(step, torch.tensor(float("nan" if step == 2 else "1"), device="cuda")) for step in range(4)]
    assert numbers == [None, None, None, 2]
    assert watch.settle() is None
