"""Removed heads against masked ones, and a smaller optimizer against one that goes on with the full model."""

import itertools

import pytest
import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.instruments.removal import kept_parts, remove_heads

TASK = SparseLinearRegression(3, 2, noise_std=0.3)


def sampled(n_prompts=5, n_points=4):
    return TASK.sample(n_prompts, n_points, 2, torch.Generator().manual_seed(0))


def model(**options):
    torch.manual_seed(0)
    built = Transformer(3, **({"d_model": 12, "heads": [3, 1, 2]} | options))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built


def masks_of(heads):
    """Keep the last head only, all but the first, none of the first layer, all, and heads with factors."""
    full = full_mask(heads)
    last, later, without_first = torch.zeros_like(full), full.clone(), full.clone()
    last[-1, heads[-1] - 1] = 1
    later[0, 0] = 0
    without_first[0] = 0
    scaled = later * torch.linspace(-1, 2.5, full.numel()).reshape(full.shape)
    candidates = {"last": last, "all but one": later, "no first layer": without_first, "full": full, "scaled": scaled}
    return {name: mask for name, mask in candidates.items() if (mask * full).any()}


PARTS = list(itertools.product(("softmax", "linear", "relu"), ("none", "pre", "post"), (True, False)))
VARIANTS = [
    *({"attention": attention, "norm": norm, "mlp": mlp} for attention, norm, mlp in PARTS),
    {"mask": "full"},
    {"mask": "causal", "position": "learned", "max_points": 4},
    {"mask": "causal", "layout": "prefixes"},
    {"mask": "causal", "layout": "alternating"},
    {"attention_bias": True, "activation": "gelu_tanh"},
    {"attention_bias": True, "norm": "none", "mlp": False},
    {"attention_bias": True, "norm": "post", "heads": [2, 0, 2]},
    {"heads": [2, 0, 2]},
    {"heads": [3, 2], "head_dim": 5},
    {"heads": [3, 2], "head_dim": [5, 2], "norm": "post"},
    {"heads": [2]},
    {"heads": [1, 1], "d_model": 1, "norm": "none"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_model_without_heads_predicts_what_it_did_with_them_masked(options):
    transformer, prompt = model(**options), sampled()
    for name, mask in masks_of(transformer.heads).items():
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            full = transformer.to(dtype)
            these = prompt.double() if dtype == torch.float64 else prompt
            expected, found = full.on_prompt(these, mask.to(dtype)), remove_heads(full, mask).on_prompt(these)
            for state, other in zip(expected.context_states, found.context_states, strict=True):
                scale = state.abs().max().clamp(min=1).item()
                torch.testing.assert_close(other, state, rtol=0, atol=tolerance * scale, msg=name)
            scale = expected.prediction.abs().max().clamp(min=1).item()
            torch.testing.assert_close(found.prediction, expected.prediction, rtol=0, atol=tolerance * scale, msg=name)
            if full.layout != "pairs":
                torch.testing.assert_close(found.prefix_prediction, expected.prefix_prediction, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_smaller_model_is_what_its_options_build(options):
    transformer = model(**options).eval()
    for mask in masks_of(transformer.heads).values():
        smaller = remove_heads(transformer, mask)
        fresh = Transformer(**smaller.options)
        fresh.load_state_dict(smaller.state_dict())
        assert fresh.heads == smaller.heads == [int(n) for n in (mask * full_mask(transformer.heads) != 0).sum(dim=1)]
        assert fresh.head_dims == smaller.head_dims == transformer.head_dims
        assert not smaller.training


def test_every_parameter_of_a_smaller_model_is_used_as_ddp_demands():
    for norm, mlp, bias in itertools.product(("none", "pre", "post"), (True, False), (True, False)):
        full = model(norm=norm, mlp=mlp, attention_bias=bias)
        smaller = remove_heads(full, torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]))
        smaller.on_prompt(sampled()).prediction.sum().backward()
        assert [name for name, p in smaller.named_parameters() if p.grad is None] == []


def test_a_smaller_model_shares_no_memory_and_draws_no_random_number():
    transformer = model()
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in transformer.state_dict().items()}
    smaller = remove_heads(transformer, full_mask(transformer.heads))
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    for name, values in transformer.state_dict().items():
        assert torch.equal(values, state[name])


def test_an_entry_beyond_a_layers_heads_means_nothing():
    transformer = model()
    mask = full_mask(transformer.heads)
    padded = torch.where(mask == 0, 1.0, mask)
    assert remove_heads(transformer, padded).heads == transformer.heads


def test_the_kept_part_of_a_parameter_is_that_of_its_heads():
    transformer = model(heads=[3, 2], norm="pre")
    parts = kept_parts(transformer, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    query, output = transformer.blocks[0].attention.query.weight, transformer.blocks[0].attention.output.weight
    by_head = query.unflatten(0, (3, 4))
    assert torch.equal(parts["layers.0.attention.query.weight"].of(query), torch.cat([by_head[0], by_head[2]]))
    assert torch.equal(parts["layers.0.attention.output.weight"].of(output), output[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    gone = {name for name, part in parts.items() if part.entries.numel() == 0}
    projections = {f"layers.1.attention.{name}.weight" for name in ("query", "key", "value", "output")}
    assert gone == projections | {"layers.1.attention_norm.weight", "layers.1.attention_norm.bias"}
    assert parts.keys() - gone == {name.replace("layers.1", "layers.0") for name in projections}


def test_a_network_whose_heads_are_no_option_keeps_them_all():
    class Fixed(Transformer):
        def __init__(self, n_dims):
            super().__init__(n_dims, 12, [3, 2])

    with pytest.raises(InputError, match="with the options heads and head_dim, but Fixed has not both"):
        remove_heads(Fixed(3), torch.tensor([[1.0, 0, 1], [1, 1, 0]]))


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (torch.ones(2, 3), r"keep has shape \(2, 3\), but this model needs \(3, 3\) \(layers, heads of the widest"),
        (torch.zeros(3, 3), "keep is 0 for every head, but a model needs at least one"),
        (torch.tensor([[0.0, 0, 0], [0, 1, 1], [0, 0, 1]]), "keep is 0 for every head"),
    ],
)
def test_a_mask_that_fits_no_model_is_refused(keep, said):
    with pytest.raises(InputError, match=said):
        remove_heads(model(), keep)
