"""Checkpoints that are cut off, damaged, hostile or none; writing that a kill cuts short; what fit makes of them."""

import errno
import io
import os
import pickle
import re
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from threading import Thread

import fsspec
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO
from test_run_folder import CONFIG, weights

from lightning_icl import checkpoint as checkpoints
from lightning_icl.callbacks import analysis
from lightning_icl.checkpoint import CheckpointFiles, check_checkpoint, newest, read
from lightning_icl.cli import main
from lightning_icl.functional.errors import InputError
from lightning_icl.record import load_run
from lightning_icl.record.loading import read_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of 3 steps, with the checkpoint of each."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "write_figure", lambda *_: np.zeros((1, 1, 3), np.uint8))
        command = ["fit", "--config", str(folder / "config.yaml"), "--run_folder", str(folder / "run")]
        every = ["--checkpoint.every_n_train_steps", "1", "--checkpoint.save_top_k", "-1"]
        main([*command, *every, "--trainer.max_steps", "3"])
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path, monkeypatch, undrawn):
    """A copy, in the working folder, of which step=3.ckpt is taken away: last.ckpt is of 3 steps, step=2.ckpt of 2."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step=3.ckpt").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def last(run):
    return run / "checkpoints" / "last.ckpt"


def edited(run, change):
    """The last checkpoint with something of it changed."""
    checkpoint = torch.load(last(run), weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, last(run))


def fit_on(*more):
    config = ["--config", "run/config.yaml", "--checkpoint.every_n_train_steps", "1"]
    main(["fit", *config, "--run_folder", "run", "--ckpt_path", "last", "--trainer.max_steps", "4", *more])


def refused(capsys, *args):
    """The one sentence of a command that ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-icl: ")]
    return said


def in_a_child(work: Callable[..., None], *args) -> int:
    """The exit status of a process that does the work, which may kill it."""
    child = get_context("fork").Process(target=work, args=args)
    child.start()
    child.join(60)
    return child.exitcode


