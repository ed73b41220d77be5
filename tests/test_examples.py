"""The networks in examples/: each predicts what its library does on one sequence a query, and does what it says."""

import shlex
from contextlib import chdir

import pytest
import torch
from conftest import ROOT
from torch.export import Dim
from torch.nn.functional import pad

from lightning_icl import Predictor, Prompt, load_network, load_run, save_network
from lightning_icl.cli import main
from lightning_icl.functional.prompts import tokens
from lightning_icl.network import described

FOLDER = ROOT / "examples"
NAMES = {"lstm": "LSTM", "gpt2": "TransformersGPT2", "mamba": "Mamba"}
SMALL = {"lstm": {"width": 8}, "gpt2": {"width": 8, "heads": 2, "layers": 2}, "mamba": {"width": 8, "d_state": 3}}


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def network(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = described({"class_path": f"{name}.{NAMES[name]}", "init_args": {"n_dims": 3} | SMALL[name]})
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # fresh ones hardly look at the examples
    return made.double().eval() if name != "mamba" else made.eval()  # mambapy computes in float32


def prompt(dtype, batch=2, points=5, queries=3, dims=3):
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, points, dims), (batch, points), (batch, queries, dims), (batch, queries), (batch, queries)
    return Prompt(*(torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes))


def by_sequences(name, net, asked):
    """The prediction of each query from a sequence of its own, in the words of the network's library."""
    for q in range(asked.x_query.shape[1]):
        one = asked._replace(x_query=asked.x_query[:, q : q + 1])
        pairs = torch.cat([one.x, one.y[..., None]], dim=-1)
        sequence = net.read_in(torch.cat([pairs, pad(one.x_query, (0, 1))], dim=1))
        if name == "lstm":
            states = net.lstm(sequence)[0]
        elif name == "gpt2":
            states = net.backbone(inputs_embeds=net.read_in(tokens(one, "alternating"))).last_hidden_state
        else:
            states = sequence
            for layer in net.layers:
                states = layer(states)  # the parallel scan over the whole sequence
        yield net.read_out(states[:, -1]).squeeze(-1)


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_predicted_as_by_one_sequence_each(name):
    net = network(name)
    asked = prompt(net.read_in.weight.dtype)
    exact = {"rtol": 1e-9, "atol": 1e-9} if asked.x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        expected = torch.stack(list(by_sequences(name, net, asked)), dim=1)
        torch.testing.assert_close(net.on_prompt(asked).prediction, expected, **exact)
        # Where an example is padding, as if it were not there; in each prompt another number of them.
        kept = torch.tensor([[True] * 4 + [False], [True] * 2 + [False] * 3])
        padded = asked._replace(point_mask=kept, x=asked.x * kept[..., None], y=asked.y * kept)
        shorter = [net.on_prompt(asked.first(n).rows(i, i + 1)).prediction for i, n in enumerate((4, 2))]
        torch.testing.assert_close(net.on_prompt(padded).prediction, torch.cat(shorter), **exact)
        assert (torch.cat(shorter) - expected).abs().min() > 1e-4  # examples count


def test_the_gpt2_predicts_an_example_as_a_query_after_those_before_it():
    net = network("gpt2")
    asked = prompt(torch.float64)
    with torch.no_grad():
        found = net.on_prompt(asked).prefix_prediction
        for i in range(asked.x.shape[1]):
            cut = asked.first(i)._replace(x_query=asked.x[:, i : i + 1])
            torch.testing.assert_close(net.on_prompt(cut).prediction[:, 0], found[:, i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_class_of_at_most_60_lines_and_what_to_type(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 60
    assert commands(name)


def commands(name):
    """What its docstring says to type."""
    text = (FOLDER / f"{name}.py").read_text().split('"""')[1].replace("\\\n", "")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("lightning-icl ")]


QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
FEW = [
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "1.0", "--trainer.num_sanity_val_steps", "0"),
    *("--data.eval_prompts", "8", "--data.eval_batch_size", "8", "--data.batch_size", "4", "--trainer.callbacks", "[]"),
]


@pytest.mark.parametrize("name", ["lstm", "gpt2", pytest.param("mamba", marks=pytest.mark.slow)])
def test_what_to_type_trains_a_few_steps(name, tmp_path):
    """And the network leaves and comes back."""
    with chdir(FOLDER):
        main([*commands(name)[0], *QUIET, *FEW, "--run_folder", str(tmp_path / "run")])
        trained = load_run(tmp_path / "run").model
    save_network(trained, tmp_path / "out")
    found, asked = load_network(tmp_path / "out"), prompt(torch.float32)
    assert torch.equal(found.on_prompt(asked).prediction, trained.on_prompt(asked).prediction)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_of_training_learns_in_context(name, tmp_path):
    """Far below what predicts without the examples, and every analysis it asks for says something."""
    with chdir(FOLDER):
        main([*commands(name)[0], *QUIET, "--run_folder", str(tmp_path / "run")])
    found = load_run(tmp_path / "run")
    whole = found.table[found.table["n_points"].isna() & (found.table["step"] == found.table["step"].max())]
    risks = whole.set_index("metric")["value"]
    assert risks["val/excess_risk/transformer"] < risks["val/excess_risk/zero"] / 4
    assert {"ReferenceRisk", "AlgorithmMatch"} <= set(found.table["analysis"])
    assert ("HeadImportance" in set(found.table["analysis"])) == (name == "gpt2")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_torch_export_takes_it(name):
    """For any batch and queries; those that take one step an example, for one number of examples."""
    net, of = network(name).float(), {0: Dim("batch", max=64)}
    points = {1: Dim("points", max=30)} if name == "gpt2" else {}
    shapes = {"x": of | points, "y": of | points, "x_query": of | {1: Dim.AUTO}}
    example = prompt(torch.float32, 4, 7, 3)
    program = torch.export.export(Predictor(net), example[:3], dynamic_shapes=shapes).module()
    for batch, n, queries in ((1, 7, 1), (9, 11 if points else 7, 5)):
        asked = prompt(torch.float32, batch, n, queries)
        torch.testing.assert_close(program(*asked[:3]), net.on_prompt(asked).prediction, rtol=1e-6, atol=1e-6)
