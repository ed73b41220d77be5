"""The tidy table, from hand-written records with known numbers and from one real run."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import small_data, small_module, small_trainer
from reference_pages import check_columns

from lightning_icl.callbacks import FigureWriter, HeadImportance, ReferenceRisk
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import GD, Ridge
from lightning_icl.record import journal
from lightning_icl.record.configs import shared_values
from lightning_icl.record.folder import set_run_folder
from lightning_icl.record.loading import line_of, load_run
from lightning_icl.record.rows import Measurement, Row
from lightning_icl.studies.gather import damage, gather, joined, read_table, write_table
from lightning_icl.studies.table import KEYS, config_columns, last_step, varied

HEADS = [2, 1]
TASK = {"class_path": "lightning_icl.SparseLinearRegression", "init_args": {"n_dims": 4, "sparsity": 2}}
FINISHED = {"event": "finished", "steps": 60, "by": "max_steps"}


def config(heads=HEADS, task=TASK, seed=7, trainer=None, **data):
    return {
        "seed_everything": seed,
        "trainer": {"max_steps": 60, "precision": None, "accelerator": "cpu"} | (trainer or {}),
        "model": {"d_model": 16, "heads": heads, "mlp": False, "head_dim": None, "learning_rate": 0.01},
        "data": {"task": task, "n_points": 8} | data,
    }


def measured(*rows, step=60, command="fit", stream=None, **context):
    law = [{"stream": stream, "task": "Task()", "n_points": [8, 8]}, {"stream": "noisy"}]
    return line_of(Measurement("Mine", step, {"command": command, "seed": 7, "law": law, **context}, rows))


def run_folder(folder, *lines, **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("# lightning.pytorch==2\n" + yaml.safe_dump(config(**settings)))
    for line in ({"event": "started", "command": "fit"}, *lines):
        journal.append(folder / journal.NAME, line)
    return folder


def cells(table, apart_from=("run/parameters", "run/steps")):
    """(metric, stream, layer, head, n_points) -> (value, low, high), None where missing."""
    rows = table[~table["metric"].isin(apart_from)]
    keys = ("metric", "stream", "layer", "head", "n_points", "value", "low", "high")
    plain = [
        tuple(None if pd.isna(item) else item for item in row)
        for row in zip(*(rows[k].tolist() for k in keys), strict=True)
    ]
    assert len({row[:5] for row in plain}) == len(plain)
    return {row[:5]: row[5:] for row in plain}


def test_every_row_is_there_with_its_interval_place_and_note(tmp_path):
    rows = [
        Row("heads/loo/share", 0.75, 0.7, 0.8, layer=1, head=2, n_points=4),
        Row("heads/loo/share", None, layer=2, head=1),  # a share of a total within noise
        Row("val/excess_risk/ridge", 2.0, 1.5, 2.5, note="ridge, alpha 0.64"),
    ]
    table = gather([run_folder(tmp_path / "run", measured(*rows))])
    assert cells(table) == {
        ("heads/loo/share", None, 1, 2, 4): (0.75, 0.7, 0.8),
        ("heads/loo/share", None, 2, 1, None): (None, None, None),
        ("val/excess_risk/ridge", None, None, None, None): (2.0, 1.5, 2.5),
    }
    assert table.dropna(subset="note")[["metric", "note"]].to_numpy().tolist() == [
        ["val/excess_risk/ridge", "ridge, alpha 0.64"]
    ]
    assert (set(table["trial"]), set(table["seed"]), set(table["step"])) == ({"run"}, {7}, {60})


@pytest.mark.parametrize("first", [None, "a"])
def test_the_first_stream_is_the_one_without_a_name(tmp_path, first):
    rows = [Row("val/excess_risk/zero", value, stream=name) for name, value in ((first, 1), ("noisy", 2))]
    rows.append(Row("heads/risk", 3.0))  # about no stream
    assert cells(gather([run_folder(tmp_path / "run", measured(*rows, stream=first))])) == {
        ("val/excess_risk/zero", None, None, None, None): (1, None, None),
        ("val/excess_risk/zero", "noisy", None, None, None): (2, None, None),
        ("heads/risk", None, None, None, None): (3, None, None),
    }


def test_only_what_was_measured_while_training_counts(tmp_path):
    lines = [
        measured(Row("x", 1.0), step=20),
        measured(Row("x", 9.0), command="validate", step=60),
        measured(Row("test/excess_risk/ridge", 9.0), command="test", step=60),
    ]
    table = gather([run_folder(tmp_path / "run", *lines)])
    assert cells(table) == {("x", None, None, None, None): (1, None, None)}
    assert cells(table, ())["run/steps", None, None, None, None][0] == 20
    with_nothing = gather([run_folder(tmp_path / "only_validated", *lines[1:], FINISHED)])
    assert set(with_nothing["metric"]) == {"run/parameters", "run/steps"}


def series(*steps):
    return [measured(Row("x", step / 2), step=step) for step in steps]


def test_all_steps_are_kept_and_the_last_is_the_runs(tmp_path):
    table = gather([run_folder(tmp_path / "run", *series(20, 60, 40))])
    assert table.loc[table["metric"] == "x", ["step", "value"]].to_numpy().tolist() == [[20, 10], [40, 20], [60, 30]]
    steps = table[table["metric"] == "run/steps"]
    assert steps[["step", "value"]].to_numpy().tolist() == [[60, 60.0]]
    assert set(last_step(table)["step"]) == {60}
    ended = gather([run_folder(tmp_path / "ended", *series(20), FINISHED | {"steps": 70})])
    assert cells(ended, ())["run/steps", None, None, None, None][0] == 70


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        {"class_path": "lightning_icl.TaskPool", "init_args": {"n_tasks": 9, "task": TASK}},
        {"class_path": "Mixture", "init_args": {"weights": [0.5, 0.5], "tasks": [TASK, TASK]}},
    ],
)
def test_parameters_are_those_of_the_model(tmp_path, task):
    state = torch.get_rng_state()
    found = cells(gather([run_folder(tmp_path / "run", task=task)]), ())
    assert torch.equal(torch.get_rng_state(), state)
    # Read-in 5 -> 16, two layers of four 16 x 16 matrices and a norm, a norm, read-out.
    assert found["run/parameters", None, None, None, None][0] == 6 * 16 + 2 * (4 * 256 + 32) + 32 + 17


def test_parameters_are_missing_where_the_config_does_not_say_n_dims(tmp_path):
    found = cells(gather([run_folder(tmp_path / "run", task={"class_path": "mine.Task"})]), ())
    assert found["run/parameters", None, None, None, None][0] is None


def test_config_columns_are_as_on_the_command_line(tmp_path):
    spectrum = {"class_path": "lightning_icl.functional.tasks.Powerlaw", "init_args": {"exponent": 1.5}}
    task = {
        "class_path": "mine.Pool",
        "init_args": {"task": {**TASK, "dict_kwargs": {"spectrum": spectrum}}, "size": 3},
    }
    validation = {"longer": {"n_points": 40}}
    trainer = {"precision": "bf16-mixed", "max_time": {"hours": 2}, "gradient_clip_val": 1.0, "callbacks": None}
    trainer |= {"logger": False, "devices": 2, "default_root_dir": "runs", "log_every_n_steps": 5}
    run = run_folder(tmp_path / "run", *series(1), task=task, n_points=[4, 16], validation=validation, trainer=trainer)
    table = gather([run])
    (row,) = table[config_columns(table)].drop_duplicates().to_dict("records")
    assert row == {
        "data.n_points": "[4, 16]",
        "data.task": "Pool",
        "data.task.size": 3,
        "data.task.task": "SparseLinearRegression",
        "data.task.task.n_dims": 4,
        "data.task.task.sparsity": 2,
        "data.task.task.spectrum": "Powerlaw",
        "data.task.task.spectrum.exponent": 1.5,
        "data.validation": '{"longer": {"n_points": 40}}',
        "depth": 2,
        "model.d_model": 16,
        "model.heads": "[2, 1]",
        "model.learning_rate": 0.01,
        "model.mlp": False,
        "trainer.gradient_clip_val": 1.0,
        "trainer.max_steps": 60,
        "trainer.max_time": '{"hours": 2}',
        "trainer.precision": "bf16-mixed",
    }
    assert list(table.columns) == [*KEYS, *sorted(config_columns(table))]
    check_columns(table, "A study's results.parquet")


def test_a_key_that_some_runs_leave_open_is_a_column_and_one_that_all_do_is_none(tmp_path):
    clipped = run_folder(tmp_path / "clipped", trainer={"gradient_clip_val": 0.5, "accumulate_grad_batches": 2})
    table = gather([clipped, run_folder(tmp_path / "open", trainer={"gradient_clip_val": None})])
    by_trial = table.drop_duplicates("trial").set_index("trial")
    assert by_trial["trainer.gradient_clip_val"].dropna().to_dict() == {"clipped": 0.5}
    assert by_trial["trainer.accumulate_grad_batches"].dropna().to_dict() == {"clipped": 2}
    assert set(varied(table)) == {"trainer.gradient_clip_val", "trainer.accumulate_grad_batches"}
    assert not {"model.head_dim", "trainer.precision"} & set(table.columns)


def several(tmp_path):
    """Three runs whose configs differ in all the ways a column can."""
    other = {"class_path": "lightning_icl.LinearRegression", "init_args": {"n_dims": 4, "noise_std": [0.1, 0.5]}}
    by_layer = [Row("heads/agreement/a_and_b", 0.5, layer=layer) for layer in (2, None, 1)]
    noisy = {"class_path": TASK["class_path"], "init_args": TASK["init_args"] | {"noise_std": 0.4}}
    return [
        run_folder(
            tmp_path / "b", *series(3, 5), heads=[1, 1], trainer={"precision": 32}, n_points=[4, 8], seed=2, rule=True
        ),
        run_folder(tmp_path / "a", *series(5), task=noisy, trainer={"max_steps": 2.5}, seed=1, rule="all"),
        run_folder(tmp_path / "c", measured(*by_layer, step=9), task=other),
    ]


def test_columns_of_numbers_stay_numbers_and_others_are_text(tmp_path):
    table = gather(several(tmp_path))
    by_trial = table.drop_duplicates("trial").set_index("trial")
    assert by_trial["seed"].to_dict() == {"a": 1, "b": 2, "c": 7}
    assert by_trial["model.d_model"].dtype == "int64"
    assert by_trial["trainer.max_steps"].tolist() == [2.5, 60, 60]
    assert by_trial["data.task.sparsity"].tolist() == [2, 2, pd.NA]
    assert by_trial["data.n_points"].tolist() == ["8", "[4, 8]", "8"]
    assert by_trial["data.task.noise_std"].dropna().to_dict() == {"a": "0.4", "c": "[0.1, 0.5]"}
    assert by_trial["data.rule"].dropna().to_dict() == {"a": "all", "b": "true"}
    assert by_trial["model.mlp"].dtype == "bool"
    assert by_trial["trainer.precision"].isna().tolist() == [True, False, True]
    assert {str(table[key].dtype) for key in ("seed", "step", "layer", "head", "n_points")} == {"Int64"}
    assert {str(table[key].dtype) for key in ("value", "low", "high")} == {"float64"}


def test_the_same_runs_are_the_same_table_in_any_order_and_in_parts(tmp_path):
    runs = several(tmp_path)
    table = gather(runs)
    pd.testing.assert_frame_equal(gather(runs[::-1]), table)
    assert table["trial"].is_monotonic_increasing
    assert table.loc[table["metric"] == "heads/agreement/a_and_b", "layer"].tolist() == [pd.NA, 1, 2]
    pd.testing.assert_frame_equal(joined([gather(runs[1:]), gather(runs[:1])]), table)
    for i, ordered in enumerate((runs, runs[::-1])):
        write_table(gather(ordered), tmp_path / str(i))
    for name in ("results.parquet", "results.csv"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_the_table_survives_its_files(tmp_path):
    table = write_table(gather(several(tmp_path)), tmp_path / "out" / "deep")
    pd.testing.assert_frame_equal(read_table(tmp_path / "out" / "deep"), table)
    from_csv = pd.read_csv(tmp_path / "out" / "deep" / "results.csv")
    assert list(from_csv.columns) == list(table.columns)
    for key in table.columns:
        alike = str if table[key].dtype == "str" else float
        read, wrote = ([None if pd.isna(v) else alike(v) for v in column] for column in (from_csv[key], table[key]))
        assert read == wrote, key


def test_a_table_is_written_whole_or_not_at_all_and_a_damaged_one_is_said_to_be(tmp_path, monkeypatch):
    runs = several(tmp_path)
    before = write_table(gather(runs[:1]), tmp_path / "out")

    old = tmp_path / "old.parquet"
    before.drop(columns=["low", "high"]).assign(error=0.1).to_parquet(old)

    def cut_off(table, path, **_):
        path.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_parquet", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_table(gather(runs), tmp_path / "out")
    pd.testing.assert_frame_equal(read_table(tmp_path / "out"), before)
    path = tmp_path / "out" / "results.parquet"
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 40 + whole[40:], old.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"out/results.parquet is no table; delete it, and it is made anew"):
            read_table(tmp_path / "out")


def p_probing_folder(folder, runs, *rows):
    """As lightning-icl p_probe leaves it: what its models' runs share is in its record."""
    models = shared_values([load_run(run).config for run in runs])
    folder.mkdir(parents=True)
    context = {"command": "p_probe", "seed": 0, "models": models, "checkpoints": {}}
    journal.append(folder / journal.NAME, line_of(Measurement("PProbing", 200, context, rows)))
    journal.append(folder / journal.NAME, FINISHED)
    return folder


