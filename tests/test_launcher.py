"""A run that a launcher has started, or that was started beside one: SLURM's job, srun's task, torchrun's process."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import run_command
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lightning_icl.cli import main
from lightning_icl.launcher import as_torchrun, disagreement, is_first, one_launcher, srun_tasks, without_launcher

CONFIG = """
cpu_threads: 1
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 4, sparsity: 2, noise_std: 0.1}}
  n_points: 5
  n_queries: 4
  batch_size: 16
  eval_prompts: 32
  eval_batch_size: 32
model: {d_model: 16, heads: [2, 2], warmup_steps: 5}
trainer: {max_steps: 4, val_check_interval: 1.0, accelerator: cpu, enable_progress_bar: false}
"""
SCRIPT = {  # what the script of a job with four tasks finds, by Slurm's src/common/env.c
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
TASK = {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "node[7-8]"}  # and what srun adds
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "29500"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(*options):
    main(["fit", "--config", "config.yaml", *options])


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_script_of_a_slurm_job_trains_alone_and_takes_up_no_other_runs_checkpoint(folder, monkeypatch, capsys):
    for name, value in SCRIPT.items():
        monkeypatch.setenv(name, value)
    fit("--run_folder", "first")
    assert "SLURM has given this job 4 tasks, but srun did not start this process" in capsys.readouterr().err
    assert {name: os.environ.get(name) for name in SCRIPT} == SCRIPT
    shutil.copy(folder / "first" / "checkpoints" / "last.ckpt", folder / "hpc_ckpt_1.ckpt")  # as Lightning leaves it
    fit("--run_folder", "second", "--model.learning_rate", "0.01", "--ckpt_path", "last")
    first, second = weights(folder / "first"), weights(folder / "second")
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


def test_a_rank_left_in_the_environment_does_not_keep_a_run_from_logging(folder, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as Lightning sets it where it is imported with SLURM_PROCID=3
    fit("--run_folder", "run", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "unused")
    assert (folder / "run" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("environment", "options", "sentence"),
    [
        (SCRIPT | TASK, (), "this would be one of 4 processes that srun has started, but trainer.devices is 1"),
        (TORCHRUN, ("--trainer.devices", "2"), "one of 4 processes that torchrun or another has started, but trainer"),
        (SCRIPT, ("--trainer.num_nodes", "2"), "use srun --nodes=2 --ntasks-per-node=1 lightning-icl"),
    ],
)
def test_another_number_of_processes_is_refused_before_anything_is_written(
    folder, monkeypatch, capsys, environment, options, sentence
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        fit(*options)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("changed", "tasks"),
    [
        (TASK, 4),
        ({}, 1),  # a job's script
        (TASK | {"SLURM_STEP_NUM_TASKS": "1"}, 1),  # the shell of salloc
        (TASK | {"SLURM_JOB_NAME": "bash"}, 1),  # srun --ntasks=4 --pty bash
        (TASK | {"SLURM_JOB_NAME": "interactive"}, 4),  # srun typed into the shell of salloc
    ],
)
def test_srun_has_started_as_many_processes_as_the_step_has_tasks(changed, tasks):
    assert srun_tasks(SCRIPT | changed) == tasks


@pytest.mark.parametrize("of_launcher", [SCRIPT | TASK, TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}])
def test_a_command_of_one_process_is_done_by_the_first(folder, monkeypatch, capsys, of_launcher):
    assert is_first(of_launcher)
    for name, value in (of_launcher | {"SLURM_PROCID": "2", "RANK": "2"}).items():
        monkeypatch.setenv(name, value)
    main(["calibrate"])
    assert capsys.readouterr().err == "calibrate takes one process; the first that was started does it.\n"
    assert is_first(SCRIPT)
    assert is_first(TORCHRUN | {"RANK": "2"})  # which no launcher has set


def test_a_task_of_srun_finds_what_torchrun_would_have_told_it(monkeypatch):
    for name, value in (SCRIPT | TASK | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with one_launcher():
        told = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR")}
        assert not SLURMEnvironment.detect()
        assert SLURMEnvironment().world_size() == 4  # for who asks for it: trainer.plugins
    assert told == {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node7"}
    assert dict(os.environ) == before


def test_steps_and_jobs_beside_each_other_have_ports_of_their_own_and_a_users_port_stands():
    places = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in (4711, 4712) for step in range(9)]
    ports = [as_torchrun(SCRIPT | TASK | place)["MASTER_PORT"] for place in places]
    assert len(set(ports)) == len(ports)
    assert all(15000 <= int(port) < 25000 for port in ports)
    assert as_torchrun(SCRIPT | TASK | {"MASTER_PORT": "2"})["MASTER_PORT"] == "2"


def test_who_a_process_is_goes_and_where_it_is_stays():
    stays = {"PATH": "/bin", "SLURM_TMPDIR": "/fast", "CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "2"}
    mpi = {"PMI_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "NODE_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    assert without_launcher(SCRIPT | TASK | TORCHRUN | mpi | stays) == stays


def test_processes_that_agree_with_the_trainer_are_not_refused():
    assert disagreement(4, 1, TORCHRUN) is None
    assert disagreement(2, 2, TORCHRUN) is None
    assert disagreement(2, 1, SCRIPT) is None  # which Lightning will start
    assert disagreement(1, 2, SCRIPT | {"NODE_RANK": "1"}) is None  # started by hand
    assert disagreement(2, 1, {"WORLD_SIZE": "1", "RANK": "0"}) is None  # left by another, and none of Lightning's
    assert "one of auto processes" in str(disagreement(2, 1, {"WORLD_SIZE": "auto", "LOCAL_RANK": "0"}))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_of_srun_and_torchrun_train_as_those_that_lightning_starts(folder):
    options = ["fit", "--config", "config.yaml", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_folder"]
    run_command(*options, "lightning", cwd=folder)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    run_command("lightning_icl", *options, "torchrun", command=torchrun, cwd=folder)
    step = SCRIPT | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "OMP_NUM_THREADS": "1"}
    del step["SLURM_NTASKS_PER_NODE"]  # srun --ntasks=2, which Lightning would refuse
    command = [sys.executable, "-m", "lightning_icl", *options, "srun"]
    ranks = [
        subprocess.Popen(command, cwd=folder, env=os.environ | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in "01"
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "lightning", "srun", "torchrun"]
    alone = weights(folder / "lightning")
    for launcher in ("torchrun", "srun"):
        found = weights(folder / launcher)
        assert all(torch.equal(value, found[name]) for name, value in alone.items())


@pytest.mark.slow
def test_what_the_first_process_refuses_the_others_refuse(folder):
    """They would wait for it, for half an hour."""
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").touch()
    step = SCRIPT | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_icl", "fit", "--config", "config.yaml", "--trainer.devices", "2"]
    ranks = [
        subprocess.Popen(
            [*command, "--run_folder", "run"],
            cwd=folder,
            env=os.environ | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        assert all("there is such a run already" in rank.communicate(timeout=120)[1] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.wait() for rank in ranks] == [2, 2]


@pytest.mark.slow
def test_sigusr1_in_a_slurm_job_asks_slurm_for_nothing_and_leaves_nothing_in_the_working_folder(folder):
    (folder / "bin").mkdir()
    (folder / "bin" / "scontrol").write_text(f"#!/bin/sh\ntouch {folder}/asked\n")
    (folder / "bin" / "scontrol").chmod(0o755)
    environment = os.environ | SCRIPT | {"SLURM_NTASKS": "1", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "lightning_icl", "fit", "--config", "config.yaml", "--run_folder", "run"]
    command += ["--trainer.max_steps", "1000000", "--trainer.val_check_interval", "5"]
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        deadline = time.monotonic() + 120
        while not (folder / "run" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == 138
    assert sorted(path.name for path in folder.iterdir()) == ["bin", "config.yaml", "run"]
