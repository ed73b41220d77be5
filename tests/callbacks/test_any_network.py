"""What the analyses find in networks that are no Transformer, and what they say they cannot."""

import pytest
from conftest import small_data, small_module, small_trainer
from networks import LSTM, ShownLSTM

from lightning_icl import ICLModule
from lightning_icl.callbacks import (
    AlgorithmMatch,
    Circuits,
    ConstructionComparison,
    HeadImportance,
    HeadPruning,
    LinearProbe,
    PruningSchedule,
    Recorder,
    ReferenceRisk,
)
from lightning_icl.callbacks.monitors import monitored, spelled_out
from lightning_icl.functional.constructions import ConstructedGD
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.pruning import PaperPruning, TopHeads
from lightning_icl.functional.references import GD, LeastSquares
from lightning_icl.record import load_run, page
from lightning_icl.record.folder import set_run_folder

pytestmark = pytest.mark.usefixtures("undrawn")


def module_of(network):
    return ICLModule(4, network=network, warmup_steps=2)


def every_analysis():
    return [
        ReferenceRisk(8),
        HeadImportance(8),
        HeadPruning(8, fit_prompts=8, strategies=[], finetune_steps=1),
        LinearProbe(8),
        AlgorithmMatch(8, n_points=[5], algorithms=[GD(step_size="shared", max_steps=3), LeastSquares()]),
        Circuits(),
        ConstructionComparison(ConstructedGD(2, 0.1), 8),
    ]


LACKING = {
    "HeadImportance": "this network has no heads",
    "HeadPruning": "this network has no heads",
    "Circuits": "circuits are read from a Transformer's weights, and this network is a {}",
    "ConstructionComparison": "constructions are compared with a Transformer, and this network is a {}",
}


@pytest.mark.parametrize("network", [LSTM, ShownLSTM])
def test_what_a_network_lacks_is_said_in_the_closing_table_and_the_rest_is_measured(tmp_path, capsys, network):
    module, expected = module_of(network(4)), dict(LACKING)
    if network is LSTM:
        expected["LinearProbe"] = "this network shows no states"
    analyses = every_analysis()
    trainer = small_trainer(tmp_path, [*analyses, Recorder()], max_steps=2, val_check_interval=1)
    set_run_folder(trainer, tmp_path)
    trainer.fit(module, small_data())
    lines = capsys.readouterr().out.splitlines()
    lacking = {analysis.name: analysis.lacking for analysis in analyses if analysis.lacking}
    assert lacking == {name: said.format(network.__name__) for name, said in expected.items()}
    assert all(lines.count(f"{name}: {said}.") == 1 for name, said in lacking.items() if len(name + said) < 77)
    measured = {type(analysis).__name__ for analysis in analyses} - lacking.keys()
    assert set(load_run(tmp_path).table["analysis"]) == measured
    assert {a.name for a in analyses if a.rows is not None} == measured


def test_a_pruned_model_is_seen_beside_a_network_without_heads(tmp_path):
    data, other = small_data(), module_of(LSTM(4))
    trainer = small_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(other, data)
    trainer.save_checkpoint(tmp_path / "lstm.ckpt")
    options = {
        "strategies": [PaperPruning()],
        "finetune_steps": 0,
        "checkpoints": {"lstm": str(tmp_path / "lstm.ckpt")},
    }
    pruning = HeadPruning(8, n_random=1, fit_prompts=8, **options)
    small_trainer(tmp_path, [pruning]).validate(small_module(), data, verbose=False)
    score = data.held_out("head_pruning", 8)
    expected = (other.eval()(score) - score.f_query).square().mean().detach()
    found = pruning.rows.set_index("metric")["value"]["prune/checkpoint/lstm/excess_risk"]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_a_transformer_lacks_nothing():
    assert [analysis.lacks(small_module()) for analysis in every_analysis()] == [None] * 7


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (PruningSchedule([TopHeads(1)], steps=[1]), "heads are cut in training of a Transformer alone"),
        (ReferenceRisk(8, references=[GD(steps="depth")]), "gd_at_depth_tuned_step takes a step a layer"),
    ],
)
def test_what_cannot_be_without_layers_or_heads_is_refused(tmp_path, callback, sentence):
    trainer = small_trainer(tmp_path, [callback])
    with pytest.raises(InputError, match=sentence):
        trainer.fit(module_of(LSTM(4)), small_data())
    assert trainer.global_step == 0


def test_what_is_never_measured_cannot_be_monitored(tmp_path):
    trainer = small_trainer(tmp_path, [HeadImportance(8), LinearProbe(8), ReferenceRisk(8)])
    names = {spelled for name in monitored(trainer, module_of(LSTM(4)), small_data()) for spelled in spelled_out(name)}
    others = {spelled for name in monitored(trainer, small_module(), small_data()) for spelled in spelled_out(name)}
    assert names <= others
    assert {name.partition("/")[0] for name in others - names} == {"heads", "probe"}


@pytest.mark.parametrize("network", [LSTM, ShownLSTM])
def test_gradient_steps_a_layer_are_compared_where_layers_are_shown(tmp_path, network):
    references = ReferenceRisk(8)
    small_trainer(tmp_path, [references]).validate(module_of(network(4, layers=3)), small_data(), verbose=False)
    notes = references.rows.dropna(subset="note").set_index("metric")["note"]
    found = [note for metric, note in notes.items() if "gd_at_depth" in metric]
    assert set(found) == (set() if network is LSTM else {"GD, 3 steps of 1/λmax (= layers)"} | set(found))
    assert ("val/excess_risk/preprocess_then_gd_at_depth" in notes) == (network is ShownLSTM)


def test_the_page_says_which_network_it_is():
    data, module = small_data(), module_of(ShownLSTM(4, width=6))
    size = next(line for line in page.about(data, module, 3).splitlines() if line.startswith("| model |"))
    assert size.startswith("| model | 379 parameters: `{")  # 36 of the read-in, 4 x 6 x (6 + 6 + 2) of the layer, 7
    assert page.about(data, small_module(), 3).count("| model | 2 layers, heads [4, 2], ") == 1
    told = page.telling_options(data, module, 3)
    assert (told["network"], told["network.width"], told["network.layers"]) == ("ShownLSTM", 6, 1)
    assert "network" not in page.telling_options(data, small_module(), 3)
