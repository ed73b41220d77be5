"""HeadPruning against the instruments on the same prompts, and what stands beside the pruned models."""

import itertools
import json
import math

import pytest
import torch
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import HeadImportance, HeadPruning
from lightning_icl.callbacks.head_pruning import ranked
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.pruning import GreedyRemoval, PaperPruning, TopHeads
from lightning_icl.functional.risk import t_quantile
from lightning_icl.instruments.importance import head_importance
from lightning_icl.instruments.pruning import PrunedModel, pruning_case, read_out_refitted, rescaled_masks
from lightning_icl.record.folder import set_run_folder

CONTROLS = {"prune_layer1_instead", "random_head", "least_important"}
TREATMENTS = ["as_is", "read_out", "rescaled", "fine_tuned"]


def pruning(**options):
    return HeadPruning(**({"n_prompts": 24, "fit_prompts": 12, "n_random": 2, "finetune_steps": 2} | options))


def validated(folder, callback, others=(), **model):
    """The rows that are about no single layer, by metric; all of them; and the model and data."""
    module, data = small_module(**model), small_data()
    trainer = small_trainer(folder, [callback, *others])
    set_run_folder(trainer, folder)
    trainer.validate(module, datamodule=data, verbose=False)
    rows = callback.rows
    return rows[rows["layer"].isna()].set_index("metric"), rows, module.network, data


def test_risks_and_ratios_are_those_of_the_instruments(tmp_path, undrawn):
    found, _, transformer, data = validated(tmp_path, pruning(strategies=[GreedyRemoval(3)]))
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
        difference = pruned - whole
        for metric, values in (("excess_risk", pruned), ("difference", difference)):
            row = found.loc[f"prune/{name}/greedy_3/{metric}"]
            half = t_quantile(24) * float(values.std()) / 24**0.5
            assert row["value"] == pytest.approx(float(values.mean()), rel=1e-5, abs=1e-6)
            assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=1e-4)
        assert found["value"][f"prune/{name}/full/excess_risk"] == pytest.approx(float(whole.mean()), rel=1e-5)
        ratio = found.loc[f"prune/{name}/greedy_3/ratio"]
        assert ratio["value"] == pytest.approx(float(pruned.mean() / whole.mean()), rel=1e-5)
        left_out = [float((pruned.sum() - p) / (whole.sum() - w)) for p, w in zip(pruned, whole, strict=True)]
        jackknife = (23 * torch.tensor(left_out).double().log().var(correction=0)) ** 0.5
        half = math.log(ratio["high"] / ratio["low"]) / 2
        assert half == pytest.approx(t_quantile(24) * float(jackknife), rel=0.1)
    assert found["value"]["prune/greedy_3/n_heads"] == 3
    assert (found["note"]["prune/as_is/greedy_3/excess_risk"]) == "greedy removal (3)"


def test_the_random_heads_are_every_choice_as_is_and_some_where_it_takes_long(tmp_path, undrawn):
    found, _, transformer, data = validated(tmp_path, pruning(finetune_steps=0), heads=[2, 4, 4])
    scored = data.held_out("head_pruning", 24)
    errors = []
    for heads in itertools.product(range(4), range(4)):
        mask = torch.zeros(3, 4)
        mask[0, :2] = mask[1, heads[0]] = mask[2, heads[1]] = 1
        errors.append(PrunedModel(transformer, mask).errors(scored))
    errors = torch.stack(errors).double()
    risk = found.loc["prune/as_is/random_head/excess_risk"]
    assert risk["value"] == pytest.approx(float(errors.mean()), rel=1e-5)
    half = t_quantile(24) * float(errors.mean(dim=0).std()) / 24**0.5  # over prompts alone: no luck of the draw
    assert (risk["high"] - risk["low"]) / 2 == pytest.approx(half, rel=1e-4)
    full = PrunedModel(transformer, full_mask([2, 4, 4])).errors(scored).double().mean()
    ratios = errors.mean(dim=1) / full
    note = found["note"]["prune/as_is/random_head/ratio"]
    assert note == f"{ratios.min():.2f} to {ratios.max():.2f} times over the 16 choices"
    paper, rank = found["value"]["prune/as_is/paper/excess_risk"], found.loc["prune/as_is/paper/rank"]
    assert rank["value"] == 1 + int((errors.mean(dim=1) < paper * (1 - 1e-5)).sum())
    assert rank["note"] == f"{rank['value']:.0f} of 16"
    assert 1 <= rank["low"] <= rank["value"] <= rank["high"] <= 16
    assert found["note"]["prune/read_out/random_head/ratio"].endswith("times over 2 of 16 choices")
    assert found["note"]["prune/read_out/paper/rank"].endswith("drawn from 16")


