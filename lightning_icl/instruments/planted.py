"""Do the instruments see what is planted: heads whose part is known, layers that do nothing, and wrong networks?

A wrong network is not the construction that it is said to be, so that the lines of some instruments must fail on it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator

from lightning_icl.functional import constructions
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.tasks import Law
from lightning_icl.instruments.ablation import errors_under_masks
from lightning_icl.instruments.alignment import written
from lightning_icl.instruments.calibration import CHECKS, EXACT, GAMMA, STEP_SIZE, Known, Line
from lightning_icl.instruments.p_probing import Training, claim, p_probing


def planted_lines(known: Known, n_prompts: int) -> list[Line]:
    """Heads beside the preprocess-then-GD network's whose part is known: idle, in two copies, cancelling each other."""
    n_dims, network, generator = known.task.n_dims, known.network(), Generator().manual_seed(8)
    prompt = known.prompts(n_prompts, seed=9)
    n = len(network.layers[0])

    def cost(changed: constructions.WrittenNetwork, *removed: tuple[int, int]) -> float:
        """The rise of the risk without these heads, (layer, head) from 1, all at once."""
        transformer = written(changed, n_dims)
        less = full_mask(transformer.heads)
        for layer, head in removed:
            less[layer - 1, head - 1] = 0
        masks = torch.stack([full_mask(transformer.heads), less])
        full, without = errors_under_masks(transformer, prompt, masks).mean(dim=1).tolist()
        return without - full

    alone = cost(network, (1, 1))
    idle = cost(constructions.with_idle_head(network, 2, generator), (2, 2))
    twice = constructions.with_duplicate(network, 1, 1)
    halves, both = [cost(twice, (1, 1)), cost(twice, (1, 2))], cost(twice, (1, 1), (1, 2))
    pair = constructions.with_cancelling_pair(network, 1, 1, size=0.5)
    each, together = [cost(pair, (1, n + 1)), cost(pair, (1, n + 2))], cost(pair, (1, n + 1), (1, n + 2))
    return [
        Line("head importance", name, expected, said, passed)
        for name, expected, said, passed in (
            ("an idle head", "leaving it out costs 0", f"{idle:.1g}", abs(idle) < 1e-12),
            (
                "a head in two copies",
                f"each costs less than it alone, {alone:.3g}; both as much",
                f"{halves[0]:.3g} and {halves[1]:.3g}; both {both:.3g}",
                max(halves) < alone and abs(both / alone - 1) < EXACT,
            ),
            (
                "a cancelling pair",
                "each changes the risk alone; both together cost 0",
                f"{each[0]:.3g} and {each[1]:.3g}; both {together:.1g}",
                min(map(abs, each)) > 0.01 and abs(together) < 1e-9,
            ),
        )
    ]


def p_probing_lines(task: Law, n_points: int, depths: int, training: Training, seeds: Sequence[int]) -> list[Line]:
    """The claim on layer 1 of preprocess-then-GD with d heads and with one, and on such layers that do nothing."""
    wide, narrow = (
        constructions.ConstructedPreprocessThenGD(1, STEP_SIZE, coordinates).network(task.n_dims)
        for coordinates in (None, [1])
    )
    networks = {"preprocess-then-GD": (wide, narrow), "a layer 1 that does nothing": (_silent(wide), _silent(narrow))}
    found = []
    for name, pair in networks.items():
        models = {str(len(network.layers[0])): written(network, task.n_dims).float() for network in pair}
        verdicts = [
            claim(p_probing(models, task, n_points, depths, training=replace(training, seed=seed)).comparisons())
            for seed in seeds
        ]
        holds, wanted = verdicts.count("HOLDS"), len(seeds) if pair[0] is wide else 0
        expected, said = f"the claim HOLDS in {wanted} of {len(seeds)} seeds", ", ".join(verdicts)
        found.append(Line("P-probing", name, expected, said, holds == wanted))
    return found


def _silent(network: constructions.WrittenNetwork) -> constructions.WrittenNetwork:
    """The network with a layer 1 that adds nothing."""
    return network.changed(1, [head._replace(output=0 * head.output) for head in network.layers[0]])


class Wrong(NamedTuple):
    """A network that is not the construction it is said to be, and the instruments that must notice."""

    said_to_be: str
    network: Callable[[Known], constructions.WrittenNetwork]  # from what it is said to be
    noticed_by: Sequence[str]


def _with(**changed: Any) -> Callable[[Known], constructions.WrittenNetwork]:
    """The network of the construction with other arguments."""
    return lambda known: replace(known.construction, **changed).network(known.task.n_dims)


P_GD = "preprocess-then-GD"
OTHER_STEPS = ("head importance", "circuits", "algorithm match", "comparison")
OTHER_FIRST_LAYER = ("head importance", "linear probe", "circuits", "algorithm match", "comparison")
OTHER_HEADS = ("head importance", "head pruning", "linear probe", "circuits", "algorithm match", "comparison")
WRONG: dict[str, Wrong] = {
    "a step's sign flipped": Wrong(
        P_GD,
        lambda known: constructions.with_flipped_sign(known.network(), 3, 1),
        ("head importance", "algorithm match", "comparison"),
    ),
    "the first step's sign flipped": Wrong(
        "GD", lambda known: constructions.with_flipped_sign(known.network(), 1, 1), OTHER_STEPS
    ),
    "two heads swapped between layers": Wrong(
        P_GD, lambda known: constructions.with_swapped_heads(known.network(), (1, 1), (2, 1)), OTHER_FIRST_LAYER
    ),
    "a head of layer 1 gone": Wrong(
        P_GD, lambda known: known.network().changed(1, known.network().layers[0][1:]), OTHER_HEADS
    ),
    "steps of half the size": Wrong("GD", _with(step_size=STEP_SIZE / 2), OTHER_STEPS),
    "twice the gamma": Wrong("GD++", _with(gamma=2 * GAMMA), OTHER_STEPS),
    "without its matrix": Wrong("preconditioned GD", _with(matrix=None), OTHER_STEPS),
    "another coordinate": Wrong(
        f"{P_GD}, half the heads", _with(coordinates=[2, 3]), ("head importance", "circuits", "comparison")
    ),
    "preprocessing": Wrong(
        "GD",
        lambda known: constructions.ConstructedPreprocessThenGD(3, STEP_SIZE).network(known.task.n_dims),
        ("head importance", "linear probe", "algorithm match"),
    ),
    "no preprocessing": Wrong(
        P_GD, lambda known: constructions.ConstructedGD(3, STEP_SIZE).network(known.task.n_dims), OTHER_HEADS
    ),
}


def wrong_lines(known: Mapping[str, Known], n_prompts: int, names: Iterable[str] = WRONG) -> list[Line]:
    """Whether each wrong network is noticed by the instruments that must: one of their lines fails."""
    found = []
    for name in names:
        wrong = WRONG[name]
        said_to_be = known[wrong.said_to_be]
        network = wrong.network(said_to_be)
        for instrument in wrong.noticed_by:
            lines = CHECKS[instrument](said_to_be, network, n_prompts)
            failed = next((said for _, said, passed in lines if not passed), None)
            said = "PASS" if failed is None else f"FAIL: {failed}"
            found.append(Line(instrument, f"{wrong.said_to_be}, {name}", "FAIL", said, failed is not None))
    return found
