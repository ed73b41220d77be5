"""A model on a device takes CPU masks: on the meta device, where mixing devices raises as it does on a GPU."""

import itertools

import pytest
import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.heads import full_mask, importance_scores, single_removals
from lightning_icl.functional.prompts import Prompt
from lightning_icl.instruments.ablation import AblatedHeads, errors_under_masks, head_outputs
from lightning_icl.instruments.circuits import attention_patterns, head_circuits
from lightning_icl.instruments.importance import SCORES, values_by_score
from lightning_icl.instruments.pruning import cut_heads_, fine_tuned
from lightning_icl.instruments.removal import remove_heads

HEADS, N = [2, 0, 1], 5  # few: on the meta device each operation takes a millisecond
LAYOUTS = [
    ("pairs", "context"),
    ("pairs", "full"),
    ("pairs", "causal"),
    ("prefixes", "causal"),
    ("alternating", "causal"),
]
# No masks and no positions, or both: neither knows of the other, nor of the attention, with which they take turns.
OPTIONS = [
    (*some, *more)
    for some, more in zip(
        itertools.product(LAYOUTS, ["softmax", "linear", "relu"]),
        itertools.cycle([("none", False), ("learned", True)]),
        strict=False,
    )
]


def on_meta(prompt):
    return Prompt._make(None if field is None else field.to("meta") for field in prompt)


def prompts(seed=0):
    return SparseLinearRegression(3, 2, noise_std=0.3).sample(N, 4, 2, torch.Generator().manual_seed(seed))


def model(layout="pairs", mask="causal", attention="softmax", position="none"):
    with torch.device("meta"):
        options = {"layout": layout, "mask": mask, "attention": attention, "position": position, "max_points": 4}
        return Transformer(3, d_model=12, heads=HEADS, head_dim=4, **options)


def test_mixing_devices_raises_there():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, 3) * torch.ones(2, 3, device="meta")


@pytest.mark.parametrize(("kind", "attention", "position", "padded"), OPTIONS)
def test_forward_moves_masks_to_the_model(kind, attention, position, padded):
    transformer, mask = model(*kind, attention, position), full_mask(HEADS)
    prompt = on_meta(prompts())
    if padded:  # a mask of the examples on the CPU, too
        prompt = prompt._replace(point_mask=prompts().padded_after(3).point_mask)
    for head_mask in (None, mask, mask.expand(N, -1, -1)):
        for last_context in (True, False):
            found = transformer.on_prompt(prompt, head_mask, last_context)
            assert (found.prediction.device.type, found.prediction.shape) == ("meta", (N, 2))
            assert {states.device.type for states in (*found.query_states, *found.context_states)} == {"meta"}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("attention", ["softmax", "linear", "relu"])
def test_readings_circuits_and_patterns_run_there(kind, attention):
    transformer, prompt = model(*kind, attention), on_meta(prompts())
    found = head_circuits(transformer)
    assert {part.device.type for layer in found for part in layer} == {"meta"}
    for read in (attention_patterns(transformer, prompt), head_outputs(transformer, prompt)):
        assert {None if part is None else part.device.type for part in read} <= {"meta", None}


@pytest.mark.parametrize(
    ("kind", "ablation"), zip(LAYOUTS, itertools.cycle(["zero", "mean", "resample"]), strict=False)
)
def test_scores_of_heads_are_taken_under_masks_from_the_cpu(kind, ablation):
    transformer, prompt = model(*kind), on_meta(prompts())
    ablated = AblatedHeads(ablation, None if ablation == "zero" else on_meta(prompts(1)))
    under = errors_under_masks(transformer, prompt, single_removals(full_mask(HEADS)), ablated, chunk_size=3)
    assert (under.device.type, under.shape) == ("meta", (sum(HEADS), N))
    scores = SCORES if ablation == "zero" else SCORES[:2]  # the gradient's knows of no ablation
    errors, values = values_by_score(transformer, prompt, scores, [ablated], chunk_size=3)
    for found in (errors, *values.values()):
        assert (found.device.type, found.shape[-1]) == ("meta", N)
    assert "gradient" not in values or values["gradient"].shape == (sum(HEADS), N)


def test_tables_of_scores_are_made_there():
    values = torch.empty(sum(HEADS), 50, device="meta", dtype=torch.float64)
    for measured in importance_scores(values, HEADS):
        assert {part.device.type for part in measured} == {"meta"}


def test_heads_are_cut_and_removed_by_masks_from_the_cpu():
    transformer, keep = model(), full_mask(HEADS)
    keep[0, 1] = 0
    assert remove_heads(transformer, keep).heads == [1, 0, 1]
    optimizer = torch.optim.AdamW(transformer.parameters())
    transformer.on_prompt(on_meta(prompts()), keep).prediction.sum().backward()
    optimizer.step()
    cut_heads_(transformer, keep, optimizer)
    tuned = fine_tuned(transformer, keep, lambda step: on_meta(prompts(step)), n_steps=2)
    assert (tuned.network.heads, tuned.network.read_out.weight.device.type) == ([1, 0, 1], "meta")
