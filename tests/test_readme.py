"""Every command that the README and docs/ show is understood, and every piece of Python the README shows is run."""

import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, run_command

from lightning_icl import SparseLinearRegression
from lightning_icl.cli import main
from lightning_icl.functional.references import Case, Ridge, tuned, whole_prompts

PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES[ROOT / "README.md"]
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)]
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line]
# Starting Python and importing torch would take most of the time of each command.
IN_ONE_PROCESS = """
import json, sys
from lightning_icl import cli
for args in json.loads(sys.argv[1]):
    sys.argv = ["lightning-icl", *args]
    try:
        cli.main()
    except SystemExit as stop:
        assert {"--help", "--print_config"} & set(args) and not stop.code, (args, stop.code)
"""
# Smaller still than TINY, and without its analyses, which tests/test_cli.py runs. The README's options come after both,
# and win.
SMALLER = """
model: {d_model: 8}
trainer:
  precision: 32
  callbacks: []
"""


@pytest.fixture
def commands(tmp_path):
    """The README's commands in order, made small, and a folder with the files it shows."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "smaller.yaml").write_text(SMALLER)
    for _, block in BLOCKS:
        if found := re.match(r"# (\w+\.(py|yaml))\n", block):
            (tmp_path / found[1]).write_text(block)
    lines = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("lightning-icl ")]
    assert len(lines) >= 20
    return [_smaller(args) for args in lines]


def _smaller(args):
    if args[0] == "study":  # which tests/studies and tests/commands/test_study.py run
        return [*args, "--dry_run"]
    config = args.index("--config") + 2 if "--config" in args else len(args)
    tiny = ["--config", "tiny.yaml", "--config", "smaller.yaml"] if "--config" in args else []
    if any("constructed/" in arg for arg in args):  # whose width is what it is
        tiny = tiny[:2]
    short = ["--steps", "2", "--seeds", "2", "--depths", "1", "--prompts", "16"] if args[0] == "p_probe" else []
    if args[0] == "calibrate":
        short = ["--skip_p_probing"]
    if args[0] == "theory":
        short = ["--prompts", "8", "--tuning_prompts", "8", "--axes", "{n: [8, 16]}"]
    if "schedule.yaml" in args:  # which cuts after the third validation
        short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "1"]
    if "configs/full_analysis.yaml" in args:  # which takes a minute; its file is parsed all the same
        short = ["--trainer.callbacks", "[Circuits]"]
    return [*args[:config], *tiny, *args[config:], *short]


def _run_in_one_process(commands, folder):
    script = (sys.executable, "-c", IN_ONE_PROCESS)
    run_command(json.dumps(commands), cwd=folder, command=script, timeout=400)


def test_every_lightning_icl_command_is_understood(commands, tmp_path):
    """The first and those that train nothing are run; of the others the options are parsed."""
    first, *others = commands
    parsed = {"fit": ["--print_config"], "validate": ["--print_config"], "predict": ["--print_config"]}
    parsed |= {"p_probe": ["--help"], "theory": ["--help"], "calibrate": ["--help"]}
    _run_in_one_process([first, *([*args, *parsed.get(args[0], [])] for args in others)], tmp_path)
    assert (tmp_path / "pruned" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_lightning_icl_command_runs_in_order(commands, tmp_path):
    for in_two_processes, group in itertools.groupby(commands, key=lambda args: "--trainer.devices" in args):
        if in_two_processes:
            for args in group:
                run_command(*args, cwd=tmp_path)
        else:
            _run_in_one_process(list(group), tmp_path)
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").exists()
    assert list(tmp_path.glob("lightning_logs/*/predictions.npz"))
    (instruments,) = [block for language, block in BLOCKS if language == "python" and "head_circuits" in block]
    done = run_command("-c", instruments, cwd=tmp_path, command=(sys.executable,))
    assert "heads left in each layer" in done.stdout


def test_the_make_targets_exist():
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    targets += re.findall(r"`make ([\w-]+)`", README)
    assert {"quickstart", "tensorboard", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_every_bash_line_is_covered():
    benchmarks = [line for line in COMMANDS if line.startswith("python benchmarks/")]
    assert all(line.startswith(("lightning-icl ", "make ")) for line in COMMANDS if line not in benchmarks)
    assert sorted(line.split()[1] for line in benchmarks) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").glob("*.py")
    )


BENCHMARKS = [
    ("estimators.py", "--prompts", 1),
    ("preprocess_then_gd.py", "--prompts", 10),
    ("head_importance.py", "--prompts", 2, "--memory-prompts", 0),
    ("pruned_speed.py",),
    ("p_probing.py", "--steps", 1, "--scale", "quick"),
]


@pytest.mark.parametrize("options", BENCHMARKS)
def test_the_benchmarks_run(tmp_path, monkeypatch, options):
    script, *smaller = options
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--repeats", "2", *map(str, smaller)])
    threads = torch.get_num_threads()
    runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    torch.set_num_threads(threads)


def python_piece(part):
    return next(block for language, block in BLOCKS if language == "python" and part in block)


def test_the_notebook_piece_runs(capsys):
    exec(python_piece("from lightning_icl import SparseLinearRegression"), {})
    lasso, bayes = (float(risk) for risk in re.findall(r"tensor\(([\d.]+)", capsys.readouterr().out))
    assert 0 < bayes < lasso < 1


def test_the_piece_that_opens_a_run_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    quickstart = ("--config", str(ROOT / "configs" / "quickstart.yaml"), "--config", "tiny.yaml")
    main(["fit", *quickstart, "--model.heads", "[2, 2]", "--figures.when", "never"])
    exec(python_piece("from lightning_icl import load_run"), {})
    said = capsys.readouterr().out
    assert "torch.Size([256, 2])" in said
    assert "SparseLinearRegression" in said


def test_the_reference_of_ones_own_is_tuned_as_ours_are():
    shown = {}
    exec(python_piece("class DecayingRidge"), shown)
    task = SparseLinearRegression(5, 2, noise_std=0.4)
    problems = whole_prompts(task.sample(64, 8, 2, torch.Generator().manual_seed(0)))
    plain, decaying = (shown["DecayingRidge"](power=power).bound(Case(task, task, 2)) for power in (0.0, 1.0))
    ours = [plain, decaying, Ridge(alpha=0.8).bound(plain.case)]
    found = tuned(ours, problems)
    assert [reference.key for reference in found] == ["decaying_ridge_power_0", "decaying_ridge", "ridge_0.8"]
    assert re.fullmatch(r"ridge, later features penalised more, alpha \S+ \(tuned\)", found[1].label())
    alpha = torch.tensor([[0.1]], dtype=torch.float64)
    torch.testing.assert_close(plain.at(alpha).weights(problems), found[2].weights(problems))  # 0.1 of 8 examples
    x, y, penalty = problems.x, problems.y, 0.8 * torch.arange(1.0, 6).double()
    expected = torch.linalg.solve(x.mT @ x + penalty.diag(), (x.mT @ y[..., None])[..., 0])
    torch.testing.assert_close(decaying.at(alpha).weights(problems)[:, 0], expected)


def test_the_extensions_take_15_lines_or_fewer():
    for language, block in BLOCKS:
        if language == "python" and block.startswith("# my_"):
            code = block.split("\n\n\n", 1)[1]
            assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_figures_a_page_shows_are_there(page):
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGES[page])
    assert figures or page.name == "reliability.md"  # which is of words and tables
    assert all((page.parent / figure).stat().st_size > 10_000 for figure in figures)


def test_no_placeholder_is_left():
    assert not re.findall(r"\b(TABLE|TESTTIME|CALIBRATION|TODO|XXX)\b", "".join(PAGES.values()))
