"""Many head masks at once, against one forward pass for each and head outputs replaced by hooks."""

import itertools

import pytest
import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask, single_removals
from lightning_icl.functional.prompts import concatenated
from lightning_icl.instruments.ablation import AblatedHeads, errors_under_masks, predictions_under_masks

TASK = SparseLinearRegression(3, 2, noise_std=0.3)


def sampled(n_prompts, seed=0, n_points=4, n_queries=2):
    return TASK.sample(n_prompts, n_points, n_queries, torch.Generator().manual_seed(seed))


def model(**options):
    torch.manual_seed(0)
    built = Transformer(3, **({"d_model": 12, "heads": [3, 1, 2]} | options)).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built


def all_masks(heads):
    """Every set of kept heads, and one with weights that are neither 0 nor 1."""
    real = full_mask(heads).bool()
    masks = [full_mask(heads) * 0.5]
    for kept in itertools.product([0.0, 1.0], repeat=int(real.sum())):
        mask = torch.zeros(real.shape)
        mask[real] = torch.tensor(kept)
        masks.append(mask)
    return torch.stack(masks)


VARIANTS = [
    {},
    {"mlp": False},
    {"attention": "linear", "norm": "none"},
    {"attention": "relu", "norm": "post"},
    {"mask": "full"},
    {"mask": "causal", "position": "learned", "max_points": 4},
    {"mask": "causal", "layout": "prefixes"},
    {"mask": "causal", "layout": "alternating"},
    {"attention_bias": True, "activation": "gelu_tanh"},
    {"heads": [2, 0, 2]},
    {"heads": [3, 2], "head_dim": [5, 2]},
    {"heads": [2]},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_predictions_equal_one_forward_pass_for_each_mask(options):
    transformer, prompt = model(**options), sampled(5).double()
    masks = all_masks(transformer.heads).double()
    expected = torch.stack([transformer.on_prompt(prompt, mask).prediction for mask in masks])
    for chunk_size in (1, 3, 100):
        found = predictions_under_masks(transformer, prompt, masks, chunk_size=chunk_size)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_padded_prompts_are_run_as_they_are():
    transformer, prompt = model(mask="full"), sampled(5).double().padded_after(3)
    masks = single_removals(full_mask(transformer.heads)).double()
    expected = torch.stack([transformer.on_prompt(prompt, mask).prediction for mask in masks])
    torch.testing.assert_close(
        predictions_under_masks(transformer, prompt, masks, chunk_size=10), expected, rtol=1e-9, atol=1e-10
    )


def replaced_by_hooks(transformer, prompt, mask, reference, ablation):
    """The slow way: record each head's output on the reference, and put it in the place of the ablated heads'."""
    recorded, handles = [], []
    for layer in transformer.layers:
        output = layer.attention.output
        handles.append(output.register_forward_pre_hook(lambda m, args: recorded.append(args[0])))
    transformer.on_prompt(reference)
    for handle in handles:
        handle.remove()
    handles = []
    for i, layer in enumerate(transformer.layers):
        attention = layer.attention
        other = recorded[i].mean(dim=0, keepdim=True) if ablation == "mean" else recorded[i]
        kept = mask[i, : attention.n_heads].repeat_interleave(attention.head_dim)
        handles.append(
            attention.output.register_forward_pre_hook(
                lambda m, args, kept=kept, other=other: (args[0] * kept + other * (1 - kept),)
            )
        )
    prediction = transformer.on_prompt(prompt).prediction
    for handle in handles:
        handle.remove()
    return prediction


@pytest.mark.parametrize(
    "options", [{}, {"mask": "causal", "layout": "prefixes"}, {"attention": "linear", "attention_bias": True}], ids=str
)
@pytest.mark.parametrize("ablation", ["mean", "resample"])
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_mean_and_resample_ablation_equal_hooks(options, ablation, chunk_size):
    transformer, prompt, reference = model(**options), sampled(5).double(), sampled(5, seed=1).double()
    masks = all_masks(transformer.heads).double()[1::7]
    found = predictions_under_masks(transformer, prompt, masks, AblatedHeads(ablation, reference), chunk_size)
    for mask, prediction in zip(masks, found, strict=True):
        expected = replaced_by_hooks(transformer, prompt, mask, reference, ablation)
        torch.testing.assert_close(prediction, expected, rtol=1e-9, atol=1e-10)


def test_any_metric_of_a_prompt_can_be_had():
    transformer, prompt = model(), sampled(6).double()
    masks = full_mask(transformer.heads).double()[None]
    largest = errors_under_masks(
        transformer, prompt, masks, metric=lambda p, prompt: (p - prompt.y_query).abs().amax(1)
    )
    expected = (transformer.on_prompt(prompt).prediction - prompt.y_query).abs().max(dim=1).values
    torch.testing.assert_close(largest[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"masks": torch.ones(1, 3, 4)}, r"the masks have shape \(3, 4\), but this model needs \(3, 3\)"),
        ({"chunk_size": 0}, "chunk_size is 0, but it must be at least 1"),
        ({"ablated": AblatedHeads("one")}, "ablation is 'one', but it must be one of zero, mean, resample"),
        ({"ablated": AblatedHeads("mean")}, "ablation is 'mean', but it needs reference prompts"),
        ({"ablated": AblatedHeads("resample", sampled(4))}, "but must match the scored ones"),
        ({"ablated": AblatedHeads("mean", sampled(5, n_points=3))}, "but must match the scored ones"),
    ],
)
def test_bad_input_is_named(change, sentence):
    transformer = model().float()
    options = {"masks": full_mask(transformer.heads)[None], "prompt": sampled(5)} | change
    with pytest.raises(InputError, match=sentence):
        predictions_under_masks(transformer, **options)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_a_reference_with_other_numbers_of_examples_is_refused(ablation):
    transformer, whole = model(), sampled(6).double()
    mixed = concatenated([whole.rows(0, 3).padded_after(2), whole.rows(3, 6)])
    masks = full_mask(transformer.heads)[None]
    with pytest.raises(
        InputError, match=r"the scored prompts have \[\d\] examples and the reference prompts \[2, \d\]"
    ):
        predictions_under_masks(transformer, whole, masks, AblatedHeads(ablation, mixed))
    padded = whole.padded_after(2)
    predictions_under_masks(transformer, padded, masks, AblatedHeads(ablation, padded))  # alike
    if ablation == "resample":
        predictions_under_masks(transformer, mixed, masks, AblatedHeads(ablation, mixed))