def test_p_probing_is_a_trial_of_what_its_runs_share(tmp_path):
    runs = [run_folder(tmp_path / str(i), *series(60), heads=h, seed=3) for i, h in enumerate(([8, 8], [1, 1]))]
    rows = [
        Row("p_probing/attention/1/heads_8", 2.0, 1.5, 2.5, note="layer 1, 8 heads"),
        Row("p_probing/descent/2/raw", None),
    ]
    folder = p_probing_folder(tmp_path / "p_probing_1", runs, *rows)
    shutil.rmtree(runs[1])  # which is not needed any more
    table = gather([runs[0], folder])
    of_probing = table[table["trial"] == "p_probing_1"]
    assert cells(of_probing) == {
        ("p_probing/attention/1/heads_8", None, None, None, None): (2.0, 1.5, 2.5),
        ("p_probing/descent/2/raw", None, None, None, None): (None, None, None),
    }
    assert (set(of_probing["seed"]), set(of_probing["step"])) == ({3}, {200})
    assert of_probing["model.heads"].isna().all()
    assert (set(of_probing["data.task"]), set(of_probing["depth"])) == ({"SparseLinearRegression"}, {2})
    assert table["data.task.n_dims"].dtype == "int64"


def test_p_probing_leaves_out_what_its_runs_do_not_share(tmp_path):
    runs = [run_folder(tmp_path / "a", n_queries=2), run_folder(tmp_path / "b", seed=8, n_queries=3)]
    table = gather([p_probing_folder(tmp_path / "p", runs, Row("p_probing/descent/1/raw", 1.0))])
    assert table["seed"].isna().all()
    assert not {"data.n_queries", "model.heads"} & set(table.columns)
    assert set(table["trainer.max_steps"]) == {60}


