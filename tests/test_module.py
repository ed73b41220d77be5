"""Training: loss, schedule, optimizers, precision, metrics."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Kept, small_data, small_module, small_trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim import AdamW, Muon
from torch.optim._muon import _zeropower_via_newtonschulz
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_icl import SparseLinearRegression
from lightning_icl.callbacks import PruningSchedule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.pruning import GreedyRemoval
from lightning_icl.metrics import ExcessRisk
from lightning_icl.optimizers import WHOLE, BlockMuon, Blocks, OptimizerPair, adamw, orthogonalised


def fitted(tmp_path, module=None, data=None, **options):
    """Losses and learning rates of every step, as logged."""
    logger, module = Kept(), module or small_module()
    trainer = small_trainer(tmp_path, **({"logger": logger, "log_every_n_steps": 1} | options))
    trainer.fit(module, datamodule=data or small_data())
    losses, rates = logger.series("train/loss"), logger.series("train/learning_rate")
    assert [step for step, _ in losses] == [step for step, _ in rates] == list(range(1, trainer.global_step + 1))
    return SimpleNamespace(losses=[v for _, v in losses], rates=[v for _, v in rates]), module, trainer


@pytest.mark.parametrize(("target", "field"), [("noise_free", "f_query"), ("noisy", "y_query")])
def test_loss_is_the_mean_squared_error_at_the_queries(tmp_path, target, field):
    module = small_module(target=target)
    prompt = small_data().sample("train", 0)
    prediction = module(prompt).detach().numpy().astype(np.float64)
    expected = np.mean((prediction - getattr(prompt, field).numpy()) ** 2)
    history, _, _ = fitted(tmp_path, module, max_steps=1)
    assert history.losses == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize(("target", "suffix"), [("noise_free", "f"), ("noisy", "y")])
@pytest.mark.parametrize("layout", ["prefixes", "alternating"])
def test_the_loss_weighs_every_predicted_position_alike_and_padding_not_at_all(layout, target, suffix):
    module = small_module(target=target, layout=layout, mask="causal")
    whole = small_data().sample("train", 0)
    for n, prompt in ((5, whole), (3, whole.padded_after(3)), (5, whole.padded_after(5))):
        output = module.output(prompt)
        errors = [(output.prediction - getattr(prompt, f"{suffix}_query")).detach().numpy()]
        errors.append((output.prefix_prediction[:, :n] - getattr(prompt, suffix)[:, :n]).detach().numpy())
        expected = np.mean(np.concatenate(errors, axis=1).astype(np.float64) ** 2)
        assert module.loss(prompt).item() == pytest.approx(expected, rel=1e-5)
        if prompt.point_mask is not None:  # whatever stands at padding, no gradient comes from it
            other = prompt._replace(y=prompt.y + ~prompt.point_mask, f=prompt.f + ~prompt.point_mask)
            assert module.loss(other).item() == module.loss(prompt).item()


@pytest.mark.parametrize("layout", ["prefixes", "alternating"])
def test_prompts_without_noise_free_targets_at_the_examples_are_named(layout):
    prompt = small_data().sample("train", 0)._replace(f=None)
    with pytest.raises(InputError, match=r"no noise-free targets at the examples \(Prompt.f\), which a network"):
        small_module(layout=layout, mask="causal", target="noise_free").loss(prompt)
    assert small_module(layout=layout, mask="causal").loss(prompt).isfinite()
    assert small_module(target="noise_free").loss(prompt).isfinite()


@pytest.mark.parametrize(("layout", "precision"), [("prefixes", "bf16-mixed"), ("alternating", "32-true")])
def test_every_layout_trains_with_padding_and_positions(tmp_path, layout, precision):
    module = small_module(layout=layout, mask="causal", position="learned", max_points=5, learning_rate=1e-2)
    data = small_data(n_points=(2, 5), batch_size=64, eval_prompts=64, eval_batch_size=64)
    before = module.loss(data.sample("train", 0)).item()
    history, module, trainer = fitted(tmp_path, module, data, max_steps=100, precision=precision, val_check_interval=50)
    assert np.mean(history.losses[-20:]) < 0.9 * before
    assert float(trainer.callback_metrics["val/excess_risk/transformer"]) > 0


def test_learning_rate_warms_up_linearly_and_decays_as_a_cosine(tmp_path):
    history, _, _ = fitted(tmp_path, small_module(warmup_steps=4, learning_rate=0.5), max_steps=12)
    warm = [0.5 * (step + 1) / 4 for step in range(4)]
    cosine = [0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert history.rates == pytest.approx(warm + cosine, rel=1e-5)


def test_a_constant_schedule_stays_at_the_peak_after_warm_up(tmp_path):
    module = small_module(warmup_steps=4, learning_rate=0.5, schedule="constant")
    history, _, _ = fitted(tmp_path, module, max_steps=8)
    assert history.rates == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5], rel=1e-6)


class _Transfers(TorchDispatchMode):
    """Counts what waits for a device or feeds it from Python: .item() and the like, and tensors of Python numbers.

    On a CPU no copy to a device can be seen, but each would begin as one of the latter or as a copy of another dtype.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "lift_fresh", "_to_copy")):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


