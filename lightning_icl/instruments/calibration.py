"""Do the instruments find what is there? Each on networks whose algorithm is known (functional/constructions.py).

A line of the calibration says what an instrument should find on a network, since the algorithm says so, and what it
found. ``lines_of`` takes the construction that a network is said to be and the network itself, so that a network which
is not what it is said to be makes lines fail (instruments/planted.py).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lightning_icl.functional import references
from lightning_icl.functional.constructions import (
    ConstructedGD,
    ConstructedGDPlusPlus,
    ConstructedPreprocessThenGD,
    Construction,
    WrittenNetwork,
    with_idle_head,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.pruning import GreedyRemoval, PaperPruning, keep_lists
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import Law, LinearRegression, SparseLinearRegression
from lightning_icl.functional.tasks.task import is_isotropic
from lightning_icl.instruments.ablation import errors_under_masks
from lightning_icl.instruments.algorithms import READ_OUT, TunedRidge, closest, distances, own_readers, readings
from lightning_icl.instruments.alignment import state_alignment, weight_alignment, written
from lightning_icl.instruments.circuits import head_circuits
from lightning_icl.instruments.importance import head_importance
from lightning_icl.instruments.probing import probe_layers
from lightning_icl.instruments.pruning import pruning_case

EXACT = 1e-6  # relative deviation from the algorithm's own number, in float64
MOST_STEPS = 8  # of the algorithms that a layer may be
STEP_SIZE, GAMMA = 0.2137, 0.0567  # on no grid of the algorithm match


class Line(NamedTuple):
    """What an instrument should find on a network and what it found."""

    instrument: str
    network: str
    expected: str
    found: str
    passed: bool


class Known(NamedTuple):
    """A construction and the law of the prompts it is looked at on."""

    construction: Construction
    task: Law
    n_points: int

    def network(self) -> WrittenNetwork:
        return self.construction.network(self.task.n_dims)

    def prompts(self, n_prompts: int, seed: int) -> Prompt:
        """Prompts of 4 queries in float64; another seed, other prompts."""
        return self.task.sample(n_prompts, self.n_points, 4, Generator().manual_seed(seed)).double()


def known_networks(n_dims: int, n_points: int) -> dict[str, Known]:
    """The calibrated networks by name: three steps each, on sparse weights of +-1; one on correlated features."""
    sparse = SparseLinearRegression(n_dims, min(2, n_dims), noise_std=0.2, weight_law="sign")
    correlated = LinearRegression(n_dims, noise_std=0.2, correlation=0.5, weight_law="scaled")
    assert correlated.covariance is not None
    inverse_covariance = torch.linalg.inv(correlated.covariance)
    half = list(range(1, n_dims // 2 + 1))
    return {
        "GD": Known(ConstructedGD(3, STEP_SIZE), sparse, n_points),
        "preconditioned GD": Known(ConstructedGD(3, STEP_SIZE, inverse_covariance.tolist()), correlated, n_points),
        "preprocess-then-GD": Known(ConstructedPreprocessThenGD(3, STEP_SIZE), sparse, n_points),
        "preprocess-then-GD, half the heads": Known(ConstructedPreprocessThenGD(3, STEP_SIZE, half), sparse, n_points),
        "GD++": Known(ConstructedGDPlusPlus(3, STEP_SIZE, GAMMA), sparse, n_points),
    }


def lines_of(name: str, known: Known, network: WrittenNetwork, n_prompts: int) -> list[Line]:
    """What every instrument that trains nothing finds on ``network``, which is said to be ``known``.

    Of linear attention: in softmax two heads do what one did, so that heads are not the algorithm's parts.
    """
    if (scale := known.construction.softmax_scale) is not None:
        raise InputError(f"softmax_scale is {scale}, but only linear attention is calibrated: leave it out.")
    found = []
    for instrument, check in CHECKS.items():
        for expected, said, passed in check(known, network, n_prompts):
            found.append(Line(instrument, name, expected, said, passed))
    return found


Check = Callable[[Known, WrittenNetwork, int], Iterator[tuple[str, str, bool]]]


def importance_lines(known: Known, network: WrittenNetwork, n_prompts: int) -> Iterator[tuple[str, str, bool]]:
    """Leave-one-out against the algorithm without the head's step or coordinate, on the same prompts."""
    prompt, own = known.prompts(n_prompts, seed=1), known.network().options()["heads"]
    transformer = written(network, known.task.n_dims)
    found = head_importance(transformer, prompt).scores["leave_one_out"]
    expected = "each head costs what its algorithm loses without it"
    if transformer.heads != own:
        yield expected, f"{transformer.heads} heads instead of {own}", False
        return
    full = _risk(known.construction, prompt)
    costs = [
        _risk(without_head(known.construction, layer, head, known.task.n_dims), prompt) - full
        for layer, n_heads in enumerate(own, start=1)
        for head in range(1, n_heads + 1)
    ]
    by_head = found.raw.value[full_mask(own).bool()]
    off = float((by_head - torch.stack(costs)).abs().max() / torch.stack(costs).abs().max())
    yield expected, f"off by {off:.1g} at most", off < EXACT
    if (n_heads := own[0]) > 1:
        low, high = found.effective_heads.interval[:, 0].tolist()
        said = f"{float(found.effective_heads.value[0]):.2f} [{low:.2f}, {high:.2f}]"
        yield f"{n_heads} effective heads in layer 1, by symmetry", said, high > n_heads * 0.99 and low > 0.9 * n_heads


