"""The calibration of the instruments, at small size: all lines pass, and those of a wrong network fail."""

import pytest
import torch

from lightning_icl.functional.constructions import ConstructedGDPlusPlus, ConstructedPreprocessThenGD
from lightning_icl.instruments import calibration
from lightning_icl.instruments.calibration import CHECKS, Known, known_networks, lines_of, match_lines
from lightning_icl.instruments.planted import WRONG, planted_lines, wrong_lines

KNOWN = known_networks(n_dims=4, n_points=40)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """One more than a layer of these networks has taken."""
    monkeypatch.setattr(calibration, "MOST_STEPS", 4)


def failed(lines):
    return [line for line in lines if not line.passed]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.usefixtures("unchecked")
def test_every_instrument_finds_what_is_there(name):
    lines = lines_of(name, KNOWN[name], KNOWN[name].network(), n_prompts=96)
    assert {line.instrument for line in lines} == set(CHECKS)
    assert failed(lines) == []


def test_planted_heads_are_seen_for_what_they_are():
    assert failed(planted_lines(KNOWN["preprocess-then-GD"], n_prompts=96)) == []


QUICK = ("a step's sign flipped", "two heads swapped between layers", "twice the gamma", "no preprocessing")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in WRONG])
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_network_is_noticed(name):
    lines = wrong_lines(KNOWN, 48, [name])
    assert failed(lines) == []
    assert [line.instrument for line in lines] == list(WRONG[name].noticed_by)


@pytest.mark.slow  # the networks above have steps on no grid too
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["preprocess_then_gd", "gd_plus_plus"])
@pytest.mark.usefixtures("unchecked")
def test_the_match_names_every_layer_at_any_step_size(kind, seed):
    step, gamma = torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()
    step, gamma = 0.05 + 0.2 * step, 0.02 + 0.15 * gamma
    made = ConstructedGDPlusPlus(3, step, gamma) if kind == "gd_plus_plus" else ConstructedPreprocessThenGD(3, step)
    known = Known(made, KNOWN["GD"].task, 40)
    assert [line for line in match_lines(known, known.network(), n_prompts=48) if not line[2]] == []
