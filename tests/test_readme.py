"""Every command and every piece of Python the README shows is run."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, run_command

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line]
# Smaller still than TINY. The README's own options come after both, and win.
SMALLER = """
model: {d_model: 8}
trainer: {precision: 32}
"""


@pytest.mark.timeout(600)
def test_every_lightning_icl_command_runs_in_order(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "smaller.yaml").write_text(SMALLER)
    for language, block in BLOCKS:
        if language == "python" and block.startswith("# my_"):
            (tmp_path / block.splitlines()[0][2:]).write_text(block)
    commands = [shlex.split(line) for line in COMMANDS if line.startswith("lightning-icl ")]
    assert len(commands) >= 8
    for _, *args in commands:
        config = args.index("--config") + 2 if "--config" in args else len(args)
        tiny = ["--config", "tiny.yaml", "--config", "smaller.yaml"] if "--config" in args else []
        run_command(*args[:config], *tiny, *args[config:], cwd=tmp_path)
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").exists()
    assert list(tmp_path.glob("lightning_logs/*/predictions.npz"))


def test_the_make_targets_exist():
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    targets += re.findall(r"`make ([\w-]+)`", README)
    assert {"quickstart", "tensorboard", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_every_bash_line_is_covered():
    assert all(line.startswith(("lightning-icl ", "make ")) for line in COMMANDS)


def test_the_notebook_piece_runs(tmp_path):
    piece = next(block for language, block in BLOCKS if language == "python" and not block.startswith("# my_"))
    done = run_command("-c", piece, cwd=tmp_path, command=(sys.executable,))
    assert 0 < float(re.search(r"tensor\(([\d.]+)", done.stdout)[1]) < 1


def test_the_extensions_take_15_lines_or_fewer():
    for language, block in BLOCKS:
        if language == "python" and block.startswith("# my_"):
            code = block.split("\n\n\n", 1)[1]
            assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_figures_the_readme_shows_are_there():
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert figures
    assert all((ROOT / figure).stat().st_size > 10_000 for figure in figures)


def test_no_placeholder_is_left():
    assert not re.findall(r"\b(TABLE|TESTTIME|TODO|XXX)\b", README)
