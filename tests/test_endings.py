"""However a run ends: its status, its last line, its checkpoint, and that it can be gone on with."""

import io
import json
import os
import pty
import resource
import shlex
import signal
import sys
import time

import pytest
import torch
from conftest import run_command, small_data, small_module, small_trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from test_run_folder import CONFIG

from lightning_icl.callbacks import Recorder
from lightning_icl.checkpoint import CheckpointFiles
from lightning_icl.cli import main
from lightning_icl.endings import SIGNALS
from lightning_icl.record import journal, load_run


class SignalAt(Callback):
    """Sends its own process a signal in a hook, once as many steps are done; again, if told, in the next validation."""

    def __init__(self, hook: str, name: str, step: int = 0, rank: int = 0, again: bool = False) -> None:
        self.left = 1

        def send(trainer, *_, **__):
            if self.left and (trainer.global_step, trainer.global_rank) >= (step, rank):
                self.left -= 1
                os.kill(os.getpid(), getattr(signal, name))

        def send_again(trainer, *_, **__):
            if not self.left and again:
                os.kill(os.getpid(), getattr(signal, name))

        self.on_validation_start = send_again
        setattr(self, hook, send)


class Breaks(Callback):
    def on_train_batch_end(self, *_):
        raise RuntimeError("boom")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield tmp_path
    assert [signal.getsignal(number) for number in SIGNALS] == before


def ended(command, *options, status, callback="SignalAt", **arguments):
    """Run a command of the test's config, with a callback that does the harm, and see its exit status."""
    harm = json.dumps([{"class_path": f"test_endings.{callback}", "init_args": arguments}])
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", "config.yaml", "--run_folder", "mine", "--trainer.callbacks+", harm, *options])
    assert stopped.value.code == status


def saved_step(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


LONG = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "8", "--trainer.accumulate_grad_batches", "2")


@pytest.mark.parametrize(("name", "status"), [("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGHUP", 129)])
def test_a_signal_in_mid_step_saves_it_first_and_its_last_line_goes_on(work, capsys, undrawn, name, status):
    """The same signal comes again while what is due at the end is measured: too late to cost anything."""
    ended("fit", *LONG, hook="on_train_batch_start", name=name, step=1, again=True, status=status)
    first, last = capsys.readouterr().err.splitlines()[-2:]
    assert first == f"lightning-icl: {name} has stopped it."
    assert last.startswith(f"It was at step 2; the last checkpoint is {work}/mine/checkpoints/last.ckpt; go on with: ")
    assert saved_step(work / "mine") == 2
    assert not journal.is_finished(work / "mine")
    if name == "SIGUSR1":
        main([*shlex.split(last.partition("lightning-icl ")[2]), "--trainer.callbacks", "[]"])
        assert load_run(work / "mine").events[-1] == {"event": "finished", "steps": 4, "by": "max_steps"}


@pytest.mark.parametrize(
    ("command", "hook", "name", "status"),
    [
        ("fit", "setup", "SIGTERM", 143),
        ("fit", "on_sanity_check_start", "SIGUSR1", 138),
        ("validate", "on_validation_batch_start", "SIGINT", 130),
        ("test", "on_test_batch_start", "SIGTERM", 143),
        ("predict", "on_predict_batch_start", "SIGUSR2", 140),
    ],
)
def test_a_signal_outside_training_has_its_status_and_a_word(work, capsys, command, hook, name, status):
    ended(command, hook=hook, name=name, status=status)
    said = capsys.readouterr().err.splitlines()
    assert f"lightning-icl: {name} has stopped it." in said
    assert ("no checkpoint yet; go on with: lightning-icl fit --config" in said[-1]) == (command == "fit")


