"""A run's folder, read again by load_run."""

import inspect
import shutil

import pytest
import torch
import yaml
from conftest import small_data, small_module, small_trainer
from docstrings import run_examples
from reference_pages import check_columns

from lightning_icl import SparseLinearRegression, load_run
from lightning_icl.callbacks import FigureWriter, HeadImportance, Recorder, ReferenceRisk
from lightning_icl.functional.errors import InputError
from lightning_icl.record import Measurement, Row, frame, journal, tag
from lightning_icl.record.context import context, fingerprint, options
from lightning_icl.record.folder import set_run_folder
from lightning_icl.record.loading import line_of
from lightning_icl.record.rows import plain

CONFIG = {
    "seed_everything": 3,
    "data": {
        "task": {
            "class_path": "lightning_icl.SparseLinearRegression",
            "init_args": {
                "n_dims": 4,
                "sparsity": 2,
                "noise_std": 0.3,
                "spectrum": {"class_path": "lightning_icl.PowerLaw", "init_args": {}},
            },
        },
        "n_points": 5,
        "n_queries": 3,
        "eval_prompts": 16,
        "eval_batch_size": 8,
    },
    "model": {"heads": [4, 2]},
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    callbacks = [ReferenceRisk(8), HeadImportance(8), Recorder(), FigureWriter("never")]
    trainer = small_trainer(folder, callbacks, val_check_interval=3)
    set_run_folder(trainer, folder)
    trainer.fit(small_module(), small_data())
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture
def folder(fitted, tmp_path):
    """A copy of its own for each test, which may damage it."""
    return shutil.copytree(fitted, tmp_path / "run")


def test_the_example_of_load_run(fitted, tmp_path, monkeypatch):
    (tmp_path / "lightning_logs").mkdir()
    (tmp_path / "lightning_logs" / "quickstart").symlink_to(fitted)
    monkeypatch.chdir(tmp_path)
    run_examples("load_run", inspect.getdoc(load_run))


def test_a_run_gives_config_task_data_model_and_table(folder):
    run = load_run(folder)
    assert run.config["model"]["heads"] == [4, 2]
    assert isinstance(run.task, SparseLinearRegression)
    assert (run.task.n_dims, run.task.sparsity, run.task.noise_std) == (4, 2, 0.3)
    assert "PowerLaw" in repr(run.task)
    assert (run.data.seed, run.data.largest_n) == (3, 5)
    prompt = run.data.held_out("a name", 6)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in run.module.state_dict().items():
        assert torch.equal(weight, checkpoint[name])
    assert run.model.on_prompt(prompt).prediction.shape == (6, 3)
    table = run.table
    check_columns(table, "load_run(folder).table")
    risks = table[(table["metric"] == "val/excess_risk/transformer") & table["n_points"].isna()]
    assert risks["step"].tolist() == [3, 6]
    assert (risks["low"] < risks["value"]).all()
    assert (risks["value"] < risks["high"]).all()
    assert risks["command"].tolist() == ["fit", "fit"]
    assert risks["context"].nunique() == 1
    assert run.contexts[risks["context"].iloc[0]]["prompts"] == {"reference_tuning": 8, "validate": 16}
    assert table[table["metric"] == "val/excess_risk/ridge"]["note"].str.startswith("ridge, alpha").all()
    assert [event["event"] for event in run.events] == ["started", "finished"]


def test_opening_a_run_leaves_the_global_generator_alone(folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert load_run(folder).model is not None
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no record.jsonl, so it is not the folder of a run"):
        load_run(tmp_path)


def test_a_run_of_the_older_form_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"results.json of an older version.*measure its checkpoint anew"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.yaml", None, "has no config.yaml"),
        ("config.yaml", "model: [", "is not YAML"),
        ("config.yaml", "", "is not the config of a run"),
        ("checkpoints/last.ckpt", None, r"has no checkpoints/last.ckpt to take the model from"),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, file, text, words):
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    run = load_run(folder)
    assert len(run.table)  # which needs neither
    with pytest.raises(InputError, match=words):
        _ = run.config if file == "config.yaml" else run.model


def test_a_class_that_is_not_here_is_named(folder):
    task = {"class_path": "gone.Task", "init_args": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"data": {"task": task}}))
    with pytest.raises(InputError, match=r"names gone.Task, but there is no such class here"):
        _ = load_run(folder).task


def test_damaged_lines_are_named_and_the_others_stand(folder):
    n_rows = len(load_run(folder).table)
    path = folder / journal.NAME
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"value"', b'"valve"').replace(b"1", b"2", 1)
    path.write_bytes(b"\n".join(lines))
    run = load_run(folder)
    assert run.damaged == [2]
    assert 0 < len(run.table) < n_rows


def test_of_two_measurements_at_one_step_on_the_same_the_later_holds(tmp_path):
    def measure(value, seed=1):
        found = Measurement("A", 4, {"command": "fit", "seed": seed}, [Row("a/b", value, layer=1)])
        journal.append(tmp_path / journal.NAME, line_of(found))

    measure(1.0)
    measure(2.0)
    measure(3.0, seed=2)
    assert load_run(tmp_path).table["value"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (Row("heads/risk", 1.0), "heads/risk"),
        (Row("heads/gradient/share", 1.0, layer=2, head=3, n_points=4), "heads/gradient/share/n4/layer2/head3"),
        (Row("val/excess_risk/ridge", 1.0, stream="noisier"), "val/noisier/excess_risk/ridge"),
        (Row("alone", 1.0, layer=0), "alone/layer0"),
    ],
)
def test_a_row_has_one_tag(row, name):
    assert tag(row) == name


def test_an_empty_frame_has_the_columns_and_types_of_a_full_one():
    empty, full = frame([]), frame([Row("a", None), Row("b", 1.0, 0.5, 2.0, 1, 2, 3, "s", "n")])
    assert list(empty.dtypes) == list(full.dtypes)
    assert full["layer"].isna().tolist() == [True, False]
    assert full["value"].isna().tolist() == [True, False]


class Odd:
    def __init__(self, a=1, b=(2, 3), every_n_validations=1):
        self.a, self.b, self.every_n_validations = a, b, every_n_validations


def test_a_context_tells_laws_options_and_prompts_apart_and_no_commands():
    trainer = small_trainer(".")
    contexts = []
    for task, odd, n_prompts, fn in (
        (None, Odd(), 4, "fit"),
        (None, Odd(), 4, "validate"),
        (SparseLinearRegression(4, 2, noise_std=2.0), Odd(), 4, "fit"),
        (None, Odd(a=Odd()), 4, "fit"),
        (None, Odd(), 5, "fit"),
    ):
        data = small_data(task)
        data.held_out("some", n_prompts)
        trainer.state.fn = type(trainer.state.fn or __import__("lightning").pytorch.trainer.states.TrainerFn.FITTING)(
            fn
        )
        contexts.append(context(trainer, data, odd))
    names = [fingerprint(found) for found in contexts]
    assert names[0] == names[1]
    assert len(set(names)) == 4
    assert options(Odd(a=Odd())) == {"a": {"Odd": {"a": 1, "b": [2, 3]}}, "b": [2, 3]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([[1.0, float("inf")]]), [[1.0, None]]),
        (torch.tensor(True), True),
        ({1: [float("nan"), "text"]}, {"1": [None, "text"]}),
        (Row("a", 1.0), {**dict.fromkeys(Row._fields), "metric": "a", "value": 1.0}),
    ],
)
def test_plain_is_what_json_knows(value, expected):
    assert plain(value) == expected