class _Watched(Callback):
    """Has the operations of steps 21 to 39 counted, from sampling to schedule."""

    def __init__(self):
        self.transfers = _Transfers()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 20:
            self.transfers.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 38:
            self.transfers.__exit__(None, None, None)


def transfers_of(folder, log_every_n_steps, module):
    watched = _Watched()
    callbacks = [watched, PruningSchedule([GreedyRemoval(n_heads=5)], steps=[10], n_prompts=8)]
    options = {"max_steps": 40, "gradient_clip_val": 1.0, "limit_val_batches": 0, "logger": Kept()}
    trainer = small_trainer(folder, callbacks, log_every_n_steps=log_every_n_steps, **options)
    trainer.fit(module, datamodule=small_data())
    return watched.transfers.found


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", {}),
        ("muon", {"layout": "alternating", "mask": "causal", "attention": "relu"}),
        ("muon_per_head", {}),
    ],
    ids=str,
)
def test_no_step_but_logged_ones_reads_from_the_device_or_writes_to_it(tmp_path, optimizer, options):
    assert transfers_of(tmp_path, 20, small_module(optimizer=optimizer, **options)) == []


def test_a_logged_step_reads_from_the_device(tmp_path):
    assert "aten._local_scalar_dense.default" in transfers_of(tmp_path, 10, small_module())


def test_monitors_and_the_bar_find_the_loss(tmp_path):
    class Seen(Callback):
        at_batches, at_validations, bar = [], [], []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            assert trainer.callback_metrics["train/loss"] == outputs["loss"]
            self.at_batches.append(float(outputs["loss"]))

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.bar.append(trainer.progress_bar_metrics.get("train/loss"))

        def on_validation_end(self, trainer, module):
            self.at_validations.append(float(trainer.callback_metrics["train/loss"]))

    seen = Seen()
    stop = EarlyStopping("train/loss", patience=100, strict=True, check_finite=True)
    keep = ModelCheckpoint(tmp_path, monitor="train/loss", every_n_train_steps=2, save_top_k=-1)
    options = {"max_steps": 12, "val_check_interval": 4, "num_sanity_val_steps": 0, "log_every_n_steps": 5}
    fitted_trainer = small_trainer(tmp_path, [seen, stop, keep], enable_checkpointing=True, **options)
    fitted_trainer.fit(small_module(), datamodule=small_data())
    assert seen.at_validations == seen.at_batches[3::4]
    assert seen.bar[4:11] == [None, *[seen.at_batches[4]] * 5, seen.at_batches[9]]
    assert sorted(map(float, keep.best_k_models.values())) == sorted(seen.at_batches[1::2])
    assert float(stop.best_score) == min(seen.at_validations)


def test_the_loss_is_against_noisy_labels_unless_told_otherwise():
    prompt = small_data().sample("train", 0)
    plain, noisy, clean = (small_module(**options) for options in ({}, {"target": "noisy"}, {"target": "noise_free"}))
    assert plain.loss(prompt) == noisy.loss(prompt) != clean.loss(prompt)


@pytest.mark.parametrize("optimizer", ["muon", "muon_per_head", "soap"])
def test_muon_and_soap_take_the_hidden_matrices_and_adamw_the_rest(optimizer):
    module = small_module(optimizer=optimizer, mlp=True)
    optimizer = module.fresh_optimizer()
    names = {id(p): name for name, p in module.named_parameters()}
    matrices, others = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert all("layers" in name and name.endswith("weight") and "norm" not in name for name in matrices)
    assert len(matrices) == 2 * 6
    assert {"network.read_in.weight", "network.read_out.weight"} <= set(others)
    assert len(matrices) + len(others) == len(names)


