"""What users install: a wheel built straight from the checkout, and one built by way of the sdist."""

import re
import stat
import sys
import sysconfig
import tarfile
import tomllib
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from conftest import ROOT, run_command
from packaging.requirements import Requirement
from packaging.version import Version

ROUTES = ["checkout", "sdist"]


def shipped_files():
    """Path in a wheel -> the bytes it must have there, for what only symlinks bring into the package."""
    package = ROOT / "lightning_icl"
    paths = [*package.glob("callbacks/*.py"), *package.glob("configs/**/*.yaml"), package / "py.typed"]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Folder per route; with nothing said, ``python -m build`` makes an sdist and then a wheel from that."""
    folders = {route: tmp_path_factory.mktemp(route) for route in ROUTES}
    for route, options in (("checkout", ["--wheel"]), ("sdist", [])):
        build = (sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", folders[route], ROOT)
        run_command(command=build, cwd=folders[route], timeout=120)
    return folders


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize("route", ROUTES)
def test_a_wheel_has_the_callbacks_and_configs_in_the_package_as_real_files(builds, route):
    with ZipFile(only(builds[route], "*.whl")) as wheel:
        names = wheel.namelist()
        found = {name: wheel.read(name) for name in names if name in shipped_files()}
        links = [entry.filename for entry in wheel.infolist() if stat.S_ISLNK(entry.external_attr >> 16)]
    assert found == shipped_files()
    assert not links
    top_level = {Path(name).parts[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"lightning_icl"}


def test_both_wheels_have_the_same_files(builds):
    contents = []
    for route in ROUTES:
        with ZipFile(only(builds[route], "*.whl")) as wheel:
            contents.append({name: wheel.read(name) for name in wheel.namelist()})
    assert contents[0] == contents[1]


def test_the_sdist_has_what_make_test_needs(builds):
    with tarfile.open(only(builds["sdist"], "*.tar.gz")) as sdist:
        names = {"/".join(Path(name).parts[1:]) for name in sdist.getnames()}
    assert {"Makefile", "constraints.txt", "pyproject.toml", "README.md", "tests/test_packaging.py"} <= names
    assert {"LICENSE", "CITATION.cff", "CHANGELOG.md", "examples/lstm.py", "examples/minute.yaml"} <= names


def test_the_licence_is_in_the_wheel_and_the_citation_is_of_this_version(builds):
    with ZipFile(only(builds["sdist"], "*.whl")) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        told = message_from_bytes(wheel.read(metadata))
        licence = wheel.read(str(Path(metadata).parent / "licenses" / "LICENSE"))
    assert told["License-Expression"] == "Apache-2.0"
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == told["Version"]


@pytest.mark.parametrize(
    "route", [pytest.param(route, marks=pytest.mark.slow if route == "checkout" else ()) for route in ROUTES]
)
def test_an_installed_wheel_validates_a_shipped_config_in_an_empty_folder(builds, route, tmp_path):
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run_command(only(builds[route], "*.whl"), command=pip, cwd=empty, timeout=120)
    # The dependencies come from the environment of this test. A folder named in a .pth file has its own .pth files
    # left unread, so the one that leads to the checkout has no say.
    packages = only(environment, "lib/python*/site-packages")
    here = sysconfig.get_paths()
    (packages / "dependencies.pth").write_text(f"{here['purelib']}\n{here['platlib']}\n")

    # What lightning_icl.__file__ will be, without the seconds that importing it takes.
    where = "from importlib.util import find_spec; print(find_spec('lightning_icl').origin)"
    found = run_command("-c", where, command=(python,), cwd=empty, timeout=60).stdout.strip()
    assert Path(found) == packages / "lightning_icl" / "__init__.py"

    script = environment / "bin" / "lightning-icl"
    fewer = ["--trainer.callbacks", "[HeadImportance]"]  # its class comes from the wheel too
    run_command("validate", "--config", "configs/debug.yaml", *fewer, command=(script,), cwd=empty)


def pinned(name):
    """Package -> the version that a file of constraints gives it."""
    lines = [line.partition("==") for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {package.lower(): Version(version) for package, _, version in lines}


def test_every_dependency_is_bounded_by_what_is_tested():
    """From the version in constraints-oldest.txt to beyond the one in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"itself": project["dependencies"]} | project["optional-dependencies"]
    needed = {group: [Requirement(line) for line in lines] for group, lines in groups.items()}
    exact = pinned("constraints.txt")
    assert all(r.specifier.contains(exact[r.name]) and only_version(r, "<") for rs in needed.values() for r in rs)
    del needed["docs"]  # a site is made with the exact versions alone
    floors = {r.name: Version(only_version(r, ">=")) for rs in needed.values() for r in rs}
    assert pinned("constraints-oldest.txt") == floors


def only_version(requirement, operator):
    (version,) = [bound.version for bound in requirement.specifier if bound.operator == operator]
    return version


def test_the_page_of_an_index_has_no_links_into_the_repository(builds):
    with ZipFile(only(builds["sdist"], "*.whl")) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        page = message_from_bytes(wheel.read(metadata)).get_payload()
    assert "make quickstart" in page
    assert not re.findall(r"\]\((?!https?:)", page)
