"""ConstructionComparison on models that are the construction, that are another, and that were trained from it."""

import pytest
import torch
from conftest import numbers, small_data, small_module, small_trainer
from reference_pages import check_metrics

from lightning_icl import ICLModule
from lightning_icl.callbacks import ConstructionComparison
from lightning_icl.cli import main
from lightning_icl.functional.constructions import (
    ConstructedGD,
    ConstructedPreprocessThenGD,
    with_flipped_sign,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.instruments.alignment import state_alignment, weight_alignment, written
from lightning_icl.record.rows import Row, frame

D = 4
P_GD = ConstructedPreprocessThenGD(2, 0.2)


def data():
    return small_data(n_points=24)


def module(construction=P_GD, **options):
    return ICLModule(D, construction=construction, warmup_steps=2, **options)


def validated(tmp_path, model, comparison, prompts=None):
    small_trainer(tmp_path, [comparison]).validate(model, datamodule=prompts or data(), verbose=False)
    return numbers(comparison)


def test_a_model_that_is_its_construction_differs_by_nothing(tmp_path):
    comparison = ConstructionComparison(n_prompts=64)
    found = validated(tmp_path, module(), comparison)
    assert found["construction/risk/difference"] == found["construction/risk/better"] == 0
    assert found["construction/risk/model"] == found["construction/risk/construction"] > 0
    for layer in (1, 2, 3):
        for name in ("states", "beyond_input", "weights", "step"):
            assert found[f"construction/{name}/layer{layer}"] == pytest.approx(1, abs=1e-6)
        assert found[f"construction/heads/overlap/layer{layer}"] == 1
    assert found["construction/states/layer0"] == pytest.approx(1)
    assert found["construction/beyond_input/layer0"] is None
    check_metrics(comparison.rows, "ConstructionComparison")
    lines = comparison.summary(comparison.rows)
    assert lines[2].endswith(": the same within noise")
    assert "  (difference +0 ± 0, paired, 95 %);" in lines
    assert "  use of heads: as it was in layer 1; not to be told in layer 2, 3" in lines  # on so few prompts
    assert max(map(len, lines)) <= 80
    assert comparison.figures(comparison.rows) == {}  # there is no course


def test_rows_are_those_of_the_instruments_on_the_same_prompts(tmp_path):
    prompts, comparison = data(), ConstructionComparison(P_GD, n_prompts=32)
    model = module(ConstructedPreprocessThenGD(2, 0.3, [1, 2]))
    found = validated(tmp_path, model, comparison, prompts)
    fit, score = (prompts.held_out(f"construction_{name}", 32).double() for name in ("fit", "score"))
    networks = model.network.double(), written(P_GD.network(D), D)
    risks = [network.on_prompt(score).prediction.sub(score.f_query).square().mean(dim=1) for network in networks]
    difference = (risks[0] - risks[1]).detach()
    (row,) = comparison.rows[comparison.rows["metric"] == "construction/risk/difference"].itertuples()
    half = 2.0395 * float(difference.std()) / 32**0.5  # Student's t of 31 degrees
    assert row.value == pytest.approx(float(difference.mean()), rel=1e-5)
    assert (row.high - row.low) / 2 == pytest.approx(half, rel=1e-3)
    assert found["construction/risk/better"] == pytest.approx(float((difference < 0).double().mean()))
    for layer, states in enumerate(state_alignment(*networks, fit, score)):
        assert found[f"construction/states/layer{layer}"] == pytest.approx(states.r2.value, abs=1e-5)
    for layer, weights in enumerate(weight_alignment(*networks, fit, score), start=1):
        assert found[f"construction/weights/layer{layer}"] == pytest.approx(weights.cosine.value, abs=1e-5)
        assert found[f"construction/step/layer{layer}"] == pytest.approx(weights.step.value, abs=1e-5)
    assert comparison.summary(comparison.rows)[0] == "The construction (preprocess + GD, 2 steps of 0.2):"


def test_a_wrong_layer_is_found(tmp_path):
    model = module()
    model.network.load_state_dict(with_flipped_sign(P_GD.network(D), 3, 1).state())
    comparison = ConstructionComparison(n_prompts=64)
    found = validated(tmp_path, model, comparison)
    assert [found[f"construction/weights/layer{layer}"] for layer in (1, 2, 3)] == pytest.approx([1, 1, -1], abs=1e-5)
    assert found["construction/risk/difference"] > 0
    assert "it rose" in "\n".join(comparison.summary(comparison.rows))


def test_training_from_noise_on_lowers_the_risk_and_draws_a_course(tmp_path):
    """With noise, compared with the algorithm itself, whose steps are small: 60 of training make up for the noise."""
    comparison = ConstructionComparison(n_prompts=64)
    trainer = small_trainer(tmp_path, [comparison], max_steps=60, val_check_interval=20)
    start = module(ConstructedGD(2, 0.2, weight_noise=0.02), learning_rate=3e-3)
    trainer.fit(start, datamodule=data())
    course = comparison.over_training()
    risks = course[course["metric"] == "construction/risk/difference"]
    assert risks["step"].tolist() == [20, 40, 60]
    assert risks["high"].iloc[-1] < 0
    found = numbers(comparison)
    assert 0.5 < found["construction/weights/layer2"] < 1 - 1e-4
    assert found["construction/step/layer2"] > 1.1
    assert "it improved" in "\n".join(comparison.summary(comparison.rows))
    assert list(comparison.figures(comparison.rows)) == ["construction"]


def test_a_trained_architecture_is_compared_with_any_construction_of_its_depth(tmp_path):
    comparison = ConstructionComparison(ConstructedGD(2, 0.2), n_prompts=64)
    found = validated(tmp_path, small_module(heads=[4, 2]), comparison)
    assert found["construction/states/layer0"] == pytest.approx(1, abs=1e-6)
    assert found["construction/beyond_input/layer1"] < 0.5
    lines = comparison.summary(comparison.rows)
    assert "higher" in lines[2]
    assert max(map(len, lines)) <= 80


def pattern_rows(overlaps, half=0.2):
    rows = [Row(f"construction/risk/{name}", 0.5, 0.4, 0.6, note="it") for name in ("construction", "model")]
    rows += [
        Row("construction/risk/difference", -0.1, -0.1 - half, -0.1 + half),
        Row("construction/risk/better", 0.5, 0.4, 0.6),
    ]
    for layer, overlap in enumerate(overlaps, start=1):
        for name in ("beyond_input", "weights", "step", "heads/effective/construction", "heads/effective/model"):
            rows.append(Row(f"construction/{name}", 1.0, 1.0, 1.0, layer=layer))
        ends = (None, None) if overlap is None else (overlap - 0.05, overlap + 0.05)
        rows.append(Row("construction/heads/overlap", overlap, *ends, layer=layer))
    return frame(rows)


@pytest.mark.parametrize(
    ("overlaps", "said"),
    [
        ([0.9, 1.0], "the same but for the order of heads in layer 1, 2"),
        ([0.7, 1.0], "the same but for the order of heads in layer 2; another in layer 1"),
        ([0.7, 0.8, None], "another in layer 1; not to be told in layer 2; without shares to compare in layer 3"),
        ([None, None], "without shares to compare in layer 1, 2"),
    ],
)
def test_the_head_pattern_in_words(tmp_path, overlaps, said):
    comparison = ConstructionComparison(P_GD, n_prompts=8)
    validated(tmp_path, small_module(heads=[1, 1, 1]), comparison)
    assert f"use of heads: {said}" in " ".join(" ".join(comparison.summary(pattern_rows(overlaps))).split())


@pytest.mark.parametrize(("half", "said"), [(0.05, "lower"), (0.2, "these prompts cannot tell which is lower")])
def test_a_risk_is_called_the_same_only_where_the_prompts_can_tell(tmp_path, half, said):
    """The difference is -.1 ± half of a risk of .5, of which a fifth is .1."""
    comparison = ConstructionComparison(P_GD, n_prompts=8)
    validated(tmp_path, small_module(heads=[1, 1, 1]), comparison)
    assert comparison.summary(pattern_rows([1.0], half))[2].endswith(f": {said}")


@pytest.mark.parametrize(
    ("model", "comparison", "said"),
    [
        (lambda: small_module(), lambda: ConstructionComparison(), "no construction to compare with"),
        (lambda: small_module(), lambda: ConstructionComparison(P_GD), "has 3 layers and the model 2"),
        (
            lambda: small_module(),
            lambda: ConstructionComparison(ConstructedGD(2, 0.2, torch.eye(3).tolist())),
            "matrix has 3 rows, but the prompts have n_dims 4",
        ),
        (
            lambda: small_module(mask="causal", layout="alternating"),
            lambda: ConstructionComparison(ConstructedGD(2, 0.2)),
            "layout is 'alternating'",
        ),
        (lambda: small_module(), lambda: ConstructionComparison(P_GD, n_prompts=1), "n_prompts is 1"),
        (lambda: small_module(), lambda: ConstructionComparison(P_GD, chunk_size=0), "chunk_size is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(tmp_path, model, comparison, said):
    with pytest.raises(InputError, match=said):
        validated(tmp_path, model(), comparison())


CONFIG = """
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 4, sparsity: 2}}
  n_points: 12
  eval_prompts: 8
  eval_batch_size: 8
  batch_size: 4
model: {d_model: 8, heads: [2, 2, 2]}
trainer:
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - class_path: ConstructionComparison
      init_args:
        n_prompts: 16
        construction: {class_path: ConstructedPreprocessThenGD, init_args: {steps: 2, step_size: 0.2}}
"""


def test_a_config_compares_any_model_by_the_short_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare.yaml").write_text(CONFIG)
    main(["validate", "--config", "compare.yaml"])
    assert "The construction (preprocess + GD, 2 steps of 0.2):" in capsys.readouterr().out
    (tmp_path / "wrong.yaml").write_text(CONFIG.replace("ConstructedPreprocessThenGD", "ConstructedPreprocess"))
    with pytest.raises(SystemExit):
        main(["validate", "--config", "wrong.yaml"])
    said = "there is no class 'ConstructedPreprocess'; did you mean 'ConstructedPreprocessThenGD'?"
    assert said in capsys.readouterr().err
