"""lightning-icl study, but for Ray: what it lists, what it writes of the trials that are there, what it refuses."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from lightning_icl.cli import main
from lightning_icl.commands.study import code_version
from lightning_icl.record import journal
from lightning_icl.record.loading import line_of
from lightning_icl.record.rows import Measurement, Row

SCALE = {
    "base": ["base.yaml"],
    "overrides": {"trainer.max_steps": 7},
    "grids": [{"model.heads": [[1, 1], [4, 4]]}],
    "seeds": [1, 2, 3],
    "p_probing": {"steps": 5},
}
SCALE_ALONE = {key: value for key, value in SCALE.items() if key != "p_probing"}
STUDY = {"name": "small", "about": "Do heads help?", "claims": ["RiskFallsWithHeads"], "figures": ["RiskByHeads"]}
TASK = {"class_path": "lightning_icl.SparseLinearRegression", "init_args": {"n_dims": 4, "sparsity": 2}}
FINISHED = {"event": "finished", "steps": 7, "by": "max_steps"}
# Of 4 heads over one head, on the prompts of one seed: .5, .6, .5.
RISKS = {(1, 1): (1.0, 2.0, 3.0), (4, 4): (0.5, 1.2, 1.5)}


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with a study in it, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({"data": {"task": TASK}, "model": {"d_model": 16, "heads": [2]}})
    )
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": SCALE}}))

    def run(*args, status=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) if status else nullcontext() as stopped:
            main(["study", "--config", "small.yaml", *args])
        assert status == (stopped.value.code if stopped else 0)
        return capsys.readouterr()

    return run


@pytest.fixture
def finished(study, tmp_path):
    """The study's trials as they would lie there when all are finished but one."""
    commands = [shlex.split(line) for line in study("--dry_run").out.splitlines()]
    folders = [command[command.index("--run_folder") + 1] for command in commands if command[1] == "fit"]
    for folder, command in zip(folders, commands, strict=False):
        heads = next(json.loads(a.partition("=")[2]) for a in command if a.startswith("--model.heads"))
        seed = next(int(a.partition("=")[2]) for a in command if a.startswith("--seed_everything"))
        write_run(tmp_path / folder, heads, seed, RISKS[tuple(heads)][seed - 1])
    return [tmp_path / folder for folder in folders]


