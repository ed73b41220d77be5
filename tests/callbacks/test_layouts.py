"""The analyses look at the queries, so a layout that predicts the examples too changes nothing of what they find."""

import pytest
from conftest import small_data, small_module, small_trainer

from lightning_icl.callbacks import FigureWriter, HeadImportance, HeadPruning, LinearProbe


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the analyses find, by layout and name."""

    def analysed(layout):
        module = small_module(layout=layout, mask="causal")
        callbacks = [HeadImportance(16), HeadPruning(16, n_random=2, finetune_steps=2), LinearProbe(16)]
        trainer = small_trainer(tmp_path_factory.mktemp(layout), [*callbacks, FigureWriter("never")])
        trainer.validate(module, datamodule=small_data(), verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    return {layout: analysed(layout) for layout in ("pairs", "prefixes", "alternating")}


def test_the_analyses_find_the_same_in_pairs_and_prefixes(found):
    assert {name.split("/")[0] for name in found["pairs"]} == {"val", "heads", "prune", "probe"}
    assert found["prefixes"] == pytest.approx(found["pairs"], rel=1e-4, abs=1e-5)


def test_the_analyses_run_on_alternating_tokens(found):
    pairs, alternating = found["pairs"], found["alternating"]
    places = {name for name in pairs if name.startswith(("prune/as_is", "probe/query/f/trained/risk"))}
    assert places <= alternating.keys()
    same = {name for name in places if abs(alternating[name] - pairs[name]) < 1e-6}
    assert same == {"probe/query/f/trained/risk/layer0"}  # the read-in has seen the query's token alone
