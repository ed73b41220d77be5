"""Whatever the loggers, a run writes into its own folder and nowhere else."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml
from conftest import run_command, small_data, small_module, small_trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_run_folder import CONFIG

from lightning_icl.cli import main
from lightning_icl.record.folder import next_version, run_folder
from lightning_icl.record.loggers import first_step_again


class Service(Logger):
    """As the loggers of services are: a folder with a default, and files somewhere in it once there is anything."""

    def __init__(self, save_dir: str = ".", project: str = "mine") -> None:
        super().__init__()
        self._save_dir, self.project = save_dir, project

    name = version = None

    @property
    def save_dir(self):
        return self._save_dir

    def log_metrics(self, metrics, step=None):
        self.log_hyperparams(metrics)

    def log_hyperparams(self, params, *args):
        folder = os.path.join(self.save_dir, "service", self.project)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "log.txt"), "a") as file:
            file.write(f"{sorted(params)}\n")


class Store(Service):
    """As MLflow's."""

    def __init__(self, save_dir: str | None = "./runs_of_store") -> None:
        super().__init__(save_dir)


TENSORBOARD = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "."}}
CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}
SERVICE = {"class_path": "test_loggers.Service"}
STORE = {"class_path": "test_loggers.Store"}
LOGGERS = {
    "default": (None, {"events"}),
    "tensorboard": (TENSORBOARD, {"events"}),
    "csv": (CSV, {"metrics.csv"}),
    "service": (SERVICE, {"service"}),
    "store": (STORE, {"runs_of_store"}),
    "tensorboard and csv": ([TENSORBOARD, CSV], {"events", "metrics.csv"}),
    "service and tensorboard": ([SERVICE, TENSORBOARD], {"service", "events"}),
    "none": (False, set()),
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a user's files in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def call(command, logger, *args):
    main([command, "--config", "config.yaml", "--trainer.logger", json.dumps(logger), *map(str, args)])


def contents(folder):
    return {"events" if p.name.startswith("events.") else p.name for p in folder.iterdir()}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("logger", "files"), LOGGERS.values(), ids=LOGGERS)
def test_two_runs_from_one_folder_have_each_their_own(work, logger, files):
    for _ in range(2):
        call("fit", logger)
    assert contents(work) == {"config.yaml", "lightning_logs"}
    assert contents(work / "lightning_logs") == {"version_0", "version_1"}
    for run in (work / "lightning_logs").iterdir():
        assert contents(run) >= files | {"config.yaml", "checkpoints"}
        assert (run / "checkpoints" / "last.ckpt").is_file()
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert "version_" not in json.dumps(saved["trainer"])  # with which the next run would write into this one
        assert saved["checkpoint"]["dirpath"] is None
    call("validate", logger, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert contents(work / "lightning_logs") == {"version_0", "version_1", "version_2"}
    assert contents(work) == {"config.yaml", "lightning_logs"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("logger", "files"), LOGGERS.values(), ids=LOGGERS)
def test_a_named_folder_holds_all_of_a_run(work, capsys, logger, files):
    call("fit", logger, "--run_folder", "a/b")
    assert contents(work) == {"config.yaml", "a"}
    assert contents(work / "a" / "b") >= files | {"config.yaml", "checkpoints"}
    before = contents(work / "a" / "b")
    for command in ("fit", "validate", "test", "predict"):
        with pytest.raises(SystemExit):
            call(command, logger, "--run_folder", "a/b")
        assert "run_folder is a/b, but there is a run in it already: go on with it by" in capsys.readouterr().err
    assert contents(work / "a" / "b") == before
    for command in ("validate", "test", "predict"):
        call(command, logger, "--run_folder", command, "--ckpt_path", "a/b/checkpoints/last.ckpt")
        assert "config.yaml" in contents(work / command)
    assert contents(work) == {"config.yaml", "a", "validate", "test", "predict"}


@pytest.mark.usefixtures("undrawn")
def test_a_logger_told_where_to_write_writes_there(work):
    call("fit", [CSV | {"init_args": {"save_dir": "logs", "name": "mine"}}, SERVICE | {"init_args": {"save_dir": "s"}}])
    assert contents(work) == {"config.yaml", "logs", "s"}
    assert contents(work / "logs" / "mine") == {"version_0"}
    named = TENSORBOARD | {"init_args": {"save_dir": "logs", "name": None, "version": "first"}}
    call("fit", named)
    assert contents(work / "logs" / "first") >= {"config.yaml", "checkpoints", "events"}
    with pytest.raises(SystemExit):
        call("fit", named)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("logger", [None, False, SERVICE])
def test_a_fast_run_writes_nothing(work, logger):
    for folder in ([], ["--run_folder", "mine"]):
        call("fit", logger, "--trainer.fast_dev_run", "true", *folder)
    assert contents(work) == {"config.yaml"}


class Broken(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise RuntimeError("broken")


@pytest.mark.parametrize("folder", [(), ("--run_folder", "a/b")])
def test_a_run_that_never_began_leaves_no_folder(work, folder):
    (work / "lightning_logs").mkdir()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            call("fit", False, "--trainer.callbacks", '["test_loggers.Broken"]', *folder)
        assert contents(work) == {"config.yaml", "lightning_logs"}
        assert contents(work / "lightning_logs") == set()


def test_a_logger_whose_package_is_missing_is_named(work, monkeypatch, capsys):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(SystemExit):
        call("fit", {"class_path": "MLFlowLogger"})
    assert "trainer.logger: False" in capsys.readouterr().err
    assert contents(work) == {"config.yaml"}


def test_runs_that_start_at_once_share_no_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: next_version(tmp_path / "runs"), range(40)))
    assert {folder.name for folder in folders} == {f"version_{n}" for n in range(40)}


