"""HeadImportance and HeadPruning against a copy of the model with the heads' value rows zeroed."""

import copy

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import HeadImportance, HeadPruning
from lightning_icl.functional.errors import InputError

HEADS = [4, 2, 1]


def scale_up(module):
    """Weights large enough that heads matter in an untrained model."""
    with torch.no_grad():
        for layer in module.transformer.layers:
            layer.attention.value.weight.mul_(3)
    return module


def slow_errors(module, prompt, ablated):
    """Squared error of each prompt with the listed (layer, head) pairs removed from the weights."""
    model = copy.deepcopy(module)
    for layer, head in ablated:
        block = model.transformer.layers[layer].attention
        block.value.weight.data[head * block.head_dim : (head + 1) * block.head_dim] = 0
    prediction = model(prompt).detach().numpy().astype(np.float64)
    return np.array([np.mean((p - f) ** 2) for p, f in zip(prediction, prompt.f_query.numpy(), strict=True)])


def validated(tmp_path, callbacks, module):
    data = small_data()
    trainer = small_trainer(tmp_path, callbacks)
    trainer.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, data


@pytest.mark.parametrize("chunk_size", [7, 512])
def test_importance_equals_the_slow_way(tmp_path, chunk_size):
    module = scale_up(small_module(heads=HEADS))
    logged, data = validated(tmp_path, [HeadImportance(n_prompts=64, chunk_size=chunk_size)], module)
    prompt = data.held_out("head_importance", 64)
    full = slow_errors(module, prompt, [])
    for layer, n_heads in enumerate(HEADS):
        cost = [slow_errors(module, prompt, [(layer, head)]) - full for head in range(n_heads)]
        positive = np.array([max(c.mean(), 0) for c in cost])
        for head, c in enumerate(cost):
            place = f"layer{layer + 1}/head{head + 1}"
            assert logged[f"heads/importance/{place}"] == pytest.approx(c.mean(), abs=1e-6)
            assert logged[f"heads/standard_error/{place}"] == pytest.approx(c.std(ddof=1) / 8, abs=1e-6)
        total = np.sum(cost, axis=0)
        if total.mean() <= 1.96 * total.std(ddof=1) / 8:
            assert f"heads/effective/layer{layer + 1}" not in logged
            continue
        share = positive / positive.sum()
        entropy = -sum(s * np.log(s) for s in share if s > 0)
        assert logged[f"heads/effective/layer{layer + 1}"] == pytest.approx(np.exp(entropy), rel=1e-4)
        assert logged[f"heads/top_share/layer{layer + 1}"] == pytest.approx(share.max(), rel=1e-4)
        for head in range(n_heads):
            assert logged[f"heads/share/layer{layer + 1}/head{head + 1}"] == pytest.approx(share[head], abs=1e-4)


def test_a_head_without_value_scores_exactly_zero(tmp_path):
    module = scale_up(small_module(heads=HEADS))
    module.transformer.layers[0].attention.value.weight.data[4:8] = 0  # head 2 of layer 1, of size 4
    logged, _ = validated(tmp_path, [HeadImportance(n_prompts=64)], module)
    assert logged["heads/importance/layer1/head2"] == logged["heads/standard_error/layer1/head2"] == 0


@pytest.mark.parametrize("beside_importance", [True, False])
def test_pruning_equals_the_slow_way(tmp_path, beside_importance):
    module = scale_up(small_module(heads=HEADS))
    importance = HeadImportance(n_prompts=64)
    callbacks = [HeadPruning(n_prompts=64), importance] if beside_importance else [HeadPruning(n_prompts=64)]
    logged, data = validated(tmp_path, callbacks, module)
    selection, prompt = data.held_out("head_importance", 64), data.held_out("head_pruning", 64)
    full = slow_errors(module, selection, [])
    cost = [[(slow_errors(module, selection, [(i, h)]) - full).mean() for h in range(n)] for i, n in enumerate(HEADS)]
    top, least = [int(np.argmax(c)) for c in cost], [int(np.argmin(c)) for c in cost]

    def risk(kept):
        ablated = [(i, h) for i, n in enumerate(HEADS) for h in range(n) if h not in kept[i]]
        return slow_errors(module, prompt, ablated).mean()

    every = [range(n) for n in HEADS]
    expected = {
        "full": risk(every),
        "pruned": risk([every[0], [top[1]], [top[2]]]),
        "prune_layer1_instead": risk([[top[0]], every[1], every[2]]),
        "least_important": risk([every[0], [least[1]], [least[2]]]),
    }
    for name, value in expected.items():
        assert logged[f"prune/excess_risk/{name}"] == pytest.approx(value, abs=1e-6)
    assert logged["prune/ratio"] == pytest.approx(expected["pruned"] / expected["full"], rel=1e-5)
    # Layer 3 has one head, so the random control is a mean of draws from two models.
    models = [risk([every[0], [h], [0]]) for h in range(2)]
    weights = (logged["prune/excess_risk/random_head"] - models[0]) / (models[1] - models[0])
    assert weights * 8 == pytest.approx(round(weights * 8), abs=1e-2)


def test_every_n_validations_and_the_last_one(tmp_path):
    at = []

    class Counted(HeadImportance):
        def analyse(self, trainer, module):
            at.append(trainer.global_step)

    trainer = small_trainer(tmp_path, [Counted(every_n_validations=2)], max_steps=10, val_check_interval=2)
    trainer.fit(small_module(), datamodule=small_data())
    assert at == [4, 8, 10]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HeadImportance(n_prompts=1), "n_prompts is 1"),
        (lambda: HeadImportance(chunk_size=0), "chunk_size is 0"),
        (lambda: HeadImportance(every_n_validations=0), "every_n_validations is 0"),
        (lambda: HeadPruning(n_random=0), "n_random is 0"),
    ],
)
def test_bad_options_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()
