"""Treatments of pruned models against numpy and scikit-learn on explicit design matrices, and on planted heads."""

import copy
import weakref

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.optim import AdamW

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.pruning import GreedyRemoval, ImportanceThreshold, PaperPruning, TopHeads
from lightning_icl.instruments.ablation import errors_under_masks
from lightning_icl.instruments.pruning import (
    RELATIVE_STRENGTHS,
    PrunedModel,
    cut_heads_,
    fine_tuned,
    living_heads,
    pruning_case,
    read_out_refitted,
    rescaled_masks,
)
from lightning_icl.instruments.removal import remove_heads
from lightning_icl.optimizers import BlockMuon, OptimizerPair, adamw
from lightning_icl.soap import SOAP
from lightning_icl.transformer import Layer

TASK = SparseLinearRegression(3, 2, noise_std=0.3)
VARIANTS = [
    {},
    {"mlp": False, "attention": "linear", "norm": "none"},
    {"attention": "relu", "norm": "post"},
    {"mask": "causal", "layout": "prefixes"},
    {"mask": "causal", "layout": "alternating"},
    {"attention_bias": True, "activation": "gelu_tanh", "heads": [2, 0, 2]},
    {"heads": [2, 0, 2]},
    {"heads": [1], "d_model": 6},
]


def sampled(n_prompts, seed=0):
    return TASK.sample(n_prompts, 4, 2, torch.Generator().manual_seed(seed)).double()


def model(**options):
    torch.manual_seed(0)
    built = Transformer(3, **({"d_model": 12, "heads": [3, 1, 2]} | options)).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built


def head_rows(transformer, layer, head):
    size = transformer.blocks[layer].attention.head_dim
    return slice(head * size, (head + 1) * size)


def without(transformer, removed):
    """A copy with the heads' output columns zeroed: the slow way to remove (layer, head) pairs."""
    other = copy.deepcopy(transformer)
    for layer, head in removed:
        other.blocks[layer].attention.output.weight.data[:, head_rows(other, layer, head)] = 0
    return other


def risk(transformer, prompt):
    prediction = transformer.on_prompt(prompt).prediction.detach().numpy()
    return float(np.mean((prediction - prompt.f_query.numpy()) ** 2))


def paper_mask(transformer):
    mask = full_mask(transformer.heads).double()
    mask[1:, 1:] = 0
    return mask


# Strategies on a transformer


@pytest.mark.parametrize("options", [{}, {"heads": [2, 0, 2]}, {"heads": [1], "d_model": 6}], ids=str)
def test_greedy_removal_equals_a_loop_over_copies_of_the_model(options):
    transformer, prompt = model(**options), sampled(2 if options else 9)
    left = [(layer, head) for layer, n in enumerate(transformer.heads) for head in range(n)]
    path = pruning_case(transformer, prompt).path(0)
    gone, risks = [], [risk(transformer, prompt)]
    while left:
        scores = {head: risk(without(transformer, [*gone, head]), prompt) for head in left}
        cheapest = min(scores, key=scores.get)
        left.remove(cheapest)
        gone.append(cheapest)
        risks.append(scores[cheapest])
    assert path.removed == [(layer + 1, head + 1) for layer, head in gone]
    np.testing.assert_allclose([float(of.mean()) for of in path.errors], risks, rtol=1e-9)


def test_importance_is_leave_one_out_unless_given():
    transformer, prompt = model(), sampled(9)
    case = pruning_case(transformer, prompt)
    for layer, n_heads in enumerate(transformer.heads):
        for head in range(n_heads):
            expected = risk(without(transformer, [(layer, head)]), prompt) - risk(transformer, prompt)
            assert float(case.importance[layer, head]) == pytest.approx(expected, abs=1e-10)
    assert case.importance.isnan().sum() == 3
    assert float(case.errors(case.living[None]).mean()) == pytest.approx(risk(transformer, prompt), rel=1e-9)
    given = torch.arange(9.0).reshape(3, 3)
    assert pruning_case(transformer, prompt, given).importance[0].tolist() == [0, 1, 2]


