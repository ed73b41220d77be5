"""What README.md and the pages of docs/ show: commands are understood, Python runs, pictures and links are there."""

import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, run_command

from lightning_icl import SparseLinearRegression
from lightning_icl.cli import main
from lightning_icl.functional.references import Case, Ridge, tuned, whole_prompts

PATHS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
)
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
BLOCKS = {
    page: re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE) for page, text in PAGES.items()
}
COMMANDS = {
    page: [line for language, block in blocks if language == "bash" for line in block.splitlines() if line]
    for page, blocks in BLOCKS.items()
}
FILE = re.compile(r"# (\w+\.(py|yaml))\n")
PYTHON = {
    page: [block for language, block in blocks if language == "python" and not FILE.match(block)]
    for page, blocks in BLOCKS.items()
}
# Starting Python and importing torch would take most of the time of each command. Pages may call their modules alike.
IN_ONE_PROCESS = """
import json, os, sys
from lightning_icl import cli
for folder, args in json.loads(sys.stdin.read()):
    os.chdir(folder)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if "/pages/" not in path]
    sys.argv = ["lightning-icl", *args]
    try:
        cli.main()
    except SystemExit as stop:
        quiet = any("help" in arg or arg == "--print_config" for arg in args)
        assert quiet and not stop.code, (folder, args, stop.code)
"""
# Smaller still than TINY, and without its analyses, which tests/test_cli.py runs. A page's options come after both, and
# win.
SMALLER = """
model: {d_model: 8}
trainer:
  precision: 32
  callbacks: []
"""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder with docs/, and with lightning_logs/quickstart, a very small run of configs/quickstart.yaml."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "smaller.yaml").write_text(SMALLER)
    configs = ("--config", str(ROOT / "configs" / "quickstart.yaml"), "--config", str(folder / "tiny.yaml"))
    run = str(folder / "lightning_logs" / "quickstart")
    main(["fit", *configs, "--model.d_model", "8", "--figures.when", "never", "--run_folder", run])
    return folder


@pytest.fixture(scope="module")
def folder_of(quickstart, tmp_path_factory):
    """The folder in which a page's reader is: with the files the page shows, and the quickstart's run."""
    pages = tmp_path_factory.mktemp("all") / "pages"

    def made(page):
        folder = pages / page
        if not folder.exists():
            shutil.copytree(quickstart, folder, symlinks=True)
            for _, block in BLOCKS[page]:
                if found := FILE.match(block):
                    (folder / found[1]).write_text(block)
        return folder

    return made


def ours(page):
    """The arguments of the page's lightning-icl commands, made small."""
    return [_smaller(shlex.split(line)[1:]) for line in COMMANDS[page] if line.startswith("lightning-icl ")]


def _smaller(args):
    if args[0] == "study":  # which tests/studies and tests/commands/test_study.py run
        return [*args, "--dry_run"]
    if any("lightning_logs/quickstart" in arg for arg in args):  # which is small
        configs = []
    else:
        configs = ["--config", "tiny.yaml", "--config", "smaller.yaml"] if "--config" in args else []
    if any("constructed/" in arg for arg in args):  # whose width is what it is
        configs = configs[:2]
    config = args.index("--config") + 2 if "--config" in args else len(args)
    short = ["--steps", "2", "--seeds", "2", "--depths", "1", "--prompts", "16"] if args[0] == "p_probe" else []
    if args[0] == "calibrate":
        short = ["--skip_p_probing"]
    if args[0] == "theory":
        short = ["--prompts", "8", "--tuning_prompts", "8", "--axes", "{n: [8, 16]}"]
    if "schedule.yaml" in args:  # which cuts after the third validation
        short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "1"]
    if "configs/full_analysis.yaml" in args:  # which takes a minute; its file is parsed all the same
        short = ["--trainer.callbacks", "[Circuits]"]
    return [*args[:config], *configs, *args[config:], *short]


def _run_in_one_process(commands):
    """Each in its folder: (folder, arguments)."""
    script = (sys.executable, "-c", IN_ONE_PROCESS)
    done = subprocess.run(
        script,
        input=json.dumps([(str(folder), args) for folder, args in commands]),
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]


PARSED = {key: ["--print_config"] for key in ("fit", "validate", "test", "predict")}
PARSED |= {key: ["--help"] for key in ("p_probe", "theory", "calibrate")}


