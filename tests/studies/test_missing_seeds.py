"""A seed whose trial failed or did not run yet is one without a number, wherever it is the seed's only trial."""

from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_table

from lightning_icl.commands.study import with_missing
from lightning_icl.studies.claims import BeatsReference, judge
from lightning_icl.studies.plan import Job

SEEDS = (1, 2, 3, 4)
OVERRIDES = {"model.heads": [8, 8]}


@pytest.mark.parametrize(("lost", "verdict"), [((), "PASS"), ((4,), "UNDECIDED")])
def test_a_trial_that_is_not_there_is_a_seed_without_a_number(lost, verdict):
    table = synthetic_table(np.random.default_rng(0), heads=[(8, 8)], seeds=SEEDS)
    name = {int(rows["seed"].iloc[0]): trial for trial, rows in table.groupby("trial")}
    trials = [Job(name[seed], "fit", Path(), [], OVERRIDES, seed) for seed in SEEDS]
    there = table[~table["seed"].isin(lost)]
    (found,) = [f for f in judge([BeatsReference("ridge")], with_missing(there, trials)) if f.setting is None]
    assert found.verdict == verdict
    assert found.parts[0].part.missing == len(lost)
    assert with_missing(table, trials).dtypes.equals(table.dtypes)
