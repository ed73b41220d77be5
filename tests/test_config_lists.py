"""Of several configs, a later list replaces an earlier one whole; all else is merged, and flags win."""

import functools

import pytest
import yaml
from conftest import ROOT

from lightning_icl.commands.run import _FitReader

CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "configs" / "constructed" / "gd.yaml"]
DEBUG = yaml.safe_load((ROOT / "configs" / "debug.yaml").read_text())


class Options(_FitReader):
    """Makes nothing of the options it reads."""

    def make_classes(self): ...


@functools.cache
def parser():
    return Options(["fit", "--data.task", "LinearRegression", "--data.task.n_dims", "4"]).parser


def read(*arguments):
    """The options that ``fit`` is given by these arguments."""
    return parser().parse_args(["fit", *map(str, arguments)]).fit.as_dict()


def callbacks_of(*configs):
    task = ["--data.task", "LinearRegression", "--data.task.n_dims", "4"]  # which full_analysis.yaml has not
    return read(*task, *(part for path in configs for part in ("--config", path)))["trainer"]["callbacks"]


@pytest.fixture(scope="module")
def alone():
    return {path: callbacks_of(path) for path in CONFIGS}


@pytest.mark.parametrize("second", CONFIGS[::2], ids=lambda path: path.stem)
def test_the_callbacks_are_those_of_the_last_config_alone(second, alone):
    """Of one config of any length, and of one whose list is as long, which jsonargparse would merge."""
    before = CONFIGS[CONFIGS.index(second) - 1]
    as_long = [path for path in CONFIGS if path != second and len(alone[path]) == len(alone[second])]
    for first in {before, *as_long[:1]}:
        assert callbacks_of(first, second) == alone[second], first.stem


@pytest.mark.parametrize("places", range(1, 6))
@pytest.mark.parametrize("form", ["config", "flag"])
def test_a_callback_takes_no_option_from_the_one_that_had_its_place(tmp_path, places, form):
    rotated = DEBUG["trainer"]["callbacks"][places:] + DEBUG["trainer"]["callbacks"][:places]
    (tmp_path / "rotated.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": rotated}}))
    later = ["--config", tmp_path / "rotated.yaml"] if form == "config" else ["--trainer.callbacks", rotated]
    debug = read("--config", ROOT / "configs" / "debug.yaml")["trainer"]["callbacks"]
    found = read("--config", ROOT / "configs" / "debug.yaml", *later)["trainer"]["callbacks"]
    assert found == debug[places:] + debug[:places]


def test_a_list_within_a_callback_and_within_a_task_is_replaced_too(tmp_path):
    def config(name, task, *references):
        risk = {"class_path": "ReferenceRisk", "init_args": {"references": list(references)}}
        (tmp_path / name).write_text(yaml.safe_dump({"data": {"task": task}, "trainer": {"callbacks": [risk]}}))
        return "--config", tmp_path / name

    strong = {"class_path": "Lasso", "init_args": {"alpha": 0.5}}
    first = config("a.yaml", {"class_path": "LinearRegression", "init_args": {"n_dims": 3}}, strong, "Ridge")
    second = config("b.yaml", {"init_args": {"noise_std": [0.1, 0.2]}}, "Lasso", "Bayes")
    options = read(*first, *second, "--data.task.n_dims", "4")
    assert options["data"]["task"]["init_args"].items() >= {"n_dims": 4, "noise_std": [0.1, 0.2]}.items()
    references = options["trainer"]["callbacks"][0]["init_args"]["references"]
    assert [r["class_path"].rpartition(".")[2] for r in references] == ["Lasso", "Bayes"]
    assert references[0]["init_args"]["alpha"] is None


def test_plus_appends():
    debug = ("--config", ROOT / "configs" / "debug.yaml")
    before = read(*debug)["trainer"]["callbacks"]
    after = read(*debug, "--trainer.callbacks+", '{"class_path": "LinearProbe", "init_args": {"n_prompts": 7}}')
    *kept, added = after["trainer"]["callbacks"]
    assert kept == before
    assert added["init_args"]["n_prompts"] == 7


def test_an_option_of_the_last_callback_can_still_be_set_alone():
    found = read("--config", ROOT / "configs" / "debug.yaml", "--trainer.callbacks.every_n_validations", "9")
    assert [c["init_args"].get("every_n_validations") for c in found["trainer"]["callbacks"]] == [1, 1, 2, 2, 2, 9]


def test_all_but_lists_is_merged_and_flags_win(tmp_path):
    (tmp_path / "later.yaml").write_text("{model: {d_model: 32}, data: {task: {init_args: {noise_std: 2.0}}}}")
    options = read(
        "--config", ROOT / "configs" / "debug.yaml", "--config", tmp_path / "later.yaml", "--model.heads", [4, 4]
    )
    assert options["model"].items() >= {"d_model": 32, "heads": [4, 4], "warmup_steps": 5}.items()
    assert options["data"]["task"]["init_args"].items() >= {"n_dims": 4, "sparsity": 2, "noise_std": 2.0}.items()
