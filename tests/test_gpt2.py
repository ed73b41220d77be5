"""GPT2 against transformers' GPT2Model, fed and read as Garg et al. (2022) do, on random weights with random biases."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from lightning_icl import GPT2, SparseLinearRegression
from lightning_icl.functional.heads import full_mask
from lightning_icl.instruments.removal import remove_heads

N_DIMS, N_POINTS = 3, 5


class Garg(nn.Module):
    """Tokens x_1, (y_1, 0, ..), x_2, ... through a linear read-in, GPT-2 and a linear read-out at each x."""

    def __init__(self, n_head, n_layer, n_embd=16, n_positions=N_POINTS + 1):
        super().__init__()
        sizes = {"n_head": n_head, "n_layer": n_layer, "n_embd": n_embd, "n_positions": 2 * n_positions}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False, "vocab_size": 2}
        self._read_in = nn.Linear(N_DIMS, n_embd)
        self._backbone = GPT2Model(GPT2Config(**sizes, **off))
        self._read_out = nn.Linear(n_embd, 1)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.double().requires_grad_(False)

    def forward(self, prompt):
        """The prediction (batch, points + 1) of each example's target from those before it, and of the query's."""
        x = torch.cat([prompt.x, prompt.x_query], dim=1)
        y = nn.functional.pad(prompt.y, (0, 1))
        tokens = x.new_zeros(len(x), 2 * x.shape[1], N_DIMS)
        tokens[:, ::2], tokens[:, 1::2, 0] = x, y
        return self._read_out(self._backbone(inputs_embeds=self._read_in(tokens)).last_hidden_state)[:, ::2, 0]


def garg_weights(theirs):
    """The weights of GPT2, written out one by one."""
    state = theirs.state_dict()
    read_in, n_positions = state["_read_in.weight"], state["_backbone.wpe.weight"].shape[0] - 1
    ours = {
        "read_in.weight": torch.cat([read_in, read_in[:, :1]], dim=1),
        "read_in.bias": state["_read_in.bias"],
        "position": state["_backbone.wpe.weight"][:n_positions],
    }
    for i, block in enumerate(theirs._backbone.h):
        parts = zip(
            block.attn.c_attn.weight.split(block.attn.split_size, 1), block.attn.c_attn.bias.chunk(3), strict=True
        )
        for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            ours |= {f"layers.{i}.attention.{name}.weight": weight.T, f"layers.{i}.attention.{name}.bias": bias}
        ours |= {
            f"layers.{i}.attention.output.weight": block.attn.c_proj.weight.T,
            f"layers.{i}.output_bias": block.attn.c_proj.bias,
            f"layers.{i}.mlp.0.weight": block.mlp.c_fc.weight.T,
            f"layers.{i}.mlp.0.bias": block.mlp.c_fc.bias,
            f"layers.{i}.mlp.2.weight": block.mlp.c_proj.weight.T,
            f"layers.{i}.mlp.2.bias": block.mlp.c_proj.bias,
        }
        for name, norm in (("attention_norm", block.ln_1), ("mlp_norm", block.ln_2)):
            ours |= {f"layers.{i}.{name}.{key}": value for key, value in norm.state_dict().items()}
    ours |= {f"final_norm.{key}": value for key, value in theirs._backbone.ln_f.state_dict().items()}
    return ours | {f"read_out.{key}": value for key, value in theirs._read_out.state_dict().items()}


def pair(n_head=4, n_layer=2):
    theirs = Garg(n_head, n_layer)
    ours = GPT2(N_DIMS, 16, [n_head] * n_layer, N_POINTS).double()
    ours.load_state_dict(garg_weights(theirs))
    return ours.requires_grad_(False), theirs


def prompts():
    task = SparseLinearRegression(N_DIMS, 2, noise_std=0.1)
    return task.sample(6, N_POINTS, 1, torch.Generator().manual_seed(0)).double()


def predictions(network, prompt, mask=None):
    output = network.on_prompt(prompt, mask)
    return torch.cat([output.prefix_prediction, output.prediction], dim=1)


@pytest.mark.parametrize(("n_head", "n_layer"), [(4, 2), (1, 3), (8, 1)])
def test_equals_transformers_at_every_prefix(n_head, n_layer):
    (ours, theirs), prompt = pair(n_head, n_layer), prompts()
    expected = theirs(prompt)
    torch.testing.assert_close(predictions(ours, prompt), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.on_prompt(prompt.first(2)).prediction, theirs(prompt.first(2))[:, -1:])
    in_float32 = predictions(
        ours.float(), prompt._replace(**{k: v.float() for k, v in prompt._asdict().items() if v is not None})
    )
    torch.testing.assert_close(in_float32, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [[[1, 0, 1, 1], [0, 1, 0, 0]], [[0, 0, 0, 0], [1, 1, 0, 1]]])
def test_equals_transformers_after_heads_are_masked_or_removed(keep):
    """There a head is nothing once its rows of c_proj are 0; transformers 5 itself removes heads no more."""
    (ours, theirs), prompt = pair(), prompts()
    mask = torch.tensor(keep, dtype=torch.float64)
    for block, row in zip(theirs._backbone.h, mask, strict=True):
        block.attn.c_proj.weight.mul_(row.repeat_interleave(4)[:, None])
    expected, smaller = theirs(prompt), remove_heads(ours, mask)
    assert type(smaller) is GPT2
    assert smaller.heads == [sum(row) for row in keep]
    torch.testing.assert_close(predictions(ours, prompt, mask), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(predictions(smaller, prompt), expected, atol=1e-12, rtol=1e-12)
    assert (predictions(ours, prompt) - expected).abs().max() > 0.01
    n_less = (full_mask(ours.heads) - mask).sum() * 4 * (4 * 16 + 3) + 2 * 16 * smaller.heads.count(0)
    assert sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in smaller.parameters()) == n_less


def test_fresh_weights_are_distributed_as_transformers_draws_them():
    torch.manual_seed(0)
    ours = GPT2(N_DIMS, 64, [4] * 3, 20)
    theirs = GPT2Model(GPT2Config(n_head=4, n_layer=3, n_embd=64, n_positions=41, vocab_size=2))
    for block, layer in zip(theirs.h, ours.blocks, strict=True):
        pairs = [
            (layer.attention.value.weight, block.attn.c_attn.weight),
            (layer.attention.output.weight, block.attn.c_proj.weight),
            (layer.mlp[0].weight, block.mlp.c_fc.weight),
            (layer.mlp[2].weight, block.mlp.c_proj.weight),
        ]
        assert all(abs(mine.std() / their.std() - 1) < 0.06 for mine, their in pairs)
        biases = [layer.output_bias, layer.attention.query.bias, layer.mlp[0].bias, layer.attention_norm.bias]
        assert not any(bias.any() for bias in biases)
    assert abs(ours.position.std() / theirs.wpe.weight.std() - 1) < 0.06
