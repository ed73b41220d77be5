"""GPT2 against transformers' GPT2Model, fed and read as Garg et al. (2022) do; weights from files, theirs and ours.

In one file, as an import of transformers takes 4 s.
"""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2Model

from lightning_icl import GPT2, ICLModule, InContextNetwork, SparseLinearRegression, Transformer, load_weights
from lightning_icl.cli import main
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.instruments.removal import remove_heads
from lightning_icl.record import load_run
from lightning_icl.record.loading import loaded_module

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


def test_each_of_several_queries_and_padded_prompts_are_one_of_theirs_each():
    ours, theirs = pair()
    prompt = SparseLinearRegression(N_DIMS, 2).sample(4, N_POINTS, 3, torch.Generator().manual_seed(1)).double()
    alone = [theirs(prompt._replace(x_query=prompt.x_query[:, i : i + 1]))[:, -1] for i in range(3)]
    torch.testing.assert_close(ours.on_prompt(prompt).prediction, torch.stack(alone, dim=1), atol=1e-12, rtol=1e-12)
    shorter = [theirs(prompt.first(2)._replace(x_query=prompt.x_query[:, i : i + 1]))[:, -1] for i in range(3)]
    padded = ours.on_prompt(prompt.padded_after(2)).prediction
    torch.testing.assert_close(padded, torch.stack(shorter, dim=1), atol=1e-12, rtol=1e-12)


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


def test_fresh_weights_are_drawn_as_gpt2_s():
    """Radford et al. 2019, section 2.3; transformers 5.0 to 5.5 forget the division."""
    torch.manual_seed(0)
    network = GPT2(N_DIMS, 64, [4] * 3, 20)
    for layer in network.blocks:
        inner = (layer.attention.query, layer.attention.key, layer.attention.value, layer.mlp[0])
        assert all(abs(part.weight.std() / 0.02 - 1) < 0.06 for part in inner)
        assert all(abs(part.weight.std() * 6**0.5 / 0.02 - 1) < 0.06 for part in (layer.attention.output, layer.mlp[2]))
        biases = [parameter for name, parameter in layer.named_parameters() if name.endswith("bias")]
        assert len(biases) == 8
        assert not any(bias.any() for bias in biases)
    assert abs(network.position.std() / 0.02 - 1) < 0.06


def state_of(theirs, old=False):
    state = theirs.state_dict()
    if old:  # transformers 4.17, which they used, wrote the causal mask too
        for i in range(len(theirs._backbone.h)):
            at = f"_backbone.h.{i}.attn"
            state |= {f"{at}.bias": torch.ones(1, 1, 12, 12).tril().byte(), f"{at}.masked_bias": torch.tensor(-1e4)}
    return state


def file(folder, form, theirs):
    """Their weights as they, or another, would write them."""
    state, path = state_of(theirs, old=form == "state.pt"), folder / form
    if form.endswith("safetensors"):
        save_file(state, path)
    elif form == "state.pt":
        optimizer = torch.optim.Adam(theirs.requires_grad_(True).parameters())
        torch.save({"model_state_dict": state, "optimizer_state_dict": optimizer.state_dict(), "train_step": 7}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(("form", "steps"), [("state.pt", 7), ("model_500.pt", None), ("theirs.safetensors", None)])
@pytest.mark.parametrize("max_points", [N_POINTS, N_POINTS - 2])
def test_a_model_of_garg_predicts_here_what_it_does_there(tmp_path, form, steps, max_points):
    theirs, ours = Garg(4, 2), GPT2(N_DIMS, 16, [4, 4], max_points).double()
    assert load_weights(ours, file(tmp_path, form, theirs)) == steps
    shorter = prompts().first(max_points)
    torch.testing.assert_close(predictions(ours, shorter), theirs(shorter), atol=1e-12, rtol=1e-12)


def test_a_model_of_garg_without_some_heads_is_read(tmp_path):
    """As transformers 4 cut them: out of c_attn and c_proj."""
    theirs, ours = Garg(4, 2), GPT2(N_DIMS, 16, [4, 2], N_POINTS, head_dim=4).double()
    attention = theirs._backbone.h[1].attn
    kept = torch.cat([torch.arange(12), torch.arange(12)[4:12]])[:8]
    columns = torch.cat([kept + 16 * part for part in range(3)])
    attention.c_attn.weight = torch.nn.Parameter(attention.c_attn.weight[:, columns])
    attention.c_attn.bias = torch.nn.Parameter(attention.c_attn.bias[columns])
    attention.c_attn.nf, attention.split_size = 24, 8
    attention.c_proj.weight = torch.nn.Parameter(attention.c_proj.weight[kept])
    load_weights(ours, file(tmp_path, "model_1.pt", theirs))
    torch.testing.assert_close(predictions(ours, prompts()), theirs(prompts()), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", [Transformer, GPT2])
def test_a_state_dict_of_ours_is_read(tmp_path, suffix, kind):
    source, target = kind(N_DIMS, 16, [4, 2]), kind(N_DIMS, 16, [4, 2])
    (save_file if suffix == "safetensors" else torch.save)(source.state_dict(), tmp_path / f"ours.{suffix}")
    assert load_weights(target, tmp_path / f"ours.{suffix}") is None
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_names_are_old_only_in_a_checkpoint_of_a_run(tmp_path):
    """A network may have parts of its own that are called transformer or network."""

    class Named(InContextNetwork):
        def __init__(self):
            super().__init__()
            self.n_dims, self.heads = 3, []
            self.transformer, self.network = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)

        def on_prompt(self, prompt, head_mask=None): ...

    trained, other = Named(), Named()
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "it.pt")
    load_weights(other, tmp_path / "it.pt")
    assert torch.equal(other.transformer.weight, trained.transformer.weight)
    assert torch.equal(other.network.weight, trained.network.weight)


