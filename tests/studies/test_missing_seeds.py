"""A seed whose trial failed or did not run yet is one without a number, though it be the only one or every one."""

import numpy as np
import pytest
import yaml
from synthetic import synthetic_table

from lightning_icl.commands.study import with_missing
from lightning_icl.studies.claims import BeatsReference, RiskFallsWithHeads, judge
from lightning_icl.studies.plan import plan

SEEDS = (1, 2, 3, 4)


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """The jobs of a study of two models, by (heads, seed)."""
    monkeypatch.chdir(tmp_path)
    task = {"class_path": "SparseLinearRegression", "init_args": {"n_dims": 16, "sparsity": 2, "noise_std": 0.4}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": {"task": task}, "model": {"d_model": 16}}))
    grid = {"model.heads": [[1, 1], [8, 8]]}
    return plan({"base": ["base.yaml"], "grids": [grid], "seeds": list(SEEDS)}, tmp_path / "out").trials


def with_lost(trials, lost):
    """A table of the trials, those that were lost apart; and all of it."""
    names = {(str(job.overrides["model.heads"]), job.seed): job.name for job in trials}
    table = synthetic_table(np.random.default_rng(0), heads=[(1, 1), (8, 8)], seeds=SEEDS)
    cells = zip(table["model.heads"], table["seed"], table["trial"], strict=True)
    table["data.validation"] = "{}"  # a mapping, as a run's config has it
    table["trial"] = [names.get((heads, seed), trial) for heads, seed, trial in cells]  # P-probing has no heads
    gone = [names[str([8, 8]), seed] for seed in lost]
    return table[~table["trial"].isin(gone)], table


def judged(claim, table):
    (found,) = [f for f in judge([claim], table) if f.setting is None]
    return found


@pytest.mark.parametrize(("lost", "verdict"), [((), "PASS"), ((4,), "UNDECIDED"), (SEEDS, "UNDECIDED")])
@pytest.mark.parametrize("claim", [BeatsReference("ridge"), RiskFallsWithHeads()])
def test_a_trial_that_is_not_there_is_a_seed_without_a_number(trials, lost, verdict, claim):
    there, whole = with_lost(trials, lost)
    found = judged(claim, with_missing(there, trials))
    assert found.verdict == verdict
    assert found.parts[0].part.missing == len(lost)
    assert with_missing(whole, trials).dtypes.equals(whole.dtypes)


def test_a_model_that_failed_in_every_seed_is_in_the_setting_of_the_others(trials):
    there, _ = with_lost(trials, SEEDS)
    found = with_missing(there, trials).drop_duplicates("trial").set_index("trial")
    lost = found[found["metric"] == "run/missing"]
    assert set(lost["model.heads"]) == {"[8, 8]"}
    shared = ["depth", "data.task", "data.task.n_dims", "data.task.noise_std", "data.validation"]
    assert lost[shared].drop_duplicates().values.tolist() == found[shared].drop_duplicates().values.tolist()
    assert list(lost["seed"]) == list(SEEDS)


def test_a_number_that_nobody_has_is_not_missing_in_a_model_that_failed(trials):
    there, _ = with_lost(trials, SEEDS)
    there = there[there["metric"] != "val/excess_risk/ridge"]
    assert judged(BeatsReference("ridge"), with_missing(there, trials)).parts == []
