"""A metric that nothing logs is refused before the run, and one that something logs never is."""

import re
import warnings

import pytest
from conftest import small_data, small_module, small_trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from lightning_icl.callbacks import (
    ConstructionComparison,
    HeadImportance,
    HeadPruning,
    LinearProbe,
    Recorder,
    ReferenceRisk,
)
from lightning_icl.callbacks.monitors import check_monitors, monitored, spelled_out
from lightning_icl.functional.constructions import ConstructedGD
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.pruning import PaperPruning

VALIDATION = {"plain": {}, "noisier": {"shift": {"noise_std": 1.0}}}


class FirstValidationError(Exception):
    """Ends a run after its first validation, with the names of what was logged."""


class Ends(Callback):
    def on_validation_end(self, trainer, pl_module):
        raise FirstValidationError(*trainer.callback_metrics)


def test_what_is_known_to_be_logged_is_what_a_run_logs(tmp_path, undrawn):
    """All names but AlgorithmMatch's, which depend on what it finds."""
    analyses = [ReferenceRisk(8), LinearProbe(8), ConstructionComparison(ConstructedGD(2, 0.1), 8), HeadImportance(8)]
    analyses += [HeadPruning(8, fit_prompts=8, strategies=[PaperPruning()]), HeadImportance(9)]
    trainer = small_trainer(tmp_path, [*analyses, Ends()], val_check_interval=1, num_sanity_val_steps=0)
    module, data = small_module(), small_data(validation=VALIDATION)
    known = monitored(trainer, module, data)
    with pytest.raises(FirstValidationError) as ended:
        trainer.fit(module, data)
    logged = set(ended.value.args)
    assert [name for name in logged if not any(re.fullmatch(pattern, name) for pattern in known)] == []
    named = {name for pattern in known for name in spelled_out(pattern)}
    assert {"probe/query/f/trained/risk/layer0", "heads_2/leave_one_out/effective/layer2"} <= named
    # Only the probe has a layer 0, and an untrained network's heads matter too little to be counted.
    assert [n for n in named - logged if not re.search(r"layer0|heads(_2)?/(leave_one_out/effective|overlap)", n)] == []


class Foreign(Callback):
    pass


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([EarlyStopping("val/excess_risk")], "did you mean 'val/excess_risk/transformer'"),
        ([ModelCheckpoint(monitor="val_loss")], "monitor of ModelCheckpoint is 'val_loss', but nothing"),
        ([ReferenceRisk(8, references=[]), EarlyStopping("against/lasso/ratio")], "nothing here is known to log it"),
        ([HeadImportance(8), EarlyStopping("heads/leave_one_out/effective/layer3")], "effective/layer2'?"),
        (
            [HeadImportance(8, every_n_validations=3), EarlyStopping("heads/leave_one_out/effective/layer1")],
            "once in 3",
        ),
        ([EarlyStopping("val/excess_risk/transformer")], "valid are: train/loss"),
    ],
)
def test_what_nothing_logs_is_refused_at_setup(tmp_path, callbacks, words):
    options = {"limit_val_batches": 0} if "valid are" in words else {}
    trainer = small_trainer(tmp_path, [*callbacks, Recorder()], enable_checkpointing=True, **options)
    with pytest.raises(InputError, match=re.escape(words)):
        trainer.fit(small_module(), small_data())
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("callbacks", "warned"),
    [
        ([Foreign(), EarlyStopping("mine/x")], True),
        ([EarlyStopping("mine/x", strict=False)], True),
        ([Recorder("all"), EarlyStopping("heads/risk")], True),
        ([LearningRateMonitor(), EarlyStopping("lr-Adam", mode="max")], False),
        ([EarlyStopping("train/loss"), ModelCheckpoint(monitor="step", mode="max")], False),
    ],
)
def test_what_may_be_logged_is_not_refused(tmp_path, callbacks, warned):
    trainer = small_trainer(tmp_path, callbacks, enable_checkpointing=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_monitors(trainer, small_module(), small_data())
    assert any("is known to log it" in str(w.message) for w in said) == warned