def test_a_checkpoint_is_read_of_before_0_7_too(tmp_path):
    module, target = ICLModule(N_DIMS, d_model=16, heads=[4]), Transformer(N_DIMS, 16, [4])
    state = {f"transformer.{name}": values for name, values in module.network.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 30, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    assert load_weights(target, tmp_path / "last.ckpt") == 30
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), target.parameters(), strict=True))


CONFIG_OF_GARG = """
inherit: [base.yaml]
model: !munch.Munch {family: FAMILY, n_dims: 3, n_embd: 16, n_head: 4, n_layer: 2, n_positions: 6}
training: !!python/object:munch.Munch {task: linear_regression}
"""


@pytest.mark.parametrize(
    ("family", "heads", "said"),
    [
        ("gpt2", 4, None),
        (
            "gpt2",
            2,
            "n_head 4 as .*config.yaml says, which makes heads of size 4, but in layer 1 .* have 8; give heads",
        ),
        ("lstm", 4, "of the family lstm as .*config.yaml says, but only gpt2 is known here"),
    ],
)
def test_the_config_beside_the_weights_says_what_they_do_not_show(tmp_path, family, heads, said):
    path, network = file(tmp_path, "state.pt", Garg(4, 2)), GPT2(N_DIMS, 16, [heads] * 2, N_POINTS)
    assert load_weights(network, path) == 7
    (tmp_path / "config.yaml").write_text(CONFIG_OF_GARG.replace("FAMILY", family))
    if said is None:
        assert load_weights(network, path) == 7
        (tmp_path / "config.yaml").write_text("model: {d_model: 3")  # another's, or none
        assert load_weights(network, path) == 7
        return
    with pytest.raises(InputError, match=f"weights is .*state.pt, .*{said}"):
        load_weights(network, path)


SIZES = re.escape(": give it what the file has (n_embd is d_model")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: GPT2(N_DIMS, 32, [4] * 2, 5), f"of a network with d_model 16, but this one has d_model 32{SIZES}"),
        (lambda: GPT2(2, 16, [4], 5), "of a network with n_dims 3, layers 2, but this one has n_dims 2, layers 1"),
        (lambda: GPT2(N_DIMS, 16, [4] * 2, 6), "of a network with max_points 5, but this one has max_points 6"),
        (
            lambda: GPT2(N_DIMS, 16, [4] * 2, 5, head_dim=2),
            r"where layers.0.attention.query.weight has the shape \[16, 16",
        ),
        (
            lambda: GPT2(N_DIMS, 16, [4] * 2, 5, layout="pairs"),
            "a GPT2 of layout 'alternating', but it has layout 'pairs'",
        ),
        (lambda: Transformer(N_DIMS, 16, [4] * 2), "a GPT2 .*, but it has the class Transformer"),
    ],
)
def test_a_network_that_is_another_is_named(tmp_path, network, said):
    with pytest.raises(InputError, match=rf"weights is .*model_1.pt, .*{said}"):
        load_weights(network(), file(tmp_path, "model_1.pt", Garg(4, 2)))


