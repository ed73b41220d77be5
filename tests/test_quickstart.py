"""The promises of the quickstarts, in full."""

import pytest
from conftest import ROOT, run_command

from lightning_icl import load_run


def last_risks(tmp_path, config, seed):
    """Excess risk on the validation prompts by name, at the end of the run."""
    command = (
        "fit",
        "--config",
        ROOT / "configs" / config,
        "--seed_everything",
        seed,
        "--run_folder",
        tmp_path / "run",
    )
    run_command(*command, cwd=tmp_path, timeout=2400)
    table = load_run(tmp_path / "run").table
    risks = table[(table["metric"].str.startswith("val/excess_risk/")) & (table["step"] == table["step"].max())]
    return {
        metric.removeprefix("val/excess_risk/"): value
        for metric, value in zip(risks["metric"], risks["value"], strict=True)
    }


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_quickstart_ends_below_lasso_which_is_far_below_ridge(tmp_path, seed):
    risk = last_risks(tmp_path, "quickstart.yaml", seed)
    print(risk)
    assert risk["transformer"] < risk["lasso"] < risk["ridge"] / 2


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_the_long_quickstart_ends_within_1_5_of_bayes(tmp_path):
    risk = last_risks(tmp_path, "quickstart_long.yaml", 1)
    print(risk)
    assert risk["transformer"] < 1.5 * risk["bayes"]
