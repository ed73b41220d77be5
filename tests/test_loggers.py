"""Whatever the loggers, a run writes into its own folder and nowhere else."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from conftest import run_command, small_data, small_module, small_trainer
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_run_folder import CONFIG

from lightning_icl.cli import main
from lightning_icl.functional.errors import InputError
from lightning_icl.record import journal
from lightning_icl.record.folder import next_version, run_folder
from lightning_icl.record.loggers import NAMES, logger_configs, loggers_in, place


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
        assert contents(run) >= files | {"config.yaml", "checkpoints", "record.jsonl"}
        assert (run / "checkpoints" / "last.ckpt").is_file()
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert "version_" not in json.dumps(saved["trainer"])  # with which the next run would write into this one
        assert saved["checkpoint"]["dirpath"] is None
    trained = contents(run)
    call("validate", logger, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert contents(run / "validate_0") >= files | {"config.yaml", "record.jsonl"}
    assert contents(run) == trained | {"validate_0"}
    assert contents(work / "lightning_logs") == {"version_0", "version_1"}
    assert contents(work) == {"config.yaml", "lightning_logs"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("logger", "files"), list(LOGGERS.values())[1::2], ids=list(LOGGERS)[1::2])
def test_a_named_folder_holds_all_of_a_run(work, capsys, logger, files):
    call("fit", logger, "--run_folder", "a/b")
    assert contents(work) == {"config.yaml", "a"}
    assert contents(work / "a" / "b") >= files | {"config.yaml", "checkpoints"}
    before = contents(work / "a" / "b")
    with pytest.raises(SystemExit):
        call("fit", logger, "--run_folder", "a/b")
    assert "run_folder is a/b, but there is such a run already: go on with it by" in capsys.readouterr().err
    assert contents(work / "a" / "b") == before


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("logger", [None, False])
def test_every_command_has_a_folder(work, capsys, logger):
    call("fit", logger, "--run_folder", "mine")
    commands = ("validate", "test", "predict")
    for command in commands:
        with pytest.raises(SystemExit):
            call(command, logger, "--run_folder", "mine", "--ckpt_path", "mine/checkpoints/last.ckpt")
        assert "run_folder is mine, but there is such a run already" in capsys.readouterr().err
        call(command, logger, "--run_folder", command, "--ckpt_path", "mine/checkpoints/last.ckpt")
        assert contents(work / command) >= {"config.yaml", "record.jsonl"}
    assert contents(work) == {"config.yaml", "mine", *commands}
    fitted = (work / "mine" / "config.yaml").read_text()
    call("validate", logger, "--run_folder", "mine", "--ckpt_path", "last")
    assert (work / "mine" / "config.yaml").read_text() == fitted
    with pytest.raises(SystemExit):
        call("validate", logger, "--run_folder", "nowhere", "--ckpt_path", "last")
    assert "ckpt_path is last, but there is no checkpoint in nowhere/checkpoints." in capsys.readouterr().err
    assert contents(work) == {"config.yaml", "mine", *commands}


@pytest.mark.usefixtures("undrawn")
def test_weights_and_biases_write_into_the_folder_too(work, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="in the extra dev")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(work / "wandb_of_home"))
    for _ in range(2):
        call("fit", {"class_path": "WandbLogger", "init_args": {"offline": True}})
        wandb.finish()
    assert contents(work) - {"wandb_of_home"} == {"config.yaml", "lightning_logs"}
    for run in (work / "lightning_logs").iterdir():
        assert contents(run) >= {"config.yaml", "checkpoints", "record.jsonl", "wandb"}
        assert list(run.glob("wandb/offline-run-*/*.wandb"))
    assert contents(work / "lightning_logs") == {"version_0", "version_1"}


@pytest.mark.usefixtures("undrawn")
def test_a_logger_told_where_to_write_writes_there(work, capsys):
    call("fit", [CSV | {"init_args": {"save_dir": "all", "name": "mine"}}, SERVICE | {"init_args": {"save_dir": "s"}}])
    assert contents(work) == {"config.yaml", "all", "s"}
    assert contents(work / "all" / "mine") == {"version_0"}
    named = TENSORBOARD | {"init_args": {"save_dir": "logs", "name": None, "version": "first"}}
    call("fit", named)
    assert contents(work / "logs" / "first") >= {"config.yaml", "checkpoints", "events"}
    with pytest.raises(SystemExit):
        call("fit", named)
    assert "trainer.logger.version is first, but there is such a run already" in capsys.readouterr().err
    call("validate", named, "--ckpt_path", "logs/first/checkpoints/last.ckpt")
    assert contents(work / "logs" / "first" / "validate_0") >= {"config.yaml", "events"}
    assert contents(work / "logs") == {"first"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("logger", [None, False, SERVICE])
def test_a_fast_run_writes_nothing(work, logger):
    for folder in ([], ["--run_folder", "mine"]):
        call("fit", logger, "--trainer.fast_dev_run", "true", *folder)
    assert contents(work) == {"config.yaml"}


class NamedService(Service):  # not WandbLogger itself, whose short name would then mean this one in later tests
    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.called = name


@pytest.mark.parametrize(("given", "called"), [({}, "mine"), ({"name": "theirs"}, "theirs")])
def test_a_service_calls_a_run_by_its_name_unless_told_another(tmp_path, monkeypatch, given, called):
    assert NAMES["WandbLogger"] == "name"
    monkeypatch.setitem(NAMES, "NamedService", "name")
    config = Namespace(class_path="test_loggers.NamedService", init_args=Namespace(given))
    (logger,) = loggers_in(tmp_path, [config], True, name="mine")
    assert logger.called == called
    assert "name" not in Namespace(config.init_args) or given  # the config that is saved says nothing of it


class Refusing(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise InputError("refused.")


@pytest.mark.parametrize("logger", [None, False])
@pytest.mark.parametrize("folder", [(), ("--run_folder", "a/b"), ("--run_folder", "empty")])
def test_a_run_that_is_refused_leaves_no_folder(work, capsys, logger, folder):
    (work / "lightning_logs").mkdir()
    (work / "empty").mkdir()
    for _ in range(2):
        with pytest.raises(SystemExit):
            call("fit", logger, "--trainer.callbacks", '["test_loggers.Refusing"]', *folder)
        assert "lightning-icl: refused." in capsys.readouterr().err
        assert contents(work) == {"config.yaml", "lightning_logs", "empty"}
        assert contents(work / "lightning_logs") == set()


def test_a_run_that_fails_keeps_its_folder(work, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Refusing, "on_fit_start", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        call("fit", False, "--trainer.callbacks", '["test_loggers.Refusing"]')
    assert contents(work / "lightning_logs" / "version_0") >= {"config.yaml"}


class Missing:
    def __bool__(self):
        return False

    def __str__(self):
        return "No module named 'mlflow'"


def test_a_logger_whose_package_is_missing_is_named(work, monkeypatch, capsys):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", Missing())
    with pytest.raises(SystemExit):
        call("fit", {"class_path": "MLFlowLogger"})
    assert "trainer.logger: No module named 'mlflow'" in capsys.readouterr().err
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


@pytest.mark.usefixtures("undrawn")
def test_a_validate_in_the_runs_folder_keeps_its_curves(work):
    call("fit", [TENSORBOARD, CSV], "--trainer.log_every_n_steps", 1, "--run_folder", "mine")
    before, rows = points(work / "mine"), (work / "mine" / "metrics.csv").read_text().splitlines()
    call("validate", [TENSORBOARD, CSV], "--run_folder", "mine", "--ckpt_path", "last")
    after = (work / "mine" / "metrics.csv").read_text().splitlines()
    assert len(after) > len(rows)
    assert set(before) <= set(points(work / "mine"))


@pytest.mark.usefixtures("undrawn")
def test_a_run_killed_before_its_first_checkpoint_starts_anew_with_no_point_twice(work):
    options = ("--trainer.log_every_n_steps", 1, "--run_folder", "mine")
    call("fit", [TENSORBOARD, CSV], *options)
    once, rows = points(work / "mine"), (work / "mine" / "metrics.csv").read_text().splitlines()
    (work / "mine" / "checkpoints" / "last.ckpt").unlink()
    call("fit", [TENSORBOARD, CSV], *options, "--ckpt_path", "last")
    assert sorted(points(work / "mine")) == sorted(once)
    assert len((work / "mine" / "metrics.csv").read_text().splitlines()) == len(rows)
    lines = journal.in_force(journal.read(work / "mine" / journal.NAME).lines)
    assert len([line for line in lines if "rows" in line]) == len({line["step"] for line in lines if "rows" in line})


class Kills(Callback):
    """Tells what a kill as the third step begins would leave of the curves."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 2:
            folder = run_folder(trainer)
            raise KeyError(points(folder), (folder / "metrics.csv").read_text().splitlines())