def test_a_real_run_is_in_the_table_as_its_own_table_has_it(tmp_path):
    run = tmp_path / "run"
    module = small_module(heads=[4, 2], mlp=False)
    callbacks = [ReferenceRisk(8, references=[Ridge(), GD()]), HeadImportance(16, n_points=[2]), FigureWriter("never")]
    trainer = small_trainer(run, callbacks, max_steps=2, val_check_interval=1)
    set_run_folder(trainer, run)
    trainer.fit(module, small_data())
    (run / "config.yaml").write_text(yaml.safe_dump(config(heads=[4, 2])))
    table, own = gather([run]), load_run(run).table
    assert set(own["command"]) == {"fit"}
    places = ["metric", "layer", "head", "n_points", "value", "low", "high"]
    at_end = table[(table["step"] == own["step"].max()) & ~table["metric"].str.startswith("run/")]
    expected = own[own["step"] == own["step"].max()].sort_values(
        ["metric", "layer", "head", "n_points"], na_position="first"
    )
    pd.testing.assert_frame_equal(at_end[places].reset_index(drop=True), expected[places].reset_index(drop=True))
    assert {"val/excess_risk/transformer", "val/excess_risk/ridge", "heads/leave_one_out/effective"} <= set(
        at_end["metric"]
    )
    of_run = cells(table[table["metric"].str.startswith("run/")], ())
    n_parameters = sum(parameter.numel() for parameter in module.network.parameters())
    assert of_run["run/parameters", None, None, None, None][0] == n_parameters


