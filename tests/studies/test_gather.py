"""The tidy table, from hand-written results with known numbers and from one real run."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import AlgorithmMatch, Circuits, HeadImportance, HeadPruning, LinearProbe, ReferenceRisk
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.pruning import GreedyRemoval
from lightning_icl.functional.references import GD, Ridge
from lightning_icl.studies.gather import gather, joined, p_probing_rows, read_table, write_table
from lightning_icl.studies.table import KEYS, config_columns, last_step, varied

HEADS = [2, 1]
TASK = {"class_path": "lightning_icl.SparseLinearRegression", "init_args": {"n_dims": 4, "sparsity": 2}}
E = {"value": 0.5, "standard_error": 0.25}  # some Estimate


def config(heads=HEADS, task=TASK, seed=7, trainer=None, **data):
    return {
        "seed_everything": seed,
        "trainer": {"max_steps": 60, "precision": None, "accelerator": "cpu"} | (trainer or {}),
        "model": {"d_model": 16, "heads": heads, "mlp": False, "head_dim": None, "learning_rate": 0.01},
        "data": {"task": task, "n_points": 8} | data,
    }


def run_folder(folder, results, **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("# lightning.pytorch==2\n" + yaml.safe_dump(config(**settings)))
    (folder / "results.json").write_text(json.dumps({"lightning_icl": "0.1.0"} | results))
    return folder


def cells(table, apart_from=("run/parameters", "run/steps")):
    """(metric, layer, head, n_points) -> (value, error), None where missing."""
    rows = table[~table["metric"].isin(apart_from)]
    places = [rows[key].tolist() for key in ("metric", "layer", "head", "n_points", "value", "error")]
    plain = [tuple(None if pd.isna(item) else item for item in row) for row in zip(*places, strict=True)]
    assert len({row[:4] for row in plain}) == len(plain)
    return {row[:4]: row[4:] for row in plain}


def gathered(tmp_path, name, record, **settings):
    return cells(gather([run_folder(tmp_path / "run", {name: [{"step": 60} | record]}, **settings)]))


def test_reference_risk_is_by_stream_and_number_of_examples(tmp_path):
    streams = [
        {"name": None, "overall": {"ridge": [2.0, 0.1]}, "by_points": {"4": {"ridge": [3.0, 0.2]}}},
        {"name": "noisy", "overall": {"ridge": [4.0, None]}, "by_points": {"16": {"bayes": [5.0, 0.3]}}},
    ]
    assert gathered(tmp_path, "ReferenceRisk", {"streams": streams}) == {
        ("excess_risk/ridge", None, None, None): (2.0, 0.1),
        ("excess_risk/ridge", None, None, 4): (3.0, 0.2),
        ("noisy/excess_risk/ridge", None, None, None): (4.0, None),
        ("noisy/excess_risk/bayes", None, None, 16): (5.0, 0.3),
    }


def test_the_first_of_named_streams_is_also_there_without_its_name(tmp_path):
    streams = [{"name": name, "overall": {"zero": [risk, 0.1]}, "by_points": {}} for name, risk in (("a", 1), ("b", 2))]
    assert gathered(tmp_path, "ReferenceRisk", {"streams": streams}) == {
        ("excess_risk/zero", None, None, None): (1, 0.1),
        ("a/excess_risk/zero", None, None, None): (1, 0.1),
        ("b/excess_risk/zero", None, None, None): (2, 0.1),
    }


def head_scores(scale):
    """Layer 1 has two heads; layer 2 one, whose total is within noise, and no second."""
    scores = {
        "raw": [[3.0 * scale, 1.0 * scale], [0.1, None]],
        "standard_error": [[0.3, 0.1], [0.2, None]],
        "share": [[0.75, 0.25], [None, None]],
        "share_error": [[0.05, 0.05], [None, None]],
        "effective_heads": [1.75, None],
        "effective_error": [0.1, None],
        "top_share": [0.75, None],
        "top_error": [0.05, None],
        "total": [4.0 * scale, 0.1],
        "total_error": [0.4, 0.2],
        "interval": [[[2.4, 0.8], [-0.3, None]], [[3.6, 1.2], [0.5, None]]],
    }
    agreement = {"overall": 0.5, "interval": [0.1, 0.9], "by_layer": [1.0, None]}
    return {"risk": scale, "risk_error": 0.01, "scores": {"gradient": scores}, "agreement": {"a_and_b": agreement}}


def test_head_importance_leaves_out_heads_that_do_not_exist_and_keeps_shares_that_do_not(tmp_path):
    found = gathered(
        tmp_path, "HeadImportance", head_scores(1.0) | {"n_prompts": 8, "by_points": {"2": head_scores(5)}}
    )
    at_all = {(*place[:3],): numbers for place, numbers in found.items() if place[3] is None}
    assert at_all == {
        ("heads/risk", None, None): (1.0, 0.01),
        ("heads/gradient/importance", 1, 1): (3.0, 0.3),
        ("heads/gradient/importance", 1, 2): (1.0, 0.1),
        ("heads/gradient/importance", 2, 1): (0.1, 0.2),
        ("heads/gradient/share", 1, 1): (0.75, 0.05),
        ("heads/gradient/share", 1, 2): (0.25, 0.05),
        ("heads/gradient/share", 2, 1): (None, None),
        ("heads/gradient/effective", 1, None): (1.75, 0.1),
        ("heads/gradient/effective", 2, None): (None, None),
        ("heads/gradient/top_share", 1, None): (0.75, 0.05),
        ("heads/gradient/top_share", 2, None): (None, None),
        ("heads/gradient/total", 1, None): (4.0, 0.4),
        ("heads/gradient/total", 2, None): (0.1, 0.2),
        ("heads/agreement/a_and_b", None, None): (0.5, None),
        ("heads/agreement/a_and_b", 1, None): (1.0, None),
        ("heads/agreement/a_and_b", 2, None): (None, None),
    }
    at_two = {place for place in found if place[3] == 2}
    assert len(found) == len(at_all) + len(at_two) == 2 * len(at_all)
    assert found["heads/gradient/importance", 1, 1, 2] == (15.0, 0.3)
    assert found["heads/risk", None, None, 2] == (5, 0.01)


def pruned(ratio):
    risk = {"risk": 2 * ratio, "ratio": ratio, "difference": 2 * ratio - 2}
    return risk | {f"{key}_error": value / 10 for key, value in risk.items()}


def test_head_pruning_has_risks_heads_kept_and_the_greedy_path(tmp_path):
    record = {
        "keep": {"full": [[1, 2], [1]], "paper": [[1, 2], []]},
        "risks": {"as_is": {"full": pruned(1.0), "random_head": pruned(3.0)}, "fine_tuned": {"paper": pruned(1.5)}},
        "checkpoints": {"single": pruned(2.0)},
        "greedy_path": {
            "heads_left": [3, 2],
            "risks": [[1.0, 0.1], [1.2, 0.2]],
            "allocation": [[2, 1], [1, 1]],
            "removed": [[1, 2]],
        },
    }
    found = gathered(tmp_path, "HeadPruning", record)
    assert found["prune/as_is/random_head/excess_risk", None, None, None] == pytest.approx((6.0, 0.6))
    assert found["prune/as_is/random_head/ratio", None, None, None] == pytest.approx((3.0, 0.3))
    assert found["prune/as_is/random_head/difference", None, None, None] == pytest.approx((4.0, 0.4))
    assert found["prune/as_is/full/ratio", None, None, None] == pytest.approx((1.0, 0.1))
    assert found["prune/fine_tuned/paper/ratio", None, None, None] == pytest.approx((1.5, 0.15))
    assert found["prune/checkpoint/single/excess_risk", None, None, None] == pytest.approx((4.0, 0.4))
    n_heads = {place[:2]: value for place, (value, _) in found.items() if place[0].endswith("n_heads")}
    assert n_heads == {
        **{("prune/full/n_heads", None): 3, ("prune/full/n_heads", 1): 2, ("prune/full/n_heads", 2): 1},
        **{("prune/paper/n_heads", None): 2, ("prune/paper/n_heads", 1): 2, ("prune/paper/n_heads", 2): 0},
        **{("prune/greedy_path/heads_3/n_heads", layer): n for layer, n in ((None, 3), (1, 2), (2, 1))},
        **{("prune/greedy_path/heads_2/n_heads", layer): n for layer, n in ((None, 2), (1, 1), (2, 1))},
    }
    assert found["prune/greedy_path/heads_2/excess_risk", None, None, None] == (1.2, 0.2)
    assert found["prune/greedy_path/removed", 1, 2, None] == (1, None)
    assert len(found) == 4 * 3 + len(n_heads) + 2 + 1


def test_pruning_schedule_has_the_heads_left_by_each_cut(tmp_path):
    record = {"strategy": "greedy", "keep": [[2], [1]]}
    places = {None: 2, 1: 1, 2: 1}
    assert gathered(tmp_path, "PruningSchedule", record) == {
        ("prune/schedule/n_heads", layer, None, None): (n, None) for layer, n in places.items()
    }


def scored(risk, r2, auc=None):
    named = {"risk": risk, "r2": r2, "auc": auc}
    return {"alpha": 1.0} | {key: v and {"value": v[0], "standard_error": v[1]} for key, v in named.items()}


def test_linear_probe_has_every_arm_and_layer_from_the_read_in(tmp_path):
    f = {
        "target": "f",
        "token": "query",
        "layer": 0,
        "trained": scored((1.0, 0.1), (0.5, 0.01)),
        "shuffled": scored((2.0, 0.2), (0.0, 0.02)),
        "untrained": None,
        "over_shuffled": E,
        "over_untrained": None,
    }
    support = f | {
        "target": "support",
        "token": "context",
        "layer": 2,
        "untrained": scored((3.0, 0.3), (None, None), (0.6, 0.03)),
        "over_untrained": {"value": None, "standard_error": None},
    }
    curves = {"GD": [E, E | {"value": 0.75}], "preprocess + GD": [E]}
    record = {"probes": [f, support], "levels": {"bayes": E | {"value": 0.1}}, "curves": curves}
    expected = {
        ("probe/query/f/trained/risk", 0): (1.0, 0.1),
        ("probe/query/f/trained/r2", 0): (0.5, 0.01),
        ("probe/query/f/shuffled/risk", 0): (2.0, 0.2),
        ("probe/query/f/shuffled/r2", 0): (0.0, 0.02),
        ("probe/query/f/selectivity/shuffled", 0): (0.5, 0.25),
        ("probe/context/support/trained/risk", 2): (1.0, 0.1),
        ("probe/context/support/trained/r2", 2): (0.5, 0.01),
        ("probe/context/support/shuffled/risk", 2): (2.0, 0.2),
        ("probe/context/support/shuffled/r2", 2): (0.0, 0.02),
        ("probe/context/support/untrained/risk", 2): (3.0, 0.3),
        ("probe/context/support/untrained/r2", 2): (None, None),  # constant, but of all that was probed
        ("probe/context/support/untrained/auc", 2): (0.6, 0.03),
        ("probe/context/support/selectivity/shuffled", 2): (0.5, 0.25),
        ("probe/context/support/selectivity/untrained", 2): (None, None),
        ("probe/curve/gd", 1): (0.5, 0.25),
        ("probe/curve/gd", 2): (0.75, 0.25),
        ("probe/curve/preprocess_then_gd", 1): (0.5, 0.25),
        ("probe/level/bayes", None): (0.1, 0.25),
    }
    assert gathered(tmp_path, "LinearProbe", record) == {(*key, None, None): v for key, v in expected.items()}


def test_algorithm_match_has_layers_and_the_read_out(tmp_path):
    kinds = {"spd": 1.0, "relative_spd": 0.5, "ilwd": 3.0, "relative_ilwd": 0.25, "cosine": 0.9}
    distance = kinds | {f"{kind}_error": value / 10 for kind, value in kinds.items()}
    distance |= {"algorithm": "gd", "label": "GD, 3 steps", "n_points": 8, "setting": {"steps": 3.0}}
    both = [distance | {"reading": "layer12"}, distance | {"reading": "read_out"}]
    expected = {}
    for reading, layer in (("layer", 12), ("read_out", None)):
        for kind, value in kinds.items():
            expected[f"algorithm/{reading}/gd/{kind}", layer, None, 8] = (value, value / 10)
        expected[f"algorithm/{reading}/gd/setting/steps", layer, None, 8] = (3.0, None)
    assert gathered(tmp_path, "AlgorithmMatch", {"distances": both}) == expected


def test_circuits_have_the_scalars_of_each_head(tmp_path):
    names = ("query_key_identity", "output_value_y", "prediction_y", "within_input", "step")
    layers = []
    for layer, n_heads in ((1, 2), (2, 1)):
        scalars = {name: [100 * i + 10 * layer + h + 1 for h in range(n_heads)] for i, name in enumerate(names)}
        layers.append({"query_key": [[[1.0]]]} | scalars)
    found = gathered(tmp_path, "Circuits", {"coordinates": ["x1", "y", "1"], "layers": layers})
    assert found == {
        (f"circuits/{name}", layer, head, None): (100 * i + 10 * layer + head, None)
        for i, name in enumerate(names)
        for layer, head in ((1, 1), (1, 2), (2, 1))
    }


def test_an_analysis_of_the_users_own_goes_by_the_conventions(tmp_path):
    record = {
        "times": 3,
        "risk": 2.0,
        "risk_error": 0.2,
        "risk_interval": [1.6, 2.4],
        "squared_error": 5.0,  # of nothing that is there, so a number of its own
        "label": "text",
        "by": {"depth": [1.0, None], "head": [[1.0, 2.0], [3.0, None]], "head_error": [[0.1, 0.2], [0.3, None]]},
        "estimate": E,
        "whole": [[None, 1.0], [None, None]],
        "wide": [[1.0], [2.0, 3.0]],  # not by head, as layer 2 has one
        "cube": [[[1.0]]],
    }
    assert gathered(tmp_path, "Mine", record) == {
        ("Mine/times", None, None, None): (3, None),
        ("Mine/risk", None, None, None): (2.0, 0.2),
        ("Mine/squared_error", None, None, None): (5.0, None),
        ("Mine/by/depth", 1, None, None): (1.0, None),
        ("Mine/by/depth", 2, None, None): (None, None),
        ("Mine/by/head", 1, 1, None): (1.0, 0.1),
        ("Mine/by/head", 1, 2, None): (2.0, 0.2),
        ("Mine/by/head", 2, 1, None): (3.0, 0.3),
        ("Mine/estimate", None, None, None): (0.5, 0.25),
        ("Mine/whole", 1, 1, None): (None, None),
        ("Mine/whole", 1, 2, None): (1.0, None),
        ("Mine/whole", 2, 1, None): (None, None),
        ("Mine/wide", 1, 1, None): (1.0, None),
        ("Mine/wide", 2, 1, None): (2.0, None),
        ("Mine/wide", 2, 2, None): (3.0, None),
    }


def series(*steps):
    return {"Mine": [{"step": step, "x": step / 2} for step in steps]}


def test_all_steps_are_kept_and_the_last_is_the_runs(tmp_path):
    table = gather([run_folder(tmp_path / "run", series(20, 60, 40))])
    assert table.loc[table["metric"] == "Mine/x", ["step", "value"]].to_numpy().tolist() == [
        [20, 10],
        [40, 20],
        [60, 30],
    ]
    steps = table[table["metric"] == "run/steps"]
    assert steps[["step", "value"]].to_numpy().tolist() == [[60, 60.0]]
    assert set(last_step(table)["step"]) == {60}
    ended = gather([run_folder(tmp_path / "ended", series(20) | {"finished": {"steps": 70}})])
    assert cells(ended, ())["run/steps", None, None, None] == (70, None)


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
    found = cells(gather([run_folder(tmp_path / "run", {}, task=task)]), ())
    assert torch.equal(torch.get_rng_state(), state)
    # Read-in 5 -> 16, two layers of four 16 x 16 matrices and a norm, a norm, read-out.
    assert found["run/parameters", None, None, None] == (6 * 16 + 2 * (4 * 256 + 32) + 32 + 17, None)


def test_parameters_are_missing_where_the_config_does_not_say_n_dims(tmp_path):
    found = cells(gather([run_folder(tmp_path / "run", {}, task={"class_path": "mine.Task"})]), ())
    assert found["run/parameters", None, None, None] == (None, None)


def test_config_columns_are_as_on_the_command_line(tmp_path):
    spectrum = {"class_path": "lightning_icl.functional.tasks.Powerlaw", "init_args": {"exponent": 1.5}}
    task = {
        "class_path": "mine.Pool",
        "init_args": {"task": {**TASK, "dict_kwargs": {"spectrum": spectrum}}, "size": 3},
    }
    validation = {"longer": {"n_points": 40}}
    trainer = {"precision": "bf16-mixed", "max_time": {"hours": 2}, "gradient_clip_val": 1.0, "callbacks": None}
    trainer |= {"logger": False, "devices": 2, "default_root_dir": "runs", "log_every_n_steps": 5}
    run = run_folder(tmp_path / "run", series(1), task=task, n_points=[4, 16], validation=validation, trainer=trainer)
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


def test_a_key_that_some_runs_leave_open_is_a_column_and_one_that_all_do_is_none(tmp_path):
    clipped = run_folder(tmp_path / "clipped", {}, trainer={"gradient_clip_val": 0.5, "accumulate_grad_batches": 2})
    table = gather([clipped, run_folder(tmp_path / "open", {}, trainer={"gradient_clip_val": None})])
    by_trial = table.drop_duplicates("trial").set_index("trial")
    assert by_trial["trainer.gradient_clip_val"].dropna().to_dict() == {"clipped": 0.5}
    assert by_trial["trainer.accumulate_grad_batches"].dropna().to_dict() == {"clipped": 2}
    assert set(varied(table)) == {"trainer.gradient_clip_val", "trainer.accumulate_grad_batches"}
    assert not {"model.head_dim", "trainer.precision"} & set(table.columns)


def several(tmp_path):
    """Three runs whose configs differ in all the ways a column can."""
    other = {"class_path": "lightning_icl.LinearRegression", "init_args": {"n_dims": 4, "noise_std": [0.1, 0.5]}}
    noisy = {"class_path": TASK["class_path"], "init_args": TASK["init_args"] | {"noise_std": 0.4}}
    return [
        run_folder(
            tmp_path / "b", series(3, 5), heads=[1, 1], trainer={"precision": 32}, n_points=[4, 8], seed=2, rule=True
        ),
        run_folder(tmp_path / "a", series(5), task=noisy, trainer={"max_steps": 2.5}, seed=1, rule="all"),
        run_folder(tmp_path / "c", {"HeadImportance": [head_scores(0.1) | {"step": 9, "by_points": {}}]}, task=other),
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
    assert {str(table[key].dtype) for key in ("value", "error")} == {"float64"}


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

    def cut_off(table, path, **_):
        path.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_parquet", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_table(gather(runs), tmp_path / "out")
    pd.testing.assert_frame_equal(read_table(tmp_path / "out"), before)
    path = tmp_path / "out" / "results.parquet"
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 40 + whole[40:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"out/results.parquet is no table; delete it, and it is made anew"):
            read_table(tmp_path / "out")


def p_probing_folder(folder, checkpoints, **risks):
    folder.mkdir(parents=True)
    found = {
        "checkpoints": {name: str(run / "checkpoints" / "last.ckpt") for name, run in checkpoints.items()},
        "training": {"n_steps": 200, "n_seeds": 1},
        "heads": {"layer_1/8-8": 8, "layer_1/8-1": 8, "layer_1/1-1": 1},
        "risk": {
            optimiser: {arm: [{"mean": mean, "half_width": 0.1} for mean in curve] for arm, curve in by_arm.items()}
            for optimiser, by_arm in risks.items()
        },
    }
    (folder / "p_probing.json").write_text(json.dumps(found))
    return folder


def test_p_probing_is_by_optimiser_depth_and_arm_with_what_its_runs_share(tmp_path):
    heads = {"8-8": [8, 8], "8-1": [8, 1], "1-1": [1, 1]}
    runs = {name: run_folder(tmp_path / name, series(60), heads=h, seed=3) for name, h in heads.items()}
    attention = {"layer_1/8-8": [1.0, 0.5], "layer_1/8-1": [3.0, None], "layer_1/1-1": [4.0, 3.5], "raw": [5.0, 4.5]}
    folder = p_probing_folder(tmp_path / "p_probing_1", runs, attention=attention, descent={"r_hat": [2.0]})
    table = p_probing_rows([folder])
    assert cells(table) == {
        ("p_probing/attention/1/heads_8", None, None, None): (2.0, None),
        ("p_probing/attention/2/heads_8", None, None, None): (None, None),
        ("p_probing/attention/1/heads_1", None, None, None): (4.0, None),
        ("p_probing/attention/2/heads_1", None, None, None): (3.5, None),
        ("p_probing/attention/1/raw", None, None, None): (5.0, None),
        ("p_probing/attention/2/raw", None, None, None): (4.5, None),
        ("p_probing/descent/1/r_hat", None, None, None): (2.0, None),
    }
    both = joined([gather(list(runs.values())), table])
    assert both["data.task.n_dims"].dtype == "int64"
    of_probing = both[both["trial"] == "p_probing_1"]
    assert set(of_probing["seed"]) == {3}
    assert set(of_probing["step"]) == {200}
    assert of_probing["model.heads"].isna().all()
    assert set(of_probing["data.task"]) == {"SparseLinearRegression"}
    assert set(of_probing["model.d_model"]) == {16}


def test_p_probing_finds_its_runs_also_in_a_study_that_was_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Path("studies", "here")  # as it was typed, from the folder it was run in
    runs = {name: run_folder(study / "trials" / name, {}, seed=3) for name in ("8-8", "1-1")}
    p_probing_folder(study / "p_probing" / "p", runs, descent={"raw": [1.0]})
    before = p_probing_rows([study / "p_probing" / "p"])
    study.rename("there")
    pd.testing.assert_frame_equal(p_probing_rows([Path("there", "p_probing", "p")]), before)
    monkeypatch.chdir("there/p_probing")
    pd.testing.assert_frame_equal(p_probing_rows([Path("p")]), before)
    shutil.rmtree("../trials/1-1")
    with pytest.raises(InputError, match=r"studies/here/trials/1-1 has no config.yaml"):
        p_probing_rows([Path("p")])


def test_p_probing_leaves_out_what_its_runs_do_not_share(tmp_path):
    runs = {
        "8-8": run_folder(tmp_path / "a", {}, n_queries=2),
        "8-1": run_folder(tmp_path / "b", {}, seed=8, n_queries=3),
    }
    table = p_probing_rows([p_probing_folder(tmp_path / "p", runs, descent={"raw": [1.0]})])
    assert table["seed"].isna().all()
    assert not {"data.n_queries", "model.heads"} & set(table.columns)
    assert set(table["trainer.max_steps"]) == {60}


def test_a_real_run_is_in_the_table_as_its_callbacks_hold_it(tmp_path, undrawn):
    risk, importance = ReferenceRisk(8, references=[Ridge(), GD()]), HeadImportance(16, n_points=[2])
    pruning = HeadPruning(16, n_random=2, fit_prompts=8, finetune_steps=1, strategies=[GreedyRemoval(3)])
    probe, match = LinearProbe(16, context_points=2), AlgorithmMatch(8, n_points=[5], algorithms=[Ridge(), GD()])
    circuits = Circuits()
    run = tmp_path / "run"
    module = small_module(heads=[4, 2], mlp=False)
    callbacks = [risk, importance, pruning, probe, match, circuits]
    small_trainer(run, callbacks).validate(module, small_data(), verbose=False)
    (run / "config.yaml").write_text(yaml.safe_dump(config(heads=[4, 2])))
    table = gather([run])
    assert set(table["step"]) == {0}  # of training
    numbers = cells(table, ())

    def holds(place, value, error=None):
        assert numbers[place] == (float(value), None if error is None else float(error))

    holds(("run/parameters", None, None, None), sum(p.numel() for p in module.transformer.parameters()))
    for n, risks in risk.results[0].by_points.items():
        for estimator, (mean, error) in risks.items():
            holds((f"excess_risk/{estimator}", None, None, n), mean, error)
    for n, found in ((None, importance.found), (2, importance.by_points[2])):
        for score, values in found.scores.items():
            for layer, n_heads in enumerate([4, 2]):
                for head in range(n_heads):
                    place = (f"heads/{score}/importance", layer + 1, head + 1, n)
                    holds(place, values.raw[layer, head], values.standard_error[layer, head])
    assert sum(place[0] == "heads/gradient/share" for place in numbers) == 2 * (4 + 2)
    for treatment, models in pruning.results.items():
        for model, of_model in models.items():
            holds((f"prune/{treatment}/{model}/ratio", None, None, None), of_model.ratio, of_model.ratio_error)
    assert {"as_is", "fine_tuned"} <= set(pruning.results)
    holds(("prune/greedy_path/heads_1/excess_risk", None, None, None), *pruning.path.risks[-1])
    for row in probe.table.rows:
        place = f"probe/{row.token}/{row.target}/untrained/risk"
        holds((place, row.layer, None, None), *row.untrained.risk)
    for distance in match.result:
        layer = None if distance.reading == "read_out" else int(distance.reading[5:])
        place = f"algorithm/{'layer' if layer else 'read_out'}/{distance.algorithm}/ilwd"
        holds((place, layer, None, 5), distance.ilwd, distance.ilwd_error)
    holds(("circuits/step", 2, 2, None), circuits.result[1].step[1])


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    run = run_folder(tmp_path / "run", {})
    (run / name).write_text("model: {heads: [4")
    with pytest.raises(InputError, match=f"run/{name} is not "):
        gather([run])
    (run / name).write_text("{}")
    if name == "config.yaml":
        with pytest.raises(InputError, match=r"run/config.yaml is not the config of a run"):
            gather([run])
    (run / name).unlink()
    with pytest.raises(InputError, match=f"run has no {name}"):
        gather([run])


def test_what_cannot_be_gathered_is_refused(tmp_path):
    runs = [run_folder(tmp_path / name / "version_0", series(1)) for name in "ab"]
    with pytest.raises(InputError, match="the trial version_0 is there 2 times"):
        gather(runs)
    with pytest.raises(InputError, match="the trial version_0 is there 2 times"):
        joined([gather(runs[:1]), gather(runs[1:])])
    with pytest.raises(InputError, match="no folders"):
        gather([])
    old = run_folder(tmp_path / "old", {"HeadPruning": [{"step": 1, "risks": {}, "keep": {}}]})
    with pytest.raises(InputError, match=r"old/results.json has a record without 'checkpoints'"):
        gather([old])
    with pytest.raises(InputError, match=r"tables has no results.parquet"):
        read_table(Path(tmp_path) / "tables")
    with pytest.raises(InputError, match=r"a has no p_probing.json"):
        p_probing_rows([tmp_path / "a"])
