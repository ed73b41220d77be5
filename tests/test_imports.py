"""Imports go one way: functional <- transformer <- data, module <- callbacks, and the command line on top."""

import ast
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command

PACKAGE = "lightning_icl"
MODEL_SIDE = {"functional", "transformer", "streams", "data", "metrics", "optimizers", "soap", "loggers", "module"}
MODEL_SIDE |= {"divergence", "gated_heads", "network", "network_check", "gpt2", "weights"}
RECORD_SIDE = MODEL_SIDE | {"record", "instruments", "figures"}
# Part of the package -> the parts it may import. A new file directly in lightning_icl/ needs its line here.
MAY_IMPORT = {
    "functional": {"functional"},
    "network": {"functional"},
    "network_check": {"functional", "network"},
    "transformer": {"functional", "network"},
    "gpt2": {"functional", "transformer"},
    "weights": {"functional", "network", "transformer", "gpt2"},
    "export": {"functional", "network"},
    "gated_heads": {"functional", "network", "network_check"},
    "metrics": {"functional"},
    "optimizers": {"functional"},
    "soap": set(),
    "streams": {"functional"},
    "data": {"functional", "network", "transformer", "streams"},
    "loggers": set(),
    "divergence": {"functional"},
    "module": MODEL_SIDE - {"module", "streams", "gated_heads", "gpt2", "weights"},
    "instruments": {"functional", "network", "transformer", "gated_heads", "instruments"},
    "record": MODEL_SIDE | {"checkpoint", "record"},
    "figures": {"functional", "instruments", "record", "figures"},
    "endings": set(),
    "callbacks": RECORD_SIDE | {"callbacks", "checkpoint", "endings", "terminal"},
    "config_faults": {"functional"},
    "config_errors": {"functional", "config_faults", "record"},
    "checkpoint": {"functional", "network", "transformer"},
    "checks": MODEL_SIDE | {"callbacks"},
    "launcher": set(),
    "help": {"config_faults"},
    "shell": set(),
    "terminal": set(),
    "command_line": MODEL_SIDE
    | {
        "callbacks",
        "checks",
        "config_errors",
        "config_faults",
        "checkpoint",
        "endings",
        "help",
        "launcher",
        "record",
        "terminal",
    },
    "shipped_configs": set(),
    "studies": RECORD_SIDE | {"callbacks", "shipped_configs", "studies"},
    "commands": RECORD_SIDE
    | {"callbacks", "checkpoint", "command_line", "commands", "export", "shipped_configs", "studies", "terminal"},
    "cli": {
        "functional",
        "checks",
        "command_line",
        "endings",
        "help",
        "commands",
        "config_errors",
        "launcher",
        "record",
        "shell",
        "shipped_configs",
        "terminal",
    },
    "__main__": {"cli"},
    "__init__": MODEL_SIDE | {"record", "export"},
}
FUNCTIONAL_MAY_IMPORT = {"torch", "jaxtyping", PACKAGE} | sys.stdlib_module_names