@pytest.mark.usefixtures("undrawn")
def test_a_kill_takes_nothing_that_a_checkpoint_has_behind_it(work):
    """CSVLogger keeps 100 rows in memory, TensorBoard two minutes."""
    every = ("--trainer.log_every_n_steps", 1, "--checkpoint.every_n_train_steps", 2, "--trainer.max_steps", 4)
    with pytest.raises(KeyError) as killed:
        call("fit", [TENSORBOARD, CSV], *every, "--trainer.callbacks", '["test_loggers.Kills"]')
    scalars, (header, *rows) = killed.value.args
    assert ("train/loss", 2) in scalars
    at = header.split(",").index("step")
    assert {"1", "2"} <= {row.split(",")[at] for row in rows}


@pytest.mark.slow  # test_data.py trains on two processes, which write into one folder
@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("lightning_logs/version_0", ()),
        ("mine", ("--run_folder", "mine")),
        ("lightning_logs/mine", ("--run_name", "mine")),
    ],
    ids=["new", "folder", "name"],
)
def test_two_processes_write_into_one_folder(work, folder, told):
    options = ["--config", "config.yaml", "--trainer.logger", "false", "--trainer.limit_val_batches", 1]
    options += ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    run_command("fit", *options, *told, cwd=work)
    assert contents(work) == {"config.yaml", folder.partition("/")[0]}
    assert contents(work / folder) >= {"config.yaml", "checkpoints", "record.jsonl"}
    assert contents((work / folder).parent) <= {Path(folder).name, "config.yaml"}
    run_command("validate", *options[2:], "--ckpt_path", f"{folder}/checkpoints/last.ckpt", cwd=work)
    assert contents((work / folder).parent) <= {Path(folder).name, "config.yaml"}
    assert contents(work / folder / "validate_0") >= {"config.yaml", "record.jsonl"}


def test_a_path_that_is_expanded_already_is_taken_as_it_stands(tmp_path):
    trainer = Namespace(logger=True, default_root_dir=str(tmp_path / "$HOME"))
    assert place(logger_configs(trainer), trainer) == (tmp_path / "$HOME" / "lightning_logs", None)
