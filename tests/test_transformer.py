"""The transformer against its defining properties and a written-out loop."""

import itertools
import re

import numpy as np
import pytest
import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.prompts import tokens as tokens_of
from lightning_icl.functional.tasks import SparseLinearRegression
from lightning_icl.module import ICLModule
from lightning_icl.transformer import Transformer

ATTENTIONS, MASKS, NORMS = ("softmax", "linear", "relu"), ("context", "full", "causal"), ("none", "pre", "post")
SWITCHES = list(itertools.product(ATTENTIONS, MASKS, (True, False), NORMS))
CAUSAL_LAYOUTS = ("prefixes", "alternating")
LAYOUT_SWITCHES = [
    *itertools.product(("prefixes", "alternating"), ("softmax", "linear", "relu"), ("pre", "post"), ("none",)),
    *itertools.product(("pairs", "prefixes", "alternating"), ("softmax",), ("none",), ("learned",)),
]
N_QUERIES = 3


def model(heads=(4, 2, 4), **options):
    torch.manual_seed(0)
    return Transformer(3, d_model=8, heads=list(heads), **options).double()


def tokens(batch=5, n_points=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompt = SparseLinearRegression(3, 2, noise_std=0.1).sample(batch, n_points, N_QUERIES, generator)
    return tokens_of(prompt, "pairs").double()


def sampled(batch=5, n_points=6, n_queries=N_QUERIES, seed=0):
    return (
        SparseLinearRegression(3, 2, noise_std=0.1)
        .sample(batch, n_points, n_queries, torch.Generator().manual_seed(seed))
        .double()
    )


def run(transformer, prompt, **options):
    """The whole output for a prompt, laid out as the model wants it."""
    these = tokens_of(prompt, transformer.layout)
    n_queries = prompt.x_query.shape[1]
    return transformer(these, n_queries=n_queries, point_mask=prompt.point_mask, **options)


def predict(transformer, these, **options):
    return transformer(these, n_queries=N_QUERIES, **options).prediction


@pytest.mark.parametrize(("attention", "mask", "mlp", "norm"), SWITCHES)
def test_equals_a_loop_over_prompts_tokens_and_heads(attention, mask, mlp, norm):
    transformer = model(attention=attention, mask=mask, mlp=mlp, norm=norm)
    these = tokens(batch=2)
    output = transformer(these, n_queries=N_QUERIES)
    for prompt, prediction, last in zip(these, output.prediction, output.query_states[-1], strict=True):
        seen = [keys_seen(i, 6, mask) for i in range(6 + N_QUERIES)]
        states = loop_over_layers(transformer, prompt.numpy(), attention, seen, norm)
        np.testing.assert_allclose(last.detach(), states[-N_QUERIES:], atol=1e-10)
        final = normalised(states, transformer.final_norm) if norm == "pre" else states
        expected = final[-N_QUERIES:] @ array(transformer.read_out.weight)[0] + transformer.read_out.bias.item()
        np.testing.assert_allclose(prediction.detach(), expected, atol=1e-10)


@pytest.mark.parametrize(("mlp", "norm"), list(itertools.product((True, False), NORMS)))
def test_a_layer_may_have_no_heads_and_every_layer_heads_of_its_own_size(mlp, norm):
    transformer, these = model((2, 0, 3), mlp=mlp, norm=norm, head_dim=[5, 1, 2]), tokens(batch=1)
    assert transformer.head_dims == [5, 1, 2]
    seen = [keys_seen(i, 6, "context") for i in range(6 + N_QUERIES)]
    states = loop_over_layers(transformer, these[0].numpy(), "softmax", seen, norm)
    output = transformer(these, n_queries=N_QUERIES)
    np.testing.assert_allclose(output.query_states[-1][0].detach(), states[-N_QUERIES:], atol=1e-10)
    output.prediction.sum().backward()
    assert all(p.grad is not None for p in transformer.parameters())  # as DDP demands


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_attention_may_have_biases_of_which_the_output_s_is_no_head_s(attention, norm):
    transformer = model((2, 0, 3), attention=attention, norm=norm, head_dim=3, attention_bias=True)
    for name, parameter in transformer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    these = tokens(batch=1)
    seen = [keys_seen(i, 6, "context") for i in range(6 + N_QUERIES)]
    states = loop_over_layers(transformer, these[0].numpy(), attention, seen, norm)
    output = transformer(these, n_queries=N_QUERIES)
    np.testing.assert_allclose(output.query_states[-1][0].detach(), states[-N_QUERIES:], atol=1e-10)
    output.prediction.sum().backward()
    assert all(p.grad is not None for p in transformer.parameters())  # as DDP demands
    without_heads = model((2, 0, 3), attention=attention, norm=norm, head_dim=3, attention_bias=True)
    without_heads.load_state_dict(transformer.state_dict())
    for layer in (0, 2):
        torch.nn.init.zeros_(without_heads.layers[layer].attention.output.weight)
    masked = predict(transformer, these, head_mask=torch.zeros(3, 3).double())
    assert torch.allclose(masked, predict(without_heads, these))


def test_the_mlp_s_gelu_may_be_the_approximation_by_tanh():
    exact, approximate = model(), model(activation="gelu_tanh")
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)  # Hendrycks and Gimpel 2016
    assert torch.allclose(approximate.layers[0].mlp[1](x), 0.5 * x * (1 + inner.tanh()))
    assert torch.allclose(exact.layers[0].mlp[1](x), x * torch.special.ndtr(x))
    assert not torch.allclose(exact.layers[0].mlp[1](x), approximate.layers[0].mlp[1](x))


