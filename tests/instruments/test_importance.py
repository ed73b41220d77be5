"""Every score against models with heads taken out of the weights, hooks and finite differences; and planted heads."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_ablation import TASK, model, replaced_by_hooks, sampled

from lightning_icl import Transformer
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.instruments.ablation import AblatedHeads
from lightning_icl.instruments.importance import (
    gradient_magnitudes,
    head_importance,
    values_by_score,
)

VARIANTS = [
    {},
    {"mlp": False, "norm": "none", "attention": "linear"},
    {"heads": [2, 0, 2], "norm": "post", "attention": "relu"},
    {"heads": [1]},
    {"mask": "causal", "layout": "prefixes"},
    {"mask": "causal", "layout": "alternating"},
]


def errors(transformer, prompt):
    """Squared error of each prompt, in a plain loop."""
    prediction = transformer.on_prompt(prompt).prediction.detach().numpy()
    return np.array([np.mean((p - f) ** 2) for p, f in zip(prediction, prompt.f_query.numpy(), strict=True)])


def without(transformer, ablated):
    """A copy of the model with the value rows of the listed (layer, head) pairs zeroed."""
    changed = copy.deepcopy(transformer)
    for layer, head in ablated:
        attention = changed.layers[layer].attention
        attention.value.weight.data[head * attention.head_dim : (head + 1) * attention.head_dim] = 0
    return changed


def places(heads):
    return [(layer, head) for layer, n in enumerate(heads) for head in range(n)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_leave_one_out_and_in_equal_models_without_the_heads(options, chunk_size):
    transformer, prompt = model(**options), sampled(5).double()
    found_errors, found = values_by_score(transformer, prompt, chunk_size=chunk_size)
    full = errors(transformer, prompt)
    np.testing.assert_allclose(found_errors, full, rtol=1e-9)
    for i, (layer, head) in enumerate(places(transformer.heads)):
        of_layer = [place for place in places(transformer.heads) if place[0] == layer]
        out = errors(without(transformer, [(layer, head)]), prompt) - full
        others = [place for place in of_layer if place != (layer, head)]
        alone = errors(without(transformer, of_layer), prompt) - errors(without(transformer, others), prompt)
        np.testing.assert_allclose(found["leave_one_out"][i], out, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found["leave_one_in"][i], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_scores_under_mean_and_resample_ablation_equal_hooks(ablation):
    transformer, prompt, reference = model(), sampled(5).double(), sampled(5, seed=1).double()
    heads = transformer.heads
    _, found = values_by_score(transformer, prompt, ablations=[AblatedHeads(ablation, reference)])

    def replaced(ablated):
        mask = full_mask(heads).double()
        for layer, head in ablated:
            mask[layer, head] = 0
        prediction = replaced_by_hooks(transformer, prompt, mask, reference, ablation)
        return (prediction - prompt.f_query).square().mean(dim=1).detach()

    for i, (layer, head) in enumerate(places(heads)):
        of_layer = [place for place in places(heads) if place[0] == layer]
        others = [place for place in of_layer if place != (layer, head)]
        out, alone = replaced([(layer, head)]) - replaced([]), replaced(of_layer) - replaced(others)
        torch.testing.assert_close(found[f"leave_one_out_{ablation}"][i], out, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found[f"leave_one_in_{ablation}"][i], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_the_gradient_score_equals_finite_differences(options, chunk_size):
    transformer, prompt, step = model(**options), sampled(5).double(), 1e-5
    found = gradient_magnitudes(transformer, prompt, chunk_size=chunk_size)
    for i, (layer, head) in enumerate(places(transformer.heads)):
        sides = []
        for sign in (1, -1):
            mask = full_mask(transformer.heads).double()
            mask[layer, head] += sign * step
            prediction = transformer.on_prompt(prompt, mask).prediction
            sides.append((prediction - prompt.f_query).square().mean(dim=1).detach())
        torch.testing.assert_close(found[i], ((sides[0] - sides[1]) / (2 * step)).abs(), rtol=1e-6, atol=1e-7)


def test_the_gradient_score_is_had_under_inference_mode_and_leaves_nothing_behind():
    transformer = model()
    expected = gradient_magnitudes(transformer, sampled(3).double())
    with torch.inference_mode():
        found = gradient_magnitudes(transformer, sampled(3).double())
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in transformer.parameters())


def test_tables_errors_and_agreement_are_those_of_the_values():
    transformer, prompt, reference = model(), sampled(20).double(), sampled(20, seed=1).double()
    ablations = [AblatedHeads(), AblatedHeads("resample", reference)]
    full, values = values_by_score(transformer, prompt, ablations=ablations)
    found = head_importance(transformer, prompt, ablations=ablations)
    names = ["leave_one_out", "leave_one_in", "leave_one_out_resample", "leave_one_in_resample", "gradient"]
    assert list(found.scores) == list(values) == names
    assert len(found.agreement) == 10
    real = full_mask(transformer.heads).bool()
    for name, scores in found.scores.items():
        torch.testing.assert_close(scores.raw.value[real], values[name].mean(dim=1), rtol=0, atol=1e-12)
        torch.testing.assert_close(scores.raw.error[real], values[name].std(dim=1) / 20**0.5, rtol=1e-9, atol=0)
        assert scores.raw.value[~real].isnan().all()
    rho = spearmanr(values["leave_one_in"].mean(dim=1), values["gradient"].mean(dim=1)).statistic
    assert found.agreement["leave_one_in_and_gradient"].overall.item() == pytest.approx(rho, abs=1e-12)
    assert found.risk.value.item() == pytest.approx(full.mean().item())
    assert found.risk.error.item() == pytest.approx(full.std().item() / 20**0.5)
    assert found.risk.interval.mean().item() == pytest.approx(found.risk.value.item())


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_scores_by_number_of_examples_are_those_of_prompts_padded_after_them(ablation):
    transformer, prompt, reference = model(), sampled(6).double(), sampled(6, seed=1).double()
    ablated = AblatedHeads(ablation, None if ablation == "zero" else reference)
    for n in (1, 3, 4):
        found = head_importance(transformer, prompt, ablations=[ablated], n_points=n)
        padded = ablated if ablation == "zero" else ablated._replace(reference=reference.padded_after(n))
        expected = head_importance(transformer, prompt.padded_after(n), ablations=[padded])
        for name, scores in expected.scores.items():
            torch.testing.assert_close(
                found.scores[name].raw.value, scores.raw.value, rtol=1e-8, atol=1e-9, equal_nan=True
            )


def test_any_differentiable_metric_serves():
    transformer, prompt = model(), sampled(5).double()

    def against_labels(prediction, prompt):
        return (prediction - prompt.y_query).abs().sum(dim=1).double()

    full, values = values_by_score(transformer, prompt, metric=against_labels)
    changed = against_labels(without(transformer, [(0, 1)]).on_prompt(prompt).prediction, prompt)
    torch.testing.assert_close(values["leave_one_out"][1], (changed - full).detach())
    assert values["gradient"].shape == values["leave_one_out"].shape


# Planted heads


def planted(*layers):
    """A Transformer made by hand, of heads (value, scale): each layer adds sum_h scale_h G_h to the prediction.

    G_h = (1/n) sum_i v_i <x_i, x_q> / sqrt(3) is one step of gradient descent from zero where the value v_i is the
    label ("label"); it knows nothing of the labels where v_i is the first feature ("feature"); "dead" has v_i = 0.
    Tokens are (x, y, prediction): nothing but the last slot is written, so layers add up.
    """
    heads = [len(layer) for layer in layers]
    built = Transformer(3, d_model=5, heads=heads, attention="linear", mlp=False, norm="none", head_dim=3).double()
    for parameter in built.parameters():
        torch.nn.init.zeros_(parameter)
    built.read_in.weight.data[:4] = torch.eye(4)
    built.read_out.weight.data[0, 4] = 1
    for layer, members in zip(built.layers, layers, strict=True):
        for head, (value, scale) in enumerate(members):
            first = 3 * head
            layer.attention.query.weight.data[first : first + 3, :3] = torch.eye(3)
            layer.attention.key.weight.data[first : first + 3, :3] = torch.eye(3)
            if value != "dead":
                layer.attention.value.weight.data[first, {"label": 3, "feature": 0}[value]] = 1
            layer.attention.output.weight.data[4, first] = scale
    return built


def prompts(n=400, seed=0):
    return TASK.sample(n, 12, 4, torch.Generator().manual_seed(seed)).double()


def everything(transformer, prompt):
    references = prompts(len(prompt.x), seed=9)
    ablations = [AblatedHeads(), AblatedHeads("mean", references), AblatedHeads("resample", references)]
    return head_importance(transformer, prompt, ablations=ablations).scores


def test_the_hand_made_model_takes_a_step_of_gradient_descent():
    prompt = prompts(5)
    w = torch.einsum("bn,bnd->bd", prompt.y, prompt.x) / 12 / 3**0.5
    found = planted([("label", 1.0)], [("label", 0.5)]).on_prompt(prompt).prediction
    torch.testing.assert_close(found, 1.5 * torch.einsum("bd,bqd->bq", w, prompt.x_query))


def test_a_dead_head_scores_exactly_zero_everywhere():
    scores = everything(planted([("label", 1.0), ("dead", 1.0)], [("feature", 0.2), ("label", 0.5)]), prompts())
    assert len(scores) == 7
    for found in scores.values():
        assert found.raw.value[0, 1] == found.raw.error[0, 1] == 0
        assert found.raw.interval[:, 0, 1].tolist() == [0, 0]
        assert found.share.value[0, 1] == 0
        assert found.raw.value[0, 0] != 0


def test_leave_one_out_is_blind_to_duplicates_which_leave_one_in_sees():
    """The risk is a parabola in the step size s: with two heads of s*/3 on either side of its vertex, s*, one of them

    (2/3 s*) is as good as both (4/3 s*).
    """
    prompt = prompts()
    step = planted([("label", 1.0)]).on_prompt(prompt).prediction.detach()
    best = ((step * prompt.f_query).mean() / step.square().mean()).item()
    twins = planted([("label", 2 / 3 * best), ("label", 2 / 3 * best), ("feature", 0.01)])
    scores = everything(twins, prompt)
    out, alone = scores["leave_one_out"], scores["leave_one_in"]
    assert out.raw.value[0, :2].abs().max() < 1e-4 * alone.raw.value[0, :2].min()
    for found in (alone, scores["leave_one_in_mean"], scores["leave_one_in_resample"], scores["gradient"]):
        torch.testing.assert_close(found.raw.value[0, 0], found.raw.value[0, 1])
        assert found.raw.interval[0, 0, 0] > 0
        assert found.raw.value[0, 0] > 3 * abs(found.raw.value[0, 2])
    # What a head gains alone is what leaving it out of a model without its twin costs.
    single = everything(planted([("label", 2 / 3 * best), ("dead", 0.0), ("feature", 0.0)]), prompt)["leave_one_out"]
    torch.testing.assert_close(single.raw.value[0, 0], alone.raw.value[0, 0], rtol=1e-9, atol=0)


def test_every_score_points_at_the_one_head_that_carries_the_label():
    noise = ("feature", 0.03)
    scores = everything(planted([noise, noise, noise], [noise, ("label", 1.0), noise]), prompts())
    for name, found in scores.items():
        assert found.raw.value.nan_to_num().flatten().argmax() == 4, name
        assert found.share.value[1].argmax() == 1
        assert found.top_share.value[1] > 0.8, name
        assert found.effective_heads.value[1] < 2
        assert found.raw.interval[0, 1, 1] > 5 * found.raw.value.flatten()[[0, 1, 2, 3, 5]].abs().max()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": ["gradient", "gradient"]}, "but it must be one or more of leave_one_out, leave_one_in, gradient"),
        ({"scores": []}, r"scores is \[\], but"),
        ({"ablations": []}, r"ablations is \[\], but it must be one or more of zero, mean, resample"),
        ({"ablations": [AblatedHeads(), AblatedHeads()]}, "each once"),
        ({"ablations": [AblatedHeads("mean")]}, "needs reference prompts"),
    ],
)
def test_bad_input_is_named(change, sentence):
    with pytest.raises(InputError, match=sentence):
        head_importance(model(), sampled(3).double(), **change)


@pytest.mark.parametrize("n", [0, 5])
def test_a_number_of_examples_that_is_not_there_is_named(n):
    with pytest.raises(InputError, match=f"n_points is {n}, but the prompts have 1 to 4 examples"):
        head_importance(model(), sampled(3).double(), n_points=n)