def test_a_trainer_of_ones_own_has_a_folder_too(tmp_path):
    found = [run_folder(small_trainer(tmp_path)) for _ in range(2)]
    assert found == [tmp_path / "lightning_logs" / name for name in ("version_0", "version_1")]
    logger = CSVLogger(tmp_path / "logs")
    assert run_folder(small_trainer(tmp_path, logger=[Service(), logger])) == tmp_path / "logs/lightning_logs/version_0"
    assert run_folder(small_trainer(tmp_path, fast_dev_run=True)) is None
    trainer = small_trainer(tmp_path, max_steps=1)
    assert run_folder(trainer) == run_folder(trainer) == tmp_path / "lightning_logs" / "version_2"
    trainer.fit(small_module(), small_data())
    assert contents(tmp_path) == {"lightning_logs"}


def points(folder):
    """(tag, step) of each scalar that TensorBoard shows, as often as it does."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(tag, event.step) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_goes_on_from_before_its_end_has_no_point_twice_and_none_missing(work):
    loggers, every = [TENSORBOARD, CSV], ("--trainer.log_every_n_steps", 1, "--checkpoint.every_n_train_steps", 2)
    options = (*every, "--trainer.max_steps", 5, "--checkpoint.save_top_k", -1, "--run_folder")
    call("fit", loggers, *options, "whole")
    call("fit", loggers, *options, "mine")
    checkpoints = work / "mine" / "checkpoints"
    (checkpoints / "last.ckpt").write_bytes((checkpoints / "step=4.ckpt").read_bytes())
    call("fit", loggers, *options, "mine", "--ckpt_path", "last")
    whole, mine = points(work / "whole"), points(work / "mine")
    assert len(set(mine)) == len(mine)
    assert set(mine) == set(whole)
    tables = [(work / name / "metrics.csv").read_text().splitlines() for name in ("whole", "mine")]
    assert len(tables[0]) == len(tables[1])


@pytest.mark.parametrize(
    ("state", "first"), [({}, 5), ({"validated_at": 4}, 5), ({"validated_at": 2}, 4), ({"validated_at": -1}, 4)]
)
def test_the_step_of_a_checkpoint_is_logged_again_where_its_validation_is_to_come(tmp_path, state, first):
    saved = {"global_step": 4} | ({"lightning_icl": state} if state else {})
    torch.save(saved, tmp_path / "some.ckpt")
    assert first_step_again(tmp_path / "some.ckpt") == first


def test_two_processes_write_into_one_folder(work):
    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.limit_val_batches", 1]
    for folder in ([], ["--run_folder", "mine"]):
        options = ["--config", "config.yaml", "--trainer.logger", "false", *two, *folder]
        run_command("fit", *options, cwd=work)
    assert contents(work) == {"config.yaml", "lightning_logs", "mine"}
    assert contents(work / "lightning_logs") == {"version_0"}
    for run in (work / "mine", work / "lightning_logs" / "version_0"):
        assert contents(run) >= {"config.yaml", "checkpoints"}