def test_a_single_draw_of_several_has_no_interval(tmp_path, undrawn):
    found, *_ = validated(tmp_path, pruning(n_random=1, finetune_steps=0))
    assert found.loc["prune/as_is/random_head/excess_risk", ["low", "high"]].notna().all()  # both of the choices
    single = found.loc["prune/read_out/random_head/ratio"]
    assert math.isfinite(single["value"])
    assert math.isnan(single["low"])
    assert math.isnan(single["high"])


def test_every_model_is_treated_in_every_way(tmp_path):
    callback = pruning()
    found, rows, *_ = validated(tmp_path, callback, heads=[4, 0, 2])
    models = {"full", "paper", "top", "threshold_0.1", "greedy"} | CONTROLS
    for metric in ("excess_risk", "ratio", "difference"):
        named = {tuple(m.split("/")[1:3]) for m in found.index if m.endswith(metric) and "greedy_path" not in m}
        assert named == set(itertools.product(TREATMENTS, models))
    kept = {
        m.split("/")[1]: json.loads(n) for m, n in found["note"].items() if m.endswith("/n_heads") and m.count("/") == 2
    }
    assert set(kept) == models - {"random_head"}
    assert kept["full"] == [[1, 2, 3, 4], [], [1, 2]]
    assert kept["paper"][:2] == [[1, 2, 3, 4], []]
    layers = rows[(rows["metric"] == "prune/paper/n_heads") & rows["layer"].notna()]
    assert layers[["layer", "value"]].values.tolist() == [[1, 4], [2, 0], [3, 1]]
    lines = callback.summary(rows)
    compact = json.dumps(kept["paper"], separators=(",", ":"))
    assert lines[-1] == f"    --keep '{compact}'"
    assert max(map(len, lines)) <= 80
    assert "24 held-out prompts" in lines[0]
    shown = found.loc["prune/fine_tuned/greedy/ratio"]
    (line,) = [line for line in lines if line.startswith("  greedy removal (5)")]
    assert line.endswith(f"{shown['value']:.2f} ± {(shown['high'] - shown['low']) / 2:.2f}")
    assert {p.name for p in (tmp_path / "figures").iterdir()} >= {"head_pruning.png", "greedy_path.png"}


def test_the_greedy_path_has_risks_heads_by_layer_and_the_order_of_removal(tmp_path, undrawn):
    found, rows, transformer, data = validated(tmp_path, pruning(path_to=2, finetune_steps=0), heads=[4, 0, 2])
    path = pruning_case(transformer, data.held_out("head_pruning_choice", 12)).path(2)
    scored = data.held_out("head_pruning", 24)
    for mask in path.masks:
        place, n = f"prune/greedy_path/heads_{int(mask.sum())}", int(mask.sum())
        risk = float(PrunedModel(transformer, mask).errors(scored).mean())
        assert found["value"][f"{place}/excess_risk"] == pytest.approx(risk, rel=1e-5)
        assert found["value"][f"{place}/n_heads"] == n
        layers = rows[(rows["metric"] == f"{place}/n_heads") & rows["layer"].notna()]
        assert layers["value"].tolist() == mask.sum(dim=1).tolist()
    removed = rows[rows["metric"] == "prune/greedy_path/removed"]
    assert removed["value"].tolist() == [1, 2, 3, 4]
    assert list(zip(removed["layer"], removed["head"], strict=True)) == path.removed


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("1 of 64", "best of 64"),
        ("64 of 64", "worst of 64"),
        ("63 of 64", "2nd worst of 64"),
        ("13 of 64", "13th best of 64"),
        ("43 of 64", "22nd worst of 64"),
        ("7 of 9 drawn from 4,096", "3rd worst of 9 drawn from 4,096"),
    ],
)
def test_places_in_words(note, said):
    assert ranked(note) == said


