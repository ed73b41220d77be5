"""P-probing: is what layer 1 makes of the examples easier to optimise on than the examples?

Layer 1 is frozen, and on its output small optimisers are trained: (A) k single-head linear-attention layers, (B) a
linear map and then k tuned steps of gradient descent. The same is done on other representations of the same prompts,
first of all on what layer 1 was given. Formulas, and what of it is ours: docs/explanation/science.md, P-probing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.representations import (
    Representation,
    correlation_features,
    correlation_power_features,
    gd_plus_plus_features,
    leading_first,
    raw,
    scaled,
    tuned_shrinkage,
)
from lightning_icl.functional.risk import Interval, squared_errors
from lightning_icl.functional.seeds import over_seeds_and_prompts
from lightning_icl.instruments.ablation import Progress, silent
from lightning_icl.instruments.fleet import Fleet
from lightning_icl.instruments.probe_models import LinearAttention, TunedDescent
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import Transformer

Optimiser = Literal["attention", "descent"]
Verdict = Literal["HOLDS", "FAILS", "UNDECIDED"]
OPTIMISERS: dict[Optimiser, Callable[[int, int, int], nn.Module]] = {
    "attention": LinearAttention,
    "descent": TunedDescent,
}
READ_IN, RAW, UNTRAINED = "read_in", "raw", "untrained"
CORRELATION, POWER, GD_PLUS_PLUS = "r_hat", "r_hat_power", "gd_plus_plus"
CHUNK_SIZE = 256  # scoring prompts in one pass


@runtime_checkable
class PromptSource(Protocol):
    """What prompts are drawn from; a Law is one."""

    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt: ...


@dataclass(frozen=True)
class Training:
    """How the optimisers are trained and scored, the same in every arm.

    Attributes:
        n_steps: training steps of each.
        batch_size: fresh prompts of one step.
        n_queries: queries of each prompt.
        n_seeds: how many are trained of each, from different starts and on different prompts.
        n_choose: prompts for what is chosen beforehand: GD++'s gamma, and the coordinates of each arm.
        n_score: other prompts, on which risks are measured.
        seed: of all starts and prompts.
    """

    n_steps: int = 500
    batch_size: int = 32
    n_queries: int = 8
    n_seeds: int = 3
    n_choose: int = 2048
    n_score: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, n_steps=self.n_steps, batch_size=self.batch_size, n_queries=self.n_queries)
        check_at_least(1, n_seeds=self.n_seeds)
        check_at_least(2, n_choose=self.n_choose, n_score=self.n_score)
        check_at_least(0, seed=self.seed)

    def generators(self, device: torch.device | str) -> list[Generator]:
        """Of the prompts to choose on, to train on and to score on."""
        return [Generator(device).manual_seed(3 * self.seed + i) for i in range(3)]


class Comparison(NamedTuple):
    """Whether the first layer with most heads is better than a rival: at one depth, by paired difference of risks.

    ``verdict`` is HOLDS where the whole 95 % interval of the difference is below 0; FAILS where it is above and, for
    the comparisons that the claim is about (``claimed``: with fewest heads and "read_in"), would be by Holm's
    correction for their number, so that where none differs hardly any study has one that FAILS.
    """

    optimiser: Optimiser
    depth: int
    rival: str
    difference: Interval
    claimed: bool
    verdict: Verdict = "UNDECIDED"


class PProbing(NamedTuple):
    """What P-probing found.

    Attributes:
        errors: squared errors of each seed on each of the scoring prompts, by optimiser and then arm; the first axis
            is the depth, the number of layers or of steps, from 1.
        heads: for the arms that are the first layer of a trained model, its number of heads.
        read_ins: the arms that are the read-in of a model with most heads.
        power: of the arm |R_hat|^power x.
        shrinkage: gamma of the GD++ arm, times lambda_max.
    """

    errors: dict[Optimiser, dict[str, Tensor]]  # (depths, seeds, prompts) each
    heads: dict[str, int]
    read_ins: list[str]
    power: float
    shrinkage: float

    def by_heads(self) -> dict[Optimiser, dict[str, Tensor]]:
        """The errors with models of h heads in layer 1 as one arm, "heads_<h>", by the mean; most heads first.

        So are the read-ins, as "read_in".
        """
        numbers = sorted(set(self.heads.values()), reverse=True)
        alike = {f"heads_{h}": [arm for arm, number in self.heads.items() if number == h] for h in numbers}
        alike[READ_IN] = self.read_ins
        merged = {}
        for optimiser, errors in self.errors.items():
            others = {arm: found for arm, found in errors.items() if arm not in {*self.heads, *self.read_ins}}
            means = {arm: torch.stack([errors[one] for one in ones]).mean(dim=0) for arm, ones in alike.items()}
            merged[optimiser] = means | others
        return merged

    def risks(self) -> dict[Optimiser, dict[str, list[Interval]]]:
        """The excess risk of each arm of ``by_heads`` at each depth, with intervals over seeds and prompts."""
        return {
            optimiser: {arm: [over_seeds_and_prompts(e) for e in errors] for arm, errors in by_arm.items()}
            for optimiser, by_arm in self.by_heads().items()
        }

    def comparisons(self) -> list[Comparison]:
        """The claim and its controls, at every depth: most heads against fewest, the read-in, and others.

        There is no comparison with fewest heads where all have equally many.
        """
        most, fewest = max(self.heads.values()), min(self.heads.values())
        rivals = {f"heads_{fewest}": True} if fewest < most else {}
        rivals |= {READ_IN: True, UNTRAINED: False, RAW: False, GD_PLUS_PLUS: False, CORRELATION: False}
        found: dict[Comparison, Tensor] = {}
        for optimiser, errors in self.by_heads().items():
            for rival, claimed in rivals.items():
                if rival == UNTRAINED and rival not in errors:  # none could be made
                    continue
                for depth, difference in enumerate(errors[f"heads_{most}"] - errors[rival], start=1):
                    one = Comparison(optimiser, depth, rival, over_seeds_and_prompts(difference), claimed)
                    found[one] = difference
        return judged(found)


def judged(differences: Mapping[Comparison, Float[Tensor, "seeds prompts"]]) -> list[Comparison]:
    """The comparisons with their verdicts, from the differences behind each.

    Holm (1979): of m claimed ones the i-th most certain to fail must do so at the level 1 - .05 / (m - i + 1), and all
    before it.
    """
    verdicts: dict[Comparison, Verdict] = dict.fromkeys(differences, "UNDECIDED")
    for one in differences:
        if one.difference.high < 0:
            verdicts[one] = "HOLDS"
        elif one.difference.low > 0 and not one.claimed:
            verdicts[one] = "FAILS"
    open_ones = [one for one in differences if one.claimed]
    while open_ones:
        level = 1 - 0.05 / len(open_ones)
        failing = [one for one in open_ones if over_seeds_and_prompts(differences[one], level).low > 0]
        if not failing:
            break
        verdicts |= dict.fromkeys(failing, "FAILS")
        open_ones = [one for one in open_ones if one not in failing]
    return [one._replace(verdict=verdict) for one, verdict in verdicts.items()]


def claim(comparisons: Sequence[Comparison]) -> Verdict:
    """The claim as a whole: HOLDS where each part of it does, FAILS where one part does."""
    verdicts = {comparison.verdict for comparison in comparisons if comparison.claimed}
    if "FAILS" in verdicts:
        return "FAILS"
    return "HOLDS" if verdicts == {"HOLDS"} else "UNDECIDED"


@torch.inference_mode(False)
def p_probing(
    models: Mapping[str, InContextNetwork],
    task: PromptSource,
    n_points: int,
    depths: int = 4,
    power: float = 0.5,
    training: Training = Training(),
    progress: Progress = silent,
) -> PProbing:
    """Train both optimisers, at depths 1 .. ``depths``, on layer 1 of every model and on the other arms.

    The arms: the states after layer 1 of each model ("layer_1/<name>"), before it ("read_in/<name>", of the models with
    most heads there) and after that of an untrained network like the first of these ("untrained", where one can be
    made); x ("raw"); R_hat x
    ("r_hat"); |R_hat|^power x ("r_hat_power"); GD++'s (I - gamma C) x with tuned gamma ("gd_plus_plus"). In every arm
    features are put into the coordinates of ``leading_first``, and each prompt's then scaled to unit mean square
    (``scaled``). All arms are trained on the same prompts and scored on the same others, so differences are paired.
    Intervals are over seeds of the optimisers and over prompts, for these models: what another training of a model
    would give they do not say.

    The read-in is the rival of the claim: like the states after layer 1 it holds x and the labels of the examples, so a
    layer that does nothing does no better. On x alone it may, by the scale of each prompt, in which labels have a part.

    Example:
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.p_probing import Training, p_probing
        >>> models = {"two": Transformer(n_dims=3, d_model=16, heads=[2, 2])}
        >>> short = Training(n_steps=1, n_seeds=2, n_choose=8, n_score=8)
        >>> found = p_probing(models, LinearRegression(n_dims=3), n_points=5, depths=1, training=short)
        >>> [*found.risks()], len(found.risks()["descent"]["raw"])  # a number for each depth
        (['attention', 'descent'], 1)
    """
    check_at_least(1, depths=depths)
    if not 0 <= power < float("inf"):
        raise InputError(f"power is {power}, but it must be a finite number that is 0 or larger.")
    if not models:
        raise InputError("there is no model, but P-probing needs at least one.")
    device = next(next(iter(models.values())).parameters(), torch.empty(0)).device
    choose = task.sample(training.n_choose, n_points, training.n_queries, training.generators(device)[0])
    for name, model in models.items():
        if model.heads and model.heads[0] == 0:
            raise InputError(f"the model {name} has no heads in layer 1, so there is nothing to probe.")
        if model.n_dims != choose.x.shape[-1]:
            raise InputError(
                f"the model {name} takes x of length {model.n_dims}, but the prompts have {choose.x.shape[-1]}."
            )
    shrinkage = tuned_shrinkage(choose, depths)
    layers = {f"layer_1/{name}": model for name, model in models.items()}
    heads = {f"layer_1/{name}": model.heads[0] if model.heads else 0 for name, model in models.items()}
    most = max(heads.values())
    read_ins = {f"read_in/{name}": model for name, model in models.items() if heads[f"layer_1/{name}"] == most}
    untrained = next(iter(read_ins.values())).untrained(training.seed)
    arms = (
        {arm: first_layer(model) for arm, model in layers.items()}
        | {arm: read_in(model) for arm, model in read_ins.items()}
        | ({} if untrained is None else {UNTRAINED: first_layer(untrained)})
        | {
            RAW: raw,
            CORRELATION: correlation_features,
            POWER: partial(correlation_power_features, power=power),
            GD_PLUS_PLUS: partial(gd_plus_plus_features, shrinkage=shrinkage),
        }
    )
    errors = errors_of_arms(arms, task, n_points, depths, training, progress, device)
    return PProbing(errors, heads, list(read_ins), power, shrinkage)


@torch.inference_mode(False)
def errors_of_arms(
    arms: Mapping[str, Representation],
    task: PromptSource,
    n_points: int,
    depths: int = 4,
    training: Training = Training(),
    progress: Progress = silent,
    device: torch.device | str = "cpu",
) -> dict[Optimiser, dict[str, Tensor]]:
    """``PProbing.errors`` of any representations: what ``p_probing`` does with its arms."""
    check_at_least(1, depths=depths)
    size = n_points, training.n_queries
    choosing, fresh, scoring = training.generators(device)
    choose, score = task.sample(training.n_choose, *size, choosing), task.sample(training.n_score, *size, scoring)
    arms = {arm: leading_first(representation, choose) for arm, representation in arms.items()}
    by_size: dict[int, dict[str, Representation]] = {}  # arms with equally many features are trained together
    for name, representation in arms.items():
        by_size.setdefault(representation(score.rows(0, 1)).x.shape[-1], {})[name] = representation
    n_dims, place = score.x.shape[-1], score.x.device
    groups = [_Group(alike, (n, n_dims), depths, training, place) for n, alike in by_size.items()]
    for _ in progress(range(training.n_steps), "P-probing"):
        prompt = task.sample(training.n_seeds * training.batch_size, *size, fresh)
        for group in groups:
            group.train_step(prompt)
    errors: dict[Optimiser, dict[str, Tensor]] = {}
    for optimiser in OPTIMISERS:
        found: dict[str, Tensor] = {}
        for group in groups:
            by_chunk = [group.errors(optimiser, chunk) for chunk in score.chunks(CHUNK_SIZE)]
            found |= dict(zip(group.arms, torch.cat(by_chunk, dim=-1).cpu(), strict=True))
        errors[optimiser] = {arm: found[arm] for arm in arms}
    return errors


def first_layer(network: InContextNetwork) -> Representation:
    """H1: the states after layer 1, of the examples (with their labels) and of the queries (without)."""
    return partial(_states, network, 1)


def read_in(network: InContextNetwork) -> Representation:
    """What layer 1 is given: the states before it."""
    return partial(_states, network, 0)


@torch.no_grad()
def _states(network: InContextNetwork, layer: int, prompt: Prompt) -> Prompt:
    if isinstance(network, Transformer):  # which need not run any further
        if network.layout == "alternating":
            raise InputError(
                "layout is 'alternating', but P-probing needs one token for each example: pairs or prefixes."
            )
        start = network.embedded_prompt(prompt)
        states = start.states
        for block in network.blocks[:layer]:
            states = block(states, start.view, None)
        x, x_query = states[:, : start.n_context], states[:, start.first_query :]
    else:
        output, n_points = network.on_prompt(prompt), prompt.x.shape[1]
        if (found := [states.shape[1] for states in output.context_states[: layer + 1]]) != [n_points] * (layer + 1):
            raise InputError(
                f"P-probing needs one token for each example, before and after layer 1, but {type(network).__name__} "
                f"has context_states of {found} tokens for {n_points} examples."
            )
        x, x_query = output.context_states[layer], output.query_states[layer]
    x = x if prompt.point_mask is None else x * prompt.point_mask[..., None]
    return prompt._replace(x=x, x_query=x_query)


class _Group:
    """The arms with equally many features, and all that is trained on them."""

    def __init__(
        self, arms: dict[str, Representation], sizes: tuple[int, int], depths: int, t: Training, device: torch.device
    ) -> None:
        self.arms, self.n_seeds = arms, t.n_seeds
        seeds = range(t.seed * t.n_seeds, (t.seed + 1) * t.n_seeds)
        self.fleets: dict[Optimiser, list[Fleet]] = {
            optimiser: [
                Fleet(partial(build, *sizes, depth), len(arms), seeds, t.n_steps, device)
                for depth in range(1, depths + 1)
            ]
            for optimiser, build in OPTIMISERS.items()
        }

    def train_step(self, prompt: Prompt) -> None:
        """A step of every model; each seed has its own part of the prompts."""
        represented = self._represented(prompt, self.n_seeds)
        for fleets in self.fleets.values():
            for fleet in fleets:
                fleet.train_step(represented)

    def errors(self, optimiser: Optimiser, prompt: Prompt) -> Float[Tensor, "arms depths seeds batch"]:
        """What every seed gets wrong on the same prompts."""
        once = self._represented(prompt, 1)
        shared = Prompt._make(f if f is None else f.expand(-1, self.n_seeds, *f.shape[2:]) for f in once)
        predicted = [fleet.predictions(shared) for fleet in self.fleets[optimiser]]
        return torch.stack([squared_errors(prediction, shared.f_query) for prediction in predicted], dim=1)

    def _represented(self, prompt: Prompt, n_parts: int) -> Prompt:
        """The prompts in each arm, of which each of ``n_parts`` seeds gets one part: (arms, parts, batch, ...)."""
        by_arm = [scaled(represent(prompt))._replace(w=None, f=None) for represent in self.arms.values()]
        return Prompt._make(
            None if fields[0] is None else torch.stack(fields).unflatten(1, (n_parts, -1))
            for fields in zip(*by_arm, strict=True)
        )
