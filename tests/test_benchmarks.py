"""The benchmarks of training run, beside a stand-in for the peer's checkout."""

import re
import runpy
import sys

import pytest
from conftest import ROOT, run_command

# What train.py of github.com/dtsip/in-context-learning looks like from outside; its model always predicts 0.
TRAIN = """
import torch
import wandb
from quinine import QuinineArgumentParser
from tqdm import tqdm

class Zero(torch.nn.Module):
    def __init__(self, n_dims):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(n_dims, 1))

    def forward(self, xs, ys):
        return 0 * (xs @ self.weight)[..., 0]

def build_model(args):
    assert args.n_embd > 0 and args.n_positions > 1
    return Zero(args.n_dims)

class Task:
    def evaluate(self, xs):
        return xs.sum(dim=2)

def get_task_sampler(name, n_dims, batch_size, num_tasks=None, sparsity=3):
    return lambda valid_coords: Task()

def train_step(model, xs, ys):
    loss = (model(xs, ys) - ys).square().mean()
    loss.backward()

def train(model, args):
    sampler = get_task_sampler(args.training.task, model.weight.shape[0], 2, **args.training.task_kwargs)
    for i in tqdm(range(args.training.train_steps)):
        xs = torch.randn(2, args.training.curriculum.points.start, args.training.curriculum.dims.start)
        train_step(model, xs.cuda(), sampler(valid_coords=3).evaluate(xs).cuda())
"""


@pytest.fixture
def peer(tmp_path):
    models = tmp_path / "peer" / "src" / "conf" / "models"
    models.mkdir(parents=True)
    (models / "tiny.yaml").write_text("model: {family: gpt2, n_embd: 64, n_layer: 3, n_head: 2}")
    (models.parents[1] / "train.py").write_text(TRAIN)
    return tmp_path / "peer"


def cells(printed, name):
    """The cells of the one row of a table that starts with ``name``."""
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", printed, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def run_benchmark(name, *options, cwd, timeout=240):
    return run_command(ROOT / "benchmarks" / name, *options, cwd=cwd, command=(sys.executable,), timeout=timeout).stdout


@pytest.mark.slow
def test_time_to_risk_tells_who_got_there(tmp_path, peer):
    ours = ("--settings", "easy", "--presets", "linear 4x8, SOAP", "--limit", 0.1)
    printed = run_benchmark(
        "time_to_risk.py", *ours, "--peer", peer, "--peer-limit", 0.1, "--peer-sizes", "tiny", cwd=tmp_path
    )
    for rate in ("0.0001", "0.001"):
        _, reached, seconds, _, steps, risk = cells(printed, f"peer, tiny, {rate}")
        assert reached == "no"
        assert 0.1 <= float(seconds) < 5
        assert int(steps.replace(",", "")) > 1
        assert abs(float(risk) - 2) < 0.6  # that of zero, E<w, x>^2 = s = 2: four standard errors over 1,024 prompts
    assert cells(printed, "linear 4x8, SOAP")[1] == "no"
    assert "None of ours got there." in printed


@pytest.mark.slow
def test_step_compares_the_loops(tmp_path, peer):
    sizes = ("--precisions", "fp32", "--repeats", 1, "--steps", 1, "--batch", 2)
    printed = run_benchmark("step.py", *sizes, "--peer", peer, cwd=tmp_path)
    milliseconds = {name: float(cells(printed, name)[0]) for name in ("bare", "Trainer", "peer")}
    ratio = milliseconds["Trainer"] / milliseconds["bare"]
    assert float(cells(printed, "Trainer")[2]) == pytest.approx(ratio, rel=0.05)
    assert milliseconds["peer"] > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_scaling_sees_the_memory_of_more_prompts(tmp_path):
    printed = run_benchmark("scaling.py", "--tables", "batch", "--steps", 1, "--largest", 64, cwd=tmp_path)
    small, large = (int(cells(printed, prompts)[1]) for prompts in ("16", "64"))
    # The residual stream after each of 4 layers and its two norms' inputs: 12 times 64 prompts x 32 tokens x 64 floats.
    assert large - small > 12 * 48 * 32 * 64 * 4 / 1e6


@pytest.mark.slow
def test_search_tells_where_a_recipe_ends_and_why_another_did_not_start(tmp_path, monkeypatch, capsys):
    small = "--trainer.max_steps 20"
    recipes = (small, f"{small} --model.learning_rate 1", "--model.d_model 15")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["search.py", "--config", "configs/debug.yaml", *recipes])
    runpy.run_path(str(ROOT / "benchmarks" / "search.py"), run_name="__main__")  # its fits have processes of their own
    printed = capsys.readouterr().out
    (steps, _, risk, curve), (_, _, other, _) = (cells(printed, recipe) for recipe in recipes[:2])
    assert steps == "20"
    assert len(curve.split()) == 10
    assert 0.3 < float(risk) < 10
    assert other != risk
    assert "heads is 2 in layer 1, which does not divide d_model, 15" in cells(printed, recipes[2])[2]


@pytest.mark.slow  # test_cli.py validates on two processes
def test_ranks_find_the_same_numbers_and_weights(tmp_path):
    printed = run_benchmark("ranks.py", "--config", "configs/debug.yaml", cwd=tmp_path)
    row = r"^\| (validate, record|fit, weights) \| [24] \| ([\d,]+) \| [\d,]+ \| (\S+) \|$"
    rows = re.findall(row, printed, re.MULTILINE)
    assert len(rows) == 4
    for what, compared, largest in rows:
        assert int(compared.replace(",", "")) > 2000
        assert float(largest) < (1e-12 if what == "validate, record" else 1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_training_grows_in_nothing_but_its_curves(tmp_path):
    """By 158 kB in a thousand steps, standard error 21: what four analyses keep of two measurements for their curves.

    One small tensor kept a step would be 500.
    """
    printed = run_benchmark("endurance.py", cwd=tmp_path, timeout=1700)
    assert float(cells(printed, "resident set, kB")[1]) < 300
    for name in ("open files", "threads"):
        assert abs(float(cells(printed, name)[1])) < 0.1
