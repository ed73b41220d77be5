"""Heads of any network: the adapter around our own Transformer against the native route, and others against weights."""

import copy
import itertools

import numpy as np
import pytest
import torch
from test_ablation import all_masks, model, sampled
from torch import nn

from lightning_icl import GPT2, GatedHeads, InContextNetwork, TransformerOutput
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask, single_removals
from lightning_icl.functional.prompts import concatenated, tokens
from lightning_icl.functional.pruning import GreedyRemoval, PaperPruning, TopHeads, pruning_controls
from lightning_icl.instruments.ablation import AblatedHeads, predictions_under_masks
from lightning_icl.instruments.importance import head_importance
from lightning_icl.instruments.pruning import fine_tuned, pruning_case
from lightning_icl.instruments.treatments import treatments
from lightning_icl.network import described, description

VARIANTS = [
    {},
    {"heads": [2, 0, 3], "mask": "full", "attention": "relu", "norm": "post"},
    {"heads": [3, 2], "head_dim": [5, 2], "mask": "causal", "layout": "prefixes"},
    {"heads": [2], "mask": "causal", "layout": "alternating"},
]


def gated(transformer):
    return GatedHeads(transformer, "layers.*.attention.output", transformer.heads)


def gpt2():
    torch.manual_seed(0)
    built = GPT2(3, 12, [3, 1, 2], max_points=4).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.4)
    return built


def padded(n_prompts, seed=0):
    """Prompts of 2 to 4 examples."""
    whole = sampled(n_prompts, seed).double()
    return concatenated([whole.rows(i, i + 1).padded_after(2 + i % 3) for i in range(n_prompts)])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12 * expected.abs().max().item())


# Around our own Transformer


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "ablation"),
    [
        *((options, "zero") for options in [*VARIANTS, "gpt2"]),
        *((options, "mean") for options in VARIANTS[:2]),
        *((options, "resample") for options in [VARIANTS[2], "gpt2"]),
    ],
    ids=str,
)
def test_predictions_equal_the_native_route(options, ablation):
    transformer = gpt2() if options == "gpt2" else model(**options)
    prompt, reference = sampled(5).double(), sampled(5, seed=1).double()
    masks = all_masks(transformer.heads).double()[::9]
    ablated = AblatedHeads(ablation, None if ablation == "zero" else reference)
    expected = predictions_under_masks(transformer, prompt, masks, ablated)
    for chunk_size in (3, 11):
        assert_close(predictions_under_masks(gated(transformer), prompt, masks, ablated, chunk_size), expected)


