"""What leaves: weights and a config that open without Lightning, and programs of torch.export."""

import io
import json
import sys
from typing import get_args

import pytest
import torch
from conftest import ROOT, run_command
from torch import nn
from torch.export import Dim

from lightning_icl import (
    InContextNetwork,
    InputError,
    Predictor,
    Prompt,
    Transformer,
    TransformerOutput,
    load_network,
    save_network,
)
from lightning_icl.cli import main
from lightning_icl.functional.prompts import Layout
from lightning_icl.gpt2 import GPT2
from lightning_icl.transformer import Attention, Position

HEAVY = ("lightning", "pandas", "jsonargparse", "matplotlib", "tensorboard")


class Averager(InContextNetwork):
    """A network of one's own: the weights of one step of descent, shared by all inner networks it is given."""

    def __init__(self, n_dims, scale=1.0, inner=None, extra=None):
        super().__init__()
        self.n_dims, self.heads, self.inner = n_dims, [], inner
        self.step = nn.Parameter(torch.full((n_dims,), scale))

    def on_prompt(self, prompt, head_mask=None):
        w = self.step * (prompt.x.mT @ prompt.y[..., None]).squeeze(-1) / prompt.x.shape[1]
        return TransformerOutput((prompt.x_query @ w[..., None]).squeeze(-1))


class Dropping(Averager):
    """Predicts otherwise in training."""

    def on_prompt(self, prompt, head_mask=None):
        output = super().on_prompt(prompt)
        return output._replace(prediction=output.prediction * (2 if self.training else 1))


class Tied(Averager):
    """Two layers are one."""

    def __init__(self, n_dims):
        super().__init__(n_dims)
        self.first, self.second = nn.Linear(n_dims, 1), nn.Linear(n_dims, 1)
        self.second.weight = self.first.weight


def tensors(batch=3, points=5, queries=2, dims=4):
    generator = torch.Generator().manual_seed(batch + points + queries)
    return [
        torch.randn(*shape, generator=generator)
        for shape in ((batch, points, dims), (batch, points), (batch, queries, dims))
    ]


NETWORKS = {
    "transformer": lambda: Transformer(4, 16, [4, 0, 2], head_dim=[3, 1, 5], layout="alternating", mask="causal"),
    "float64": lambda: Transformer(4, 16, [2]).double(),
    "user's": lambda: Averager(4, scale=0.3, extra={"a": [1, None, "b"]}),
    "network in a network": lambda: Averager(4, inner=Transformer(4, 8, [2, 1])),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_saved_network_is_loaded_as_it_was(tmp_path, make):
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.rand_like(parameter))  # as training would, so that fresh weights are not enough
    drawn = torch.get_rng_state()
    save_network(network, tmp_path / "out" / "exported")
    found = load_network(tmp_path / "out" / "exported")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert type(found) is type(network)
    assert found.options.keys() == network.options.keys()
    mine, theirs = network.state_dict(), found.state_dict()
    assert all(theirs[name].dtype == w.dtype and torch.equal(theirs[name], w) for name, w in mine.items())
    x = [t.to(next(network.parameters()).dtype) for t in tensors()]
    assert torch.equal(Predictor(found)(*x), Predictor(network)(*x))


def test_shared_weights_stay_shared(tmp_path):
    network = Tied(4)
    save_network(network, tmp_path / "tied")
    found = load_network(tmp_path / "tied")
    assert found.second.weight is found.first.weight
    assert torch.equal(found.first.weight, network.first.weight)


def test_a_loaded_network_predicts_and_does_not_train(tmp_path):
    network = Dropping(4)
    trained = Predictor(network)(*tensors())
    save_network(network, tmp_path / "out")
    assert torch.allclose(2 * Predictor(load_network(tmp_path / "out"))(*tensors()), trained)


