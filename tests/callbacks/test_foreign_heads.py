"""HeadImportance and HeadPruning of a network whose heads are gated from outside, beside the same network's own."""

import copy

import pytest
import torch
from conftest import numbers, small_data, small_module, small_trainer

from lightning_icl import GatedHeads, ICLModule
from lightning_icl.callbacks import HeadImportance, HeadPruning

pytestmark = pytest.mark.usefixtures("undrawn")


def test_gated_heads_give_the_rows_of_the_native_ones(tmp_path, capsys):
    native = small_module()
    inner = copy.deepcopy(native.network)
    gated = ICLModule(4, network=GatedHeads(inner, "layers.*.attention.output", [4, 2]), warmup_steps=2)
    found = []
    for module in (native, gated):
        analyses = HeadImportance(8), HeadPruning(8, fit_prompts=8, strategies=[], finetune_steps=2)
        small_trainer(tmp_path, analyses, max_steps=0).validate(module, small_data(), verbose=False)
        found.append(numbers(*analyses))
        lines = "\n".join(analyses[1].summary(analyses[1].rows))
        assert ("lightning-icl prune" in lines) == ("refitted" in lines) == (module is native)
    known_weights = [name for name in found[0] if "/read_out/" in name or "/rescaled/" in name]
    assert known_weights
    assert set(found[1]) == set(found[0]) - set(known_weights)
    for name, value in found[1].items():
        of_native = found[0][name]
        assert value == (of_native if of_native is None else pytest.approx(of_native, rel=1e-4, abs=1e-5)), name
    assert torch.equal(inner.read_out.weight, native.network.read_out.weight)
