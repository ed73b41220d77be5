"""What can be told before a run is told before anything of it is there; --dry_run true says it and stops."""

import json
import os

import pytest
from test_run_folder import CONFIG

from lightning_icl import command_line
from lightning_icl.cli import main


@pytest.fixture
def untouched(tmp_path, monkeypatch):
    """A folder in which no run may be made, be it for a moment."""

    def made(*_):
        raise AssertionError("a folder was made")

    monkeypatch.setattr(command_line, "next_version", made)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("fit", (), ("fit would run Transformer (913 weights) on SparseLinearRegression for 2 steps", "1 x cpu")),
        ("validate", ("--run_folder", "a/b"), ("validate would run", "write to a/b.")),
    ],
)
def test_a_dry_run_says_what_would_run_and_where(untouched, capsys, command, options, words):
    main([command, "--config", "config.yaml", "--dry_run", *options])
    said = capsys.readouterr().out
    assert said.startswith("All checks passed. ")
    assert all(part in said for part in words)


def callback(name, **options):
    return "--trainer.callbacks", json.dumps([{"class_path": name, "init_args": options}])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trainer.accumulate_grad_batches", "3"), "batch_size is 4, but it must divide"),
        (callback("Curriculum", dims_start=9), "dims_start is 9, but the task has only 4"),
        (callback("ReferenceRisk", references=[{"class_path": "BestSubset", "init_args": {"sparsity": 9}}]), "is 9"),
        (callback("HeadPruning", checkpoints={"other": "no.ckpt"}), "checkpoints: other"),
        (("--run_folder", "config.yaml/mine"), "config.yaml is a file"),
        (("--checkpoint.dirpath", "config.yaml"), "config.yaml is a file; name another folder."),
        (("--run_folder", "$NO_SUCH/mine"), "run_folder is $NO_SUCH/mine, but the variable NO_SUCH is not set."),
    ],
)
def test_what_is_refused_is_refused_before_the_folder_is_made(untouched, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "config.yaml", *options])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_refused(untouched, capsys, monkeypatch):
    """Root may write where a mode forbids it, and no test can mount what is read-only."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != untouched and access(path, mode))
    with pytest.raises(SystemExit):
        main(["fit", "--config", "config.yaml", "--run_folder", "mine"])
    assert f"run_folder is mine, but {untouched} cannot be written to" in capsys.readouterr().err


def test_a_path_is_expanded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    main(["fit", "--config", "config.yaml", "--run_folder", "${SCRATCH}/mine"])
    assert {path.name for path in (tmp_path / "scratch" / "mine").iterdir()} >= {"config.yaml", "checkpoints"}
    assert list((tmp_path / "scratch" / "mine").glob("events.*"))
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "scratch"}