def without_head(construction: Construction, layer: int, head: int, n_dims: int) -> Construction | None:
    """The algorithm that is left without one head: a coordinate or a step less. None predicts 0."""
    if isinstance(construction, ConstructedPreprocessThenGD) and layer == 1:
        kept = list(construction.coordinates or range(1, n_dims + 1))
        del kept[head - 1]
        return replace(construction, coordinates=kept) if kept else None
    return replace(construction, steps=construction.steps - 1) if construction.steps > 1 else None


def _risk(construction: Construction | None, prompt: Prompt) -> Tensor:
    if construction is None:
        return prompt.f_query.square().mean()
    w_hat = construction.path(prompt.x, prompt.y)[-1]
    return squared_errors(torch.einsum("bqd,bd->bq", prompt.x_query, w_hat), prompt.f_query).mean()


def pruning_lines(known: Known, network: WrittenNetwork, n_prompts: int) -> Iterator[tuple[str, str, bool]]:
    """The network with a head more in each layer that does next to nothing: those are to go, and nothing is lost."""
    n_dims, generator = known.task.n_dims, Generator().manual_seed(2)
    padded = network
    for layer in range(1, len(network.layers) + 1):
        padded = with_idle_head(padded, layer, generator, size=1e-4)
    transformer = written(padded, n_dims)
    choose, score = (known.prompts(n_prompts, seed) for seed in (3, 4))
    case = pruning_case(transformer, choose)
    own = [list(range(1, n + 1)) for n in known.network().options()["heads"]]
    kept = keep_lists(GreedyRemoval(sum(map(len, own))).keep(case))
    yield f"greedy removal keeps the {sum(map(len, own))} heads that work", f"keeps {kept}", kept == own
    masks = torch.stack([full_mask(transformer.heads), PaperPruning().keep(case)])
    full, paper = errors_under_masks(transformer, score, masks).mean(dim=1).tolist()
    yield (
        "the paper's pruning costs nothing",
        f"{paper / full:.3f} of the full model's risk",
        abs(paper / full - 1) < 0.01,
    )


def probing_lines(known: Known, network: WrittenNetwork, n_prompts: int) -> Iterator[tuple[str, str, bool]]:
    """R^2 of R_hat x in the query's state after layer 1: all, the share of its coordinates, or what x alone tells."""
    fit, choose, score = (known.prompts(n_prompts, seed) for seed in (5, 6, 7))
    table = probe_layers(written(network, known.task.n_dims), known.task, fit, choose, score, context_points=1)
    before, after = (table.by_layer("preprocessed")[layer].trained.r2 for layer in (0, 1))
    if isinstance(known.construction, ConstructedPreprocessThenGD):
        share = len(known.network().layers[0]) / known.task.n_dims
        expected = f"R_hat x from layer 1 on: R^2 0, then {share:.2g}"
        passed = all(abs(r2.value - want) < 3 * r2.standard_error + 0.03 for r2, want in ((before, 0), (after, share)))
    else:
        expected, passed = "no R_hat x after layer 1: R^2 below 0.5", max(before.value, after.value) < 0.5
    yield expected, f"R^2 {before.value:z.2f}, then {after.value:z.3f}", passed


def circuit_lines(known: Known, network: WrittenNetwork, n_prompts: int) -> Iterator[tuple[str, str, bool]]:
    """Layer 1 in input coordinates, which shows exactly what each of its heads does."""
    n_dims, construction = known.task.n_dims, known.construction
    circuits = head_circuits(written(network, n_dims))[0]
    if isinstance(construction, ConstructedPreprocessThenGD):
        places = [int(scores[:, n_dims].abs().argmax()) + 1 for scores in circuits.query_key]
        alone = [bool(scores.count_nonzero() == 1) for scores in circuits.query_key]
        wanted = list(construction.coordinates or range(1, n_dims + 1))
        said = f"they compare x at {places} with y"
        yield f"head j of layer 1 compares x_j with y, j = {wanted}", said, all(alone) and places == wanted
        return
    step = float(circuits.step[0])
    if isinstance(construction, ConstructedGD) and construction.matrix is not None:
        scores, matrix = circuits.query_key[0, :n_dims, :n_dims], circuits.query_key.new_tensor(construction.matrix).T
        off = float((scores - matrix).norm() / matrix.norm())
        yield "its scores are those of the matrix", f"off by {off:.1g}", off < EXACT
        step = float(circuits.prediction[0, n_dims])
    assert isinstance(construction, ConstructedGD | ConstructedGDPlusPlus)
    expected = f"layer 1 is a step of {construction.step_size:g}"
    yield expected, f"a step of {step:.6g}", abs(step / construction.step_size - 1) < EXACT
    if isinstance(construction, ConstructedGDPlusPlus):
        shrinks = -float(circuits.output_value[0, :n_dims, :n_dims].diagonal().mean())
        yield f"and takes {construction.gamma:g} Cx off x", f"{shrinks:.6g}", abs(shrinks - construction.gamma) < EXACT