def write_run(folder, heads, seed, risk):
    (folder / "checkpoints").mkdir(parents=True)
    config = {"seed_everything": seed, "data": {"task": TASK}, "model": {"d_model": 16, "heads": heads}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    row = Row("val/excess_risk/transformer", risk, risk - 0.01, risk + 0.01)
    measured = Measurement("ReferenceRisk", 7, {"command": "fit", "seed": seed}, [row])
    journal.append(folder / journal.NAME, line_of(measured))
    journal.append(folder / journal.NAME, FINISHED)


def cut_off(folder):
    """The record without its last line, that the run is finished."""
    path = folder / journal.NAME
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def test_a_dry_run_lists_commands_and_makes_nothing(study, tmp_path):
    said = study("--dry_run")
    commands = [shlex.split(line) for line in said.out.splitlines()]
    assert [command[:2] for command in commands] == [["lightning-icl", "fit"]] * 6 + [["lightning-icl", "p_probe"]] * 3
    assert all("--trainer.max_steps=7" in command for command in commands[:6])
    assert said.err.endswith("6 trials and 3 P-probings.\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.yaml", "small.yaml"]
    assert len(study("--dry_run", "--seeds", "[5]").out.splitlines()) == 2 + 1


def test_slurm_scripts_run_the_commands_that_a_dry_run_lists(study, tmp_path):
    listed = [shlex.split(line)[1:] for line in study("--dry_run").out.splitlines()]
    said = study("--format", "slurm").out
    (kept,) = (tmp_path / "studies" / "small-quick" / "configs").iterdir()
    assert kept.read_text() == (tmp_path / "base.yaml").read_text()
    of_kept = str(kept.relative_to(tmp_path))
    listed = [[of_kept if part == "base.yaml" else part for part in command] for command in listed]
    assert said.splitlines()[:2] == [
        "job=$(sbatch --parsable studies/small-quick/slurm_trials.sh)",
        "sbatch --dependency=afterany:$job studies/small-quick/slurm_p_probing.sh",
    ]
    fake = tmp_path / "bin" / "lightning-icl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    ran = []
    for script, jobs in (("slurm_trials.sh", 6), ("slurm_p_probing.sh", 3)):
        path = tmp_path / "studies" / "small-quick" / script
        assert f"#SBATCH --array=0-{jobs - 1}\n" in path.read_text()
        for i in range(jobs):
            subprocess.run(["bash", path], env=environment | {"SLURM_ARRAY_TASK_ID": str(i)}, check=True, cwd="/")
    for command in listed:
        name = command[command.index("--run_folder" if command[0] == "fit" else "--output") + 1].rpartition("/")[2]
        ran.append((tmp_path / "studies" / "small-quick" / "logs" / f"{name}.txt").read_text().splitlines())
    assert ran == listed


def test_slurm_gives_a_trial_its_gpus_on_one_machine_and_a_p_probing_as_many(study, tmp_path):
    scale = SCALE | {"resources": {"cpu": 3, "gpu": 2}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": scale}}))
    study("--format", "slurm")
    for script in (tmp_path / "studies" / "small-quick").glob("slurm_*.sh"):
        asked = [line.split()[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
        assert {"--nodes=1", "--ntasks=1", "--gpus=2", "--cpus-per-task=3"} <= set(asked)


def test_gpus_that_no_trial_would_use_are_refused(study, tmp_path):
    scale = SCALE | {"resources": {"gpu": 2}, "overrides": {"trainer.devices": 1}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": scale}}))
    said = study("--format", "slurm", status=2).err
    assert said.startswith("lightning-icl: resources give a trial 2 GPUs, but its trainer.devices is 1 and")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.yaml", "small.yaml"]


RANKS = """
from pathlib import Path
from lightning.pytorch import Callback

class Ranks(Callback):
    def setup(self, trainer, *_, **__):
        Path(f"rank_{trainer.global_rank}_of_{trainer.world_size}").touch()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_of_the_array_trains_on_all_its_devices(study, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    overrides = {"trainer.callbacks": ["ranks.Ranks"], "trainer.devices": 2, "trainer.accelerator": "cpu"}
    overrides |= {"trainer.max_steps": 2, "trainer.strategy": "ddp"}
    scale = SCALE_ALONE | {"overrides": overrides, "seeds": [1]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": scale}}))
    study("--format", "slurm")
    script = tmp_path / "studies" / "small-quick" / "slurm_trials.sh"
    asked = dict(re.findall(r"#SBATCH --(\w+)=(\d+)$", script.read_text(), flags=re.MULTILINE))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "lightning-icl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lightning_icl "$@"\n')
    command.chmod(0o755)
    of_job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": asked["ntasks"], "SLURM_NNODES": asked["nodes"], "SLURM_PROCID": "0"}
    of_job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_ARRAY_TASK_ID": "0"}
    of_job |= {"SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", script], env=os.environ | of_job, check=True, cwd="/", timeout=400)
    assert sorted(path.name for path in tmp_path.glob("rank_*")) == ["rank_0_of_2", "rank_1_of_2"]


def test_table_verdict_figure_and_report_of_the_trials_that_are_there(study, finished, tmp_path):
    said = study("--figures_only").out
    folder = tmp_path / "studies" / "small-quick"
    assert said.startswith("PASS       The excess risk falls from each number of heads to the next larger one: 0.531 [")
    table = pd.read_parquet(folder / "results.parquet")
    risks = (
        table[table["metric"] == "val/excess_risk/transformer"].set_index(["model.heads", "seed"])["value"].to_dict()
    )
    assert risks == {(str(list(h)), i + 1): risk for h, by_seed in RISKS.items() for i, risk in enumerate(by_seed)}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv")[["trial", "value"]], table[["trial", "value"]])
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".png", ".svg"}
    report = (folder / "report.html").read_text()
    assert all(str(run.relative_to(tmp_path)) in report for run in finished)
    assert "Do heads help?" in report
    assert "PASS" in report


def test_the_report_names_the_commit_of_a_checkout_and_else_the_version(monkeypatch):
    def git(*args):
        run = subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else None

    release = version("lightning-icl")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert code_version().startswith(f"{release}, git {commit}" if commit else release)
    assert ("not committed" in code_version()) == bool(git("diff", "HEAD", "--name-only"))

    def no_git(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert code_version() == release


def test_unfinished_and_failed_trials_are_told_and_the_others_stand(study, finished, tmp_path, undrawn):
    unfinished, diverged, crashed = finished[0], finished[2], finished[4]
    for folder in (unfinished, diverged, crashed):
        cut_off(folder)
    logs = tmp_path / "studies" / "small-quick" / "logs"
    logs.mkdir()
    (logs / f"{unfinished.name}.json").write_text('{"attempts": 1, "seconds": 0.0, "ended": false, "error": null}')
    (logs / f"{diverged.name}.json").write_text(
        '{"attempts": 1, "seconds": 3.0, "ended": true, "error": "training has diverged."}'
    )
    (logs / f"{crashed.name}.txt").write_text("Traceback (most recent call last):\n  boom\nValueError: boom\n")
    said = study("--figures_only", status=1).out
    assert f"FAILED     {diverged.name}: training has diverged." in said
    assert f"FAILED     {crashed.name}: ValueError: boom" in said
    assert "4 of 9 are not finished; the same command goes on with them." in said
    trials = pd.read_csv(logs.parent / "trials.csv").set_index("trial")
    assert trials.loc[unfinished.name, "status"] == "not finished"
    assert trials["status"].value_counts().to_dict() == {"done": 3, "not run": 3, "failed": 2, "not finished": 1}
    assert set(pd.read_parquet(logs.parent / "results.parquet")["trial"]) == {finished[i].name for i in (1, 3, 5)}
    report = (logs.parent / "report.html").read_text()
    assert all(word in report for word in (diverged.name, "training has diverged.", "ValueError: boom"))


DAMAGES = {
    "empty": (journal.NAME, b"", "its record.jsonl is empty", "not finished"),
    "lost bytes": (journal.NAME, b"\0" * 200, "its record.jsonl is unreadable", "not finished"),
    "no config": ("config.yaml", b"model: {", "config.yaml is not YAML", "done"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_run_is_named_and_the_rest_stands(study, finished, tmp_path, undrawn, case):
    name, content, sentence, status = DAMAGES[case]
    folder, hurt = tmp_path / "studies" / "small-quick", finished[2]
    (hurt / name).write_bytes(content)
    said = study("--figures_only").out
    assert f"DAMAGED    {hurt.name}: " in said
    assert sentence in said.replace(str(tmp_path), "")
    assert set(pd.read_parquet(folder / "results.parquet")["trial"]) == {f.name for f in finished if f != hurt}
    trials = pd.read_csv(folder / "trials.csv").set_index("trial")
    assert trials.loc[hurt.name, "status"].replace("run", "finished") in status.replace("run", "finished")
    assert sentence in trials.loc[hurt.name, "damage"]
    assert "1 damaged" in (folder / "report.html").read_text()
    study("--format", "slurm")
    assert (hurt.name in (folder / "slurm_trials.sh").read_text()) if name == journal.NAME else True


def test_a_damaged_line_of_a_finished_run_is_named_and_its_others_count(study, finished, tmp_path, undrawn):
    path = finished[2] / journal.NAME
    path.write_bytes(b"damaged\n" + path.read_bytes())
    said = study("--figures_only").out
    assert f"DAMAGED    {finished[2].name}: line 1 of its record.jsonl cannot be read; the others stand" in said
    table = pd.read_parquet(tmp_path / "studies" / "small-quick" / "results.parquet")
    assert set(table["trial"]) == {folder.name for folder in finished}


def test_a_run_of_an_older_version_is_not_gone_on_with(study, finished, tmp_path, undrawn):
    old = finished[2]
    (old / journal.NAME).unlink()
    (old / "results.json").write_text("")
    said = study("--figures_only").out
    assert f"DAMAGED    {old.name}: it is a run of an older version; delete its folder" in said
    for folder in finished[:2]:
        cut_off(folder)
    said = study("--format", "slurm").err
    assert f"will not run {old.name}: it is a run of an older version" in said
    script = (tmp_path / "studies" / "small-quick" / "slurm_trials.sh").read_text()
    assert [folder.name in script for folder in finished] == [True, True, False, False, False, False]


def test_a_p_probing_that_slurm_finds_finished_is_not_run_again(study, tmp_path):
    study("--format", "slurm")
    script = tmp_path / "studies" / "small-quick" / "slurm_p_probing.sh"
    fake = tmp_path / "bin" / "lightning-icl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho ran\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    (line,) = [line for line in study("--dry_run").out.splitlines() if " p_probe " in line and "seed=1" in line]
    folder = tmp_path / shlex.split(line)[-1]
    ran = []
    for events in ([], [{"event": "started"}], [FINISHED]):  # not begun, killed, finished
        for event in events:
            folder.mkdir(parents=True, exist_ok=True)
            journal.append(folder / journal.NAME, event)
        (log := tmp_path / "studies" / "small-quick" / "logs" / f"{folder.name}.txt").write_text("")
        subprocess.run(["bash", script], env=environment | {"SLURM_ARRAY_TASK_ID": "0"}, cwd="/")
        ran.append("ran" in log.read_text())
    assert ran == [True, True, False]


def test_every_override_is_a_column(study, finished, tmp_path, undrawn):
    scale = SCALE_ALONE | {"trials": [{"checkpoint.save_top_k": 2}, {"checkpoint.save_top_k": 3}], "seeds": [1]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": scale}}))
    commands = [shlex.split(line) for line in study("--dry_run").out.splitlines()]
    for heads, command in zip(([1, 1], [4, 4], [2], [2]), commands, strict=True):
        folder = tmp_path / command[command.index("--run_folder") + 1]
        if not folder.exists():
            write_run(folder, heads, 1, 0.5)
    study("--figures_only")
    table = pd.read_parquet(tmp_path / "studies" / "small-quick" / "results.parquet")
    found = table.drop_duplicates("trial")["checkpoint.save_top_k"]
    assert sorted(found.dropna()) == ["2", "3"]
    assert found.isna().sum() == 2


def test_finished_trials_that_a_report_leaves_out_are_told(study, finished, undrawn):
    assert "left out" not in study("--figures_only").out
    said = study("--figures_only", "--seeds", "[1]").out
    assert f"{len(finished) - 2} finished trials of studies/small-quick are left out: they are of other seeds" in said


def test_a_trial_whose_folder_is_gone_stays_in_the_table(study, finished, tmp_path, undrawn):
    study("--figures_only")
    before = pd.read_parquet(tmp_path / "studies" / "small-quick" / "results.parquet")
    for path in [*finished[0].glob("*.*"), *finished[3].glob("*.*")]:
        path.unlink()
    study("--figures_only")
    after = pd.read_parquet(tmp_path / "studies" / "small-quick" / "results.parquet")
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"sedes": [1]}, "there is no option 'sedes'; did you mean 'seeds'?"),
        ({"claims": ["RiskFals"]}, "claims: there is no class 'RiskFals'; did you mean 'RiskFallsWithHeads'?"),
        ({"figures": ["ImportanceMap"]}, "figures: there is no class 'ImportanceMap'; did you mean 'ImportanceMaps'?"),
        ({"scales": {"q": SCALE | {"grid": []}}}, "scales.q: Scale has no option 'grid'; did you mean 'grids'?"),
        (
            {"scales": {"q": SCALE | {"resources": {"cpus": 1}}}},
            "scales.q.resources: Resources has no option 'cpus'; did you mean",
        ),
        ({"scales": {"q": {"base": ["base.yaml"]}}}, "scales.q: Scale needs seeds."),
        ({"scales": {}}, "scales is {}, but a study needs at least one"),
        ({"scale": "paper"}, "scale is paper, but this study has quick."),
        ({"retries": -1}, "retries is -1, but it must be at least 0."),
        ({"output": "base.yaml"}, "output is base.yaml, but a study's files cannot be written there"),
        (
            {"scales": {"q": SCALE | {"trials": [{"model.heads": [4, 4], "trainer.max_steps": 7}]}}},
            "heads=4-4_seed=1_",  # ... and heads=4-4_max_steps=7_seed=1_.. are the same trial
        ),
        ({"name": "a/b"}, "name is 'a/b', but a study's name is made of letters, digits, _, - and dots."),
        ({"scales": {"q": SCALE | {"base": ["bass.yaml"]}}}, "base has bass.yaml, but there is no such file"),
        (
            {"scales": {"q": SCALE_ALONE | {"grids": [{"model.headz": [1]}]}}},
            "there is no option 'model.headz'",
        ),
        (
            {"claims": [{"class_path": "PrunedKeepsRisk", "init_args": {"ratio": -1}}]},
            "ratio is -1.0, but it must be a",
        ),
    ],
)
def test_a_bad_study_is_refused_in_one_sentence_before_any_work(study, tmp_path, changed, sentence):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY | {"scales": {"quick": SCALE}} | changed))
    said = study(status=2)
    assert said.err.startswith(f"lightning-icl: {sentence}")
    assert said.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.yaml", "small.yaml"]


def test_nothing_to_show_is_said(study):
    assert "no trial of studies/small-quick has finished" in study("--figures_only", status=2).err