DAMAGE = {
    "empty": lambda old: b"",
    "cut at a third": lambda old: old[: len(old) // 3],
    "cut before the end": lambda old: old[:-1],
    "text": lambda old: b"my notes",
    "zeroed in the pickle": lambda old: old[:2000] + bytes(64) + old[2064:],
    "zeroed in a tensor": lambda old: old[: len(old) // 2] + bytes(64) + old[len(old) // 2 + 64 :],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_newest_whole_one_is_taken_and_none_is_said(run, capsys, damage):
    last(run).write_bytes(damaged := damage(last(run).read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is cut off, damaged or no checkpoint; .*step=2\.ckpt is the new"):
        assert newest(run / "checkpoints").name == "step=2.ckpt"
    with pytest.raises(InputError, match=r"ckpt_path is .*last\.ckpt, but that file is not a readable checkpoint"):
        check_checkpoint(last(run), {}, resuming=True)
    for path in run.glob("checkpoints/step=*"):
        path.unlink()
    with pytest.raises(InputError, match=r"none of the checkpoints in .* is whole \(last\.ckpt\); move them away"):
        newest(run / "checkpoints")
    assert last(run).read_bytes() == damaged


def test_a_fit_goes_on_from_the_newest_whole_one(run, whole):
    last(run).write_bytes(last(run).read_bytes()[:5000])
    with pytest.warns(UserWarning, match="is the newest that is whole"):
        fit_on("--trainer.max_steps", "3")
    resumed = [event for event in load_run(run).events if event["event"] == "resumed"]
    assert resumed[-1]["step"] == 2
    for key, tensor in weights(whole)["state_dict"].items():
        assert torch.equal(tensor, weights(run)["state_dict"][key])


@pytest.mark.parametrize(
    ("left_out", "said"),
    [("optimizer_states", "has weights alone"), ("global_step", "is no checkpoint of lightning_icl")],
)
def test_a_fit_passes_over_what_it_cannot_go_on_from(run, left_out, said):
    checkpoint = torch.load(last(run), weights_only=True)
    del checkpoint[left_out]
    torch.save(checkpoint, run / "checkpoints" / "other.ckpt")
    with pytest.warns(UserWarning, match=rf"other\.ckpt {said}; last\.ckpt is the newest that is whole"):
        assert newest(run / "checkpoints", resuming=True) == last(run)
    for path in run.glob("checkpoints/*"):
        if path.name != "other.ckpt":
            path.unlink()
    assert newest(run / "checkpoints", resuming=True).name == "other.ckpt"  # which is refused for what it is


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(run, monkeypatch):
    def forbidden(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoints.zipfile, "ZipFile", forbidden)  # root may read all
    for read_or_find in (lambda: read(last(run)), lambda: newest(run / "checkpoints")):
        with pytest.raises(InputError, match=r"the checkpoint .*\.ckpt cannot be read: Permission denied\."):
            read_or_find()


def test_nothing_is_written_where_no_checkpoint_is_whole(run, capsys):
    for path in run.glob("checkpoints/*"):
        path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused(capsys, "fit", "--config", "run/config.yaml", "--run_folder", "run", "--ckpt_path", "last")
    assert "none of the checkpoints in run/checkpoints is whole (" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_zeroed_bytes_are_found_wherever_they_lie(run):
    """But for the padding between entries, of which nothing is read."""
    old, found = last(run).read_bytes(), torch.load(last(run), weights_only=True)
    plain = torch.save(found, before := io.BytesIO()) or before.getvalue()
    places = range(0, len(old), 331)
    told = 0
    for place in places:
        last(run).write_bytes(old[:place] + bytes(64) + old[place + 64 :])
        try:
            torch.save(read(last(run)), now := io.BytesIO())
        except InputError:
            told += 1
        else:
            assert now.getvalue() == plain
    print(f"{told} of {len(places)} places refused, in the others the same checkpoint is read")
    assert told > len(places) / 2


def renamed(checkpoint):
    checkpoint["state_dict"]["network.other"] = checkpoint["state_dict"].pop("network.read_in.weight")


WRONG = {
    "network.read_in.weight is missing in it": renamed,
    "network.more is no weight of its model": lambda c: c["state_dict"].update({"network.more": torch.ones(1)}),
    "network.read_in.weight has the shape [3] in it, and [8, 5] in its model": lambda c: c["state_dict"].update(
        {"network.read_in.weight": torch.ones(3)}
    ),
    "is not a checkpoint of lightning_icl": lambda c: c.update(hyper_parameters=3),
    "its hyper_parameters are of no model": lambda c: c["hyper_parameters"].update(heads="many"),
    "has weights alone, as save_weights_only writes it": lambda c: c.pop("optimizer_states"),
}


@pytest.mark.parametrize(("said", "change"), WRONG.items(), ids=WRONG)
def test_what_is_whole_but_cannot_be_gone_on_with_gets_one_sentence(run, whole, said, change):
    edited(run, change)
    with pytest.raises(InputError, match=re.escape(said)):
        check_checkpoint(last(run), read_config(whole)["model"], resuming=True)


def test_weights_alone_can_be_validated_and_pruned(run, capsys):
    def strip(checkpoint):
        for name in ("optimizer_states", "lr_schedulers", "callbacks"):
            del checkpoint[name]

    edited(run, strip)
    main(["validate", "--config", "run/config.yaml", "--ckpt_path", str(last(run))])
    main(["prune", "--ckpt_path", str(last(run)), "--keep", "[[1]]", "--output", "smaller"])
    assert "validate (it has no optimizer's state) with --config smaller/config.yaml" in capsys.readouterr().out
    assert load_run(run).model.heads == [2]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_hostile_checkpoint_never_runs_its_code(run, tmp_path, capsys):
    edited(run, lambda checkpoint: checkpoint["callbacks"].update(Mine=Hostile()))
    name = os.system.__module__ + ".system"
    for command in (["predict", "--ckpt_path", last(run)], ["fit", "--run_folder", "run", "--ckpt_path", "last"]):
        said = refused(capsys, command[0], "--config", "run/config.yaml", *command[1:])
        assert f"last.ckpt, which holds {name}: reading it runs what code the file brings" in said
    assert name in refused(capsys, "prune", "--ckpt_path", last(run), "--keep", "[[1]]", "--output", "smaller")
    with pytest.raises(InputError, match="reading it runs what code"):
        _ = load_run(run).model
    with fsspec.open("memory://hostile/last.ckpt", "wb") as file:
        file.write(last(run).read_bytes())
    with pytest.raises(InputError, match="reading it runs what code"):
        read("memory://hostile/last.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_callback_of_another_kind_is_told_of_at_the_first_save(tmp_path, monkeypatch, undrawn, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "dated.yaml").write_text("trainer: {callbacks: [recorder.Dated]}")
    command = ["--config", "config.yaml", "--config", "dated.yaml"]
    fit = ["fit", *command, "--run_folder", "mine", "--checkpoint.every_n_train_steps", "1"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(fit)
    told = [str(w.message) for w in caught if "weights_only" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith("the state of the callback Dated holds datetime.datetime, ")
    checkpoint, trusting = tmp_path / "mine" / "checkpoints" / "last.ckpt", ("--weights_only", "false")
    validate = ["validate", *command, "--ckpt_path", str(checkpoint)]
    prune = ["prune", "--ckpt_path", str(checkpoint), "--keep", "[[1]]", "--output", "smaller"]
    again = [*fit, "--ckpt_path", "last", "--trainer.max_steps", "3"]
    for refusing in (again, validate, prune):
        assert "which holds datetime.datetime, " in refused(capsys, *refusing)
    for trusted in (again, validate, prune):
        main([*trusted, *trusting])
    assert torch.load(checkpoint, weights_only=False)["global_step"] == 3
    assert yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())["weights_only"] is True
    assert load_run("mine", weights_only=False).model.heads == [2]


def test_a_checkpoint_elsewhere_is_fetched(run):
    with fsspec.open("memory://there/last.ckpt", "wb") as file:
        file.write(last(run).read_bytes())
    options = ["--run_folder", "on", "--trainer.max_steps", "4"]
    main(["fit", "--config", "run/config.yaml", "--ckpt_path", "memory://there/last.ckpt", *options])
    assert [event["step"] for event in load_run("on").events if event["event"] == "resumed"] == [3]
    for place, said in (
        ("memory://nowhere.ckpt", r"is memory://nowhere\.ckpt, but there is no such file\."),
        ("nfs9://x.ckpt", r"is nfs9://x\.ckpt, but it cannot be fetched: Protocol not known"),
    ):
        with pytest.raises(InputError, match=said):
            read(place)


def test_a_fit_goes_on_from_the_newest_whole_one_elsewhere(run):
    """As a folder of s3:// would be; the newest is cut off."""
    for path in run.glob("checkpoints/*"):
        with fsspec.open(f"memory://mine/checkpoints/{path.name}", "wb") as file:
            file.write(path.read_bytes()[: 5000 if path == last(run) else None])
    with pytest.warns(UserWarning, match=r"memory://mine/checkpoints/last\.ckpt is cut off.*; step=2\.ckpt is the new"):
        fit_on("--checkpoint.dirpath", "memory://mine/checkpoints")
    assert [event["step"] for event in load_run(run).events if event["event"] == "resumed"] == [2]
    assert read("memory://mine/checkpoints/last.ckpt")["global_step"] == 4
    with pytest.raises(InputError, match=r"the checkpoints in nfs9://x cannot be fetched: Protocol not known"):
        newest("nfs9://x")


def test_a_checkpoint_of_a_web_server_is_that_server_s_and_runs_nothing(run, tmp_path):
    """Lightning would take any last.ckpt that it had fetched before, and run what code it brings."""
    edited(run, lambda checkpoint: checkpoint["callbacks"].update(Mine=Hostile()))
    shutil.copy(run / "checkpoints" / "step=2.ckpt", tmp_path / "last.ckpt")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert read(f"{address}/last.ckpt")["global_step"] == 2
        assert CheckpointFiles().load_checkpoint(f"{address}/last.ckpt")["global_step"] == 2
        with pytest.raises(pickle.UnpicklingError):
            CheckpointFiles().load_checkpoint(f"{address}/run/checkpoints/last.ckpt")
        server.shutdown()
    assert not (tmp_path / "ran").exists()


def save(files, path, size):
    files.save_checkpoint({"state_dict": {"w": torch.ones(size)}}, path)


def killed_in_writing(path):
    """The kernel kills the process at the byte that goes over the limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(CheckpointFiles(), path, 100_000)


def killed_in_copying(path, temporary):
    """TMPDIR is on another filesystem: Lightning moves a file from there by copying it, and the kill comes then."""

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    tempfile.tempdir, os.sendfile = temporary, kill
    save(CheckpointFiles(), path, 100_000)


def full_disk(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # without the signal, an error
    try:
        save(CheckpointFiles(), path, 100_000)
    except OSError:
        os._exit(7)


def test_a_kill_or_a_full_disk_while_it_is_written_leaves_the_old_one_whole(tmp_path):
    save(CheckpointFiles(), path := tmp_path / "last.ckpt", 10)
    before = path.read_bytes()
    assert in_a_child(killed_in_writing, path) == -signal.SIGXFSZ
    assert path.read_bytes() == before
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert left.match("last.ckpt.*.partial")
    assert newest(tmp_path) == path
    assert in_a_child(full_disk, path) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", ["other.ckpt", "last.ckpt"])
def test_two_processes_that_save_into_one_folder_do_not_meet(tmp_path, monkeypatch, other):
    """One saves while the other has written its file, and not yet moved it."""
    fsync, path = os.fsync, tmp_path / "last.ckpt"

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        assert in_a_child(save, CheckpointFiles(), tmp_path / other, 20) == 0
        fsync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    save(CheckpointFiles(), path, 10)
    assert read_size(path) == 10
    assert read_size(tmp_path / other) == (20 if other != path.name else 10)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, other}


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs another filesystem to write to")
def test_tmpdir_on_another_filesystem_is_not_written_to(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as temporary:
        save(TorchCheckpointIO(), path := tmp_path / "last.ckpt", 10)
        if os.stat(temporary).st_dev == tmp_path.stat().st_dev:
            pytest.skip("the tests' folder is on the same filesystem")
        assert in_a_child(killed_in_copying, path, temporary) == 0
        assert read_size(path) == 100_000
        assert os.listdir(temporary) == []


def read_size(path):
    return len(torch.load(path, weights_only=True)["state_dict"]["w"])


def test_a_run_writes_its_checkpoints_beside_their_place(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    main(["fit", "--config", "config.yaml", "--run_folder", "mine"])
    assert sorted(path.name for path in (tmp_path / "mine" / "checkpoints").iterdir()) == ["last.ckpt", "step=2.ckpt"]


def test_the_run_that_last_means_must_be_named_to_evaluate_it(run, capsys):
    validate = ["validate", "--config", "run/config.yaml", "--ckpt_path", "last"]
    assert "ckpt_path is last, but neither run_name nor run_folder says of which run." in refused(capsys, *validate)
    said = refused(capsys, *validate, "--run_folder", "none")
    assert "ckpt_path is last, but there is no checkpoint in none/checkpoints." in said