def test_importance_is_measured_once_and_named_in_the_context_either_way(tmp_path, undrawn, monkeypatch):
    measured = []

    def counted(*args, **options):
        measured.append(args)
        return head_importance(*args, **options)

    monkeypatch.setattr("lightning_icl.callbacks.head_importance.head_importance", counted)
    importance = HeadImportance(n_prompts=16)
    _, _, _, data = validated(tmp_path, pruning(strategies=[PaperPruning()], finetune_steps=0), [importance])
    assert len(measured) == 1
    pruned = pruning(strategies=[PaperPruning()], finetune_steps=0)
    module, data = small_module(), small_data()
    small_trainer(tmp_path, [HeadImportance(n_prompts=16), pruned]).validate(module, datamodule=data, verbose=False)
    assert len(measured) == 2
    assert data.drawn == {
        "head_importance": 16,
        "head_pruning": 24,
        "head_pruning_fit": 12,
        "head_pruning_choice": 12,
    }


@pytest.mark.parametrize("options", [{"heads": [1], "d_model": 6}, {"heads": [2, 1]}], ids=str)
def test_few_heads_and_two_prompts_are_enough(tmp_path, options, undrawn):
    callback = pruning(n_prompts=2, fit_prompts=2, n_random=1)
    found, rows, *_ = validated(tmp_path, callback, **options)
    for treatment in ("as_is", "rescaled"):
        assert found.loc[f"prune/{treatment}/full/ratio", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert not [metric for metric in found.index if metric.endswith("/rank")]  # a single choice
    assert callback.summary(rows)


def test_what_takes_long_waits_for_the_end_of_fit(tmp_path, undrawn):
    seen = []

    class Watched(HeadPruning):
        def analyse(self, trainer, module):
            for row in super().analyse(trainer, module):
                if row.metric.endswith("/full/ratio") or (row.metric == "prune/greedy/n_heads" and row.layer is None):
                    seen.append((trainer.global_step, row.metric.split("/")[1]))
                yield row

    callback = Watched(n_prompts=4, fit_prompts=4, n_random=1, finetune_steps=1)
    small_trainer(tmp_path, [callback], val_check_interval=3).fit(small_module(), datamodule=small_data())
    assert seen == [(3, "as_is"), *((6, name) for name in [*TREATMENTS, "greedy"])]


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


def test_other_models_are_scored_on_the_same_prompts(tmp_path, undrawn):
    single = saved(tmp_path / "single.ckpt", heads=[1])
    before = torch.get_rng_state()
    callback = pruning(checkpoints={"single_head": str(tmp_path / "single.ckpt")})
    found, rows, _, data = validated(tmp_path, callback)
    scored = data.held_out("head_pruning", 24)
    expected = float(PrunedModel(single.network, torch.ones(1, 1)).errors(scored).mean())
    value = found["value"]
    assert value["prune/checkpoint/single_head/excess_risk"] == pytest.approx(expected, rel=1e-5)
    whole = value["prune/as_is/full/excess_risk"]
    assert value["prune/checkpoint/single_head/ratio"] == pytest.approx(expected / whole, rel=1e-4)
    assert value["prune/checkpoint/single_head/difference"] == pytest.approx(expected - whole, rel=1e-4)
    assert [line for line in callback.summary(rows) if line.startswith("  single_head ")]
    torch.set_rng_state(before)
    data.trainer.callbacks[0].setup(data.trainer, data.trainer.lightning_module, "validate")
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategies": [TopHeads(7)]}, "top_7: n_heads is 7, but the model has 6 heads"),
        ({"checkpoints": {"one": "nowhere.ckpt"}}, "checkpoints: one is nowhere.ckpt, but there is no such file"),
        ({"checkpoints": {"one": "wide.ckpt"}}, "checkpoints: one was trained on n_dims 9, but the task has 4"),
        (
            {"checkpoints": {"one": "text.ckpt"}},
            "checkpoints: one is text.ckpt, but that file is not a readable checkpoint",
        ),
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