@pytest.mark.parametrize("options", [{}, {"head_dim": [1, 2, 3], "layout": "prefixes", "mask": "causal"}], ids=str)
def test_the_options_build_a_model_of_the_same_shape(options):
    transformer = model(**options)
    transformer.load_state_dict(Transformer(**transformer.options).double().state_dict())
    assert Transformer(**transformer.options).options == transformer.options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head_dim": [2, 3]}, r"head_dim is \[2, 3\], but it must be one number, or one for each of the 3 layers"),
        ({"head_dim": [2, 0, 2]}, r"head_dim is \[2, 0, 2\], but a head needs at least 1 dimension"),
        ({"heads": [0, 0]}, r"heads is \[0, 0\], but it must list at least one layer"),
        ({"heads": [2, -1]}, r"heads is \[2, -1\], but it must list at least one layer"),
    ],
)
def test_heads_and_sizes_that_make_no_model_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        model(**options)


def array(tensor):
    return tensor.detach().numpy()


def normalised(states, norm):
    centred = states - states.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps) * array(norm.weight) + array(norm.bias)


def loop_over_layers(transformer, prompt, attention, seen, norm, positions=0.0):
    """A second derivation of the forward pass for one prompt: numpy, one token and one head at a time."""
    states = prompt @ array(transformer.read_in.weight).T + array(transformer.read_in.bias) + positions
    for layer in transformer.layers:
        if layer.attention is not None:
            inputs = normalised(states, layer.attention_norm) if norm == "pre" else states
            states = states + loop_over_heads(layer.attention, inputs, attention, seen)
        if layer.output_bias is not None:
            states = states + array(layer.output_bias)
        states = normalised(states, layer.attention_norm) if norm == "post" else states
        if layer.mlp is not None:
            inputs = normalised(states, layer.mlp_norm) if norm == "pre" else states
            states = states + array(layer.mlp(torch.from_numpy(inputs)))
            states = normalised(states, layer.mlp_norm) if norm == "post" else states
    return states


def loop_over_heads(block, inputs, attention, keys):
    output = np.zeros_like(inputs)
    for head in range(block.n_heads):
        rows = slice(head * block.head_dim, (head + 1) * block.head_dim)
        q, k, v = (
            inputs @ array(part.weight)[rows].T + (0.0 if part.bias is None else array(part.bias)[rows])
            for part in (block.query, block.key, block.value)
        )
        for i, seen in enumerate(keys):
            scores = np.array([q[i] @ k[j] for j in seen]) / np.sqrt(block.head_dim)
            if attention == "softmax":
                weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            else:
                weights = (scores if attention == "linear" else np.maximum(scores, 0)) / len(seen)
            mixed = sum(weight * v[j] for weight, j in zip(weights, seen, strict=True))
            output[i] += array(block.output.weight)[:, rows] @ mixed
    return output