# What is damaged or no run


def test_a_config_that_is_none_is_refused(tmp_path):
    run = run_folder(tmp_path / "run")
    for text, said in (("model: {heads: [4", "is not YAML"), ("{}", "is not the config of a run")):
        (run / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=rf"run/config.yaml {said}"):
            gather([run])
    for name in ("config.yaml", journal.NAME):
        (run / name).unlink()
        with pytest.raises(InputError, match=f"run has no {name}"):
            gather([run])


def test_a_damaged_line_costs_its_numbers_and_is_named(tmp_path):
    run = run_folder(tmp_path / "run", *series(20, 40, 60), FINISHED)
    assert damage(run) is None
    assert damage(tmp_path / "nowhere") is None
    path = run / journal.NAME
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], lines[2].replace(b"20", b"21"), *lines[3:]]))
    assert damage(run) == "line 3 of its record.jsonl cannot be read; the others stand"
    table = gather([run])
    assert table.loc[table["metric"] == "x", "step"].tolist() == [20, 60]
    path.write_bytes(b"")
    assert damage(run) == "its record.jsonl is empty"
    path.write_bytes(b"\0" * 100)
    assert damage(run) == "its record.jsonl is unreadable"
    path.unlink()
    (run / "results.json").write_text("{}")
    assert damage(run).startswith("it is a run of an older version")


def test_what_cannot_be_gathered_is_refused(tmp_path):
    runs = [run_folder(tmp_path / name / "version_0", *series(1)) for name in "ab"]
    with pytest.raises(InputError, match="the trial version_0 is there 2 times"):
        gather(runs)
    with pytest.raises(InputError, match="the trial version_0 is there 2 times"):
        joined([gather(runs[:1]), gather(runs[1:])])
    with pytest.raises(InputError, match="no folders"):
        gather([])
    with pytest.raises(InputError, match=r"tables has no results.parquet"):
        read_table(Path(tmp_path) / "tables")