def match_lines(known: Known, network: WrittenNetwork, n_prompts: int) -> Iterator[tuple[str, str, bool]]:
    """The algorithm of every layer, by the model's own read-out; step sizes and gamma are on no grid."""
    task, n = known.task, known.n_points
    choose, score = (known.prompts(n_prompts, seed) for seed in (10, 11))
    transformer = written(network, task.n_dims)
    readers = own_readers(transformer, transformer.on_prompt(choose.rows(0, 1)))
    choosing, scoring = ((references.whole_prompts(p), readings(transformer, p, readers)) for p in (choose, score))
    depth, isotropic = len(transformer.heads), task.covariance is None or is_isotropic(task.covariance)
    algorithms: list[references.LinearReference] = [
        *(
            family(step_size="shared", max_steps=MOST_STEPS)
            for family in (references.GD, references.PreprocessThenGD, references.GDPlusPlus)
        ),
        *(family(max_steps=MOST_STEPS) for family in (references.GD, references.PreprocessThenGD)),
        *([] if isotropic else [references.PreconditionedGD(max_steps=MOST_STEPS)]),
        *(TunedRidge(), references.Lasso(), references.LeastSquares()),
    ]
    found = distances(readers, algorithms, references.Case(task, task, depth), choosing, scoring)
    names, exact = [], []
    for layer in range(1, depth + 1):
        named = closest(found, READ_OUT, layer, n)[:1]
        names += [f"{d.algorithm.removesuffix('_best_shared_step')} {d.setting.get('steps', 0):g}" for d in named] or [
            "0"
        ]
        exact += [d.relative_spd < EXACT**2 and _as_written(d.setting, known.construction) for d in named]
    family, first = _family(known)
    wanted = [f"{family} {t}" if t else "0" for t in range(first, first + len(known.network().layers))]
    if family == "gd_plus_plus":
        wanted[0] = "gd 1"  # which it is, at its first step
    if family is None:
        yield "no algorithm of the list is called what a layer is", ", ".join(names), not any(exact)
    else:
        settings = ", with its settings" if all(exact) else ""
        yield ", ".join(wanted), ", ".join(names) + settings, all(exact) and names == wanted


def _as_written(setting: Mapping[str, float], construction: Construction) -> bool:
    """Whether the settings that were found are the construction's, as far as the algorithm has them."""
    wanted = {"step": getattr(construction, "step_size", 0.0), "gamma": getattr(construction, "gamma", 0.0)}
    return all(abs(setting.get(name, value) - value) < EXACT for name, value in wanted.items())


def _family(known: Known) -> tuple[str | None, int]:
    """The name of the reference that runs the algorithm, and its steps behind layer 1; no name where there is none."""
    match known.construction:
        case ConstructedPreprocessThenGD(coordinates=None):
            return "preprocess_then_gd", 0
        case ConstructedGD(matrix=None):
            return "gd", 1
        case ConstructedGD():
            return "preconditioned_gd", 1
        case ConstructedGDPlusPlus():
            return "gd_plus_plus", 1
    return None, 0


def comparison_lines(known: Known, network: WrittenNetwork, n_prompts: int) -> Iterator[tuple[str, str, bool]]:
    """States and weights beside the construction's own, whatever the basis."""
    transformer, other = written(network, known.task.n_dims), written(known.network(), known.task.n_dims)
    fit, score = (known.prompts(min(n_prompts, 256), seed) for seed in (13, 14))
    expected = "states and weights of every layer align to 1, at steps of its size"
    try:
        states = min(of.r2.value for of in state_alignment(transformer, other, fit, score))
        layers = weight_alignment(transformer, other, fit, score)
    except InputError as error:
        yield expected, str(error), False
        return
    weights, steps = min(of.cosine.value for of in layers), [of.step.value for of in layers]
    said = f"to {states:.6f} and {weights:.6f} at least, steps {min(steps):.4g} to {max(steps):.4g} times as large"
    yield expected, said, min(states, weights) > 1 - EXACT and max(abs(step - 1) for step in steps) < EXACT


CHECKS: dict[str, Check] = {
    "head importance": importance_lines,
    "head pruning": pruning_lines,
    "linear probe": probing_lines,
    "circuits": circuit_lines,
    "algorithm match": match_lines,
    "comparison": comparison_lines,
}