def keys_seen(i, n_points, mask):
    if mask == "context":
        return list(range(n_points))
    if i >= n_points:
        return [*range(n_points), i]
    return list(range(n_points)) if mask == "full" else list(range(i + 1))


def kinds(layout, n_points):
    """What each token is: its kind and the number of its example or query."""
    pairs = [("pair", i) for i in range(n_points)]
    context = {
        "pairs": pairs,
        "prefixes": pairs + [("prefix", i) for i in range(n_points)],
        "alternating": [(kind, i) for i in range(n_points) for kind in "xy"],
    }[layout]
    return context + [("query", q) for q in range(N_QUERIES)]


def sees(token, key):
    """Who sees whom in the causal layouts, in words about examples rather than places."""
    (kind, i), (other, j) = token, key
    if token == key:
        return True
    if other in ("prefix", "query"):
        return False
    if kind == "query":
        return True
    if kind in ("pair", "y"):
        return j <= i
    return j < i  # a prefix query or an x: the examples before it


def position_of(layout, kind, i, n_points):
    if layout == "alternating":
        return {"x": 2 * i, "y": 2 * i + 1, "query": 2 * n_points}[kind]
    return i if kind == "pair" else -1


@pytest.mark.parametrize("n_points", [1, 4])
@pytest.mark.parametrize(("layout", "attention", "norm", "position"), LAYOUT_SWITCHES)
def test_every_layout_equals_a_loop_over_prompts_tokens_and_heads(layout, attention, norm, position, n_points):
    options = {"attention": attention, "norm": norm, "position": position, "max_points": n_points}
    transformer = model(layout=layout, mask="causal", **options)
    prompt = sampled(2, n_points)
    output = run(transformer, prompt)
    names = kinds(layout, n_points)
    seen = [[k for k, key in enumerate(names) if sees(token, key)] for token in names]
    places = {"pairs": [], "prefixes": range(n_points, 2 * n_points), "alternating": range(0, 2 * n_points, 2)}[layout]
    coded = 0.0
    if position == "learned":
        coded = array(transformer.position)[[position_of(layout, kind, i, n_points) for kind, i in names]]
    for b, these in enumerate(tokens_of(prompt, layout)):
        states = loop_over_layers(transformer, these.numpy(), attention, seen, norm, coded)
        final = normalised(states, transformer.final_norm) if norm == "pre" else states
        expected = final @ array(transformer.read_out.weight)[0] + transformer.read_out.bias.item()
        np.testing.assert_allclose(array(output.prediction)[b], expected[-N_QUERIES:], atol=1e-10)
        np.testing.assert_allclose(array(output.query_states[-1])[b], states[-N_QUERIES:], atol=1e-10)
        n_context = n_points * (2 if layout == "alternating" else 1)
        np.testing.assert_allclose(array(output.context_states[-1])[b], states[:n_context], atol=1e-10)
        if layout == "pairs":
            assert output.prefix_prediction is None
        else:
            np.testing.assert_allclose(array(output.prefix_prediction)[b], expected[list(places)], atol=1e-10)


def cut_before(prompt, i):
    """The first ``i`` examples, with example i (counted from 0) as the one query."""
    return prompt._replace(
        x=prompt.x[:, :i],
        y=prompt.y[:, :i],
        x_query=prompt.x[:, i : i + 1],
        y_query=prompt.y[:, i : i + 1],
        f_query=prompt.f[:, i : i + 1],
        f=prompt.f[:, :i],
    )


