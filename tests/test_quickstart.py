"""The promise of `make quickstart`, in full."""

import re

import pytest
from conftest import ROOT, run_command


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_quickstart_ends_at_or_below_ridge(tmp_path, seed):
    done = run_command(
        "fit", "--config", ROOT / "configs/quickstart.yaml", "--seed_everything", seed, cwd=tmp_path, timeout=1100
    )
    risk = {name: float(value) for name, value in re.findall(r"^  (\w+) +([\d.]+) \+-", done.stdout, flags=re.M)}
    print(risk)
    assert risk["transformer"] <= risk["ridge"]