@pytest.mark.parametrize("blocks", [WHOLE, Blocks(1, 1)])
def test_the_pair_steps_like_torch_s_muon_and_adamw_and_goes_on_from_their_checkpoints(blocks):
    """But for the rounding in bfloat16 of torch's Newton-Schulz."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (6, 4), (4, 6), (4, 4), (4,), (3, 2))]
    apart = [torch.nn.Parameter(p.detach().clone()) for p in weights]
    options = {"lr": 0.1, "weight_decay": 0.01}
    separate = Muon(apart[:4], adjust_lr_fn="match_rms_adamw", **options), AdamW(apart[4:], **options)
    on_matrices = BlockMuon(weights[:4], **options, blocks=dict.fromkeys(weights[:4], blocks))
    pair = OptimizerPair(on_matrices, adamw(weights[4:], **options))
    for step in range(6):
        if step == 3:
            first, second = (copy.deepcopy(optimizer.state_dict()) for optimizer in separate)
            second["param_groups"][0]["params"] = [4, 5]
            state = {i + 4: value for i, value in second["state"].items()} | first["state"]
            known, stock = pair.state_dict(), first["param_groups"] + second["param_groups"]
            assert [set(group) for group in known["param_groups"]] == [set(group) for group in stock]
            torch.testing.assert_close(known["state"], state, rtol=1e-5, atol=1e-5)
            pair = OptimizerPair(BlockMuon(weights[:4], 9.0, 0.0), adamw(weights[4:], 9.0, 0.0))
            pair.load_state_dict({"state": state, "param_groups": stock})
        for params in (weights, apart):
            gradients_(params, step)
        for optimizer in (pair, *separate):
            optimizer.step()
        torch.testing.assert_close(weights, apart, rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (16, 16), (8, 64)])
def test_many_matrices_are_orthogonalised_as_torch_does_each(shape):
    matrices = (
        torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 5)[:, None, None]
    )
    matrices[3] = 0
    coefficients = Muon([torch.nn.Parameter(torch.ones(1, 1))]).defaults["ns_coefficients"]
    expected = torch.stack([_zeropower_via_newtonschulz(m, coefficients, 5, 1e-7) for m in matrices])
    found = orthogonalised(matrices.bfloat16(), coefficients, 5, 1e-7)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    torch.testing.assert_close(orthogonalised(matrices, coefficients, 5, 1e-7), expected.float(), rtol=0, atol=0.03)


def blocks_by_hand(module):
    """Every matrix that muon_per_head updates, cut into heads as MultiHeadAttention has them; muon's, whole."""
    if module.optimizer == "muon":
        yield from ((w, ...) for w in module.network.layers.parameters() if w.dim() == 2)
        return
    for layer in module.network.blocks:
        attention, size = layer.attention, layer.attention.head_dim
        for head in range(attention.n_heads):
            entries = slice(head * size, (head + 1) * size)
            for projection in (attention.query, attention.key, attention.value):
                yield projection.weight, (entries, slice(None))
            yield attention.output.weight, (slice(None), entries)
        for linear in [] if layer.mlp is None else [layer.mlp[0], layer.mlp[2]]:
            yield linear.weight, (slice(None), slice(None))


def gradients_(parameters, step):
    """Gradients of very different sizes, so that heads and matrices must not be normalised together."""
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = noise * torch.logspace(-3, 1, p.numel(), dtype=p.dtype).view_as(p)


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": [4, 2]},
        {"heads": [3, 1, 2], "head_dim": [1, 16, 20], "mlp": False},
        {"heads": [1, 1]},
        {"heads": [5, 2], "head_dim": 24, "norm": "post"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["muon", "muon_per_head"])