@pytest.mark.parametrize("options", [{}, {"position": "learned", "max_points": 6}])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("layout", "alone"), [("prefixes", "pairs"), ("alternating", "alternating")])
def test_a_prefix_prediction_is_the_query_s_of_the_prompt_cut_there(layout, alone, attention, options):
    whole = model(layout=layout, attention=attention, mask="causal", **options)
    short = model(layout=alone, attention=attention, mask="causal", **options)  # the same seed, so the same weights
    prompt = sampled()
    prefixes = run(whole, prompt).prefix_prediction
    for i in range(6):  # 0 examples too
        expected = run(short, cut_before(prompt, i)).prediction[:, 0]
        torch.testing.assert_close(prefixes[:, i], expected, rtol=0, atol=1e-10)
    at_queries = run(short, prompt).prediction
    torch.testing.assert_close(run(whole, prompt).prediction, at_queries, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", CAUSAL_LAYOUTS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_prefix_prediction_knows_its_label_or_what_comes_later(attention, layout):
    transformer, prompt = model(layout=layout, attention=attention, mask="causal"), sampled()
    before = run(transformer, prompt).prefix_prediction
    for i in range(6):
        other_label = prompt._replace(y=prompt.y + 3.0 * (torch.arange(6) == i))
        other_example = other_label._replace(x=prompt.x + 3.0 * (torch.arange(6) == i)[:, None])
        label, example = (run(transformer, changed).prefix_prediction for changed in (other_label, other_example))
        torch.testing.assert_close(label[:, : i + 1], before[:, : i + 1], rtol=0, atol=0)
        torch.testing.assert_close(example[:, :i], before[:, :i], rtol=0, atol=0)
        assert not torch.isclose(example[:, i], before[:, i], atol=1e-6).any()
        assert not torch.isclose(label[:, i + 1 :], before[:, i + 1 :], atol=1e-9).any()


@pytest.mark.parametrize("layout", CAUSAL_LAYOUTS)
def test_queries_are_parallel_in_every_layout(layout):
    transformer, prompt = model(layout=layout, mask="causal", position="learned", max_points=6), sampled()
    together = run(transformer, prompt)
    for q in range(N_QUERIES):
        one = {name: getattr(prompt, name)[:, q : q + 1] for name in ("x_query", "y_query", "f_query")}
        alone = run(transformer, prompt._replace(**one))
        torch.testing.assert_close(alone.prediction[:, 0], together.prediction[:, q], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.prefix_prediction, together.prefix_prediction, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", CAUSAL_LAYOUTS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("options", [{}, {"position": "learned", "max_points": 6}])
def test_a_padded_prompt_predicts_what_the_short_one_does_in_every_layout(layout, attention, options):
    transformer, prompt = model(layout=layout, attention=attention, mask="causal", **options), sampled()
    lengths = [1, 4, 6, 4, 1]
    padded = prompt.padded_after(6)
    kept = torch.arange(6) < torch.tensor(lengths)[:, None]
    padded = padded._replace(x=padded.x * kept[..., None], y=padded.y * kept, f=padded.f * kept, point_mask=kept)
    found = run(transformer, padded)
    for b, n in enumerate(lengths):
        one = prompt.rows(b, b + 1)
        short = run(transformer, one._replace(x=one.x[:, :n], y=one.y[:, :n], f=one.f[:, :n]))
        torch.testing.assert_close(found.prediction[b], short.prediction[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.prefix_prediction[b, :n], short.prefix_prediction[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", CAUSAL_LAYOUTS)
def test_masking_a_head_equals_zeroing_its_value_rows_in_every_layout(layout):
    transformer, zeroed, prompt = (*(model(layout=layout, mask="causal") for _ in range(2)), sampled())
    mask = full_mask(transformer.heads).double()
    mask[1, 1] = 0
    block = zeroed.layers[1].attention
    with torch.no_grad():
        block.value.weight[block.head_dim : 2 * block.head_dim] = 0
    masked, expected = run(transformer, prompt, head_mask=mask), run(zeroed, prompt)
    torch.testing.assert_close(masked.prediction, expected.prediction, rtol=0, atol=1e-12)
    torch.testing.assert_close(masked.prefix_prediction, expected.prefix_prediction, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["pairs", *CAUSAL_LAYOUTS])
def test_every_layout_is_one_static_graph_without_a_look_at_the_data(layout):
    """torch.export refuses a forward pass that asks a tensor for its value."""
    transformer = model(layout=layout, mask="causal", position="learned", max_points=6)
    prompt = sampled().padded_after(4)
    options = {"n_queries": N_QUERIES, "point_mask": prompt.point_mask}
    exported = torch.export.export(transformer, (tokens_of(prompt, layout),), options).module()
    expected = run(transformer, prompt).prediction
    found = exported(tokens_of(prompt, layout), **options).prediction
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("attention", ["softmax", "linear", "relu"])
def test_masking_a_head_equals_zeroing_its_value_rows(attention, layer):
    transformer, these = model(attention=attention), tokens()
    for head in range(transformer.heads[layer]):
        mask = full_mask(transformer.heads).double()
        mask[layer, head] = 0
        masked = predict(transformer, these, head_mask=mask)
        zeroed = model(attention=attention)
        block = zeroed.layers[layer].attention
        with torch.no_grad():
            block.value.weight[head * block.head_dim : (head + 1) * block.head_dim] = 0
        torch.testing.assert_close(masked, predict(zeroed, these), rtol=0, atol=1e-12)
        assert not torch.allclose(masked, predict(transformer, these), atol=1e-6)


def test_masking_every_head_leaves_the_read_in():
    transformer, these = model(mlp=False), tokens()
    output = transformer(these, torch.zeros(3, 4).double(), n_queries=N_QUERIES)
    for states in output.query_states:
        torch.testing.assert_close(states, output.query_states[0])


@pytest.mark.parametrize("attention", ["softmax", "linear", "relu"])
def test_permuting_heads_with_their_weights_changes_nothing(attention):
    transformer, these = model(attention=attention), tokens()
    expected = predict(transformer, these)
    order = torch.tensor([2, 0, 3, 1])
    block = transformer.layers[0].attention
    rows = (order[:, None] * block.head_dim + torch.arange(block.head_dim)).flatten()
    with torch.no_grad():
        for part in (block.query, block.key, block.value):
            part.weight.copy_(part.weight[rows])
    assert not torch.allclose(predict(transformer, these), expected, atol=1e-6)  # heads are separate things
    with torch.no_grad():
        block.output.weight.copy_(block.output.weight[:, rows])
    torch.testing.assert_close(predict(transformer, these), expected, rtol=0, atol=1e-12)


def test_a_mask_per_prompt_equals_the_loop_over_prompts():
    transformer, these = model(), tokens()
    masks = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    together = predict(transformer, these, head_mask=masks)
    alone = torch.cat([predict(transformer, these[i : i + 1], head_mask=masks[i]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["context", "full", "causal"])
@pytest.mark.parametrize("attention", ["softmax", "linear", "relu"])
def test_no_query_influences_another_or_the_context(attention, mask):
    transformer, these = model(attention=attention, mask=mask), tokens()
    changed = these.clone()
    changed[:, -1] += 10  # the last query
    before, after = (transformer(t, n_queries=N_QUERIES) for t in (these, changed))
    torch.testing.assert_close(before.prediction[:, :-1], after.prediction[:, :-1], rtol=0, atol=0)
    for states, same in zip(before.context_states, after.context_states, strict=True):
        torch.testing.assert_close(states, same, rtol=0, atol=0)
    assert not torch.allclose(before.prediction[:, -1], after.prediction[:, -1], atol=1e-6)
    alone = transformer(torch.cat([these[:, :6], these[:, -1:]], dim=1)).prediction
    torch.testing.assert_close(alone[:, 0], before.prediction[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["context", "full"])
def test_a_context_permutation_changes_nothing_without_a_positional_code(mask):
    these = tokens()
    permuted = torch.cat([these[:, [3, 0, 5, 1, 4, 2]], these[:, 6:]], dim=1)
    plain = model(mask=mask)
    torch.testing.assert_close(predict(plain, these), predict(plain, permuted), rtol=0, atol=1e-12)
    coded = model(mask=mask, position="learned", max_points=6)
    assert not torch.allclose(predict(coded, these), predict(coded, permuted), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"position": "learned", "max_points": 6}])
@pytest.mark.parametrize("mask", ["context", "full", "causal"])
@pytest.mark.parametrize("attention", ["softmax", "linear", "relu"])
def test_a_padded_prompt_predicts_what_the_short_one_does(attention, mask, options):
    transformer = model(attention=attention, mask=mask, **options)
    prompt = (
        SparseLinearRegression(3, 2, noise_std=0.1).sample(5, 6, N_QUERIES, torch.Generator().manual_seed(0)).double()
    )
    padded = prompt.padded_after(4)
    short = prompt._replace(x=prompt.x[:, :4], y=prompt.y[:, :4])
    torch.testing.assert_close(
        predict(transformer, tokens_of(padded, "pairs"), point_mask=padded.point_mask),
        predict(transformer, tokens_of(short, "pairs")),
        rtol=0,
        atol=1e-12,
    )


def test_head_size_is_split_or_fixed():
    split, fixed = Transformer(3, 8, [4, 1]), Transformer(3, 8, [4, 1], head_dim=2)
    assert [layer.attention.head_dim for layer in split.layers] == [2, 8]
    assert [layer.attention.head_dim for layer in fixed.layers] == [2, 2]
    sizes = [sum(p.numel() for p in layer.attention.parameters()) for layer in split.layers]
    assert sizes[0] == sizes[1] == 4 * 8 * 8


SHORT_CUTS = [
    *itertools.product(ATTENTIONS, MASKS, NORMS, ("pairs",)),
    *itertools.product(ATTENTIONS, ("causal",), NORMS, CAUSAL_LAYOUTS),
]


@pytest.mark.parametrize("options", [{}, {"mlp": False, "position": "learned", "max_points": 6}], ids=str)
@pytest.mark.parametrize(("attention", "mask", "norm", "layout"), SHORT_CUTS)
def test_the_last_layer_where_predictions_are_read_gives_the_same_output_and_gradients(
    attention, mask, norm, layout, options
):
    """In float32, to 1e-5: with padding, with head masks, and where the last layer has no heads."""
    for heads, padded, masked in (((4, 2), 6, False), ((2, 4), 4, True), ((4, 0), 6, False)):
        transformer = model(heads, attention=attention, mask=mask, norm=norm, layout=layout, **options).float()
        prompt = sampled() if padded == 6 else sampled().padded_after(padded)
        prompt = type(prompt)._make(f if f is None or f.dtype == torch.bool else f.float() for f in prompt)
        head_mask = torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(1)) if masked else None
        found = []
        for last_context in (True, False):
            output = transformer.on_prompt(prompt, head_mask, last_context)
            read = [output.prediction] + ([] if layout == "pairs" else [output.prefix_prediction[:, :padded]])
            gradients = torch.autograd.grad(torch.cat(read, dim=1).square().mean(), transformer.parameters())
            found.append((*read, *output.query_states, *gradients))
            assert len(output.context_states) == 2 + last_context
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head_dim", [1, 4, 16])  # linear attention is q (k^T v) for the small ones
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", ["linear", "relu"])
def test_what_heads_read_is_their_pattern_times_their_values(attention, mask, head_dim):
    """In float32, to 1e-5, with the gradients: where tokens see the same keys or not, padded or not, and at some."""
    transformer = model([3], attention=attention, mask=mask, head_dim=head_dim).float()
    heads = transformer.blocks[0].attention
    for n_points, padded, first in ((6, 6, 0), (6, 4, 7), (1, 1, 1)):
        prompt = sampled(n_points=n_points)
        prompt = prompt if padded == n_points else prompt.padded_after(padded)
        states, view, *_ = transformer.embedded(tokens_of(prompt, "pairs").float(), N_QUERIES, prompt.point_mask)
        states = states.detach().requires_grad_()
        values = heads.value(states[:, : view.n_keys]).unflatten(-1, (3, head_dim)).transpose(1, 2)
        found = []
        for read in (
            heads.head_outputs(states, view, slice(first, None)),
            (heads.pattern(states, view) @ values)[:, :, first:],
        ):
            weights = [heads.query.weight, heads.key.weight, heads.value.weight]
            found.append((read, *torch.autograd.grad(read.square().sum(), [states, *weights])))
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_output_names_every_layer_s_states():
    output = model()(tokens(), n_queries=N_QUERIES)
    assert output.prediction.shape == (5, 3)
    assert [s.shape for s in output.query_states] == [(5, 3, 8)] * 4
    assert [s.shape for s in output.context_states] == [(5, 6, 8)] * 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 6)])
def test_batch_of_one_and_one_point(shape):
    batch, n_points = shape
    assert predict(model(), tokens(batch, n_points)).shape == (batch, N_QUERIES)


def test_read_out_and_stream_stay_in_float32_under_autocast():
    transformer = model().float()
    with torch.autocast("cpu", torch.bfloat16):
        output = transformer(tokens().float(), n_queries=N_QUERIES)
    assert output.prediction.dtype == output.query_states[-1].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"mlp": False}, {"layout": "alternating", "mask": "causal"}], ids=str)
