"""Which commands a study makes."""

import json

import pytest
from conftest import ROOT

from lightning_icl.functional.errors import InputError
from lightning_icl.shipped_configs import config_file, shipped_names
from lightning_icl.studies.plan import flag_value, idle_gpus, keeping_configs, p_probing_resources, plan, variations


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("model: {d_model: 16}\n")
    return {"base": ["base.yaml"], "seeds": [1, 2]}


def test_a_grid_is_every_combination_once_for_each_seed(base, tmp_path):
    scale = base | {"grids": [{"model.heads": [[1, 1], [8, 8]], "data.task.noise_std": [0.0, 0.4, 0.8]}]}
    trials = plan(scale, tmp_path / "out").trials
    asked = {(tuple(t.overrides["model.heads"]), t.overrides["data.task.noise_std"], t.seed) for t in trials}
    assert len(trials) == len(asked) == 12
    assert len({t.name for t in trials}) == 12
    assert all(t.folder == tmp_path / "out" / "trials" / t.name for t in trials)


def test_a_command_is_what_one_would_type(base, tmp_path):
    scale = base | {"overrides": {"trainer.max_steps": 9}, "trials": [{"model.heads": [8, 1], "model.mlp": False}]}
    job = plan(scale | {"seeds": [7]}, tmp_path / "out").trials[0]
    assert job.command[:3] == ["fit", "--config", "base.yaml"]
    for part in ("--trainer.max_steps=9", "--model.heads=[8, 1]", "--model.mlp=false", "--seed_everything=7"):
        assert part in job.command
    assert job.command[job.command.index("--run_folder") + 1] == str(job.folder)
    assert job.command[job.command.index("--ckpt_path") + 1] == "last"
    assert job.name.startswith("heads=8-1_mlp=false_seed=7_")


def test_trials_that_come_twice_run_once(base, tmp_path):
    scale = base | {
        "grids": [{"model.heads": [[1], [2]]}, {"model.heads": [[2], [4]]}],
        "trials": [{"model.heads": [4]}],
    }
    assert len(plan(scale, tmp_path).trials) == 3 * 2


def test_no_overrides_is_one_trial_a_seed(base, tmp_path):
    assert variations(base) == [{}]
    assert len(plan(base, tmp_path).trials) == 2


def test_what_a_trial_depends_on_changes_its_folder_and_nothing_else_does(base, tmp_path):
    def names(**changed):
        return [t.name for t in plan(base | {"trials": [{"model.heads": [2]}]} | changed, tmp_path / "out").trials]

    before = names()
    assert names() == before
    assert names(resources={"cpu": 2}, gpu_hours=3.0) == before
    assert names(seeds=[1, 2, 3])[:2] == before
    assert set(names(overrides={"trainer.max_steps": 9})).isdisjoint(before)
    (tmp_path / "base.yaml").write_text("# What it is for.\nmodel: {d_model: 16}\n")
    assert names() == before
    (tmp_path / "base.yaml").write_text("model: {d_model: 32}\n")
    assert set(names()).isdisjoint(before)


def test_a_study_keeps_the_configs_it_began_with(base, tmp_path):
    before = plan(base, tmp_path / "out").trials
    kept = keeping_configs(base, tmp_path / "out")
    (tmp_path / "base.yaml").write_text("model: {d_model: 32}\n")
    trials = plan(kept, tmp_path / "out").trials
    assert [t.name for t in trials] == [t.name for t in before]
    assert (tmp_path / trials[0].command[2]).read_text() == "model: {d_model: 16}\n"
    assert keeping_configs(base, tmp_path / "out")["base"] != kept["base"]  # beside it, when it is begun anew


