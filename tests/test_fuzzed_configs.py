"""Generated configs, wrong in one place: each is answered in one sentence, or works. See fuzzed_configs.py."""

import json
import sys

import pytest
from conftest import ROOT, run_command

FUZZER = (sys.executable, ROOT / "tests" / "fuzzed_configs.py")


def counts(cwd, *options, timeout):
    done = run_command(*options, cwd=cwd, timeout=timeout, command=FUZZER, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_seven_hundred_configs_are_answered_or_work(tmp_path):
    assert sum(counts(tmp_path, "--n", 700, timeout=7200).values()) == 700