def test_padded_prompts_are_run_as_they_are():
    transformer = model(mask="causal", layout="alternating", position="learned", max_points=4)
    prompt, masks = padded(6), single_removals(full_mask(transformer.heads)).double()
    for ablated in (AblatedHeads(), AblatedHeads("resample", padded(6, seed=1))):
        expected = predictions_under_masks(transformer, prompt, masks, ablated)
        assert_close(predictions_under_masks(gated(transformer), prompt, masks, ablated, 20), expected)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_states_and_the_gradient_of_the_mask_are_the_native_ones(options):
    transformer, prompt = model(**options), sampled(5).double()
    shape = full_mask(transformer.heads).shape
    for given in (torch.rand(*shape), torch.rand(5, *shape), None):
        outputs, gradients = [], []
        for network in (transformer, gated(transformer)):
            mask = None if given is None else given.double().requires_grad_()
            outputs.append(network.on_prompt(prompt, mask))
            if mask is not None:
                gradients.append(torch.autograd.grad(outputs[-1].prediction.square().sum(), mask)[0])
        for found, expected in zip(outputs[1], outputs[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        if given is not None:
            assert_close(gradients[1], gradients[0])


@pytest.mark.usefixtures("unchecked")
def test_importance_and_agreement_equal_the_native_route():
    transformer = model(heads=[2, 0, 3], mask="causal", layout="prefixes")
    prompt, reference = sampled(12).double(), sampled(12, seed=1).double()
    ablations = [AblatedHeads(), AblatedHeads("mean", reference), AblatedHeads("resample", reference)]
    found, expected = (
        head_importance(network, prompt, ablations=ablations) for network in (gated(transformer), transformer)
    )
    assert len(found.scores) == 7
    assert_close(found.risk.value, expected.risk.value)
    for name, scores in expected.scores.items():
        for mine, native in zip(found.scores[name], scores, strict=True):
            torch.testing.assert_close(mine.value, native.value, rtol=1e-9, atol=1e-10, equal_nan=True)
    for pair, agreement in expected.agreement.items():
        assert found.agreement[pair].overall == agreement.overall


@pytest.mark.usefixtures("unchecked")
def test_pruning_equals_the_native_route():
    transformer, prompt = model(), sampled(12).double()
    cases = [pruning_case(network, prompt) for network in (gated(transformer), transformer)]
    for strategy in (PaperPruning(), TopHeads(2), GreedyRemoval(1)):
        assert torch.equal(*(strategy.keep(case) for case in cases))
    paths = [case.path(0) for case in cases]
    for mine, native in zip(*(path.errors for path in paths), strict=True):
        assert_close(mine, native)
    controls = pruning_controls(cases[0].importance, 4, torch.Generator().manual_seed(0))
    masks = torch.cat([*controls.values(), full_mask(transformer.heads)[None]]).double()

    def batch(step):
        return sampled(8, seed=10 + step).double()

    found, expected = (
        treatments(network, prompt, prompt, prompt, batch, finetune_steps=4)
        for network in (gated(transformer), transformer)
    )
    assert list(expected) == ["as_is", "read_out", "rescaled", "fine_tuned"]
    assert list(found) == ["as_is", "fine_tuned"]
    for name, treat in found.items():
        torch.testing.assert_close(treat(masks), expected[name](masks), rtol=1e-8, atol=1e-9)
    assert fine_tuned(gated(transformer), torch.zeros(3, 3), batch, 1).mask.sum() == 0


# Around others' networks


class Encoder(InContextNetwork):
    """torch's own encoder; queries stand alone as the last token of a prompt each."""

    def __init__(self, n_dims, batch_first=True, norm_first=False):
        super().__init__()
        self.n_dims, self.heads, self.batch_first = n_dims, [], batch_first
        self.read_in = nn.Linear(n_dims + 1, 8)
        # Fused kernels and nested tensors wherever torch has them.
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=batch_first and not norm_first)
        self.read_out = nn.Linear(8, 1)

    def on_prompt(self, prompt, head_mask=None):
        n, (batch, n_queries) = prompt.x.shape[1], prompt.f_query.shape
        all_tokens = tokens(prompt, "pairs")
        context = all_tokens[:, None, :n].expand(-1, n_queries, -1, -1)
        states = self.read_in(torch.cat([all_tokens[:, n:, None], context], dim=2).flatten(0, 1))
        hidden = None
        if prompt.point_mask is not None:
            seen = torch.nn.functional.pad(prompt.point_mask, (1, 0), value=True)
            hidden = ~seen.repeat_interleave(n_queries, dim=0)
        states = states if self.batch_first else states.transpose(0, 1)
        states = self.encoder(states, src_key_padding_mask=hidden)
        last = states[:, 0] if self.batch_first else states[0]
        return TransformerOutput(self.read_out(last).view(batch, n_queries))


class Conv1D(nn.Module):
    """As in GPT-2's code: a linear map with its matrix transposed."""

    def __init__(self, given, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(given, width) / 3), nn.Parameter(torch.randn(width))

    def forward(self, states):
        return torch.addmm(self.bias, states.flatten(0, 1), self.weight).view(*states.shape[:2], -1)


class Block(nn.Module):
    """Attention by hand, its input changed in place; ``style`` says what else the block does."""

    def __init__(self, style):
        super().__init__()
        self.style, self.qkv, self.projection = style, nn.Linear(6, 18), Conv1D(6, 6)

    def forward(self, states, kept):
        q, k, v = (part.unflatten(-1, (3, 2)).transpose(1, 2) for part in self.qkv(states).chunk(3, dim=-1))
        read = ((q @ k.mT).softmax(dim=-1) @ v).transpose(1, 2).flatten(-2)
        states += self.projection(read)
        if self.style == "projects twice":
            states = states + self.projection(read)
        kept.append(states)
        return (states, None) if self.style != "batch second" else (states.transpose(0, 1), None)


class ByHand(InContextNetwork):
    def __init__(self, n_dims, style="plain"):
        super().__init__()
        self.n_dims, self.heads, self.style = n_dims, [], style
        self.read_in, self.read_out = nn.Linear(n_dims + 1, 6), nn.Linear(6, 1)
        self.blocks = nn.ModuleList(Block(style) for _ in range(3))

    def on_prompt(self, prompt, head_mask=None):
        states, kept = self.read_in(tokens(prompt, "pairs")), []
        for block in reversed(self.blocks) if self.style == "backwards" else self.blocks:
            states, _ = block(states.clone() if self.style == "batch second" else states, kept)
            states = states.transpose(0, 1) if self.style == "batch second" else states
        if self.style == "flat":
            self.blocks[0].projection(states.flatten(0, 1)[None])
        if self.style == "reads the blocks' notes":
            states = states + 0.5 * sum(kept)
        return TransformerOutput(self.read_out(states)[:, -prompt.f_query.shape[1] :, 0])


def cut(network, name, n_heads, mask, transposed=False):
    """A copy whose projections' matrices have zeros where the heads that are masked come in."""
    changed = copy.deepcopy(network)
    for layer, row in enumerate(mask):
        weight = changed.get_submodule(name.replace("*", str(layer))).weight.data
        weight = weight if transposed else weight.T
        weight.mul_(row.repeat_interleave(len(weight) // n_heads)[:, None])
    return changed


def ready(network):
    return network.double().eval().requires_grad_(False)


def others():
    for batch_first, norm_first in itertools.product([True, False], repeat=2):
        torch.manual_seed(0)
        yield ready(Encoder(3, batch_first, norm_first)), "encoder.layers.*.self_attn.out_proj", 2
    for style in ("plain", "batch second", "reads the blocks' notes"):
        torch.manual_seed(0)
        yield ready(ByHand(3, style)), "blocks.*.projection", 3


@pytest.mark.parametrize(("network", "name", "n_heads"), list(others()))
def test_others_networks_equal_themselves_with_weights_taken_out(network, name, n_heads):
    """Whichever way their projections are called, whether or not blocks can be given again."""
    wrapped, of_conv = GatedHeads(network, name, n_heads), isinstance(network, ByHand)
    masks = all_masks(wrapped.heads).double()[1 :: 60 if of_conv else 9]
    prompt = sampled(5).double() if of_conv else padded(5)
    by_mask = [cut(network, name, n_heads, mask, of_conv).on_prompt(prompt).prediction for mask in masks]
    expected = torch.stack(by_mask)
    for chunk_size in (5, 13):
        assert_close(predictions_under_masks(wrapped, prompt, masks, chunk_size=chunk_size), expected)
    each = torch.arange(5)
    assert_close(wrapped.on_prompt(prompt, masks[:5]).prediction, expected[each, each])
    by_row = getattr(network, "style", "plain") == "plain" and getattr(network, "batch_first", True)
    assert len(wrapped.recorded(prompt, masks[0])[1]) == (3 if by_row else 0)


@pytest.mark.parametrize("network", [Encoder(3), Encoder(3, batch_first=False)])
def test_replaced_heads_of_multihead_attention_are_its_output_on_the_reference(network):
    """With all heads of a layer replaced, so is the output of its attention."""
    wrapped = GatedHeads(ready(network), "encoder.layers.*.self_attn", 2)
    prompt, reference = sampled(5).double(), sampled(5, seed=1).double()
    attention, given = network.encoder.layers[1].self_attn, []
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernels call no hook
    try:
        handle = attention.register_forward_hook(lambda _, __, output: given.append(output[0]))
        network.on_prompt(reference)
        handle.remove()
        by_prompt = given[0].unflatten(int(not network.batch_first), (5, 2))
        mean = by_prompt.mean(dim=int(not network.batch_first), keepdim=True).expand_as(by_prompt)
        for ablation, replaced in (
            ("resample", given[0]),
            ("mean", mean.flatten(*((0, 1) if network.batch_first else (1, 2)))),
        ):
            handle = attention.register_forward_hook(lambda _, __, output, replaced=replaced: (replaced, None))
            expected = network.on_prompt(prompt).prediction
            handle.remove()
            mask = full_mask(wrapped.heads).double()
            mask[1] = 0
            found = predictions_under_masks(wrapped, prompt, mask[None], AblatedHeads(ablation, reference))
            assert_close(found[0], expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_ablation_after_the_projection_is_another_thing():
    """The common mistake, with the same hooks one step later, fails the comparisons above by far: it takes coordinates

    of the residual stream away, and the projection's bias, which is no head's.
    """
    torch.manual_seed(0)
    network, prompt = ready(ByHand(3)), sampled(5).double()
    whole = GatedHeads(network, "blocks.*.projection", 3)
    for ablated in ([(0, 1)], [(0, 0), (0, 1), (0, 2)]):
        mask = full_mask(whole.heads).double()
        for place in ablated:
            mask[place] = 0
        expected = cut(network, "blocks.*.projection", 3, mask, transposed=True).on_prompt(prompt).prediction
        assert_close(whole.on_prompt(prompt, mask).prediction, expected)
        kept = mask[0].repeat_interleave(2)
        handle = network.blocks[0].projection.register_forward_hook(lambda _, __, output, kept=kept: output * kept)
        mistaken = network.on_prompt(prompt).prediction
        handle.remove()
        assert (mistaken - expected).abs().median() > 0.05 * expected.std()


def test_the_adapter_is_a_network_like_any_other_and_leaves_nothing_behind():
    network = ready(Encoder(3))
    wrapped, prompt = GatedHeads(network, "encoder.layers.*.self_attn.out_proj", 2), sampled(3).double()
    before, plain = set(network.state_dict()), network.on_prompt(prompt).prediction
    mask = full_mask(wrapped.heads)
    wrapped.recorded(prompt, mask)
    wrapped.head_outputs(prompt)
    with pytest.raises(RuntimeError, match="no prompt"):
        wrapped._changed(prompt, lambda layer, read: (_ for _ in ()).throw(RuntimeError("no prompt")))
    assert set(network.state_dict()) == before
    assert torch.equal(network.on_prompt(prompt).prediction, plain)
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in network.modules())
    again = copy.deepcopy(wrapped)
    again.network.read_out.bias.data += 1
    torch.testing.assert_close(again.on_prompt(prompt, mask).prediction, wrapped.on_prompt(prompt, mask).prediction + 1)
    assert description(wrapped)["init_args"]["network"]["init_args"]["norm_first"] is False
    fresh = described(description(gated(gpt2().float())))
    assert fresh.heads == [3, 1, 2]
    assert fresh.layout == "alternating"
    assert not hasattr(wrapped, "layout")
    assert torch.equal(wrapped.untrained(1).network.read_in.weight, network.untrained(1).read_in.weight)


@pytest.mark.parametrize("heads", [torch.tensor([3, 3, 3]), np.array([3, 3, 3]), (3, 3, 3), np.int64(3)])
def test_numbers_of_heads_may_be_of_any_kind(unchecked, heads):
    wrapped = GatedHeads(ByHand(3), "blocks.*.projection", heads)
    assert wrapped.heads == [3, 3, 3]
    assert described(description(wrapped)).heads == [3, 3, 3]


@pytest.mark.parametrize(
    ("network", "projections", "heads", "sentence"),
    [
        (
            ByHand(3),
            "layers.*.projection",
            3,
            "no module of this ByHand has such a name; those with a weight matrix are",
        ),
        (ByHand(3), "blocks.*.projection", [3, 3], r"heads is \[3, 3\], but projections, '.*', is 3 of this ByHand's"),
        (ByHand(3), "", 3, "projections is '', but no module of this ByHand has such a name"),
        (ByHand(3), "blocks.*.projection", 10**9, r"heads is 1,000,000,000 for blocks.0.projection, but its weight, "),
        (nn.Linear(3, 4), "*", 3, "the network is a Linear, but it must be of a class that derives from InContextN"),
        (ByHand(3), "blocks.*.projection", 0, "heads is 0, but it must be at least 1"),
        (ByHand(3), "blocks.*.*", 3, r"which is blocks.\*.qkv and blocks.\*.projection of this ByHand, but each layer"),
        (ByHand(3), "blocks.?", 3, "blocks.0 is a Block, which has no weight matrix of its own"),
        (Encoder(3), "encoder.layers.*.self_attn", 4, r"this nn.MultiheadAttention has 2"),
        (ByHand(3), "blocks.*.projection", 4, r"has shape \(3, 6, 6\), but that of a projection of 4 heads is"),
        (ByHand(3, "flat"), "blocks.*.projection", 3, r"has shape \(1, 18, 6\), .* here with a batch of 3"),
        (
            ByHand(3, "projects twice"),
            "blocks.*.projection",
            3,
            "blocks.0.projection is 2 times called in a forward pass",
        ),
        (ByHand(3, "backwards"), "blocks.*.projection", 3, "are called in the order blocks.2.projection, blocks.1"),
        (gpt2().float(), "layers.*.attention.output", [3, 1], r"heads is \[3, 1\], but projections"),
    ],
)
def test_what_cannot_be_gated_is_named(unchecked, network, projections, heads, sentence):
    def run():
        wrapped = GatedHeads(network, projections, heads)
        return wrapped.on_prompt(sampled(3), full_mask(wrapped.heads))

    with pytest.raises(InputError, match=sentence):
        run()
