"""The command line as people use it: in processes of their own, from other folders."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, run_command
from PIL import Image, ImageChops
from reference_pages import check_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_icl import cli, load_run
from lightning_icl.functional.errors import InputError

# full_analysis.yaml goes on top of another.
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "full_analysis")
CONFIGS += sorted((ROOT / "configs" / "constructed").glob("*.yaml"))
SCRIPTS = Path(sys.executable).parent


def numbers(folder):
    """Every number of a run's last measurements, by its name and place."""
    table = load_run(folder).table
    last = table[(table["step"] == table["step"].max()) & table["value"].notna()]
    places = last[["metric", "stream", "layer", "head", "n_points"]].astype(object).fillna("").itertuples(index=False)
    return dict(zip(("|".join(map(str, place)) for place in places), last["value"], strict=True))


def metrics(folder):
    return {name.partition("|")[0] for name in numbers(folder)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder, empty until debug.yaml was fitted there by the script, and what that said."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run_command(
        "fit", "--config", "configs/debug.yaml", cwd=folder, command=(SCRIPTS / "lightning-icl",)
    )


@pytest.fixture(scope="module")
def validated(trained):
    """The folder of the trained run's ``python -m lightning_icl validate``."""
    config = ["--config", trained[0] / "lightning_logs" / "version_0" / "config.yaml"]
    run_command("validate", *config, "--ckpt_path", last_checkpoint(trained[0]), cwd=trained[0])
    return trained[0] / "lightning_logs" / "version_0" / "validate_0"


def last_checkpoint(folder, version=0):
    return folder / "lightning_logs" / f"version_{version}" / "checkpoints" / "last.ckpt"


def test_the_script_fits_from_an_empty_folder(trained):
    folder, done = trained
    assert "configs/debug.yaml is not in this folder; using the one shipped with lightning_icl." in done.stderr
    assert "<- the model" in done.stdout
    said = done.stdout + done.stderr
    assert "fit will run Transformer (6,577 weights) on SparseLinearRegression for 40 steps, 1 x cpu" in said
    assert "step 40 of 40 after" in done.stdout
    assert not {"\r", "\x1b", "\U0001f4a1"} & set(said)
    assert not any(word in said for word in ("Tip", "FLOPs", "ModuleList", "TPU", "Warning"))
    figures = [path.name for path in (folder / "lightning_logs" / "version_0").glob("figures/*")]
    assert {"excess_risk.png", "excess_risk.svg", "head_importance.svg", "head_scores.png"} <= set(figures)
    assert last_checkpoint(folder).exists()


@pytest.mark.parametrize(
    "analysis", ["ReferenceRisk", "HeadImportance", "HeadPruning", "LinearProbe", "AlgorithmMatch", "Circuits"]
)
def test_the_page_of_metrics_has_what_the_run_wrote(trained, analysis):
    run = trained[0] / "lightning_logs" / "version_0"
    table, events = load_run(run).table, EventAccumulator(str(run), {"scalars": 0}).Reload()
    check_metrics(table[table["analysis"] == analysis], analysis, events.Tags()["scalars"])


def test_validate_reproduces_the_last_numbers_and_figures_of_the_fit(trained, validated):
    fitted = trained[0] / "lightning_logs" / "version_0"
    before, after = numbers(fitted), numbers(validated)
    assert len(before) > 40
    assert {name: after[name] for name in before} == pytest.approx(before, rel=1e-5)
    drawn = [figure for figure in fitted.glob("figures/*.png") if (validated / "figures" / figure.name).exists()]
    assert len(drawn) > 5  # a course over training is the fit's alone
    for figure in drawn:
        with Image.open(figure) as one, Image.open(validated / "figures" / figure.name) as other:
            assert ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is None


