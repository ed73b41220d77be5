"""Heads cut while training: dead for good, at the same places after a kill, and no schedule that cannot work."""

import json

import pytest
import torch
from conftest import small_data, small_module, small_trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from reference_pages import check_metrics

from lightning_icl.callbacks import HeadImportance, PruningSchedule, Recorder
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.pruning import GreedyRemoval, PaperPruning, TopHeads, keep_lists
from lightning_icl.instruments.pruning import living_heads
from lightning_icl.record import load_run
from lightning_icl.record.folder import set_run_folder

STEPS, INTERVAL = 24, 4  # six validations


class Watched(Callback):
    """The heads alive before every step and at every validation, and whether the dead ones are still all zero."""

    def __init__(self):
        self.alive, self.logged, self.validated = {}, {}, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged[trainer.global_step] = int(trainer.callback_metrics["prune/schedule/n_heads"])

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.alive[trainer.global_step] = int(living_heads(pl_module.network).sum())

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validated.append(int(living_heads(pl_module.network).sum()))


def trained(folder, schedule, callbacks=(), max_steps=STEPS, ckpt_path=None, until=None, **model):
    module = small_module(**model)
    trainer = small_trainer(
        folder,
        [schedule, *callbacks],
        max_steps=max_steps,
        val_check_interval=INTERVAL,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )
    set_run_folder(trainer, folder)
    trainer.fit(module, datamodule=small_data(), ckpt_path=ckpt_path)
    return module, trainer


def cuts(folder):
    table = load_run(folder).table
    return table[(table["analysis"] == "PruningSchedule") & (table["metric"] == "prune/schedule/n_heads")]


def two_cuts():
    return PruningSchedule([TopHeads(4), GreedyRemoval(2)], validations=[2, 4], n_prompts=16)


@pytest.mark.parametrize(
    ("optimizer", "attention"),
    [("adamw", "softmax"), ("muon", "linear"), ("muon_per_head", "relu"), ("soap", "linear")],
)
def test_cut_heads_stay_exactly_dead(tmp_path, optimizer, attention):
    watched = Watched()
    options = {"optimizer": optimizer, "attention": attention, "weight_decay": 0.1, "learning_rate": 1e-2}
    module, trainer = trained(tmp_path, two_cuts(), [watched], **options)
    assert watched.validated == [6, 6, 4, 4, 2, 2]  # each cut falls after its validation's analyses
    assert list(watched.alive.values())[-7:] == [2] * 7
    assert [watched.logged[step] for step in (1, 8, 9, 16, 17, STEPS)] == [6, 6, 4, 4, 2, 2]
    assert int(living_heads(module.network).sum()) == 2
    for layer, alive in zip(module.network.blocks, living_heads(module.network), strict=True):
        size = layer.attention.head_dim
        dead = (~alive[: layer.attention.n_heads]).repeat_interleave(size)
        for weight, entries in (
            (layer.attention.value.weight, lambda t: t[dead]),  # noqa: B023
            (layer.attention.output.weight, lambda t: t[:, dead]),  # noqa: B023
        ):
            assert (entries(weight) == 0).all()
            state = trainer.optimizers[0].state[weight]
            moments = [state[name] for name in ("exp_avg", "exp_avg_sq", "momentum_buffer", "average") if name in state]
            assert moments
            assert all((entries(moment) == 0).all() for moment in moments)
    found = cuts(tmp_path)
    check_metrics(found, "PruningSchedule")
    assert found[found["layer"].isna()][["step", "value"]].values.tolist() == [[8, 4], [16, 2]]
    last = found[found["step"] == 16]
    assert last["value"].tolist()[1:] == living_heads(module.network).sum(dim=1).tolist()
    assert json.loads(last["note"].iloc[0]) == keep_lists(living_heads(module.network).float())


@pytest.mark.usefixtures("undrawn")
def test_a_dead_head_has_importance_exactly_zero(tmp_path):
    importance = HeadImportance(n_prompts=16)
    module, _ = trained(tmp_path, two_cuts(), [importance])
    raw = importance.found[None].scores["leave_one_out"].raw.value
    dead = ~living_heads(module.network) & ~raw.isnan()
    assert dead.sum() == 4
    assert (raw[dead] == 0).all()