def test_dead_heads_are_not_there_to_be_kept():
    transformer = model(heads=[3, 2])
    transformer.blocks[0].attention.value.weight.data[head_rows(transformer, 0, 1)] = 0
    transformer.blocks[1].attention.output.weight.data[:, head_rows(transformer, 1, 0)] = 0
    assert living_heads(transformer).tolist() == [[True, False, True], [False, True, False]]
    case = pruning_case(transformer, sampled(9))
    assert case.path(1).heads_left == [3, 2, 1]
    for strategy in (PaperPruning(), TopHeads(3), GreedyRemoval(3)):
        assert strategy.keep(case).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_a_head_that_reads_nothing_but_its_bias_is_alive():
    transformer = model(attention_bias=True)
    attention = transformer.blocks[0].attention
    attention.value.weight.data[head_rows(transformer, 0, 1)] = 0
    assert living_heads(transformer).sum() == 6
    mask = full_mask(transformer.heads).double()
    mask[0, 1] = 0
    assert risk(remove_heads(transformer, mask), sampled(5)) != pytest.approx(risk(transformer, sampled(5)))
    attention.value.bias.data[head_rows(transformer, 0, 1)] = 0
    assert living_heads(transformer).tolist()[0] == [True, False, True]
    assert risk(remove_heads(transformer, mask), sampled(5)) == pytest.approx(risk(transformer, sampled(5)))


def test_a_head_that_is_never_read_goes_first_and_at_no_cost():
    """It writes only what later layers and the read-out do not look at."""
    transformer = model(heads=[1, 3], norm="none", mlp=False)
    output = transformer.blocks[1].attention.output.weight.data
    rows, reads = head_rows(transformer, 1, 2), transformer.read_out.weight.data[0]
    output[:, rows] -= torch.outer(reads, reads @ output[:, rows]) / reads.square().sum()
    other = transformer.blocks[1].attention.output.weight.data[:, head_rows(transformer, 1, 0)]
    other += 2 * reads[:, None]  # and another one matters
    prompt = sampled(9)
    prompt = prompt._replace(f_query=transformer.on_prompt(prompt).prediction.detach())
    path = pruning_case(transformer, prompt).path(3)
    assert path.removed == [(2, 3)]
    assert float(path.errors[1].mean()) == pytest.approx(0, abs=1e-20)


def label_carrier():
    """Only head 2 of layer 2 has any part in the predictions, which are the targets."""
    transformer = model(heads=[2, 3], norm="none", mlp=False)
    transformer.read_in.weight.data[0] = 0
    transformer.read_in.bias.data[0] = 0
    transformer.read_out.weight.data[0] = torch.eye(12)[0].double()
    for layer in transformer.blocks:
        layer.attention.output.weight.data[0] = 0
    carrier = transformer.blocks[1].attention
    carrier.output.weight.data[0, head_rows(transformer, 1, 1)] = 1
    transformer.blocks[0].attention.output.weight.data[:6] = 0  # what the first layer writes,
    for weight in (carrier.query.weight, carrier.key.weight, carrier.value.weight):
        weight.data[head_rows(transformer, 1, 1), 6:] = 0  # the carrier does not read
    prompt = sampled(9)
    return transformer, prompt._replace(f_query=transformer.on_prompt(prompt).prediction.detach())


def test_a_head_that_alone_carries_the_label_is_kept_by_every_strategy():
    transformer, prompt = label_carrier()
    case = pruning_case(transformer, prompt)
    for strategy in (PaperPruning(), TopHeads(1), ImportanceThreshold(0.5), GreedyRemoval(1)):
        assert strategy.keep(case)[1, 1] == 1
    assert GreedyRemoval(1).keep(case).sum() == 1