@pytest.mark.slow  # test_data.py trains on two processes, and benchmarks/ranks.py compares all numbers
def test_two_processes_find_the_same_numbers_as_one(trained, validated, tmp_path):
    options = ["--ckpt_path", last_checkpoint(trained[0]), "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    options += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", ".", "--figures.when", "never"]
    run_command("validate", "--config", "configs/debug.yaml", *options, "--run_name", "two", cwd=tmp_path)
    one, two = numbers(validated), numbers(tmp_path / "lightning_logs" / "two")
    assert len(one) > 40
    assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_a_killed_run_resumes_to_bit_identical_weights(trained, tmp_path):
    """By the script named lightning. Those of the whole run, which had analyses beside it that leave no trace."""
    options = ["--config", "configs/debug.yaml", "--trainer.enable_progress_bar", "false", "--trainer.callbacks"]
    killer = '[{"class_path": "recorder.Killer", "init_args": {"step": 28}}]'
    killed = run_command("fit", *options, killer, "--checkpoint.every_n_train_steps", 5, cwd=tmp_path, check=False)
    assert killed.returncode == -9
    assert torch.load(last_checkpoint(tmp_path))["global_step"] == 25
    lightning = (SCRIPTS / "lightning",)
    run_command("fit", *options, "[]", "--ckpt_path", last_checkpoint(tmp_path), cwd=tmp_path, command=lightning)
    whole, resumed = torch.load(last_checkpoint(trained[0])), torch.load(last_checkpoint(tmp_path, 1))
    assert whole["global_step"] == resumed["global_step"] == 40
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name])


