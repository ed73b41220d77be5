"""Weights from files: Garg et al.'s forms against their own forward pass, ours against the network they came from."""

import re

import pytest
import torch
from safetensors.torch import save_file
from test_gpt2 import N_DIMS, N_POINTS, Garg, pair, predictions, prompts

from lightning_icl import GPT2, ICLModule, Transformer, load_weights
from lightning_icl.cli import main
from lightning_icl.functional.errors import InputError
from lightning_icl.record import load_run
from lightning_icl.record.loading import loaded_module


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


def test_a_checkpoint_is_read_of_before_0_7_too(tmp_path):
    module, target = ICLModule(N_DIMS, d_model=16, heads=[4]), Transformer(N_DIMS, 16, [4])
    state = {f"transformer.{name}": values for name, values in module.network.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 30, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    assert load_weights(target, tmp_path / "last.ckpt") == 30
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), target.parameters(), strict=True))


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
            "a GPT2 of layout 'alternating', but the network has layout 'pairs'",
        ),
        (lambda: Transformer(N_DIMS, 16, [4] * 2), "a GPT2 .*, but the network has the class Transformer"),
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
    - {{class_path: HeadPruning, init_args: {{n_prompts: 8, fit_prompts: 8, n_random: 2, finetune_steps: 1}}}}
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