def duplicates(factor=1.0):
    """Heads 1 and 2 of the last layer say the same, the second ``factor`` times as loud."""
    transformer = model(heads=[2, 3])
    attention = transformer.blocks[1].attention
    first, second = head_rows(transformer, 1, 0), head_rows(transformer, 1, 1)
    for weight in (attention.query.weight, attention.key.weight, attention.value.weight):
        weight.data[second] = weight.data[first]
    attention.output.weight.data[:, second] = factor * attention.output.weight.data[:, first]
    prompt = sampled(30)
    return transformer, prompt._replace(f_query=transformer.on_prompt(prompt).prediction.detach())


@pytest.mark.parametrize(("kept", "factor", "scale"), [(0, 1.0, 2.0), (1, 1.0, 2.0), (0, 3.0, 4.0), (1, 3.0, 4 / 3)])
def test_rescaling_gives_a_head_the_share_of_its_removed_duplicate(kept, factor, scale):
    transformer, prompt = duplicates(factor)
    mask = full_mask(transformer.heads).double()
    mask[1, 1 - kept] = 0
    (scales,) = rescaled_masks(transformer, mask[None], sampled(30, seed=1))
    expected = mask.clone()
    expected[1, kept] = scale
    torch.testing.assert_close(scales, expected, rtol=0, atol=1e-7)
    assert PrunedModel(transformer, mask).errors(prompt).mean() > 1e-4
    assert PrunedModel(transformer, scales).errors(prompt).max() < 1e-12


def test_greedy_removes_one_of_two_duplicates_where_rescaling_is_free():
    transformer, prompt = duplicates()
    transformer.blocks[1].attention.output.weight.data[:, head_rows(transformer, 1, 2)] *= 4
    transformer.blocks[0].attention.output.weight.data *= 4
    prompt = prompt._replace(f_query=transformer.on_prompt(prompt).prediction.detach())
    (first,) = pruning_case(transformer, prompt).path(4).removed
    assert first in [(2, 1), (2, 2)]


# Treatments


def rescaled_by_lstsq(transformer, mask, prompt):
    """The scales from explicit contributions, one column a head, by numpy's lstsq."""
    start = transformer.embedded(transformer.laid_out(prompt), prompt.x_query.shape[1])
    tokens = [*range(start.n_context), *range(start.first_query, start.states.shape[1])]
    full = pruned = start.states
    scales = torch.zeros_like(mask)
    for depth, layer in enumerate(transformer.blocks):
        if layer.attention is not None:
            counted = tokens if depth < len(transformer.heads) - 1 else tokens[start.n_context :]
            size, output = layer.attention.head_dim, layer.attention.output.weight
            contributions = [
                layer.head_outputs(pruned, start.view)[:, h] @ output[:, h * size : (h + 1) * size].T
                for h in range(layer.attention.n_heads)
            ]
            wanted = full + layer.attention.combined(layer.head_outputs(full, start.view), None) - pruned
            kept = [h for h in range(layer.attention.n_heads) if mask[depth, h]]
            design = np.stack([contributions[h][:, counted].detach().numpy().ravel() for h in kept], axis=1)
            fit = np.linalg.lstsq(design, wanted[:, counted].detach().numpy().ravel(), rcond=1e-9)[0]
            scales[depth, kept] = torch.as_tensor(fit)
        row = scales[depth : depth + 1, : transformer.heads[depth]]
        full = layer.after_heads(full, layer.head_outputs(full, start.view))
        pruned = layer.after_heads(pruned, layer.head_outputs(pruned, start.view), row)
    return scales


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_rescaled_masks_equal_lstsq(options, chunk_size):
    transformer, prompt = model(**options), sampled(5)
    mask = paper_mask(transformer)
    if transformer.heads[0] > 1:
        mask[0, 0] = 0  # or else all but the last layer, which has no context to count, is whole
    found = rescaled_masks(transformer, mask[None], prompt, chunk_size)[0]
    torch.testing.assert_close(found, rescaled_by_lstsq(transformer, mask, prompt), rtol=1e-6, atol=1e-8)