def without(state, name):
    return {other: values for other, values in state.items() if not other.startswith(name)}


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (lambda state: without(state, "_backbone.h.1.ln_2"), r"which lacks _backbone.h.1.ln_2.weight \(and 1 more\)."),
        (lambda state: without(state, "_read_in.weight"), r"which lacks _read_in.weight."),
        (lambda state: state | {"_extra": torch.ones(1)}, "where _extra is no weight of the network."),
        (
            lambda state: state | {"_read_in.bias": torch.ones(1, 1)},
            r"where _read_in.bias has the shape \[1, 1\], as no",
        ),
        (lambda state: {"model_state_dict": 3}, "but it holds no weights: a mapping of names to tensors"),
        (lambda state: {"epoch": 3}, "but it holds no weights: a mapping of names to tensors"),
        (lambda state: [1, 2], "but it holds no weights: a mapping of names to tensors"),
        (lambda state: {"model": torch.nn.Linear(1, 1)}, "but that file is no whole one of tensors and plain values"),
    ],
)
def test_a_file_with_no_weights_of_the_network_is_named(tmp_path, contents, said):
    ours, theirs = pair()
    torch.save(contents(state_of(theirs)), tmp_path / "state.pt")
    with pytest.raises(InputError, match=f"weights is .*state.pt, {said}"):
        load_weights(ours, tmp_path / "state.pt")


@pytest.mark.parametrize("name", ["state.pt", "its.safetensors"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"weights is .*{name}, but there is no such file\."):
        load_weights(GPT2(N_DIMS), tmp_path / name)
    (tmp_path / name).write_bytes(b"not at all")
    with pytest.raises(InputError, match=rf"weights is .*{name}, but that file is no whole one of tensors"):
        load_weights(GPT2(N_DIMS), tmp_path / name)


CONFIG = f"""
data:
  task: {{class_path: SparseLinearRegression, init_args: {{n_dims: {N_DIMS}, sparsity: 2}}}}
  n_points: {N_POINTS}
  n_queries: 1
  eval_prompts: 8
  eval_batch_size: 8
model:
  network: {{class_path: GPT2, init_args: {{d_model: 16, heads: [4, 4], max_points: {N_POINTS}}}}}
trainer:
  accelerator: cpu
  devices: 1
  logger: false
  enable_progress_bar: false
  callbacks:
    - {{class_path: HeadImportance, init_args: {{n_prompts: 8, scores: [leave_one_out]}}}}
    - class_path: HeadPruning
      init_args: {{n_prompts: 8, fit_prompts: 8, n_random: 1, finetune_steps: 1, strategies: [PaperPruning]}}
"""


def ablated_error(theirs, prompt, layer=None, head=None):
    """Their own excess risk, with a head's part of what c_proj is given set to 0."""

    def zero(_, inputs):
        (z,) = inputs
        z = z.clone()
        z[..., 4 * head : 4 * head + 4] = 0
        return (z,)

    hooks = [] if layer is None else [theirs._backbone.h[layer].attn.c_proj.register_forward_pre_hook(zero)]
    risk = (theirs(prompt)[:, -1:] - prompt.f_query).square().mean()
    for hook in hooks:
        hook.remove()
    return float(risk)


def test_a_model_of_garg_is_opened_analysed_and_pruned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theirs = Garg(4, 2)
    file(tmp_path, "state.pt", theirs.float())
    (tmp_path / "config.yaml").write_text(CONFIG)
    main(["validate", "--config", "config.yaml", "--weights", "state.pt", "--run_folder", "opened"])
    run, theirs = load_run("opened"), theirs.double()
    prompt = run.data.held_out("head_importance", 8).double()
    rows = run.table[run.table["metric"].isin(["heads/risk", "heads/leave_one_out/importance"])]
    full = ablated_error(theirs, prompt)
    expected = [full] + [ablated_error(theirs, prompt, i, h) - full for i in range(2) for h in range(4)]
    assert rows["value"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert set(run.table["step"]) == {7} == {run.module.trained_steps}
    main(["prune", "--ckpt_path", "opened/checkpoints/last.ckpt", "--keep", "[[1, 3], [2]]", "--output", "pruned"])
    smaller = loaded_module("pruned/checkpoints/last.ckpt").network
    assert (type(smaller), smaller.heads) == (GPT2, [2, 1])
    # The file was for a start; what came of it is in the checkpoint.
    again = ["--config", "opened/config.yaml", "--ckpt_path", "opened/checkpoints/last.ckpt"]
    main(["validate", *again, "--run_folder", "again"])
    assert load_run("again").table["value"].equals(run.table["value"])
    with pytest.raises(SystemExit):
        main(["validate", "--config", "config.yaml", "--weights", "stat.pt"])
    assert "weights is stat.pt, but there is no such file" in capsys.readouterr().err
