"""Networks of one's own: from the command line to a checkpoint, a resume, a config and a study's table."""

import sys

import pytest
import torch
from conftest import small_data, small_trainer
from torch import nn

from lightning_icl import ICLModule, InContextNetwork, InputError, LinearRegression, Transformer, TransformerOutput
from lightning_icl.callbacks import AlgorithmMatch
from lightning_icl.checkpoint import check_checkpoint
from lightning_icl.checks import check_run
from lightning_icl.cli import main
from lightning_icl.network import described, description, in_full, outline
from lightning_icl.record import load_run
from lightning_icl.record.configs import config_values, n_parameters
from lightning_icl.record.loading import loaded_module, read_config

LSTM = """
import torch
from torch import nn
from lightning_icl import InContextNetwork, TransformerOutput

class LSTM(InContextNetwork):
    def __init__(self, n_dims: int, width: int = 4, heads: tuple[int, ...] = ()):
        super().__init__()
        self.n_dims, self.heads = n_dims, list(heads)
        self.lstm, self.out = nn.LSTM(n_dims + 1, width, batch_first=True), nn.Linear(width, 1)

    def on_prompt(self, prompt, head_mask=None):
        _, (h, c) = self.lstm(torch.cat([prompt.x, prompt.y[..., None]], dim=-1))
        n = prompt.x_query.shape[1]
        queries = nn.functional.pad(prompt.x_query, (0, 1)).flatten(0, 1)[:, None]
        read, _ = self.lstm(queries, tuple(of.repeat_interleave(n, dim=1).contiguous() for of in (h, c)))
        return TransformerOutput(self.out(read).reshape(len(prompt.x), n))
"""
CONFIG = """
data:
  task: {class_path: LinearRegression, init_args: {n_dims: 3}}
  n_points: 4
  n_queries: 2
  batch_size: 4
  eval_prompts: 8
  eval_batch_size: 4
model: {d_model: 8, heads: [2, 2], optimizer: muon}
trainer:
  max_steps: 2
  val_check_interval: 1.0
  accelerator: cpu
  devices: 1
  logger: false
  enable_progress_bar: false
  callbacks: [{class_path: ReferenceRisk, init_args: {references: [ZeroPredictor]}}]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    (tmp_path / "my_model.py").write_text(LSTM)
    (tmp_path / "config.yaml").write_text(CONFIG)
    yield tmp_path
    sys.modules.pop("my_model", None)


class Unweighted(InContextNetwork):
    def __init__(self, n_dims):
        super().__init__()
        self.n_dims, self.heads = n_dims, []

    def on_prompt(self, prompt, head_mask=None):
        return TransformerOutput(prompt.x_query[..., 0])


class Detached(InContextNetwork):
    """Its constructor calls no other."""

    def __init__(self, n_dims):
        self.n_dims, self.heads, self.read_out = n_dims, [], nn.Linear(n_dims, 1)

    def on_prompt(self, prompt, head_mask=None):
        return TransformerOutput(self.read_out(prompt.x_query)[..., 0].detach())


class Affine(InContextNetwork):
    """Of no use, but small."""

    def __init__(self, n_dims, *, start=0.0, inner=None, **more):
        super().__init__()
        self.n_dims, self.heads, self.inner = n_dims, [], inner
        self.read_out = nn.Linear(n_dims, 1)

    def on_prompt(self, prompt, head_mask=None):
        return TransformerOutput(self.read_out(prompt.x_query)[..., 0])


class Layered(Affine):
    def __init__(self, n_dims, act=nn.GELU()):  # noqa: B008  # as people write it
        super().__init__(n_dims)


class Unnamed(Affine):
    def __init__(self, n_dims, *args):
        super().__init__(n_dims)


def test_a_network_is_written_as_its_class_and_arguments_and_made_again():
    network = Affine(3, inner=Transformer(3, 8, (2, 1)), more=[1, {"a": (2, None)}])
    written = description(network)
    assert written["class_path"] == f"{__name__}.Affine"
    assert written["init_args"]["more"] == [1, {"a": [2, None]}]
    assert written["init_args"]["inner"]["init_args"]["heads"] == [2, 1]
    again = described(written)
    assert description(again) == written
    assert again.state_dict().keys() == network.state_dict().keys()
    assert description(Affine(3, start=torch.zeros(1))) is None
    assert described(description(Layered(3))).read_out.weight.shape == (1, 3)  # an argument at its own default


def test_a_constructor_is_given_the_dimensions_it_asks_for_and_not_given():
    network = outline({"class_path": f"{__name__}.Affine", "init_args": {"inner": None}}, n_dims=5)
    assert (network.n_dims, network.read_out.weight.device.type) == (5, "meta")


def test_an_outline_draws_nothing_also_of_a_network_that_computes_with_its_weights(monkeypatch):
    def on_prompt(self, prompt, head_mask=None):
        return TransformerOutput(prompt.x_query[..., 0])

    def init(self, n_dims):
        super(Reading, self).__init__()
        self.n_dims, self.heads, self.weight = n_dims, [], nn.Parameter(torch.randn(n_dims))
        self.scale = self.weight.norm().item()  # which no meta tensor has

    Reading = type("Reading", (InContextNetwork,), {"__init__": init, "on_prompt": on_prompt, "__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "Reading", Reading, raising=False)
    before = torch.get_rng_state()
    assert outline({"class_path": f"{__name__}.Reading"}, n_dims=5).weight.shape == (5,)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("path", ["subprocess.Popen", "torch.nn.LSTM", "nowhere.at.All"])
def test_a_description_makes_networks_alone(path, tmp_path):
    harm = {"class_path": path, "init_args": {"args": ["touch", str(tmp_path / "harm")]}}
    for config in (harm, {"class_path": f"{__name__}.Affine", "init_args": {"n_dims": 2, "inner": harm}}):
        with pytest.raises(InputError, match=f"the network is a {path}, but there is no such network here"):
            described(config)
    assert not list(tmp_path.iterdir())


def test_two_spellings_of_one_network_are_one():
    short = in_full({"class_path": "lightning_icl.Transformer", "init_args": {"n_dims": 3, "heads": (2, 2)}})
    assert short == in_full(description(Transformer(3, heads=[2, 2])))
    assert short != in_full(description(Transformer(3, heads=[2, 1])))


def test_untrained_networks_are_the_same_for_each_seed():
    network, state = Transformer(3, 8, (2, 1)).double(), torch.get_rng_state()
    first, again, other = (network.untrained(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) and first[name].dtype == torch.float64 for name in first)
    assert not torch.equal(first["read_in.weight"], other["read_in.weight"])


def test_networks_in_a_list_are_made_anew_and_other_modules_cannot_be():
    network = Affine(3, parts=[Affine(3), {"one": Transformer(3, 8, (2,))}])
    fresh = network.untrained()
    assert fresh.options["parts"][0] is not network.options["parts"][0]
    assert not torch.equal(fresh.options["parts"][0].read_out.weight, network.options["parts"][0].read_out.weight)
    assert Affine(3, parts=[nn.Linear(1, 1)]).untrained() is None


def test_a_network_without_weights_is_measured_but_not_trained(tmp_path):
    network = Unweighted(4)
    assert network.untrained().n_dims == 4
    module, data = ICLModule(4, network=network), small_data(LinearRegression(4))
    small_trainer(tmp_path).validate(module, data, verbose=False)
    with pytest.raises(InputError, match="Unweighted has no weights that can be trained; validate it instead"):
        small_trainer(tmp_path).fit(module, data)
    detached = ICLModule(4, network=Detached(4))
    with pytest.raises(InputError, match=r"Detached's prediction has no gradient in its weights, .* a detach"):
        small_trainer(tmp_path).fit(detached, data)
    frozen = ICLModule(4, network=Affine(4).requires_grad_(False))
    with pytest.raises(InputError, match="Affine has no weights that can be trained"):
        small_trainer(tmp_path).fit(frozen, data)


def test_what_cannot_be_made_again_is_told_before_it_is_trained(tmp_path):
    with pytest.raises(InputError, match=r"Unnamed is given 16, 1 as \*args, but .* need names"):
        Unnamed(3, 16, 1)

    class Local(Affine): ...

    data = small_data(LinearRegression(4))
    for network, words in (
        (Affine(4, start=torch.zeros(1)), "made with an argument that is no number, text, list, mapping or network"),
        (Local(4), "but there is no such network here"),
    ):
        with pytest.raises(InputError, match=words):
            check_run(small_trainer(tmp_path), ICLModule(4, network=network), data, "fit")
        trainer = small_trainer(tmp_path, max_steps=1)
        with pytest.warns(UserWarning, match=words):
            trainer.fit(ICLModule(4, network=network), data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    trainer.fit(ICLModule(4, network=Affine(4, start=torch.zeros(1))), data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    with pytest.raises(InputError, match=r"Affine with arguments that are not written down; open it in Python, by"):
        loaded_module(tmp_path / "it.ckpt")
    with pytest.raises(InputError, match="with arguments that are not written down"):
        ICLModule.load_from_checkpoint(tmp_path / "it.ckpt")
    loaded = ICLModule.load_from_checkpoint(tmp_path / "it.ckpt", network=Affine(4))
    assert torch.equal(loaded.network.read_out.weight, trainer.lightning_module.network.read_out.weight)


def test_the_sizes_at_which_an_analysis_looks_are_tried_too(tmp_path):
    class OfFive(Affine):
        def on_prompt(self, prompt, head_mask=None):
            return TransformerOutput(self.read_out(prompt.x_query)[..., 0] + 0 * prompt.y.view(-1, 5).sum())

    module, data = ICLModule(4, network=OfFive(4)), small_data(LinearRegression(4))
    small_trainer(tmp_path).validate(module, data, verbose=False)
    with pytest.raises(InputError, match=r"OfFive.on_prompt cannot take 4 prompts of [12] examples"):
        small_trainer(tmp_path, [AlgorithmMatch(n_prompts=2)]).validate(module, data, verbose=False)


def test_a_network_has_no_options_of_the_transformer():
    with pytest.raises(InputError, match="heads and network are given, but heads is of the Transformer alone"):
        ICLModule(3, network=Affine(3), heads=[2])
    with pytest.raises(InputError, match=r"muon_per_head', but only a Transformer says .* is a Affine; use"):
        ICLModule(3, network=Affine(3), optimizer="muon_per_head")


def test_a_network_without_on_prompt_is_told_what_it_lacks():
    class Blind(InContextNetwork):
        def __init__(self, n_dims):
            super().__init__()

    with pytest.raises(InputError, match=r"Blind has no on_prompt; define on_prompt\(prompt, head_mask=None\)"):
        Blind(3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap"])
def test_lightning_itself_trains_saves_and_loads_a_network(tmp_path, optimizer):
    module, data = ICLModule(4, network=Affine(4), optimizer=optimizer, warmup_steps=0), small_data(LinearRegression(4))
    before = module.network.read_out.weight.clone()
    trainer = small_trainer(tmp_path, max_steps=2)
    trainer.fit(module, data)
    assert not torch.equal(module.network.read_out.weight, before)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = ICLModule.load_from_checkpoint(tmp_path / "it.ckpt")
    assert isinstance(loaded.network, Affine)
    assert torch.equal(loaded.network.read_out.weight, module.network.read_out.weight)
    assert loaded_module(tmp_path / "it.ckpt").trained_steps == 2


def test_a_checkpoint_of_before_the_network_had_its_name_is_still_read(tmp_path):
    module, data = ICLModule(4, d_model=8, heads=[2], warmup_steps=0), small_data(LinearRegression(4))
    trainer = small_trainer(tmp_path, max_steps=2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt")
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name.replace("network.", "transformer."): state[name] for name in state}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    check_checkpoint(tmp_path / "old.ckpt", {"d_model": 8, "heads": [2]}, resuming=False)
    for loaded in (loaded_module(tmp_path / "old.ckpt"), ICLModule.load_from_checkpoint(tmp_path / "old.ckpt")):
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_a_network_of_a_file_here_is_trained_gone_on_with_validated_and_loaded(here, capsys, caplog):
    given = ["--config", "config.yaml", "--model.network", "my_model.LSTM", "--model.network.width", "5"]
    main(["fit", *given, "--run_folder", "run"])
    said = "Left out, since only a Transformer has them: model.d_model, model.heads. LSTM has options of its own"
    assert said in caplog.text
    config = read_config(here / "run")
    assert config["model"]["network"] == {"class_path": "my_model.LSTM", "init_args": {"width": 5, "heads": []}}
    assert not {"heads", "d_model", "layout"} & config["model"].keys()
    values = config_values(config)
    assert [values[key] for key in ("model.network", "model.network.width", "model.heads", "depth")] == [
        "LSTM",
        5,
        "[]",
        0,
    ]
    model = load_run("run").model
    loaded = ICLModule.load_from_checkpoint("run/checkpoints/last.ckpt").network
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert n_parameters(config) == sum(p.numel() for p in model.parameters())
    same = ["--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"]
    main(["validate", *same, "--run_folder", "validated"])
    table = load_run("validated").table
    assert set(table["step"]) == {2}
    main(
        ["fit", "--config", "run/config.yaml", "--trainer.max_steps", "4", "--run_folder", "run", "--ckpt_path", "last"]
    )
    assert load_run("run").module.trained_steps == 4
    main(["predict", *same, "--run_folder", "predicted"])
    assert (here / "predicted" / "predictions.npz").exists()
    for changed, words in (
        (["--model.network.width", "6"], "was trained with model.network = {'class_path': 'my_model.LSTM'"),
        (["--model.network", "null"], "was trained with model.network = {'class_path': 'my_model.LSTM'"),
        (["--model.network", "my_model.GRU"], "model.network: my_model has no class 'GRU'; "),
        (["--model.network", "torch.nn.LSTM"], "torch.nn.LSTM is no InContextNetwork"),
        (["--model.network.widht", "6"], "LSTM has no option 'widht'; did you mean 'width'?"),
        (["--model.network", ""], "model.network: there is no class ''"),
    ):
        with pytest.raises(SystemExit):
            main(["validate", *same, *changed])
        assert words in capsys.readouterr().err
    (here / "my_model.py").unlink()
    sys.modules.pop("my_model")
    with pytest.raises(InputError, match=r"the network is a my_model.LSTM, .* put its file on the path\.$"):
        _ = load_run("run").model
    assert n_parameters(config) is None


def test_the_transformer_by_its_name_is_the_default(here, capsys, caplog):
    named = ["--config", "config.yaml", "--model.network", "Transformer"]
    main(["fit", *named, "--run_folder", "run"])
    config = read_config(here / "run")["model"]
    assert (config["network"], config["heads"]) == (None, [2, 2])
    assert "Left out" not in caplog.text
    for given in (["--model.network.norm", "none"], ["--model.network.mlp", "true"]):
        with pytest.raises(SystemExit):
            main(["fit", *named, *given])
        assert "is an option of the Transformer, which is the network unless told: give" in capsys.readouterr().err


def test_the_heads_of_a_network_are_told_once_in_a_table():
    network = {"class_path": "lightning_icl.GPT2", "init_args": {"d_model": 8, "heads": [2, 1]}}
    values = config_values({"model": {"network": network}, "data": {"task": {"class_path": "LinearRegression"}}})
    assert (values["model.heads"], values["depth"], values["model.network.d_model"]) == ("[2, 1]", 2, 8)
    assert "model.network.heads" not in values