def imported_names(path, source):
    """Full dotted names of all that a file imports, at any depth; ``path`` is relative to the folder of the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: len(path.parts) - node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden_imports(path, source):
    """The imports of one file that go the wrong way."""
    part = Path(path.parts[1]).stem
    allowed = MAY_IMPORT.get(part, set())
    for name in imported_names(path, source):
        top, *below = name.split(".")
        if (
            (top == PACKAGE and (not below or below[0] not in allowed))
            or (part == "functional" and top not in FUNCTIONAL_MAY_IMPORT)
            or top in ("callbacks", "configs")
        ):
            yield f"{path} imports {name}"


def package_files():
    folders = os.walk(ROOT / PACKAGE, followlinks=True)
    files = (Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".py"))
    return {path.relative_to(ROOT): path.read_text() for path in files}


def test_imports_go_one_way():
    files = package_files()
    assert {Path(path.parts[1]).stem for path in files} == set(MAY_IMPORT)
    assert [line for path, source in files.items() for line in forbidden_imports(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/risk.py", "import numpy as np"),
        ("functional/risk.py", "from lightning.pytorch import Callback"),
        ("functional/tasks/linear.py", "from lightning_icl.transformer import Transformer"),
        ("functional/tasks/linear.py", "from ...transformer import Transformer"),
        ("functional/__init__.py", "from .. import data"),
        ("transformer.py", "import lightning_icl.module"),
        ("transformer.py", "from lightning_icl import Task"),
        ("optimizers.py", "from lightning_icl.module import ICLModule"),
        ("data.py", "from lightning_icl import callbacks"),
        ("module.py", "def f():\n    from lightning_icl.callbacks import Summary"),
        ("module.py", "import callbacks"),
        ("callbacks/summary.py", "from lightning_icl.cli import main"),
        ("callbacks/summary.py", "from callbacks.analysis import Analysis"),
        ("callbacks/summary.py", "from ..checks import check_run"),
        ("config_errors.py", "from lightning_icl.callbacks import Summary"),
        ("commands/prune.py", "from lightning_icl.cli import main"),
        ("__init__.py", "from lightning_icl.callbacks import Summary"),
        ("new_part.py", "from lightning_icl.functional.risk import excess_risk"),
    ],
)
def test_a_forbidden_import_is_found(path, source):
    assert len(list(forbidden_imports(Path(PACKAGE, path), source))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/tasks/linear.py", "import math, torch\nfrom jaxtyping import Float\nfrom .task import Task"),
        ("data.py", "from .functional.prompts import Prompt\nimport numpy"),
        ("callbacks/summary.py", "from .analysis import Analysis\nfrom lightning_icl import figures"),
        ("callbacks/summary.py", "from lightning.pytorch import callbacks"),
        ("command_line.py", "from lightning_icl.callbacks import Summary"),
        ("cli.py", "from lightning_icl.commands import COMMANDS"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert list(forbidden_imports(Path(PACKAGE, path), source)) == []


def test_the_folder_callbacks_refuses_to_be_imported_by_its_own_name():
    done = run_command(command=(sys.executable, "-c", "import callbacks"), cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 1
    assert "ImportError: import lightning_icl.callbacks, not callbacks" in done.stderr


def test_plain_torch_users_pay_for_torch_alone():
    parts = "functional.estimators functional.references functional.tasks functional.pruning transformer instruments"
    imports = "\n".join(f"import lightning_icl.{part}" for part in parts.split())
    heavy = "{'lightning', 'torchmetrics', 'pandas', 'matplotlib', 'jsonargparse', 'tensorboard'}"
    code = f"import sys\n{imports}\nprint(sorted({heavy} & set(sys.modules)))"
    done = run_command(command=(sys.executable, "-c", code), cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_no_other():
    import lightning_icl

    assert all(getattr(lightning_icl, name).__name__ == name for name in lightning_icl.__all__)
    with pytest.raises(AttributeError, match="module 'lightning_icl' has no attribute 'Transfromer'"):
        _ = lightning_icl.Transfromer


def test_every_module_with_shapes_has_them_checked(pytestconfig):
    *checked, _ = pytestconfig.getoption("--jaxtyping-packages").split(",")
    paths = (ROOT / PACKAGE).rglob("*.py")
    with_shapes = [path.relative_to(ROOT) for path in paths if "from jaxtyping import" in path.read_text()]
    names = [".".join(path.with_suffix("").parts) for path in with_shapes]
    assert [name for name in names if not any(f"{name}.".startswith(f"{part}.") for part in checked)] == []


def run_time_names(source):
    """The names that are used in a file, but for annotations and imports."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, None)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_no_instrument_imports_the_transformer_for_its_type_alone():
    """What names it reads a Transformer's own weights or layers, and so tells it from other networks as it runs."""
    typed = "from lightning_icl.transformer import Transformer\ndef f(t: Transformer) -> Transformer: ..."
    assert "Transformer" not in run_time_names(typed)
    assert "Transformer" in run_time_names(f"{typed}\nprint(isinstance(0, Transformer))")
    importing = {
        path: source
        for path, source in package_files().items()
        if path.parts[1] in ("instruments", "callbacks")
        and "transformer.Transformer" in " ".join(imported_names(path, source))
    }
    assert importing
    told = {"Transformer", "as_transformer"}
    assert [str(path) for path, source in importing.items() if not told & run_time_names(source)] == []