def test_both_muons_step_as_torch_s_does_on_each_matrix_or_head_apart(name, shape, monkeypatch):
    """In float64: on matrices cut by hand torch's Muon is another route, but for its rounding to bfloat16."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    module = small_module(optimizer=name, learning_rate=0.1, weight_decay=0.01, **shape).double()
    start = copy.deepcopy(module.state_dict())
    optimizer = module.fresh_optimizer()
    cut = [(weight, place, weight[place].detach().clone()) for weight, place in blocks_by_hand(module)]
    assert sum(block.numel() for *_, block in cut) == sum(p.numel() for p in optimizer.param_groups[0]["params"])
    apart = Muon([block for *_, block in cut], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for step in range(6):
        if step == 3:  # resumed
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = module.fresh_optimizer()
            optimizer.load_state_dict(state)
        gradients_(module.parameters(), step)
        for weight, place, block in cut:
            block.grad = weight.grad[place].clone()
        optimizer.step()
        apart.step()
    for weight, place, block in cut:
        torch.testing.assert_close(weight[place].detach(), block, rtol=0, atol=1e-9)
    moved = max((module.state_dict()[name] - value).abs().max() for name, value in start.items())
    assert moved > 0.1


def test_what_muon_per_head_saves_is_what_muon_saves():
    states = []
    for name in ("muon", "muon_per_head"):
        module = small_module(optimizer=name)
        optimizer = module.fresh_optimizer()
        gradients_(module.parameters(), 0)
        optimizer.step()
        states.append(optimizer.state_dict())
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)


def test_a_head_without_gradient_keeps_muon_per_head_from_moving_it_alone():
    module = small_module(optimizer="muon_per_head", heads=[4], weight_decay=0.0, mlp=False)
    optimizer, value = module.fresh_optimizer(), module.network.blocks[0].attention.value.weight
    before = value.detach().clone()
    gradients_([value], 0)
    value.grad[4:8] = 0
    optimizer.step()
    still = (value == before).all(dim=1)
    assert still[4:8].all()
    assert not still[:4].any()
    assert not still[8:].any()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon_per_head", "soap"])
def test_every_precision_trains_and_measures_in_float64(tmp_path, precision, optimizer):
    module = small_module(optimizer=optimizer, learning_rate=1e-2)
    before = copy.deepcopy(module.state_dict())
    history, module, trainer = fitted(
        tmp_path, module, precision=precision, max_steps=8, val_check_interval=0.5, gradient_clip_val=1.0
    )
    assert np.isfinite(history.losses).all()
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert any(not torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.risks[0].total.dtype == torch.float64
    assert float(trainer.callback_metrics["val/excess_risk/transformer"]) > 0


def test_training_learns(tmp_path):
    """In 300 steps the model must beat the zero predictor by far more than the noise of the comparison."""
    data = small_data(batch_size=64, eval_prompts=512, eval_batch_size=512, n_queries=16)
    module = small_module(optimizer="muon", learning_rate=1e-2, mlp=False)
    fitted(tmp_path, module, data, max_steps=300)
    prompt = data.sample("validate", 0)
    gain = (prompt.f_query.square() - (module(prompt) - prompt.f_query).square()).mean(dim=1)
    assert gain.mean() > 10 * gain.std() / 512**0.5
    assert gain.mean() > 0.5 * prompt.f_query.square().mean()


def test_training_goes_on_after_a_standalone_validation(tmp_path):
    module, data = small_module(), small_data()
    small_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    history, _, _ = fitted(tmp_path, module, data, val_check_interval=0.5)
    assert len(history.losses) == 6


def test_divergence_stops_with_a_sentence(tmp_path):
    module = small_module()
    with torch.no_grad():
        module.network.read_out.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="training has diverged"):
        fitted(tmp_path, module, num_sanity_val_steps=0)


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 5)])
def test_excess_risk_metric_is_the_mean_over_everything_it_saw(sizes):
    generator = torch.Generator().manual_seed(0)
    metric, errors = ExcessRisk(), []
    for size in sizes:
        prediction, f = torch.randn(2, size, 4, generator=generator)
        metric.update(prediction, f)
        errors.append(((prediction.double() - f.double()) ** 2).numpy())
    assert float(metric.compute()) == pytest.approx(np.concatenate(errors).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        small_module(**options)


def test_the_three_targets_have_the_same_minimiser_and_falling_variance(unchecked):
    """A step's gradient has the same mean with each, within four standard errors of the paired differences."""
    data = small_data(SparseLinearRegression(4, 1, noise_std=0.8), batch_size=16)
    modules = [small_module(target=target, heads=[2]) for target in ("noisy", "noise_free", "posterior_mean")]
    gradients = []
    for module in modules:
        module.load_state_dict(modules[0].state_dict())
        module._trainer = SimpleNamespace(datamodule=data)
    for step in range(400):
        prompt = data.sample("train", step)
        of_step = [torch.autograd.grad(m.loss(prompt), m.network.read_out.weight)[0].flatten() for m in modules]
        gradients.append(torch.stack(of_step).double())
    gradients = torch.stack(gradients)  # (steps, targets, width)
    differences = gradients[:, 1:] - gradients[:, :1]
    errors = differences.std(0) / len(gradients) ** 0.5
    assert (differences.mean(0).abs() < 4 * errors).all()
    # What each target adds to the next is uncorrelated with that, so the variances add.
    for near, far in ((1, 0), (2, 1)):
        clean, added = (part - part.mean(0) for part in (gradients[:, near], gradients[:, far] - gradients[:, near]))
        assert (added.std(0) > 0).all()
        products = clean * added
        assert (products.mean(0).abs() < 4 * products.std(0) / len(gradients) ** 0.5).all()
    noisy, noise_free, posterior_mean = gradients.var(0).sum(-1)
    assert noisy > 1.05 * noise_free > 1.05**2 * posterior_mean


def test_a_posterior_mean_that_is_not_there_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="layout is 'prefixes'"):
        small_module(target="posterior_mean", layout="prefixes", mask="causal")
    unknown = small_data(SparseLinearRegression(4, 1, noise_std=0.5, noise="student_t"))
    with pytest.raises(InputError, match="no exact posterior in closed form"):
        small_trainer(tmp_path).fit(small_module(target="posterior_mean"), unknown)
    large = small_data(SparseLinearRegression(24, 6, noise_std=0.5))
    with pytest.raises(InputError, match="this SparseLinearRegression has one of 134,596 terms, too many; set it to"):
        small_trainer(tmp_path).fit(small_module(target="posterior_mean", n_dims=24), large)