def test_a_signal_saves_and_stops_whatever_is_saved_otherwise_and_however_long_a_fit_is_to_be(work, undrawn):
    options = ["--trainer.max_steps", "9", "--trainer.min_steps", "7", "--trainer.val_check_interval", "9"]
    options += ["--checkpoint.save_last", "false", "--checkpoint.save_weights_only", "true"]
    ended("fit", *options, hook="on_train_batch_start", name="SIGTERM", step=1, status=143)
    saved = torch.load(work / "mine" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["optimizer_states"]  # without which the command in the last line would be refused


def test_a_signal_to_a_run_that_has_stopped_by_itself_changes_nothing(work, undrawn):
    never_better = {"monitor": "val/excess_risk/transformer", "patience": 0, "min_delta": 1000.0}
    harm = [{"class_path": "EarlyStopping", "init_args": never_better}]
    harm += [{"class_path": "test_endings.SignalAt", "init_args": {"hook": "on_train_end", "name": "SIGTERM"}}]
    options = ["--run_folder", "mine", "--trainer.max_steps", "9", "--trainer.callbacks", json.dumps(harm)]
    main(["fit", "--config", "config.yaml", "--trainer.val_check_interval", "2", *options])
    assert load_run(work / "mine").events[-1] == {"event": "finished", "steps": 4, "by": "EarlyStopping"}


def test_a_signal_in_the_validation_that_a_killed_run_has_missed(work, undrawn):
    """Which is made before training starts, where Lightning's handler waits for all processes."""
    every = ["--checkpoint.every_n_train_steps", "1", "--checkpoint.save_top_k", "-1", "--trainer.max_steps", "3"]
    main(["fit", "--config", "config.yaml", "--run_folder", "first", *every])
    before = ("--ckpt_path", "first/checkpoints/step=2.ckpt", "--trainer.max_steps", "3")
    ended("fit", *before, hook="on_validation_batch_start", name="SIGTERM", status=143)
    assert load_run(work / "mine").events[-1] == {"event": "stopped", "steps": 2, "by": "SIGTERM"}
    assert saved_step(work / "mine") == 2


def test_in_python_a_fit_saves_at_a_signal_and_returns(work):
    harm = SignalAt("on_train_batch_start", "SIGTERM", step=2)
    saver = ModelCheckpoint("kept", every_n_train_steps=100)
    trainer = small_trainer(work, [recorder := Recorder(), saver, harm], enable_checkpointing=True)
    trainer.fit(small_module(), small_data())
    assert recorder.signalled == signal.SIGTERM
    assert torch.load("kept/last.ckpt", weights_only=True)["global_step"] == trainer.global_step == 3
    assert isinstance(trainer.strategy.checkpoint_io, CheckpointFiles)


def test_a_signal_that_nohup_ignores_stays_ignored(work, undrawn):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        harm = json.dumps([{"class_path": "test_endings.SignalAt", "init_args": {"hook": "setup", "name": "SIGHUP"}}])
        main(["fit", "--config", "config.yaml", "--run_folder", "mine", "--trainer.callbacks", harm])
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert journal.is_finished(work / "mine")


def test_a_run_that_comes_to_its_end_says_by_what(work, caplog, undrawn):
    main(["fit", "--config", "config.yaml"])
    assert "The run has come to its end at step 2, by max_steps." in caplog.text


def test_a_crash_says_how_to_go_on_after_its_traceback(work):
    harm = json.dumps([{"class_path": "test_endings.Breaks"}])
    with pytest.raises(RuntimeError, match="boom") as crashed:
        main(["fit", "--config", "config.yaml", "--run_folder", "mine", "--trainer.callbacks", harm])
    assert "go on with: lightning-icl fit --config" in crashed.value.__notes__[-1]


def test_a_full_disk_costs_a_sentence_and_the_run_goes_on_after_it(work, monkeypatch, capsys, undrawn):
    """No file may grow beyond 8 kB, which a checkpoint does; Python ignores the signal that comes with it."""
    config = ["--config", "config.yaml", "--run_folder", "mine", "--ckpt_path", "last", "--trainer.logger", "false"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *config])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stopped.value.code == 1
    first, last = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith(f"lightning-icl: {work}/mine/checkpoints/step=2.ckpt could not be written: File too large")
    assert "no checkpoint yet; go on with: " in last
    main(["fit", *config])
    assert saved_step(work / "mine") == 2


def test_no_character_is_worth_a_run(work, monkeypatch, undrawn):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    main(["fit", "--config", "config.yaml", "--run_folder", "±λ"])
    terminal.flush()
    said = terminal.buffer.getvalue().decode("ascii")
    assert "\\u03bb" in said
    assert "zero predictor" in said
    assert journal.is_finished(work / "±λ")


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty], ids=["reader", "terminal"])
def test_no_one_need_be_there_to_read(work, monkeypatch, undrawn, opened):
    """``fit | head``, and a terminal that was closed."""
    near, far = opened()
    os.close(near)
    with open(far, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        monkeypatch.setattr(sys, "stderr", gone)
        main(["fit", "--config", "config.yaml", "--run_folder", "mine", "--trainer.enable_progress_bar", "true"])
    assert load_run(work / "mine").events[-1]["event"] == "finished"


def test_a_notebook_s_backend_ends_nothing(tmp_path):
    code = "import lightning_icl, matplotlib; print('imported')"
    harm = "MPLBACKEND=module://no_such_notebook.backend_inline"
    done = run_command(command=("env", harm, sys.executable, "-c", code), cwd=tmp_path)
    assert done.stdout.strip() == "imported"


@pytest.mark.slow  # processes of their own, each of which imports everything
@pytest.mark.parametrize(
    ("options", "status", "step"),
    [
        ({"hook": "setup", "name": "SIGTERM"}, 143, 0),
        ({"hook": "on_train_batch_start", "name": "SIGUSR1", "step": 3, "rank": 1}, 138, 10),
        ({"hook": "on_validation_batch_start", "name": "SIGTERM", "step": 2}, 143, 10),
    ],
    ids=["before", "the other rank", "validating"],
)
def test_a_signal_to_one_of_two_processes_ends_both(work, options, status, step):
    harm = json.dumps([{"class_path": "test_endings.SignalAt", "init_args": options}])
    of_two = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.max_steps", 60, "--run_folder", "mine"]
    done = run_command("fit", "--config", "config.yaml", *of_two, "--trainer.callbacks", harm, cwd=work, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert f"It was at step {step}; " in done.stderr
    if step:
        assert saved_step(work / "mine") == step
    time.sleep(1)
    left = {process for process in os.listdir("/proc") if process.isdigit() and folder_of(process) == str(work)}
    assert left == {str(os.getpid())}


def folder_of(process):
    try:
        return os.readlink(f"/proc/{process}/cwd")
    except OSError:  # gone, or another's
        return ""
