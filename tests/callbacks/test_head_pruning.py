"""HeadPruning against the instruments on the same prompts, and what stands beside the pruned models."""

import json

import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import HeadPruning
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.pruning import GreedyRemoval, TopHeads
from lightning_icl.instruments.pruning import PrunedModel, pruning_case, read_out_refitted, rescaled_masks

CONTROLS = {"prune_layer1_instead", "random_head", "least_important"}


def pruning(**options):
    return HeadPruning(**({"n_prompts": 24, "fit_prompts": 12, "n_random": 2, "finetune_steps": 2} | options))


def validated(folder, callback, **model):
    module, data = small_module(**model), small_data()
    trainer = small_trainer(folder, [callback])
    trainer.validate(module, datamodule=data, verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, module.transformer, data


def test_risks_and_ratios_are_those_of_the_instruments(tmp_path):
    callback = pruning(strategies=[GreedyRemoval(3)])
    logged, transformer, data = validated(tmp_path, callback)
    fit, choice = (data.held_out(f"head_pruning_{name}", 12) for name in ("fit", "choice"))
    scored, full = data.held_out("head_pruning", 24), full_mask(transformer.heads)
    mask = GreedyRemoval(3).keep(pruning_case(transformer, choice))
    treated = {
        "as_is": lambda mask: PrunedModel(transformer, mask),
        "read_out": lambda mask: read_out_refitted(transformer, mask, fit, choice),
        "rescaled": lambda mask: PrunedModel(transformer, rescaled_masks(transformer, mask[None], fit)[0]),
    }
    for name, treat in treated.items():
        pruned, whole = treat(mask).errors(scored), treat(full).errors(scored)
        assert logged[f"prune/greedy_3/{name}/excess_risk"] == pytest.approx(float(pruned.mean()), rel=1e-5)
        assert logged[f"prune/full/{name}/excess_risk"] == pytest.approx(float(whole.mean()), rel=1e-5)
        assert logged[f"prune/greedy_3/{name}/ratio"] == pytest.approx(float(pruned.mean() / whole.mean()), rel=1e-5)
        found = callback.results[name]["greedy_3"]
        difference = pruned - whole
        assert found.difference == pytest.approx(float(difference.mean()), abs=1e-6)
        assert found.difference_error == pytest.approx(float(difference.std()) / 24**0.5, rel=1e-4)
        left_out = [float((pruned.sum() - p) / (whole.sum() - w)) for p, w in zip(pruned, whole, strict=True)]
        jackknife = (23 * torch.tensor(left_out).double().var(correction=0)) ** 0.5
        assert found.ratio_error == pytest.approx(float(jackknife), rel=1e-4)
    assert logged["prune/greedy_3/n_heads"] == 3
    assert logged["prune/excess_risk/pruned"] == logged["prune/paper/as_is/excess_risk"]
    assert logged["prune/ratio"] == logged["prune/paper/as_is/ratio"]


def test_every_model_is_treated_in_every_way_and_recorded(tmp_path):
    callback = pruning()
    logged, *_ = validated(tmp_path, callback, heads=[4, 0, 2])
    models = {"full", "paper", "top", "threshold_0.1", "greedy"} | CONTROLS
    assert {name: set(found) for name, found in callback.results.items()} == dict.fromkeys(
        ["as_is", "read_out", "rescaled", "fine_tuned"], models
    )
    (record,) = json.loads((tmp_path / "results.json").read_text())["HeadPruning"]
    assert set(record["keep"]) == models - {"random_head"}
    assert record["keep"]["full"] == [[1, 2, 3, 4], [], [1, 2]]
    assert record["keep"]["paper"][:2] == [[1, 2, 3, 4], []]
    assert record["risks"]["as_is"]["paper"]["ratio"] == pytest.approx(logged["prune/ratio"], rel=1e-5)
    path = record["greedy_path"]
    assert path["heads_left"] == [6, 5, 4, 3, 2, 1]
    assert path["allocation"][0] == [4, 0, 2]
    assert [len(path["risks"]), len(path["removed"])] == [6, 5]
    assert path["risks"][0][0] == pytest.approx(logged["prune/full/as_is/excess_risk"], rel=1e-5)
    kept = json.dumps(record["keep"]["paper"], separators=(",", ":"))
    assert callback.summary()[-1].endswith(f"lightning-icl prune --keep '{kept}'")
    assert {p.name for p in (tmp_path / "figures").iterdir()} >= {"head_pruning.png", "greedy_path.png"}


@pytest.mark.parametrize("options", [{"heads": [1], "d_model": 6}, {"heads": [2, 1]}], ids=str)
def test_few_heads_and_two_prompts_are_enough(tmp_path, options):
    logged, *_ = validated(tmp_path, pruning(n_prompts=2, fit_prompts=2, n_random=1), **options)
    assert logged["prune/full/as_is/ratio"] == 1
    assert logged["prune/full/rescaled/ratio"] == 1


def test_what_takes_long_waits_for_the_end_of_fit(tmp_path):
    seen = []

    class Watched(HeadPruning):
        def analyse(self, trainer, module):
            super().analyse(trainer, module)
            seen.append((trainer.global_step, set(self.results), "greedy" in self.masks))

    callback = Watched(n_prompts=4, fit_prompts=4, n_random=1, finetune_steps=1)
    small_trainer(tmp_path, [callback], val_check_interval=3).fit(small_module(), datamodule=small_data())
    assert seen == [(3, {"as_is"}, False), (6, {"as_is", "read_out", "rescaled", "fine_tuned"}, True)]


def saved(path, **options):
    trainer = small_trainer(path.parent, max_steps=1)
    data = small_data() if "n_dims" not in options else None
    module = small_module(**options)
    if data is None:
        trainer.strategy.connect(module)
    else:
        trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return module.eval()


def test_other_models_are_scored_on_the_same_prompts(tmp_path):
    single = saved(tmp_path / "single.ckpt", heads=[1])
    before = torch.get_rng_state()
    callback = pruning(checkpoints={"single_head": str(tmp_path / "single.ckpt")})
    logged, _, data = validated(tmp_path, callback)
    scored = data.held_out("head_pruning", 24)
    expected = float(PrunedModel(single.transformer, torch.ones(1, 1)).errors(scored).mean())
    assert logged["prune/checkpoint/single_head/excess_risk"] == pytest.approx(expected, rel=1e-5)
    whole = logged["prune/full/as_is/excess_risk"]
    assert logged["prune/checkpoint/single_head/ratio"] == pytest.approx(expected / whole, rel=1e-4)
    torch.set_rng_state(before)
    data.trainer.callbacks[0].setup(data.trainer, data.trainer.lightning_module, "validate")
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategies": [TopHeads(7)]}, "top_7: n_heads is 7, but the model has 6 heads"),
        ({"checkpoints": {"one": "nowhere.ckpt"}}, "checkpoints: one is nowhere.ckpt, but there is no such file"),
        ({"checkpoints": {"one": "wide.ckpt"}}, "checkpoints: one was trained on n_dims 9, but the task has 4"),
        ({"checkpoints": {"one": "text.ckpt"}}, "checkpoints: one is text.ckpt, but that is not a checkpoint of"),
        ({"checkpoints": {"one": "short.ckpt"}}, "one has positions for 3 examples, but the prompts have 5"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    name = (options.get("checkpoints") or {}).get("one")
    if name == "wide.ckpt":
        saved(tmp_path / name, n_dims=9)
    if name == "short.ckpt":
        saved(tmp_path / name, n_dims=4, position="learned", max_points=3)
    with pytest.raises(InputError, match=sentence):
        validated(tmp_path, pruning(**options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path_to": -1}, "path_to is -1"),
        ({"fit_prompts": 1}, "fit_prompts is 1"),
        ({"finetune_steps": -1}, "finetune_steps is -1"),
        ({"finetune_learning_rate": 0.0}, "finetune_learning_rate is 0.0, but it must be a finite number above 0"),
        ({"strategies": [TopHeads(2), TopHeads(2)]}, "strategies has top_2 2 times"),
    ],
)
def test_bad_options_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        HeadPruning(**options)