def test_an_analysis_that_names_no_config_takes_that_of_the_checkpoints_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS", "lightning_logs")
    for path in ("lightning_logs/mine/config.yaml", "lightning_logs/mine/checkpoints/last.ckpt", "bare/last.ckpt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    given = ["validate", "--ckpt_path", "$RUNS/mine/checkpoints/last.ckpt", "--seed_everything=2"]
    config = f"--config={tmp_path}/lightning_logs/mine/config.yaml"
    assert cli.with_own_config(given) == ["validate", config, *given[1:]]
    last = ["test", "--ckpt_path=last", "--run_name", "mine"]
    assert cli.with_own_config(last) == ["test", "--config=lightning_logs/mine/config.yaml", *last[1:]]
    bare = ["predict", "--ckpt_path", "bare/last.ckpt"]
    as_they_are = [
        ["fit", *given[1:]],
        [*given, "-c", "a.yaml"],
        [*given, "--config=a.yaml"],
        [*last[:2], "--data.task", "LinearRegression"],
        ["validate"],
        [],
    ]
    for args in (*as_they_are, [*bare, "--data.task", "LinearRegression"], ["validate", "--ckpt_path", "null"]):
        assert cli.with_own_config(args) == args
    with pytest.raises(InputError, match="there is no config of bare/last"):
        cli.with_own_config(bare)
    with pytest.raises(InputError, match="but there is no such file"):
        cli.with_own_config(["validate", "--ckpt_path", "nowhere.ckpt"])
    with pytest.raises(InputError, match="neither run_name nor run_folder says of which run"):
        cli.with_own_config(last[:2])
    with pytest.raises(InputError, match=r"there is no elsewhere/lightning_logs/mine/config\.yaml; name"):
        cli.with_own_config([*last, "--trainer.default_root_dir", "elsewhere"])


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_shipped_config_passes_its_checks(tmp_path, config, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    cli.main(["fit", "--config", str(config), *here, "--dry_run", "true"])
    assert "All checks passed" in capsys.readouterr().out


AT_ONCE = ("quickstart", "preprocess_then_gd")  # the papers' are trained a step below


@pytest.mark.parametrize(
    "config",
    [pytest.param(path, id=path.stem, marks=() if path.stem in AT_ONCE else pytest.mark.slow) for path in CONFIGS],
)
@pytest.mark.usefixtures("undrawn")
def test_a_shipped_config_takes_steps(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    # The other analyses on trained and on written heads; with the papers' many layers they would take a minute each.
    importance = "{class_path: HeadImportance, init_args: {n_prompts: 8, scores: [leave_one_out]}}"
    callbacks = f"[{{class_path: ReferenceRisk, init_args: {{tuning_prompts: 8}}}}, {importance}]"
    fewer = [] if config.stem in ("quickstart", "preprocess_then_gd") else ["--trainer.callbacks", callbacks]
    cli.main(["fit", "--config", str(config), "--config", "tiny.yaml", *fewer])
    found = metrics(tmp_path / "lightning_logs" / "version_0")
    assert {f"val/excess_risk/{name}" for name in ("ridge", "lasso", "transformer")} <= found
    assert "heads/leave_one_out/importance" in found
    if not fewer:
        assert {name.partition("/")[0] for name in found} >= {"prune", "probe"}


PAPERS = {"garg": "lasso", "bai": "ridge", "von_oswald": "one step", "ahn": "precondition", "he": "2 heads"}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_settings_of_papers_train_a_step_with_their_own_callbacks(tmp_path, paper, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs" / f"{paper}.yaml"
    small = ["--data.batch_size", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    short = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.val_check_interval", "1.0"]
    cli.main(["fit", "--config", str(config), *small, *short])
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("paper", PAPERS)
def test_the_settings_of_papers_say_what_they_are_expected_to_show(paper):
    comment = [line for line in (ROOT / "configs" / f"{paper}.yaml").read_text().splitlines() if line.startswith("#")]
    headline = " ".join(line.removeprefix("# ") for line in comment).partition("Expected headline: ")[2]
    assert PAPERS[paper] in headline


@pytest.mark.slow  # test_data.py trains on two processes, and the test above analyses on two
def test_two_processes_train_and_analyse_like_one(tmp_path):
    """Callbacks inside fit under DDP. Gradients are summed in another order, so weights agree to rounding only."""
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        options = ["--trainer.devices", devices, "--trainer.strategy", "ddp" if devices == 2 else "auto"]
        options += ["--trainer.max_steps", 10, "--data.n_points", 5, "--trainer.val_check_interval", 1.0]
        options += ["--trainer.callbacks", "[ReferenceRisk, HeadImportance, LinearProbe]"]
        run_command("fit", "--config", "configs/debug.yaml", *options, cwd=folder)
        found.append(numbers(folder / "lightning_logs" / "version_0"))
    assert len(found[0]) > 40
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_two_processes_predict_the_same_file_as_one(trained, tmp_path):
    import numpy as np

    files = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        options = ["--ckpt_path", last_checkpoint(trained[0]), "--trainer.devices", devices]
        options += ["--trainer.strategy", "ddp" if devices == 2 else "auto"]
        run_command("predict", "--config", "configs/debug.yaml", *options, "--run_folder", "predicted", cwd=folder)
        files.append(dict(np.load(folder / "predicted" / "predictions.npz")))
    assert files[0].keys() == files[1].keys()
    for name, values in files[0].items():
        np.testing.assert_allclose(files[1][name], values, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "is_handed_over"), [(["run", "studio"], True), (["--config", "x.yaml", "fit"], False)]
)
def test_the_lightning_script_hands_over_what_is_no_command_of_ours(monkeypatch, capsys, arguments, is_handed_over):
    """Where lightning-sdk is not installed it says so."""
    monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.lightning_main()
    assert stop.value.code == 2
    commands = "fit, validate, test, predict, calibrate, export, p_probe, prune, study, theory"
    assert (f"'run' is not one of {commands}, and lightning-sdk" in capsys.readouterr().err) == is_handed_over


def test_the_lightning_script_hands_over_to_lightning_sdk(monkeypatch):
    class Script:
        class dist:  # noqa: N801
            name = "lightning_sdk"

        @staticmethod
        def load():
            return lambda: called.append("login")

    called = []
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Script])
    monkeypatch.setattr(sys, "argv", ["lightning", "login"])
    cli.lightning_main()
    assert called == ["login"]
