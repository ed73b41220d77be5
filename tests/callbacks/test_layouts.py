"""The analyses look at the queries, so a layout that predicts the examples too changes nothing of what they find."""

import pytest
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import HeadImportance, HeadPruning, LinearProbe

pytestmark = pytest.mark.usefixtures("undrawn")


def found(tmp_path, layout):
    module = small_module(layout=layout, mask="causal")
    callbacks = [HeadImportance(16), HeadPruning(16, n_random=2, finetune_steps=2), LinearProbe(16)]
    trainer = small_trainer(tmp_path, callbacks)
    trainer.validate(module, datamodule=small_data(), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_the_analyses_find_the_same_in_pairs_and_prefixes(tmp_path):
    pairs, prefixes = found(tmp_path, "pairs"), found(tmp_path, "prefixes")
    assert {name.split("/")[0] for name in pairs} == {"val", "heads", "prune", "probe"}
    assert prefixes == pytest.approx(pairs, rel=1e-4, abs=1e-5)


def test_the_analyses_run_on_alternating_tokens(tmp_path):
    pairs, alternating = found(tmp_path, "pairs"), found(tmp_path, "alternating")
    places = {name for name in pairs if name.startswith(("prune/as_is", "probe/query/f/trained/risk"))}
    assert places <= alternating.keys()
    same = {name for name in places if abs(alternating[name] - pairs[name]) < 1e-6}
    assert same == {"probe/query/f/trained/risk/layer0"}  # the read-in has seen the query's token alone
