"""The command line makes the model as wide as the task, whatever the task is made of."""

import pytest
import yaml

from lightning_icl.cli import ICLCommandLine

LINEAR = {"class_path": "LinearRegression", "init_args": {"n_dims": 5}}
SPARSE = {"class_path": "SparseLinearRegression", "init_args": {"n_dims": 5, "sparsity": 2}}
POOL = {"class_path": "TaskPool", "init_args": {"task": SPARSE, "n_tasks": 3}}
MIXTURE = {"class_path": "Mixture", "init_args": {"tasks": [SPARSE, LINEAR]}}

MY_TASKS = """
from dataclasses import dataclass, field
from lightning_icl import Law, Task

@dataclass(frozen=True)
class ByDefault(Task):
    n_dims: int = 5
    def sample_targets(self, x, generator):
        return x.sum(dim=-1), None

@dataclass(frozen=True)
class Fixed(ByDefault):
    n_dims: int = field(init=False, default=5)
    scale: float = 1.0

@dataclass(frozen=True)
class Wrapped(Task):
    n_dims: int = field(init=False)
    inner: Law
    def __post_init__(self):
        object.__setattr__(self, "n_dims", self.inner.n_dims)
        super().__post_init__()
    def sample_targets(self, x, generator):
        return x.sum(dim=-1), None
"""


def n_dims(tmp_path, monkeypatch, task):
    (tmp_path / "my_tasks_of_width_5.py").write_text(MY_TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-icl"])
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"data": {"task": task}, "model": {"d_model": 8, "heads": [2]}, "trainer": {"logger": False}})
    )
    built = ICLCommandLine(args=["--config", "config.yaml"], run=False)
    assert built.datamodule.task.n_dims == built.model.network.n_dims
    return built.config["model"]["n_dims"]


@pytest.mark.parametrize(
    "task",
    [
        LINEAR,
        POOL,
        MIXTURE,
        {"class_path": "Mixture", "init_args": {"tasks": [POOL, MIXTURE], "weights": [1, 2]}},
        {"class_path": "my_tasks_of_width_5.ByDefault"},
        {"class_path": "my_tasks_of_width_5.Fixed"},
        {"class_path": "my_tasks_of_width_5.Fixed", "init_args": {"scale": 2.0}},
        {"class_path": "my_tasks_of_width_5.Wrapped", "init_args": {"inner": MIXTURE}},
    ],
    ids=["plain", "pool", "mixture", "nested", "default", "no option", "another option", "another name"],
)
def test_the_model_is_as_wide_as_the_task(tmp_path, monkeypatch, task):
    assert n_dims(tmp_path, monkeypatch, task) == 5