def test_a_predictor_is_the_network_on_the_prompt():
    network, (x, y, x_query) = Transformer(4, 16, [2, 2]), tensors()
    other = torch.randn(x_query.shape[:2])  # labels at queries are not looked at
    assert torch.equal(
        Predictor(network)(x, y, x_query), network.on_prompt(Prompt(x, y, x_query, other, other)).prediction
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of ``lightning-icl export`` of a checkpoint, and the network it is of."""
    folder = tmp_path_factory.mktemp("run")
    config = ["--config", str(ROOT / "configs" / "debug.yaml"), "--trainer.max_steps", "2", "--trainer.callbacks", "[]"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    main(["fit", *config, *quiet, "--trainer.default_root_dir", str(folder), "--trainer.num_sanity_val_steps", "0"])
    checkpoint = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    main(["export", "--ckpt_path", str(checkpoint), "--output", str(folder / "exported")])
    return folder / "exported", torch.load(checkpoint, weights_only=True)


def test_the_command_writes_what_training_ended_with(exported):
    folder, checkpoint = exported
    weights = {f"network.{name}": w for name, w in load_network(folder).state_dict().items()}
    assert weights.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(w, checkpoint["state_dict"][name]) for name, w in weights.items())
    config = json.loads((folder / "config.json").read_text())
    assert config["class_path"] == "lightning_icl.transformer.Transformer"
    assert config["init_args"]["heads"] == checkpoint["hyper_parameters"]["heads"]


def test_three_lines_of_plain_torch_open_it(exported):
    """With all that only training needs forbidden, not just not imported."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))  # None: an import of it fails
import torch
x, y, x_query = torch.ones(3, 5, 4), torch.ones(3, 5), torch.ones(3, 2, 4)
from lightning_icl import Predictor, load_network
network = load_network({str(exported[0])!r})
predictions = Predictor(network)(x, y, x_query)
print(predictions.tolist())
"""
    done = run_command(command=(sys.executable, "-c", code), cwd=exported[0], timeout=60)
    x = torch.ones(3, 5, 4), torch.ones(3, 5), torch.ones(3, 2, 4)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), Predictor(load_network(exported[0]))(*x))


Here = type("Here", (Averager,), {"__module__": "__main__"})


def grown():
    network = Averager(4)
    network.added = nn.Linear(2, 2)
    return network


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Averager(4, extra=torch.ones(2)), "made with an argument that is no number"),
        (lambda: Here(4), "Here is defined in the script or notebook that runs"),
        (lambda: Averager(4, inner=Here(4)), "is defined in the script or notebook that runs"),
        (lambda: type("Inner", (Averager,), {})(4), r"Inner, but there is no such network here"),
        (grown, r"added.weight of this Averager has the shape \[2, 2\], but None in"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, make, said):
    with pytest.raises(InputError, match=said):
        save_network(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_as_it_is(tmp_path):
    with pytest.raises(InputError, match="exists already; name one that does not"):
        save_network(Averager(4), tmp_path)
    assert not list(tmp_path.iterdir())


def config_of(path, **init_args):
    return json.dumps({"class_path": path, "init_args": init_args})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", None, "there is no config.json in it"),
        ("model.safetensors", None, "there is no model.safetensors in it"),
        ("config.json", "{", "is not the config of a network: JSONDecodeError"),
        ("config.json", "[]", "is not the config of a network: Type"),
        ("config.json", "{}", "is not the config of a network: KeyError 'class_path'"),
        ("config.json", config_of("no_such.LSTM"), "a no_such.LSTM, but there is no such network here"),
        ("config.json", config_of("subprocess.Popen", args="id"), "a subprocess.Popen, but there is no such network"),
        ("config.json", config_of("lightning_icl.Transformer", n_dim=4), "is not the config of a network: TypeError"),
        ("config.json", config_of("lightning_icl.Transformer", n_dims=4, heads=[]), "heads is []"),
        (
            "config.json",
            config_of("lightning_icl.Transformer", n_dims=5, d_model=8, heads=[2]),
            "size mismatch for read_in",
        ),
        ("config.json", config_of("lightning_icl.Transformer", n_dims=4, d_model=8, heads=[2, 2]), "Missing key"),
        ("model.safetensors", "cut off", "has not the weights of the network in config.json: SafetensorError"),
    ],
)
def test_a_folder_that_is_none_gets_one_sentence(tmp_path, name, text, said):
    save_network(Transformer(4, 8, [2]), tmp_path / "out")
    path = tmp_path / "out" / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_network(tmp_path / "out")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def program(network, most_points):
    """The network by torch.export, saved and loaded again; made at sizes that no test asks for."""
    sizes, points = {0: Dim("batch", max=64)}, {1: Dim("points", max=most_points)}
    shapes = {"x": sizes | points, "y": sizes | points, "x_query": sizes | {1: Dim("queries", max=64)}}
    made = torch.export.export(Predictor(network).eval(), tuple(tensors(4, 7, 3)), dynamic_shapes=shapes)
    torch.export.save(made, file := io.BytesIO())
    return torch.export.load(io.BytesIO(file.getvalue())).module()


LAYOUTS = [("context", "pairs"), ("full", "pairs"), *(("causal", layout) for layout in get_args(Layout))]
TRANSFORMERS = [
    {"attention": attention, "mask": mask, "layout": layout, "position": position}
    for attention in get_args(Attention)
    for mask, layout in LAYOUTS
    for position in get_args(Position)
]
TRIED_ALWAYS = ("linear", "context", "pairs", "none")  # where the order of multiplications is chosen by sizes


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(o, marks=[pytest.mark.slow] * (tuple(o.values()) != TRIED_ALWAYS), id="-".join(o.values()))
        for o in TRANSFORMERS
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_exported_transformer_predicts_the_same_at_all_sizes(options):
    network = Transformer(4, 8, [2], max_points=11, **options)
    loaded = program(network, most_points=10)
    for sizes in ((1, 1, 1), (2, 3, 5), (30, 10, 2)):
        x = tensors(*sizes)
        torch.testing.assert_close(loaded(*x), Predictor(network)(*x), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("layout", get_args(Layout))
def test_an_exported_gpt2_predicts_the_same_at_all_sizes(layout):
    network = GPT2(4, 8, [2, 1], max_points=11, layout=layout)
    loaded = program(network, most_points=10)
    for sizes in ((1, 1, 1), (2, 3, 5), (30, 10, 2)):
        x = tensors(*sizes)
        torch.testing.assert_close(loaded(*x), Predictor(network)(*x), rtol=1e-6, atol=1e-6)
