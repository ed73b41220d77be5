"""A study in a SLURM job, on a Ray cluster of two machines: two that share its folders, and one that does not."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

import pytest
import yaml
from conftest import run_command
from test_killed_study import BASE, finished

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
LAUNCHERS = {  # what a job's script has, and what a shell may have left
    **{"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
    **{"SLURM_NODELIST": "localhost", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "elsewhere"},
    **{"MASTER_PORT": "29500", "PMI_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
}
NODES = """
import os
from pathlib import Path
from lightning.pytorch import Callback

class Nodes(Callback):
    def setup(self, *_, **__):
        Path("raylet_" + os.environ["RAY_RAYLET_PID"]).touch()
"""


@contextmanager
def started(command, folder):
    """A Ray node for as long as it is wanted."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def may_hide_folders():
    """Whether this process may mount something in a namespace of its own."""
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def alive(address, number, seconds=120):
    """Wait until the cluster has so many nodes."""
    code = f"import ray; ray.init({address!r}, logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        if told.strip() == str(number):
            return
        time.sleep(1)
    raise AssertionError(f"there are no {number} nodes")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not may_hide_folders(), reason="a machine that lacks the folders is made by unshare, as root")
def test_a_study_runs_on_two_machines_and_refuses_one_that_lacks_its_folders(tmp_path, monkeypatch, request):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name, value in LAUNCHERS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "nodes.py").write_text(NODES)
    overrides = {"trainer.max_steps": 20, "trainer.val_check_interval": 1.0, "trainer.callbacks": ["nodes.Nodes"]}
    scale = {"base": ["base.yaml"], "overrides": overrides, "seeds": [1, 2]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "two", "scales": {"quick": scale}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"

    def study(output, check):
        options = ("study", "--config", "study.yaml", "--address", address, "--output", output)
        return run_command(*options, cwd=tmp_path, check=check, timeout=500)

    temporary = tempfile.mkdtemp(prefix="ray_")  # short, as the name of a socket is to be
    request.addfinalizer(lambda: shutil.rmtree(temporary, ignore_errors=True))
    head = [*RAY, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}"]
    node = [*RAY, f"--address={address}"]
    hide = f"mount -t tmpfs none {tmp_path} && exec {' '.join(node)}"
    with started(head, "/"):
        with started(node, "/"):
            alive(address, 2)
            study("shared", check=True)
            assert len(finished(tmp_path / "shared")) == 2
            assert len(list(tmp_path.glob("raylet_*"))) == 2
        alive(address, 1)
        with started(["unshare", "-m", "sh", "-c", hide], "/"):
            alive(address, 2)
            refused = study("hidden", check=False)
            assert refused.returncode == 2
            assert "of the Ray cluster does not have" in refused.stderr.splitlines()[-1]
            assert "must share the study's folder, the folder that the study is started in" in refused.stderr
            assert not (tmp_path / "hidden" / "trials").exists()