def test_p_probing_takes_the_uniform_models_of_each_seed_and_setting(base, tmp_path):
    grid = {"model.heads": [[1, 1], [2, 2], [8, 1], [1, 1, 1], [2, 2, 2]], "data.task.noise_std": [0.0, 0.4]}
    scale = base | {"grids": [grid], "p_probing": {"steps": 5, "where": {"data.task.noise_std": 0.4}}}
    planned = plan(scale, tmp_path / "out")
    assert len(planned.p_probings) == 2 * 2  # depths x seeds
    folders = {str(t.folder / "checkpoints" / "last.ckpt"): t for t in planned.trials}
    for job in planned.p_probings:
        models = [folders[path] for path in json.loads(job.command[2])]
        assert [m.overrides["model.heads"] for m in models] == [[h] * job.overrides["depth"] for h in (1, 2)]
        assert {m.seed for m in models} == {job.seed}
        assert {m.overrides["data.task.noise_std"] for m in models} == {0.4}
        assert json.loads(job.command[4]) == ["1", "2"]
        assert "--steps=5" in job.command


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({}, {"cpu": 2, "gpu": 0.25}),
        ({"resources": {"cpu": 1}}, {"cpu": 1}),
        ({"accelerator": "cpu"}, {"cpu": 2, "gpu": 0}),
        ({"accelerator": "gpu"}, {"cpu": 2, "gpu": 0.25}),
    ],
)
def test_a_p_probing_is_given_what_a_trial_is_unless_told(base, tmp_path, asked, given):
    grid = {"model.heads": [[1], [2]]}
    scale = base | {"grids": [grid], "resources": {"cpu": 2, "gpu": 0.25}, "p_probing": {"steps": 5, **asked}}
    assert p_probing_resources(scale) == given
    (command, _) = (job.command for job in plan(scale, tmp_path).p_probings)
    assert not any("resources" in part for part in command)


@pytest.mark.parametrize(
    ("gpu", "accelerator", "devices", "idle"),
    [
        *[(2, "auto", devices, False) for devices in ("auto", -1, 2, "2", [0, 1])],
        *[(2, "auto", devices, True) for devices in (1, "1", [0], 4)],
        (2, "cpu", "auto", True),
        (1, "auto", 1, False),
        (0.25, "auto", 1, False),
        (0, "cpu", 2, False),
    ],
)
def test_gpus_that_a_trial_would_not_use_are_told(gpu, accelerator, devices, idle):
    said = idle_gpus({"cpu": 1, "gpu": gpu}, {"accelerator": accelerator, "devices": devices})
    assert (said is not None) == idle


def test_where_also_means_what_all_trials_share(base, tmp_path):
    scale = base | {"overrides": {"model.mlp": False}, "grids": [{"model.heads": [[1], [2]]}]}
    assert len(plan(scale | {"p_probing": {"where": {"model.mlp": False}}}, tmp_path).p_probings) == 2
    with pytest.raises(InputError, match="p_probing has nothing to compare"):
        plan(scale | {"p_probing": {"where": {"model.mlp": True}}}, tmp_path)
    assert plan(scale | {"judged_where": {"model.mlp": False}}, tmp_path) == plan(scale, tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seeds": []}, r"seeds is \[\], but it must list each seed once"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\], but it must list each seed once"),
        ({"base": ["nowhere.yaml"]}, "base has nowhere.yaml, but there is no such file"),
        ({"base": ["configs/quickstrat.yaml"]}, "did you mean 'configs/quickstart.yaml'"),
        ({"grids": [{"model.heads": 4}]}, r"model.heads is 4, but it must be a list of values, such as \[4\]"),
        ({"grids": [{"model.heads": []}]}, r"model.heads is \[\], but it must be a list of values"),
        ({"grids": [{1: [2]}]}, "its keys must be options, such as model.heads"),
        ({"judged_where": {"model.mlp": True}}, r"judged_where is {'model.mlp': True}, but no trial has that"),
        ({"trials": [{"seed_everything": 4}]}, "a study's seeds are listed in seeds"),
    ],
)
def test_a_bad_scale_is_refused_in_a_sentence(base, tmp_path, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        plan(base | changed, tmp_path)


def test_a_base_that_is_no_yaml_is_refused_in_a_sentence(base, tmp_path):
    (tmp_path / "base.yaml").write_text("model: {heads: [4")
    with pytest.raises(InputError, match=r"base has base.yaml, which is not valid YAML"):
        plan(base, tmp_path)


def test_values_are_written_as_the_command_line_reads_them():
    assert [flag_value(v) for v in ("relu", [8, 1], True, None, 0.4, {"a": 1})] == [
        "relu",
        "[8, 1]",
        "true",
        "null",
        "0.4",
        '{"a": 1}',
    ]


def test_shipped_configs_are_found_by_their_names_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart.yaml", "configs/quickstart.yaml", "configs/studies/paper.yaml", "studies/paper.yaml"):
        assert config_file(name).read_text() == next(ROOT.glob(f"configs/**/{name.rpartition('/')[2]}")).read_text()
    assert config_file("elsewhere/quickstart.yaml") is None
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert config_file("quickstart.yaml").read_text() == "mine"
    assert "configs/studies/paper.yaml" in shipped_names()
