"""What a newcomer finds in TensorBoard."""

import pytest
import yaml
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from lightning_icl.cli import main
from lightning_icl.record import load_run

QUICKSTART = (
    *("--config", str(ROOT / "configs" / "quickstart.yaml"), "--data.eval_prompts=64", "--data.eval_batch_size=64"),
    *("--model.heads=[4,4,4]", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"),
)


def small(config, n_prompts):
    """The config's callbacks, on fewer prompts."""
    callbacks = yaml.safe_load((ROOT / config).read_text())["trainer"]["callbacks"]
    for callback in callbacks:
        if "n_prompts" in callback.get("init_args", {}):
            callback["init_args"]["n_prompts"] = n_prompts
    return yaml.safe_dump(callbacks, default_flow_style=True).replace("\n", " ")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A quickstart of four steps and three layers, and a validate of its checkpoint; without figures."""
    folder = tmp_path_factory.mktemp("page")
    callbacks = f"--trainer.callbacks={small('configs/quickstart.yaml', 32)}"
    run, other = folder / "run", folder / "other"
    main(["fit", *QUICKSTART, callbacks, "--figures.when=never", "--run_folder", str(run)])
    checkpoint = run / "checkpoints" / "last.ckpt"
    options = ("--ckpt_path", str(checkpoint), "--figures.when=never", "--run_folder", str(other))
    main(["validate", *QUICKSTART, callbacks, "--record.scalars=all", *options])
    return {path.name: EventAccumulator(str(path), {"scalars": 0, "tensors": 0}).Reload() for path in (run, other)} | {
        "folder": folder
    }


def test_the_quickstart_has_few_scalars_and_what_matters_comes_first(page):
    tags = page["run"].Tags()["scalars"]
    assert 20 <= len(tags) <= 30
    assert not {"epoch", "hp_metric"} & set(tags)
    assert min(tag.split("/")[0] for tag in tags) == "against"  # TensorBoard's order is the alphabet's
    assert {f"against/{name}/ratio" for name in ("zero", "ridge", "lasso", "bayes")} <= set(tags)


def test_every_point_lies_at_the_steps_behind_the_weights(page):
    run = page["run"]
    assert [point.step for point in run.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [point.step for point in run.Scalars("val/excess_risk/transformer")] == [2, 4]
    assert [point.step for point in run.Scalars("against/ridge/ratio")] == [2, 4]
    assert [point.step for point in page["other"].Scalars("val/excess_risk/transformer")] == [4]


def test_the_scalars_are_rows_of_the_record(page):
    table = load_run(page["folder"] / "run").table
    for name in ("against/lasso/ratio", "val/excess_risk/ridge", "prune/as_is/paper/excess_risk"):
        rows = table[(table["metric"] == name) & table["n_points"].isna()]
        points = page["run"].Scalars(name)
        assert rows["step"].tolist() == [point.step for point in points]
        assert rows["value"].tolist() == pytest.approx([point.value for point in points], rel=1e-6)


def test_one_option_logs_every_row(page):
    every = set(page["other"].Tags()["scalars"])
    assert len(every) > 300
    assert {"heads/leave_one_out/importance/layer2/head3", "val/excess_risk/transformer"} <= every


def test_text_says_what_the_run_is_and_has_its_closing_table(page):
    for name in ("run", "other"):
        said = {
            tag.removesuffix("/text_summary"): page[name].Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            for tag in page[name].Tags()["tensors"]
            if tag.endswith("/text_summary")
        }
        assert "SparseLinearRegression" in said["about"]
        assert "heads [4, 4, 4]" in said["about"]
        assert "<- the model" in said["results"]
        assert "Heads that matter" in said["results"]


def test_a_run_has_its_row_of_hparams_with_the_last_risk(page):
    metadata = page["run"].SummaryMetadata
    started = plugin_data_pb2.HParamsPluginData.FromString(
        metadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    options = {name: value.string_value or value.number_value for name, value in started.hparams.items()}
    assert options["task"] == "SparseLinearRegression"
    assert options["learning_rate"] == pytest.approx(3e-3)
    assert (options["task.noise_std"], options["heads"], options["seed"]) == (0.4, "[4, 4, 4]", 1)
    experiment = plugin_data_pb2.HParamsPluginData.FromString(metadata("_hparams_/experiment").plugin_data.content)
    named = {info.name.tag for info in experiment.experiment.metric_infos}
    assert named == {"val/excess_risk/transformer", *(f"against/{n}/ratio" for n in ("ridge", "lasso", "bayes"))}
    assert named <= set(page["run"].Tags()["scalars"])


def test_the_custom_charts_have_a_sensible_range(page):
    (event,) = page["run"].Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    (band,) = charts["model (line) between Bayes and ridge (band)"].margin.series
    names = (band.value, band.lower, band.upper)
    assert names == tuple(f"val/excess_risk/{name}" for name in ("transformer", "bayes", "ridge"))
    shown = charts["model and references below the zero predictor"].multiline.tag
    risks = {tag: page["run"].Scalars(tag)[-1].value for tag in page["run"].Tags()["scalars"] if "excess_risk" in tag}
    below = {tag for tag in risks if tag.startswith("val/") and risks[tag] <= risks["val/excess_risk/zero"]}
    assert set(shown) == (below - {"val/excess_risk/zero"}) | {"val/excess_risk/transformer"}
    assert "val/excess_risk/least_squares" not in shown
