"""lightning-icl p_probe, from two short runs to its table, verdicts and files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from reference_pages import check_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_icl import SparseLinearRegression
from lightning_icl.cli import main
from lightning_icl.commands.run import open_run
from lightning_icl.functional.seeds import over_seeds_and_prompts
from lightning_icl.instruments.p_probing import Training, p_probing
from lightning_icl.record import journal
from lightning_icl.record.loading import load_run, read_record
from lightning_icl.record.rows import frame
from lightning_icl.studies.gather import gather

SHORT = """
data: {n_queries: 2, batch_size: 4, eval_prompts: 16, eval_batch_size: 8}
trainer: {max_steps: 1, val_check_interval: 1.0, enable_progress_bar: false, enable_model_summary: false, callbacks: []}
"""
TINY = ["--steps", "2", "--seeds", "2", "--depths", "2", "--prompts", "8"]


def trained(folder, *options):
    (folder / "short.yaml").write_text(SHORT)
    config = ["--config", str(ROOT / "configs" / "debug.yaml"), "--config", str(folder / "short.yaml")]
    main(["fit", *config, "--trainer.default_root_dir", str(folder), *options])
    return folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints with two heads and with one in layer 1, and of another task."""
    folders = [tmp_path_factory.mktemp(name) for name in ("two", "one", "other")]
    options = [[], ["--model.heads", "[1, 2]"], ["--data.task.sparsity", "1"]]
    return [str(trained(folder, *more)) for folder, more in zip(folders, options, strict=True)]


def listed(*items):
    return json.dumps([str(item) for item in items])


