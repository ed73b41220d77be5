"""The studies in configs/studies, of a clone and of an installed package: that they parse, plan and can be trained."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import ROOT

from lightning_icl.cli import main, with_shipped_configs
from lightning_icl.commands.run import check_fit
from lightning_icl.shipped_configs import shipped_names

FILES = {path.stem: path for path in sorted((ROOT / "configs" / "studies").glob("*.yaml"))}
STUDIES = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items() if not name.startswith("base_")}
SCALES = [(name, scale) for name, study in STUDIES.items() for scale in study["scales"]]


class Command(NamedTuple):
    """A command that a study plans: what follows lightning-icl fit or p_probe, and its --KEY=VALUE options."""

    arguments: list[str]
    options: dict[str, str]


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """The commands of a study's scale, "fit" and "p_probe", from a folder that has no configs of its own."""
    monkeypatch.chdir(tmp_path)

    def commands(name, scale):
        main(["study", "--config", f"configs/studies/{name}.yaml", "--scale", scale, "--dry_run"])
        found = {"fit": [], "p_probe": []}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("lightning-icl "):
                _, kind, *arguments = shlex.split(line)
                pairs = [argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument]
                found[kind].append(Command(arguments, dict(pairs)))
        assert not list(tmp_path.iterdir())
        return found

    return commands


def drawn_against(study):
    """What its EffectiveHeads have on their axes."""
    figures = [figure for figure in study["figures"] if isinstance(figure, dict)]
    return {figure["init_args"]["against"] for figure in figures if figure["class_path"] == "EffectiveHeads"}


def test_all_come_with_the_package():
    assert len(STUDIES) >= 7
    assert {f"configs/studies/{path.name}" for path in FILES.values()} <= set(shipped_names())


def test_each_has_a_quick_and_a_paper_scale_and_begins_with_the_quick_one():  # the paper's one between them too
    for name, study in STUDIES.items():
        assert study["name"] == name
        between = ["laptop"] * (name == "paper")
        assert (study["scale"], *study["scales"]) == ("quick", "quick", *between, "paper")
        assert study["scales"]["paper"]["gpu_hours"] > 0


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_it_plans_trials_that_can_be_trained_and_differ_in_what_is_drawn_and_probed(name, scale, planned):
    found = planned(name, scale)
    asked = STUDIES[name]["scales"][scale].get("p_probing")
    probed = [json.loads(command.arguments[1]) for command in found["p_probe"]]
    assert bool(probed) == (asked is not None)
    assert {Path(checkpoint).parts[-3] for checkpoints in probed for checkpoint in checkpoints} <= {
        Path(command.arguments[command.arguments.index("--run_folder") + 1]).name for command in found["fit"]
    }
    comments = " ".join(FILES[name].read_text().replace("#", "").split())  # which say how long it takes
    assert f" {len(found['fit'])} trials" in comments
    of_one_value = {"data.task.noise_std", "depth"} if scale == "laptop" else set()
    for key in drawn_against(STUDIES[name]) - {"step"} - of_one_value:
        fits = [(json.loads(command.options["model.heads"]), command.options) for command in found["fit"]]
        values = {len(heads) if key == "depth" else options.get(key) for heads, options in fits if max(heads) > 1}
        assert len(values) > 1, key
    one_of_each_task = {command.options.get("data.task"): command for command in reversed(found["fit"])}
    for command in one_of_each_task.values():
        check_fit(with_shipped_configs(command.arguments))  # as the command itself
