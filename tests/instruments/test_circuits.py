"""Circuits against scores and head outputs as the model computes them, and against planted heads."""

import numpy as np
import pytest
import torch

from lightning_icl import InContextNetwork, SparseLinearRegression, Transformer, TransformerOutput
from lightning_icl.functional.constructions import ConstructedGD
from lightning_icl.functional.errors import InputError
from lightning_icl.instruments.alignment import state_alignment, weight_alignment, written
from lightning_icl.instruments.circuits import attention_patterns, coordinates, head_circuits
from lightning_icl.instruments.removal import remove_heads

N_DIMS = 3


def sampled(n_prompts=4, n_points=5):
    task = SparseLinearRegression(N_DIMS, 2, noise_std=0.3)
    return task.sample(n_prompts, n_points, 2, torch.Generator().manual_seed(0)).double()


def model(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = Transformer(N_DIMS, **({"d_model": 12, "heads": [3, 2], "norm": "none", "mlp": False} | options))
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return built.double()


def with_constant(tokens):
    return torch.nn.functional.pad(tokens, (0, 1), value=1.0)


def heads_of(layer):
    """Each head's W_Q, W_K, W_V and W_O, sliced by hand."""
    attention = layer.attention
    for h in range(attention.n_heads):
        own = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
        maps = (attention.query, attention.key, attention.value)
        yield *(part.weight[own].detach() for part in maps), attention.output.weight[:, own].detach()


@pytest.mark.parametrize("options", [{}, {"heads": [1]}, {"heads": [2], "head_dim": 5}, {"d_model": 2, "heads": [1]}])
def test_the_first_layer_without_norm_is_reproduced_on_random_tokens(options):
    transformer = model(**options)
    circuits = head_circuits(transformer)[0]
    tokens = torch.randn(6, N_DIMS + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states, z = transformer.read_in(tokens).detach(), with_constant(tokens)
    for h, (query, key, value, output) in enumerate(heads_of(transformer.layers[0])):
        scores = (states @ query.T) @ (states @ key.T).T / len(query) ** 0.5
        assert torch.allclose(z @ circuits.query_key[h] @ z.T, scores, atol=1e-10)
        written = states @ value.T @ output.T
        in_inputs = torch.linalg.lstsq(transformer.read_in.weight.detach(), written.T, driver="gelsd").solution.T
        assert torch.allclose(z @ circuits.output_value[h].T, in_inputs, atol=1e-10)
        assert torch.allclose(z @ circuits.prediction[h], written @ transformer.read_out.weight[0].detach())


@pytest.mark.parametrize("layout", ["pairs", "prefixes", "alternating"])
def test_linear_attention_computed_from_the_circuits_is_the_prediction(layout):
    """One layer is exact: prediction = bias + r E z_q + sum_h (1/n) sum_k (z_q^T QK z_k) (p z_k)."""
    mask = "context" if layout == "pairs" else "causal"
    transformer = model(heads=[3], attention="linear", mask=mask, layout=layout)
    circuits, prompt = head_circuits(transformer)[0], sampled()
    z = with_constant(transformer.laid_out(prompt))
    n_context = 10 if layout == "alternating" else 5
    expected = transformer.read(transformer.read_in(z[..., :-1]))[:, -2:]
    for b in range(4):
        for q in range(2):
            z_q = z[b, q - 2]
            keys = z[b, :n_context] if mask == "context" else torch.cat([z[b, :n_context], z_q[None]])
            for query_key, prediction in zip(circuits.query_key, circuits.prediction, strict=True):
                expected[b, q] += ((keys @ query_key.T @ z_q) * (keys @ prediction)).mean()
    assert torch.allclose(transformer.on_prompt(prompt).prediction, expected, atol=1e-10)


@pytest.mark.parametrize("layer", [0, 1])
def test_biases_are_in_the_column_of_the_constant(layer):
    """Exact where nothing but biases comes before: a layer without heads adds its output bias to every token."""
    transformer = model(heads=[0] * layer + [2], attention="linear", attention_bias=True)
    circuits, prompt = head_circuits(transformer)[layer], sampled()
    z = with_constant(transformer.laid_out(prompt))
    before = transformer.read_in(z[..., :-1]) + sum(block.output_bias for block in transformer.blocks)
    scores = torch.einsum("bqi,hij,bkj->bhqk", z[:, -2:], circuits.query_key, z[:, :5])
    read = torch.einsum("bhqk,bkj,hj->bq", scores, z[:, :5], circuits.prediction) / 5
    assert torch.allclose(transformer.on_prompt(prompt).prediction, transformer.read(before)[:, -2:] + read, atol=1e-10)
    for part in ("query", "key", "value"):  # each of which matters
        other = model(heads=[0] * layer + [2], attention="linear", attention_bias=True)
        torch.nn.init.zeros_(getattr(other.layers[layer].attention, part).bias)
        assert not torch.allclose(head_circuits(other)[layer].prediction, circuits.prediction) or not torch.allclose(
            head_circuits(other)[layer].query_key, circuits.query_key
        )


def norm_matrix(norm, size):
    """The linear part of a layer norm and its bias, from its definition."""
    centre = np.eye(size) - np.ones((size, size)) / size
    return np.diag(norm.weight.detach().numpy()) @ centre, norm.bias.detach().numpy()


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("mlp", "biases"), [(True, False), (False, False), (False, True)])
def test_the_norms_are_folded_in_as_their_linear_parts(norm, mlp, biases):
    transformer = model(norm=norm, mlp=mlp, heads=[2, 3], attention_bias=biases)
    found = head_circuits(transformer)
    weight, bias = (p.detach().numpy() for p in (transformer.read_in.weight, transformer.read_in.bias))
    stream = np.concatenate([weight, bias[:, None]], axis=1)
    one = np.eye(N_DIMS + 2)[-1]
    for i, layer in enumerate(transformer.layers):
        seen = stream
        if norm == "pre":
            matrix, shift = norm_matrix(layer.attention_norm, 12)
            seen = matrix @ stream + np.outer(shift, one)
        row = transformer.read_out.weight[0].detach().numpy()
        later = []
        for after in list(transformer.layers)[i:]:
            later += [after.attention_norm, *([after.mlp_norm] if mlp else [])] if norm == "post" else []
        for after in [*later, *([transformer.final_norm] if norm == "pre" else [])][::-1]:
            row = row @ norm_matrix(after, 12)[0]
        for h, maps in enumerate(heads_of(layer)):
            query, key, value, output = (m.numpy() for m in maps)
            attention, own = layer.attention, slice(h * len(query), (h + 1) * len(query))
            q, k, v = (
                part @ seen + (np.outer(of.bias.detach()[own], one) if biases else 0.0)
                for part, of in zip((query, key, value), (attention.query, attention.key, attention.value), strict=True)
            )
            np.testing.assert_allclose(found[i].query_key[h], q.T @ k / len(query) ** 0.5, atol=1e-10)
            written = output @ v
            np.testing.assert_allclose(found[i].output_value[h], np.linalg.pinv(stream[:, :-1]) @ written, atol=1e-9)
            np.testing.assert_allclose(found[i].prediction[h], row @ written, atol=1e-10)
        if biases:
            stream = stream + np.outer(layer.output_bias.detach(), one)
        if norm == "post":
            for passed in [layer.attention_norm, *([layer.mlp_norm] if mlp else [])]:
                matrix, shift = norm_matrix(passed, 12)
                stream = matrix @ stream + np.outer(shift, one)


def test_what_the_scalars_say():
    circuits = head_circuits(model(norm="pre"))[1]
    for h in range(2):
        qk, ov, p = (m[h].numpy() for m in circuits[:3])
        xx = qk[:N_DIMS, :N_DIMS]
        multiple = np.trace(xx) / N_DIMS * np.eye(N_DIMS)  # the closest one, by least squares
        explained = 1 - ((xx - multiple) ** 2).sum() / (xx**2).sum()
        assert float(circuits.query_key_identity[h]) == pytest.approx(explained)
        assert float(circuits.output_value_y[h]) == pytest.approx(ov[-1, -2] ** 2 / (ov[:, :-1] ** 2).sum())
        assert float(circuits.prediction_y[h]) == pytest.approx(p[-2] ** 2 / (p[:-1] ** 2).sum())
        assert float(circuits.step[h]) == pytest.approx(np.trace(xx) / N_DIMS * p[-2])
        assert 0 < circuits.within_input[h] < 1
    everything = head_circuits(model(d_model=4, heads=[2]))[0]  # the read-in spans the whole stream
    assert torch.allclose(everything.within_input, torch.ones(2, dtype=torch.float64))


def test_the_heads_of_constructed_gradient_descent_are_recognised():
    for circuits in head_circuits(written(ConstructedGD(2, 0.7).network(N_DIMS), N_DIMS)):
        same = torch.eye(N_DIMS, N_DIMS + 2, dtype=torch.float64)
        assert torch.allclose(circuits.query_key[0, :N_DIMS], same)
        assert circuits.query_key[0, N_DIMS:].eq(0).all()
        only_y = torch.zeros(N_DIMS + 1, N_DIMS + 2, dtype=torch.float64)
        only_y[-1, -2] = -0.7
        assert torch.allclose(circuits.output_value[0], only_y)
        assert torch.allclose(circuits.prediction[0], -only_y[-1])
        shares = (circuits.query_key_identity, circuits.output_value_y, circuits.prediction_y, circuits.within_input)
        assert torch.allclose(torch.stack(shares), torch.ones(4, 1, dtype=torch.float64))
        assert circuits.step.item() == pytest.approx(0.7)


def test_a_layer_without_heads_has_none_and_a_dead_head_has_zero_maps():
    transformer = model(heads=[0, 2], norm="pre")
    torch.nn.init.zeros_(transformer.layers[1].attention.value.weight)
    empty, dead = head_circuits(transformer)
    assert [tuple(m.shape) for m in empty] == [(0, 5, 5), (0, 4, 5), (0, 5), (0,), (0,), (0,), (0,), (0,)]
    assert dead.output_value.eq(0).all()
    assert dead.prediction_y.isnan().all()
    assert attention_patterns(transformer, sampled())[0].shape == (4, 0, 7, 5)


PATTERNS = [
    {},
    {"norm": "pre", "mlp": True, "mask": "full"},
    {"norm": "post", "mask": "causal", "layout": "prefixes"},
    {"attention": "relu", "mask": "causal", "layout": "alternating"},
    {"attention": "linear", "heads": [1, 4]},
]


@pytest.mark.parametrize("options", PATTERNS, ids=str)
def test_patterns_times_values_are_what_the_heads_read(options):
    transformer, prompt = model(**options), sampled()
    patterns = attention_patterns(transformer, prompt)
    start = transformer.embedded(transformer.laid_out(prompt), 2)
    states = start.states
    for layer, pattern in zip(transformer.blocks, patterns, strict=True):
        read = layer.head_outputs(states, start.view)
        values = layer.attention.value(layer.attended(states[:, : start.view.n_keys]))
        by_head = values.unflatten(-1, (layer.attention.n_heads, -1)).transpose(1, 2)
        assert torch.allclose(pattern @ by_head, read, atol=1e-10)
        if "attention" not in options:
            assert torch.allclose(pattern.sum(dim=-1), torch.ones(1, dtype=pattern.dtype))
        states = layer(states, start.view, None)
    assert torch.allclose(transformer.read(states)[:, -2:], transformer.on_prompt(prompt).prediction)


def test_coordinates_are_named_in_order():
    assert coordinates(2) == ["x1", "x2", "y", "1"]


class Mean(InContextNetwork):
    def __init__(self, n_dims):
        super().__init__()
        self.n_dims, self.heads = n_dims, []

    def on_prompt(self, prompt, head_mask=None):
        return TransformerOutput(prompt.y.mean(dim=1, keepdim=True).expand_as(prompt.y_query))


@pytest.mark.parametrize(
    ("looked_at", "said"),
    [
        (head_circuits, "circuits are"),
        (lambda network: attention_patterns(network, sampled()), "attention patterns are"),
        (lambda network: remove_heads(network, torch.ones(1, 1)), "heads are removed"),
        (lambda network: state_alignment(model(), network, sampled(), sampled()), "alignments are"),
        (lambda network: weight_alignment(network, model(), sampled(), sampled()), "alignments are"),
    ],
)
def test_a_network_without_a_transformers_weights_gets_one_sentence(looked_at, said):
    with pytest.raises(InputError, match=f"{said} of a Transformer alone, but this network is a Mean."):
        looked_at(Mean(N_DIMS))