def test_the_table_the_verdicts_and_the_files_say_what_the_instrument_finds(runs, tmp_path, capsys):
    two, one, _ = runs
    threads = torch.get_num_threads()
    main(
        [
            "p_probe",
            "--ckpt_paths",
            listed(two, one),
            *TINY,
            "--seed=3",
            "--accelerator=cpu",
            "--output",
            str(tmp_path / "out"),
        ]
    )
    torch.set_num_threads(threads)
    said, ((found,), (started, finished), damaged) = capsys.readouterr().out, read_record(tmp_path / "out")
    assert (started["command"], finished["steps"], damaged) == ("p_probe", 2, [])
    assert journal.is_finished(tmp_path / "out")

    opened = {name: open_run(path) for name, path in (("2-2", two), ("1-2", one))}
    models = {name: run.module.network for name, run in opened.items()}
    task = SparseLinearRegression(4, 2, noise_std=0.1)
    training = Training(n_steps=2, n_seeds=2, n_score=8, seed=3)
    expected = p_probing(models, task, 6, 2, training=training)

    assert found.arrays["heads"] == {"layer_1/2-2": 2, "layer_1/1-2": 1}
    assert found.context["checkpoints"] == {"2-2": two, "1-2": one}
    assert (found.context["command"], found.context["seed"], found.step) == ("p_probe", 3, 2)
    assert found.context["law"][0]["n_points"] == [6, 6]
    (trial,) = (
        gather([tmp_path / "out"])[["trial", "seed", "step", "depth", "data.task.n_dims"]].drop_duplicates().values
    )
    config = load_run(Path(two).parents[1]).config
    assert trial.tolist() == ["out", config["seed_everything"], 2, 2, 4]
    check_metrics(frame(found.rows), "The command p_probe")
    rows = {row.metric: row for row in found.rows}
    for optimiser, by_arm in expected.errors.items():
        by_seed = torch.tensor(found.arrays["risk_by_seed"][optimiser]["raw"], dtype=torch.float64)
        torch.testing.assert_close(by_seed, by_arm["raw"].mean(dim=-1))
        for arm, errors in by_arm.items():
            names = {"layer_1/2-2": "heads_2", "layer_1/1-2": "heads_1", "read_in/2-2": "read_in"}
            merged = names.get(arm, arm)
            for depth in range(2):
                risk = over_seeds_and_prompts(errors[depth])
                row = rows.pop(f"p_probing/{optimiser}/{depth + 1}/{merged}")
                assert row[1:4] == pytest.approx(risk, rel=1e-6)
                assert f"{risk.value:.3f} ±{risk.high - risk.value:.3f}" in said
    assert not rows
    comparisons = expected.comparisons()
    assert [c["verdict"] for c in found.arrays["comparisons"]] == [c.verdict for c in comparisons]
    assert said.count("vs layer 1, 1 head") == 2
    assert "layer 1, 2 heads: of 2-2\nlayer 1, 1 head: of 1-2\n" in said
    assert f"The claim (against fewest heads and the read-in, at every k and t): {found.arrays['claim']}" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert (said.count("95 %"), said.count("+-")) == (1, 0)

    events = EventAccumulator(str(tmp_path / "out"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["p_probing"]
    curve = events.Scalars("p_probing/descent/heads_2")
    assert [event.step for event in curve] == [1, 2]
    risks = [row.value for row in found.rows if row.metric.startswith("p_probing/descent/") and "heads_2" in row.metric]
    assert [event.value for event in curve] == pytest.approx(risks, rel=1e-5)
    for suffix in ("png", "svg"):
        assert (tmp_path / "out" / f"p_probing.{suffix}").stat().st_size > 1000


def test_models_of_equally_many_heads_are_told_apart_and_folders_are_new(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(Path(runs[0]).parents[1], tmp_path / "copy") / "checkpoints" / "last.ckpt"
    (tmp_path / "p_probing").mkdir()
    main(["p_probe", "--ckpt_paths", listed(runs[0], copy), *TINY, "--depths", "1"])
    ((found,), _, _) = read_record(tmp_path / "p_probing_2")
    assert list(found.context["checkpoints"]) == ["2-2", "2-2_2"]
    assert list(found.arrays["risk_by_seed"]["descent"])[:2] == ["layer_1/2-2", "layer_1/2-2_2"]
    assert "against the read-in alone, as no model has fewer heads" in capsys.readouterr().out


@pytest.mark.parametrize("last", ["torch.utils.tensorboard.SummaryWriter.close", "journal.append"])
def test_one_that_is_stopped_while_it_writes_is_not_finished(runs, tmp_path, monkeypatch, last):
    class StopHereError(Exception): ...

    def stop(*_):
        raise StopHereError

    def append(path, line, write=journal.append):
        write(path, line) if line.get("event") != "finished" else stop()

    monkeypatch.setattr(*((journal, "append", append) if last == "journal.append" else (last, stop)))
    with pytest.raises(StopHereError):
        main(["p_probe", "--ckpt_paths", listed(runs[0]), *TINY, "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "p_probing.png").exists()
    assert not journal.is_finished(tmp_path / "out")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


BAD = {
    "[]": ([], "ckpt_paths is [], but P-probing needs at least one checkpoint."),
    "missing": (["--ckpt_paths", "[nowhere.ckpt]"], "ckpt_path is nowhere.ckpt, but there is no such file."),
    "other task": ([], "with n_points [3, 6]; compare models of one law."),
    "names": (["--names", "[a]"], "names has 1 entries, but ckpt_paths has 2; give one for each."),
    "same names": (["--names", "[a, a]"], "names is ['a', 'a'], but each must be there once."),
    "depths": (["--depths", "0"], "depths is 0, but it must be at least 1."),
    "steps": (["--steps", "0"], "steps is 0, but it must be at least 1."),
    "prompts": (["--prompts", "1"], "prompts is 1, but it must be at least 2."),
    "power": (["--power", "-1"], "power is -1.0, but it must be a finite number that is 0 or larger."),
    "output": (["--output", "."], "output is ., but that exists already; name a folder that does not."),
    "accelerator": (["--accelerator", "gpu"], "accelerator is gpu, but there is no CUDA device here; use cpu or auto."),
    "word": (["--seeds", "many"], "seeds is 'many', but it must be a whole number."),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("no_gpu")
def test_bad_input_gets_one_sentence_and_no_folder(runs, case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, sentence = BAD[case]
    paths = {"[]": [], "other task": [runs[0], runs[2]]}.get(case, runs[:2])
    with pytest.raises(SystemExit) as stopped:
        main(["p_probe", "--ckpt_paths", listed(*paths), *options])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert sentence in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())
