"""Generated configs, wrong in one place: each is answered in one sentence, or works. See fuzzed_configs.py."""

import json
import sys

import pytest
from conftest import ROOT, run_command

FUZZER = (sys.executable, ROOT / "tests" / "fuzzed_configs.py")


def right(cwd, *options, timeout):
    """How many configs were tried of which none is wrong."""
    done = run_command(*options, cwd=cwd, timeout=timeout, command=FUZZER, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    return last["answered"] + last["works"]


def test_one_config_of_each_kind_is_answered_or_works(tmp_path):
    assert right(tmp_path, "--n", 13, timeout=240) == 13


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_seven_hundred_configs_are_answered_or_work(tmp_path):
    assert right(tmp_path, "--n", 700, timeout=7200) == 700