def test_autocast_does_not_round_the_prompt(options, generator):
    """And without that rounding the predictions' squared error in bfloat16 falls."""
    transformer, prompt = (
        model(**options).float(),
        SparseLinearRegression(3, 2, noise_std=0.1).sample(256, 6, 3, generator),
    )
    read_in = transformer.read_in

    def rounding(x):
        return torch.nn.functional.linear(x.bfloat16(), read_in.weight.bfloat16(), read_in.bias.bfloat16()).float()

    exact = run(transformer, prompt)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = run(transformer, prompt)
        read_in.forward = rounding
        rounded = run(transformer, prompt)
    for states in ("query_states", "context_states"):
        assert torch.equal(getattr(found, states)[0], getattr(exact, states)[0])
        assert not torch.equal(getattr(rounded, states)[0], getattr(exact, states)[0])
    kept, lost = ((output.prediction - exact.prediction).square().mean() for output in (found, rounded))
    assert 0 < kept < 0.7 * lost


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d_model": 10, "heads": [4]}, "does not divide d_model, 10"),
        ({"heads": []}, "heads is []"),
        ({"heads": [0, 0]}, r"heads is [0, 0]"),
        ({"d_model": 0}, "d_model is 0"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"position": "learned"}, "max_points is None"),
        ({"layout": "prefixes"}, "mask is 'context', but layout='prefixes' needs mask='causal'"),
        ({"layout": "alternating", "mask": "full"}, "mask is 'full', but layout='alternating' needs mask='causal'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(InputError) as error:
        Transformer(3, **options)
    assert words in str(error.value)


def test_a_head_mask_of_another_shape_is_named():
    with pytest.raises(InputError, match=r"\(2, 4\), but this model needs \(3, 4\)"):
        predict(model(), tokens(), head_mask=torch.ones(2, 4).double())


@pytest.mark.parametrize(("layout", "largest"), [("pairs", 5), ("prefixes", 5), ("alternating", 5)])
def test_more_points_than_learned_positions_are_named(layout, largest):
    transformer = model(layout=layout, mask="causal", position="learned", max_points=largest)
    with pytest.raises(InputError, match="the prompt has 6 points, but max_points is 5"):
        run(transformer, sampled())


def test_tokens_of_another_layout_are_named():
    with pytest.raises(InputError, match=r"there are 5 tokens besides the queries, but layout='alternating' has two"):
        model(layout="alternating", mask="causal")(tokens(n_points=5), n_queries=N_QUERIES)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda: Transformer(3, attention="flash"),
            "attention is 'flash', but it must be one of softmax, linear, relu",
        ),
        (lambda: Transformer(3, mask="none"), "mask is 'none', but it must be one of context, full, causal"),
        (lambda: Transformer(3, norm="rms"), "norm is 'rms', but it must be one of none, pre, post"),
        (lambda: Transformer(3, position="sine"), "position is 'sine', but it must be one of none, learned"),
        (lambda: Transformer(3, layout="duo"), "layout is 'duo', but it must be one of pairs, prefixes, alternating"),
        (
            lambda: SparseLinearRegression(3, 2, weight_law="laplace"),
            "weight_law is 'laplace', but it must be one of gaussian, sign, unit_norm, scaled",
        ),
        (
            lambda: ICLModule(3, optimizer="sgd"),
            "optimizer is 'sgd', but it must be one of adamw, muon, muon_per_head, soap",
        ),
        (
            lambda: Transformer(3, init="mimetic"),
            "init is 'mimetic', but it must be one of default, keys_equal_queries",
        ),
        (
            lambda: ICLModule(3, target="clean"),
            "target is 'clean', but it must be one of noise_free, noisy, posterior_mean",
        ),
    ],
)
def test_bad_choices_are_named_from_python(unchecked, wrong, words):
    with pytest.raises(InputError, match=re.escape(f"{words}.")):
        wrong()


def test_keys_may_start_equal_to_queries_and_nothing_else_changes():
    made = []
    for init in ("default", "keys_equal_queries"):
        torch.manual_seed(0)
        made.append(Transformer(3, 8, [2, 0, 4], mlp=True, init=init).state_dict())
    plain, equal = made
    changed = {name for name in plain if not torch.equal(plain[name], equal[name])}
    assert changed == {"layers.0.attention.key.weight", "layers.2.attention.key.weight"}
    for name in changed:
        torch.testing.assert_close(equal[name], plain[name.replace("key", "query")], rtol=0, atol=0)