def test_every_command_is_understood(folder_of):
    """Those that take seconds or longer are parsed only."""
    found = [(folder_of(page), args) for page in PAGES for args in ours(page)]
    assert len(found) >= 20
    _run_in_one_process(
        (folder, args if any("help" in arg for arg in args) else [*args, *PARSED.get(args[0], [])])
        for folder, args in found
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if ours(page)])
def test_a_pages_commands_run_in_order(folder_of, page, monkeypatch):
    folder = folder_of(page)
    for in_two_processes, group in itertools.groupby(ours(page), key=lambda args: "--trainer.devices" in args):
        if in_two_processes:
            for args in group:
                run_command(*args, cwd=folder)
        else:
            _run_in_one_process([(folder, args) for args in group])
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    run_python(page)


def run_python(page):
    """The page's Python, piece after piece as in a notebook."""
    shown: dict = {}
    for block in PYTHON[page]:
        exec(compile(block, page, "exec"), shown)


# What these read is made by commands of the page, which the slow test runs.
AFTER_ITS_COMMANDS = {"docs/explanation/theory.md", "docs/howto/networks.md", "docs/howto/callback.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON[page] and page not in AFTER_ITS_COMMANDS])
def test_a_pages_python_runs(folder_of, page, monkeypatch):
    monkeypatch.chdir(folder_of(page))
    monkeypatch.syspath_prepend(folder_of(page))
    run_python(page)


def test_the_make_targets_exist():
    targets = {line.split()[1] for lines in COMMANDS.values() for line in lines if line.startswith("make ")}
    targets |= {target for text in PAGES.values() for target in re.findall(r"`make ([\w-]+)`", text)}
    assert {"quickstart", "tensorboard", "test", "docs"} <= targets
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_bash_line_is_covered():
    lines = [line for lines in COMMANDS.values() for line in lines]
    benchmarks = [line for line in lines if line.startswith("python benchmarks/")]
    assert all(line.startswith(("lightning-icl ", "make ")) for line in lines if line not in benchmarks)
    assert {line.split()[1] for line in benchmarks} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").glob("*.py")
    }


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


def test_the_reference_of_ones_own_is_tuned_as_ours_are():
    shown: dict = {}
    (block,) = {block for blocks in BLOCKS.values() for _, block in blocks if "class DecayingRidge" in block}
    exec(block, shown)
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
    shown = [block for blocks in BLOCKS.values() for language, block in blocks if language == "python"]
    for block in (block for block in shown if block.startswith("# my_")):
        code = block.split("\n\n\n", 1)[1]
        assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", PAGES)
def test_the_figures_and_files_a_page_shows_are_there(page):
    """The site's own links are checked where it is made; these are what GitHub follows."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", PAGES[page])
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing
    assert all((ROOT / page).parent.joinpath(link).stat().st_size > 10_000 for link in links if link.endswith(".png"))


CITED = re.compile(r"(?<![\w/])((?:[\w-]+/)*[A-Z]+\.md|(?:[\w-]+/)+[\w-]+\.md)(?:, ([A-Z][^)\"]*))?")


def broken_citations(file, text):
    """The documents, and the sections of them, that a file cites ("docs/page.md, A heading") and that are not there."""
    text = re.sub(r"\n[ #]*", " ", text)  # a citation may stand on two lines
    for cited, section in CITED.findall(text):
        places = (ROOT / cited, (ROOT / file).parent / cited, ROOT / "docs" / cited)
        page = next((place for place in places if place.exists()), None)
        if page is None:
            yield cited
        elif section and cited.startswith("docs/"):
            headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
            if not any(section.startswith(heading) for heading in headings):
                yield f"{cited}, {section[:40]}"


def test_every_document_and_section_that_is_cited_is_there():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {file: (ROOT / file).read_text() for file in files if file.endswith((".py", ".yaml", ".md", ".toml"))}
    del texts["CHANGELOG.md"], texts["tests/test_docs.py"]  # of the past; of what is not there
    assert sum("docs/explanation/science.md, " in text for text in texts.values()) >= 5
    assert [(file, cited) for file, text in texts.items() for cited in broken_citations(file, text)] == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("PAPER.md section 7", ["PAPER.md"]),
        ("docs/explanation/art.md", ["docs/explanation/art.md"]),
        ("see docs/explanation/science.md,\n# Head importance.", []),
        ("docs/explanation/science.md, Heads", ["docs/explanation/science.md, Heads"]),
        ("a study's report.md", []),
    ],
)
def test_a_broken_citation_is_found(text, broken):
    assert list(broken_citations("configs/quickstart.yaml", text)) == broken


def test_no_placeholder_is_left():
    assert not re.findall(r"\b(TABLE|TESTTIME|CALIBRATION|TODO|XXX)\b", "".join(PAGES.values()))