def most_states_held(monkeypatch, n_prompts, chunk_size):
    """The most prompts whose states after some layer are there at once while masks are rescaled."""
    transformer, held, most = model(heads=[3, 2, 2, 2, 3]), [], 0
    after_heads = Layer.after_heads

    def recorded(layer, states, *args):
        nonlocal most
        found = after_heads(layer, states, *args)
        held.append(weakref.ref(found))
        most = max(most, sum(len(alive) for alive in (ref() for ref in held) if alive is not None))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Layer, "after_heads", recorded)
        rescaled_masks(transformer, paper_mask(transformer).expand(3, -1, -1), sampled(n_prompts), chunk_size)
    return most


def test_rescaling_holds_the_states_of_one_chunk_of_prompts(monkeypatch):
    """The full model's and the pruned one's, and of each what a layer makes of it."""
    assert most_states_held(monkeypatch, 12, 2) == most_states_held(monkeypatch, 6, 2) <= 4 * 2
    assert most_states_held(monkeypatch, 12, 12) >= 12  # and where they are in one chunk, of all


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_full_model_is_rescaled_by_ones(options):
    transformer = model(**options)
    whole = full_mask(transformer.heads).double()
    torch.testing.assert_close(rescaled_masks(transformer, whole[None], sampled(6))[0], whole, rtol=0, atol=1e-6)


def test_a_layer_that_loses_all_its_heads_is_scaled_by_zeros():
    transformer = model()
    mask = full_mask(transformer.heads).double()
    mask[1] = 0
    (scales,) = rescaled_masks(transformer, mask[None], sampled(4))
    assert (scales[1] == 0).all()
    assert scales.isfinite().all()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_refitted_read_out_equals_scikit_learn_on_the_models_states(options):
    transformer, fit, choice, scored = model(**options), sampled(30), sampled(20, 1), sampled(5, 2)
    mask = paper_mask(transformer)

    def states(prompt):
        output = transformer.on_prompt(prompt, mask)
        return transformer.final_norm(output.query_states[-1]).detach().flatten(0, 1).numpy()

    def errors(ridge, prompt):
        return (ridge.predict(states(prompt)) - prompt.f_query.flatten().numpy()) ** 2

    x = states(fit)
    unit = ((x - x.mean(axis=0)) ** 2).sum() / x.shape[1]
    fitted = [Ridge(alpha=c * unit).fit(x, fit.f_query.flatten().numpy()) for c in RELATIVE_STRENGTHS]
    best = min(fitted, key=lambda ridge: errors(ridge, choice).mean())
    found = read_out_refitted(transformer, mask, fit, choice, chunk_size=7)
    np.testing.assert_allclose(found.errors(scored), errors(best, scored).reshape(5, 2).mean(axis=1), rtol=1e-5)
    assert torch.equal(transformer.read_out.weight, model(**options).read_out.weight)  # the original is as it was


def test_refitting_restores_a_read_out_that_was_scaled():
    transformer = model()
    prompts = [sampled(40, seed) for seed in range(3)]
    prompts = [p._replace(f_query=transformer.on_prompt(p).prediction.detach()) for p in prompts]
    transformer.read_out.weight.data *= 0.1
    transformer.read_out.bias.data += 1
    whole = full_mask(transformer.heads).double()
    assert PrunedModel(transformer, whole).errors(prompts[2]).mean() > 0.1
    assert read_out_refitted(transformer, whole, *prompts[:2]).errors(prompts[2]).max() < 1e-10