@pytest.mark.parametrize(
    ("optimizer", "killed_at"),
    # Where a cut is due, before the validation it follows; between two cuts.
    [("adamw", 8), ("muon", 10), ("muon_per_head", 10)],
)
def test_a_killed_and_resumed_run_ends_bit_equal(tmp_path, optimizer, killed_at):
    options = {"optimizer": optimizer, "weight_decay": 0.1}
    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    whole, _ = trained(tmp_path / "whole", two_cuts(), [saving], **options)
    schedule = two_cuts()
    resumed, _ = trained(
        tmp_path / "resumed", schedule, ckpt_path=tmp_path / "kept" / f"step={killed_at}.ckpt", **options
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    expected = {8: [[8, 4], [16, 2]], 10: [[16, 2]]}[killed_at]  # what lies before is in the killed run's folder
    found = cuts(tmp_path / "resumed")
    assert found[found["layer"].isna()][["step", "value"]].values.tolist() == expected
    assert schedule.state_dict() == {"n_cuts": 2}


def test_a_validations_checkpoint_is_the_model_it_measured(tmp_path):
    """The cut is still to come, so that a monitored risk and the weights beside it belong together."""
    saving = ModelCheckpoint(tmp_path / "kept", monitor="val/excess_risk/transformer", save_top_k=-1, filename="{step}")
    trained(tmp_path, two_cuts(), [saving])
    saved = torch.load(tmp_path / "kept" / "step=8.ckpt", weights_only=True)
    module = small_module()
    module.load_state_dict(saved["state_dict"])
    assert living_heads(module.network).sum() == 6
    assert saved["callbacks"]["PruningSchedule"]["n_cuts"] == 0


def test_cuts_after_steps_and_by_the_papers_strategy(tmp_path):
    watched = Watched()
    schedule = PruningSchedule([PaperPruning()], steps=[5], n_prompts=16)
    module, _ = trained(tmp_path, schedule, [watched], max_steps=8)
    assert cuts(tmp_path)["step"].tolist() == [5, 5, 5]
    assert living_heads(module.network).sum(dim=1).tolist() == [4, 1]
    assert watched.validated == [6, 5]


@pytest.mark.parametrize("saved_at", [5, 6, 7])
def test_a_cut_between_validations_is_recorded_once_whenever_a_run_goes_on(tmp_path, saved_at):
    """Checkpoints hold that it was made, from step 6 on, and a validation was only at step 4."""
    options = {"strategies": [TopHeads(3)], "steps": [5], "n_prompts": 16}
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trained(tmp_path, PruningSchedule(**options), [saving, Recorder()], max_steps=8)
    checkpoint = tmp_path / "checkpoints" / f"step={saved_at}.ckpt"
    trained(tmp_path, PruningSchedule(**options), [Recorder()], max_steps=8, ckpt_path=checkpoint)
    assert cuts(tmp_path)["step"].tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "set one of the two"),
        ({"validations": [1], "steps": [2]}, "set one of the two"),
        ({"validations": [1, 2]}, "has 1 strategies for 2 validations, but each cut needs one of both"),
        ({"validations": [0]}, r"validations is \[0\], but it must rise, from 1 on"),
        ({"validations": [2, 1], "strategies": [TopHeads(3), TopHeads(2)]}, r"validations is \[2, 1\], but it must"),
        ({"validations": [6]}, "validations has 6, but training goes on only after the first 5 of them"),
        ({"steps": [24]}, "steps has 24, but training goes on only after the first 23 of them"),
        (
            {"validations": [1, 2], "strategies": [TopHeads(2), GreedyRemoval(3)]},
            "is to keep 3 heads where 2 are left: make n_heads fall from cut to cut",
        ),
        ({"validations": [1], "strategies": [TopHeads(6)]}, "is to keep 6 heads where 6 are left"),
        ({"validations": [1], "n_prompts": 1}, "n_prompts is 1, but it must be at least 2"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_training(tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        trained(tmp_path, PruningSchedule(**({"strategies": [TopHeads(3)]} | options)))


def test_validations_by_the_clock_are_no_times_to_cut_at(tmp_path):
    trainer = small_trainer(tmp_path, [PruningSchedule([TopHeads(3)], [1])], val_check_interval="00:00:01:00")
    with pytest.raises(InputError, match="val_check_interval is a time: give it steps"):
        trainer.fit(small_module(), datamodule=small_data())
