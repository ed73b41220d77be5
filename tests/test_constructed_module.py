"""A module that starts as a construction: its shape, its checkpoints, and what a config may say beside it."""

import pytest
import torch
import yaml
from conftest import ROOT, small_data, small_trainer

from lightning_icl import ICLModule, SparseLinearRegression, cli, load_run
from lightning_icl.commands.run import check_fit
from lightning_icl.functional.constructions import ConstructedGD, ConstructedGDPlusPlus, ConstructedPreprocessThenGD
from lightning_icl.functional.errors import InputError
from lightning_icl.record.loading import loaded_module

CONSTRUCTIONS = {
    "gd": lambda d: ConstructedGD(3, 0.2),
    "preconditioned_gd": lambda d: ConstructedGD(3, 0.2, (torch.eye(d) + 0.1 * torch.ones(d, d).tril(-1)).tolist()),
    "preprocess_then_gd": lambda d: ConstructedPreprocessThenGD(3, 0.2),
    "some_coordinates": lambda d: ConstructedPreprocessThenGD(2, 0.2, [1, d] if d > 1 else [1]),
    "gd_plus_plus": lambda d: ConstructedGDPlusPlus(3, 0.2, 0.06),
}
GD = ROOT / "configs" / "constructed" / "gd.yaml"
SMALL = ["--data.eval_prompts=16", "--data.eval_batch_size=16", "--figures.when=never"]
SMALL += ["--trainer.callbacks=[{class_path: ReferenceRisk, init_args: {references: [ZeroPredictor]}}]"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
@pytest.mark.parametrize("n", [1, 8, 64])
@pytest.mark.parametrize("d", [1, 5, 16])
def test_every_layer_is_the_iterate_after_saving_and_loading(tmp_path, name, n, d, in_float64):
    construction, data = CONSTRUCTIONS[name](d), small_data(SparseLinearRegression(d, 1, noise_std=0.3), n_points=n)
    trainer = small_trainer(tmp_path, max_steps=0)
    trainer.fit(ICLModule(n_dims=d, construction=construction), datamodule=data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    transformer = loaded_module(tmp_path / "it.ckpt").network
    prompt = data.held_out("here", 6).double()
    with torch.no_grad():
        read = torch.stack([transformer.read(states) for states in transformer.on_prompt(prompt).query_states])
    expected = torch.einsum("tbd,bqd->tbq", construction.path(prompt.x, prompt.y), prompt.x_query)
    assert (read - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))


def test_the_shape_may_be_said_but_no_other():
    given = {"heads": [1, 1, 1], "attention": "linear", "mlp": False}
    assert ICLModule(n_dims=4, construction=ConstructedGD(3, 0.2), **given).network.heads == [1, 1, 1]
    with pytest.raises(InputError, match=r"heads is \[8, 8\], but ConstructedGD is a network with heads \[1, 1, 1\]"):
        ICLModule(n_dims=4, construction=ConstructedGD(3, 0.2), heads=[8, 8])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model.heads=[8, 1]"],
            "heads is [8, 1], but ConstructedGD is a network with heads [1, 1, 1]; leave it out",
        ),
        (
            ["--model.construction.steps=0"],
            "model.construction: steps is 0, but it must be at least 1.",
        ),
        (
            ["--model.construction.matrix=[[1.0]]"],
            "model.construction: matrix has 1 rows, but the prompts have n_dims 8.",
        ),
        (["--model.construction=ConstructedGd"], "ConstructedGD"),
    ],
)
def test_a_wrong_construction_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", "--config", str(GD), *SMALL, *QUIET, *options])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fit_from_the_command_line_starts_there_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["validate", "--config", str(GD), *SMALL, *QUIET])
    cli.main(["fit", "--config", str(GD), *SMALL, *QUIET, "--trainer.max_steps=2", "--model.learning_rate=1e-9"])
    runs = tmp_path / "lightning_logs"
    config = yaml.safe_load((runs / "version_1" / "config.yaml").read_text())
    assert config["model"]["heads"] == [1, 1, 1]
    assert config["model"]["d_model"] == 9
    assert load_run(runs / "version_1").module.construction is None
    ckpt = str(runs / "version_1" / "checkpoints" / "last.ckpt")
    cli.main(["validate", "--config", str(runs / "version_1" / "config.yaml"), "--ckpt_path", ckpt])
    tables = [load_run(runs / i).table.set_index("metric") for i in ("version_0", "version_1/validate_0")]
    risks = [table[table["n_points"].isna()]["value"]["val/excess_risk/transformer"] for table in tables]
    state = load_run(runs / "version_1").model.state_dict()
    for key, value in ConstructedGD(3, 0.2).state(8).items():
        torch.testing.assert_close(state[key].double(), value, rtol=1e-6, atol=1e-6)
    assert risks[0] == pytest.approx(risks[1])

    resume = ["fit", "--config", str(GD), *SMALL, *QUIET, "--trainer.max_steps=3", "--ckpt_path", ckpt]
    with pytest.raises(SystemExit):
        cli.main([*resume, "--model.construction.step_size=0.1", "--model.learning_rate=1e-9"])
    assert "resume it with the construction it had" in capsys.readouterr().err
    cli.main([*resume, "--model.learning_rate=1e-9"])

    cli.main(["prune", "--ckpt_path", ckpt, "--keep", "[[1], [], [1]]", "--output", "pruned"])
    cli.main(["validate", "--config", "pruned/config.yaml", "--ckpt_path", "pruned/checkpoints/last.ckpt"])


def test_a_study_takes_a_construction_as_its_base():
    check_fit(["--config", str(GD), "--model.construction.init_args.steps", "2"])


@pytest.mark.parametrize("name", ["preprocess_then_gd", pytest.param("gd_plus_plus", marks=pytest.mark.slow)])
def test_two_hundred_steps_from_a_construction_end_at_or_below_its_risk(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    options = "{n_prompts: 256, every_n_validations: 4}"
    compared = f"--trainer.callbacks=[{{class_path: ConstructionComparison, init_args: {options}}}]"
    config = ROOT / "configs" / "constructed" / f"{name}.yaml"
    cli.main(["fit", "--config", str(config), *SMALL[:3], compared, "--figures.when=never", *QUIET])
    table = load_run("lightning_logs/version_0").table
    last = table[(table["metric"] == "construction/risk/difference") & (table["step"] == 200)].iloc[0]
    error = (last["high"] - last["low"]) / 2 / 1.96
    assert last["value"] <= error
    assert last["value"] < 0  # and for these, well below


def test_a_construction_with_an_initialisation_is_refused():
    with pytest.raises(InputError, match="init is 'keys_equal_queries', but the weights are those of"):
        ICLModule(4, construction=ConstructedGD(2, 0.1), init="keys_equal_queries")