def test_fine_tuning_equals_training_a_copy_whose_heads_are_masked():
    transformer, scored = model(), sampled(6, 9)
    mask = paper_mask(transformer)
    found = fine_tuned(transformer, mask, lambda step: sampled(8, step), 5, 1e-2)
    slow = copy.deepcopy(transformer)
    optimizer = AdamW(slow.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 1e-2 * (5 - step) / 5
        optimizer.zero_grad()
        prompt = sampled(8, step)
        ((slow.on_prompt(prompt, mask).prediction - prompt.f_query) ** 2).mean().backward()
        optimizer.step()
    expected = errors_under_masks(slow, scored, mask[None])[0]
    torch.testing.assert_close(found.errors(scored), expected, rtol=1e-6, atol=1e-9)
    assert (expected - PrunedModel(transformer, mask).errors(scored)).abs().max() > 1e-3
    assert found.network.heads == [3, 1, 1]
    assert torch.equal(transformer.read_in.weight, model().read_in.weight)


def test_fine_tuning_works_without_any_head_and_inside_inference_mode():
    transformer = model()
    with torch.inference_mode():
        mask = torch.zeros(3, 3, dtype=torch.float64)
        found = fine_tuned(transformer, mask, lambda step: sampled(8, step), 3, 1e-2)
        assert found.errors(sampled(4, 9)).isfinite().all()
    assert found.mask.sum() == 0


# Cutting in place


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap"])
@pytest.mark.parametrize(("attention", "bias"), [("softmax", False), ("softmax", True), ("linear", False)])
def test_cut_heads_stay_exactly_dead_while_training_goes_on(optimizer, attention, bias):
    transformer = model(attention=attention, norm="pre", attention_bias=bias).float()
    matrices = [p for p in transformer.layers.parameters() if p.dim() == 2]
    others = [p for p in transformer.parameters() if all(p is not m for m in matrices)]
    if optimizer == "adamw":
        optimizer = AdamW(transformer.parameters(), lr=1e-2, weight_decay=0.1)
    else:
        on_matrices = (BlockMuon if optimizer == "muon" else SOAP)(matrices, 1e-2, 0.1)
        optimizer = OptimizerPair(on_matrices, adamw(others, 1e-2, 0.1))

    def train(steps):
        for step in steps:
            prompt = TASK.sample(8, 4, 2, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (transformer.on_prompt(prompt).prediction - prompt.f_query).square().mean().backward()
            optimizer.step()

    train(range(5))
    keep, prompt = paper_mask(transformer).float(), TASK.sample(4, 4, 2, torch.Generator().manual_seed(99))
    masked = transformer.on_prompt(prompt, keep).prediction.detach()
    cut_heads_(transformer, keep, optimizer)
    torch.testing.assert_close(transformer.on_prompt(prompt).prediction, masked, rtol=1e-5, atol=1e-6)
    before = torch.nn.utils.parameters_to_vector(matrices).detach()
    train(range(5, 7))
    step = (torch.nn.utils.parameters_to_vector(matrices) - before).abs().max()
    assert step < 0.1  # not the division by the eps of moments that were cut in another basis
    train(range(7, 30))
    assert torch.equal(living_heads(transformer), keep.bool())
    assert not torch.allclose(transformer.on_prompt(prompt).prediction, masked)
    attention, dead = transformer.blocks[2].attention, head_rows(transformer, 2, 1)
    for weight, entries in (
        (attention.value.weight, attention.value.weight[dead]),
        (attention.output.weight, attention.output.weight[:, dead]),
        *([(attention.value.bias, attention.value.bias[dead])] if bias else []),
    ):
        assert (entries == 0).all()
        assert weight.ne(0).any()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"keep has shape \(2, 3\), but this model needs \(3, 3\)"):
        cut_heads_(model(), torch.ones(2, 3))


def test_heads_are_not_rescaled_to_padding():
    transformer = model()
    with pytest.raises(InputError, match="the prompts are padded"):
        rescaled_masks(transformer, full_mask(transformer.heads)[None], sampled(6).padded_after(2))
