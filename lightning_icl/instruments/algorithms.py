"""Which algorithm is it? How far what a layer has computed is from known estimators, in predictions and in weights.

A layer is read in two ways, each a scalar function of the query's state: by the model's own read-out applied to that
layer ("read_out"; after the last layer this is the model's prediction), and by the linear ridge probe for f(x_q)
("probe"), which is the best linear use of the state for f and so mixes in whatever else the state holds that helps.
Of a network without ``read`` its prediction alone is read out, and without states nothing is probed.
A reading's implied weights are its gradient with respect to x_q (von Oswald et al. 2023). With yhat and g the reading
and its gradient, and yhat_a = <w_a, x_q> an algorithm's prediction with weights w_a (Akyurek et al. 2023):

    SPD  = E (yhat - yhat_a)^2     squared label units        relative: SPD / E yhat^2
    ILWD = E ||g - w_a||^2         squared label / x units    relative: ILWD / E ||g||^2
    cosine = E <g, w_a> / (||g|| ||w_a||), 0 where w_a = 0

E is over prompts and their queries. A relative distance is 0 for the algorithm itself and 1 for the zero predictor. A
reading with E yhat^2 below 1e-12 E f^2 is 0: it has no relative distances, and nothing is called its algorithm.

A probe shrinks what it reads, by how much depends on what else the state tells. So its distances are without scale:
yhat_a and w_a stand there for k yhat_a and k w_a, with the one k >= 0 for all prompts that is best, E yhat yhat_a /
E yhat_a^2. The relative SPD is then the residual of regressing the reading on the algorithm's prediction.

Settings (steps t, step size, gamma, alpha, k) are those of the least SPD on separate prompts, for each reading and
each number of examples: from the best of a grid for every t, step size, gamma and alpha are refined (Levenberg and
Marquardt's method), and only then is one t compared with another. Distances are taken on other prompts, under these
settings; so the search makes none of them too small, only, where few prompts choose, too large. Which t are as good as
the chosen one is told by the paired intervals (see below) of their SPD against its own, each t under its own settings.

Algorithms are compared with the closest, a*, the one of the least SPD, by the excess SPD_a / SPD_a* - 1, paired over
prompts: its 95 % interval is that of log(SPD_a / SPD_a*), whose standard error is that of the mean of e_a / SPD_a -
e_a* / SPD_a*, with e_a the squared differences of the prompts. On the log scale because e_a can have tails so long that
a mean of 474 has an error of 294 (least squares with as many examples as dimensions): the difference's interval then
holds 0, though by Markov's inequality a mean of numbers above 0 hardly ever comes out at many times what it estimates.
The intervals of all pairs of algorithms hold at once (Bonferroni), since which one is a* is read from the same prompts.

Families meet: one step of GD++ is one of GD, and GD++ with gamma = 0 is GD. Two whose predictions differ by at most
1e-8 E yhat^2 are the same algorithm, and the one with fewer free settings, then fewer steps, gives it its name.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_icl.functional import references
from lightning_icl.functional.errors import InputError, check_each_once
from lightning_icl.functional.probes import ridge_probe
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import Case, LinearReference, Problems, Reference
from lightning_icl.functional.references.reference import Candidates, strengths
from lightning_icl.functional.risk import (
    Interval,
    jackknife_errors,
    joint_quantile,
    mean_and_standard_error,
    t_quantile,
)
from lightning_icl.functional.tasks import Law
from lightning_icl.functional.tasks.task import is_isotropic
from lightning_icl.instruments.ablation import Progress, silent
from lightning_icl.instruments.families import EQUAL, Chosen, Family, Predictions, fitted, members_of
from lightning_icl.network import InContextNetwork, TransformerOutput, depth

READ_OUT, PROBE = "read_out", "probe"
SAME = 1e-8  # relative SPD below which two families meet, whose settings were searched
DISTANCES = ("spd", "relative_spd", "ilwd", "relative_ilwd", "cosine")
UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Reader(NamedTuple):
    """How the query states of one layer are read: by the model's "read_out" or by a "probe".

    ``read`` is None for the prediction as the network returns it.
    """

    reading: str
    layer: int
    read: Callable[[Tensor], Tensor] | None  # (batch, queries, d_model) to (batch, queries)


class Readings(NamedTuple):
    """What each reader reads at the queries, and the gradient of that with respect to x_q, in float64."""

    prediction: Float[Tensor, "readings batch queries"]
    weights: Float[Tensor, "readings batch queries dims"]


class Distance(NamedTuple):
    """How far one reading is from the member of one algorithm's family that is closest to it.

    Attributes:
        algorithm: the reference's key.
        reading: read_out or probe.
        layer: of which layer, from 1.
        n_points: number of examples.
        label: the algorithm in words, with its step-size rule and fitted settings.
        setting: the fitted settings by name. ``steps`` is t; ``step`` the step size and ``gamma`` GD++'s, both times
            lambda_max of each prompt under the rule "per_prompt"; ``alpha`` the strength of a penalty; ``scale`` is k,
            of a probe.
        steps_range: the fewest and most steps that the prompts cannot tell from the chosen ones, NaN without steps.
        spd, relative_spd, ilwd, relative_ilwd, cosine: see above.
        errors: their standard errors over prompts by name, by the jackknife (which is std / sqrt(n) for a mean).
        rank: 1 for the closest, whose name the reading goes by, and so on; 0 for all where the reading is 0.
        from_closest: the squared difference of its predictions from those of the closest, in units of E yhat^2.
        excess_over_closest: by how much its SPD exceeds that of the closest, in units of the latter; where its interval
            holds 0, the prompts cannot tell the two apart.
    """

    algorithm: str
    reading: str
    layer: int
    n_points: int
    label: str
    setting: dict[str, float]
    steps_range: tuple[float, float]
    spd: float
    relative_spd: float
    ilwd: float
    relative_ilwd: float
    cosine: float
    errors: dict[str, float]
    rank: int = 0
    from_closest: float = math.nan
    excess_over_closest: Interval = UNKNOWN

    def numbers(self, n_prompts: int) -> Iterator[tuple[str, Interval]]:
        """All of it by name, with Student's intervals for ``n_prompts`` scored prompts; that of steps is its range."""
        for name, error in self.errors.items():
            value, half = getattr(self, name), t_quantile(n_prompts) * error
            yield name, Interval(value, value - half, value + half)
        yield "excess_over_closest", self.excess_over_closest
        yield "from_closest", UNKNOWN._replace(value=self.from_closest)
        yield "rank", UNKNOWN._replace(value=self.rank)
        for name, value in self.setting.items():
            ends = self.steps_range if name == "steps" else UNKNOWN[1:]
            yield f"setting/{name}", Interval(value, *ends)


class TunedRidge(references.Ridge):
    """Minimises ||y - X w||^2 + alpha ||w||^2, alpha tuned even where the task's law implies one.

    Example:
        >>> from lightning_icl.instruments.algorithms import TunedRidge
        >>> TunedRidge(alpha=0.5).key
        'ridge_0.5'
    """

    @property
    def origin(self) -> str:
        return "tuned" if self.alpha is None else "given"

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        # Up to where all but nothing is left, which is the closest to a layer that knows nothing.
        return strengths(tuning, 6) * 100 * tuning.sizes if self.alpha is None else [self.alpha]


def default_algorithms(task: Law, max_steps: int = 50) -> list[LinearReference]:
    """GD, P-GD, GD++ and Newton after t <= max_steps steps, ridge, lasso, least squares, and Bayes where it is known.

    GD, P-GD and GD++ are there twice: with one step size (and gamma) for all prompts, which is all that a layer of
    linear attention can have, and with c / lambda_max of each prompt's own (rescaled) examples. Preconditioned GD is
    there where the law's covariance is known and not that of the identity, with which it is GD.

    Example:
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.instruments.algorithms import default_algorithms
        >>> task = LinearRegression(n_dims=3)
        >>> [algorithm.key for algorithm in default_algorithms(task)][:2]
        ['gd_best_shared_step', 'gd_best_tuned_step']
    """
    few, covariance = min(max_steps, 20), task.covariance
    return [
        references.GD(step_size="shared", max_steps=max_steps),
        references.GD(max_steps=max_steps),
        references.PreprocessThenGD(step_size="shared", max_steps=max_steps),
        references.PreprocessThenGD(max_steps=max_steps),
        references.GDPlusPlus(step_size="shared", max_steps=few),
        references.GDPlusPlus(max_steps=few),
        *([] if covariance is None or is_isotropic(covariance) else [references.PreconditionedGD(max_steps=max_steps)]),
        references.Newton(max_steps=few),
        TunedRidge(),
        references.Lasso(),
        references.LeastSquares(),
        *references.default_bayes(task),
    ]


def default_sizes(n_points: int) -> list[int]:
    """The numbers of examples that are looked at: a quarter, half and all of them."""
    return sorted({max(1, n_points // 4), max(1, n_points // 2), n_points})


def algorithm_distances(
    network: InContextNetwork,
    fit: Prompt,
    choose: Prompt,
    score: Prompt,
    task: Law,
    algorithms: Sequence[Reference] | None = None,
    n_points: Sequence[int] | None = None,
    alpha: float = 1.0,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> list[Distance]:
    """The distance of every reading to every algorithm, from the first n examples of each prompt, for each n.

    Probes with ridge strength ``alpha`` are fitted on the prompts ``fit`` (anew for each n), the algorithms' settings
    on ``choose``, and the distances are taken on ``score``: three sets apart, all of the law of ``task``. Without
    ``n_points`` these are a quarter, half and all of the examples.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.algorithms import algorithm_distances
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> fit, choose, score = (task.sample(16, 5, 2, draws) for _ in range(3))
        >>> from lightning_icl.functional.references import LeastSquares, Ridge
        >>> found = algorithm_distances(model, fit, choose, score, task, [Ridge(), LeastSquares()])
        >>> {(d.reading, d.layer, d.n_points) for d in found} >= {("read_out", 2, 5), ("probe", 1, 5)}
        True
    """
    fit, choose, score = fit.unpadded(), choose.unpadded(), score.unpadded()
    compared = comparable(default_algorithms(task) if algorithms is None else algorithms)
    output = _shown(network, score.rows(0, 1))
    case = Case(task, task, depth(network, output))
    for algorithm in compared:
        algorithm.check(case)
    most, smallest = score.x.shape[1], min(prompt.x.shape[1] for prompt in (fit, choose, score))
    sizes = default_sizes(most) if n_points is None else n_points
    for n in sizes:
        if not 1 <= n <= smallest:
            raise InputError(f"n_points has {n}, but it must lie between 1 and the prompts' {smallest} examples.")
    if (fewest := min(len(prompt.x) for prompt in (fit, choose, score))) < 2:
        raise InputError(f"there are {fewest} prompts in a set, but standard errors need at least 2.")
    found: list[Distance] = []
    for n in progress(sizes, "which algorithm"):
        readers = [*own_readers(network, output), *probe_readers(network, fit.first(n), alpha, chunk_size)]
        chosen, scored = (prompt.first(n) for prompt in (choose, score))
        found += distances(
            readers,
            compared,
            case,
            (references.whole_prompts(chosen), readings(network, chosen, readers, chunk_size)),
            (references.whole_prompts(scored), readings(network, scored, readers, chunk_size)),
        )
    return found


def closest(found: Sequence[Distance], reading: str, layer: int, n_points: int) -> list[Distance]:
    """By rank the algorithm of one reading and all that the prompts cannot tell from it; none, where it reads 0."""
    of_one = [d for d in found if (d.reading, d.layer, d.n_points) == (reading, layer, n_points) and d.rank]
    return sorted((d for d in of_one if d.rank == 1 or d.excess_over_closest.low <= 0), key=lambda d: d.rank)


def own_readers(network: InContextNetwork, output: TransformerOutput) -> list[Reader]:
    """The model's own read-out after every layer, or of the last alone; from what it shows of any prompt."""
    read: Callable[[Tensor], Tensor] | None = getattr(network, "read", None)
    if read is None or not output.query_states:
        return [Reader(READ_OUT, max(1, depth(network, output)), None)]
    return [Reader(READ_OUT, layer, read) for layer in range(1, len(output.query_states))]


def probe_readers(network: InContextNetwork, fit: Prompt, alpha: float, chunk_size: int = 512) -> list[Reader]:
    """For every layer a linear ridge probe of the query's state for f(x_q), fitted on the prompts ``fit``."""
    with torch.inference_mode(False), torch.no_grad():
        states = [_shown(network, part).query_states for part in fit.chunks(chunk_size)]
        found = []
        for layer in range(1, len(states[0])):
            seen = torch.cat([by_layer[layer] for by_layer in states]).flatten(0, 1)
            probe = ridge_probe(seen, fit.f_query.reshape(-1, 1).clone(), alpha)
            found.append(Reader(PROBE, layer, partial(_read, probe.weight[:, 0], probe.intercept)))
    return found


@torch.inference_mode(False)
@torch.no_grad()
def _shown(network: InContextNetwork, prompt: Prompt) -> TransformerOutput:
    # Not as inference tensors: autocast keeps its copies of the weights, which the gradients then run through.
    return network.on_prompt(prompt.copied())


def _read(weight: Tensor, intercept: Tensor, states: Tensor) -> Tensor:
    return states.double() @ weight + intercept


def readings(network: InContextNetwork, prompt: Prompt, readers: Sequence[Reader], chunk_size: int = 512) -> Readings:
    """What each reader reads at the prompts' queries, and its gradient there.

    No query sees another, so the gradient of the sum over queries holds every query's own: one backward pass a reader.
    """
    parts = []
    for part in prompt.chunks(chunk_size):
        with torch.inference_mode(False), torch.enable_grad(), _differentiable(network):
            copied = part.copied()
            x_query = copied.x_query.requires_grad_()
            output = network.on_prompt(copied)
            if not output.prediction.requires_grad:
                raise InputError(
                    f"implied weights are gradients, but none runs through the prediction of {type(network).__name__}; "
                    "is it made under torch.no_grad, or detached?"
                )
            read = [r.read(output.query_states[r.layer]) if r.read else output.prediction for r in readers]
            total = [one.sum() + 0 * x_query.sum() for one in read]  # what knows nothing of x_q has the gradient 0
            weights = [torch.autograd.grad(one, x_query, retain_graph=True)[0] for one in total]
            parts.append((torch.stack([one.detach().double() for one in read]), torch.stack(weights).double()))
    return Readings._make(torch.cat(field, dim=1) for field in zip(*parts, strict=True))


def _differentiable(network: InContextNetwork) -> AbstractContextManager[object]:
    """Without cuDNN's recurrent layers, which have no gradient outside training."""
    recurrent = any(isinstance(part, nn.RNNBase) for part in network.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


def distances(
    readers: Sequence[Reader],
    algorithms: Sequence[LinearReference],
    case: Case,
    choose: tuple[Problems, Readings],
    score: tuple[Problems, Readings],
) -> list[Distance]:
    """The distance of each reading to each algorithm; settings from ``choose``, distances on ``score``."""
    scaled = [reader.reading == PROBE for reader in readers]
    families = [fitted(algorithm, case, choose[0], choose[1].prediction, scaled) for algorithm in algorithms]
    members = [members_of(family.algorithm, score[0]) for family in families]
    found: list[Distance] = []
    for i, (reader, prediction, weights) in enumerate(zip(readers, *score[1], strict=True)):
        of_one, errors, others = [], [], []
        for family, weights_at in zip(families, members, strict=True):
            chosen = family.chosen[i]
            w_hat = chosen.scales[:, None, None] * weights_at(chosen.settings)
            other = torch.einsum("kbd,bqd->kbq", w_hat, score[0].targets[:, 0])
            per_prompt = squared_differences(prediction, weights, other[chosen.best], w_hat[chosen.best])
            difference = (prediction - other).square().mean(dim=-1)
            of_one.append(_distance(reader, family, chosen, score[0], per_prompt, difference))
            errors.append(difference[chosen.best])
            others.append(other[chosen.best])
        if prediction.square().mean() <= EQUAL * score[0].f.square().mean():
            found += [d._replace(relative_spd=math.nan, relative_ilwd=math.nan) for d in of_one]
        else:
            found += _ranked(of_one, families, prediction, torch.stack(errors), torch.stack(others))
    return found


def _ranked(
    found: Sequence[Distance],
    families: Sequence[Family],
    prediction: Predictions,
    differences: Float[Tensor, "algorithms batch"],
    predictions: Float[Tensor, "algorithms batch queries"],
) -> list[Distance]:
    """One reading's distances with the place of each beside the closest."""
    size = prediction.square().mean(dim=-1)

    def apart(closest: int) -> list[float]:
        return ((predictions - predictions[closest]).square().mean(dim=(1, 2)) / size.mean()).tolist()

    def simplicity(i: int) -> tuple[int, float, int]:
        return families[i].n_free, found[i].setting.get("steps", 0.0), i

    spd = differences.mean(dim=1).clamp_min(EQUAL * size.mean()).nan_to_num(torch.inf).tolist()
    least = spd.index(min(spd))
    same = [i for i, difference in enumerate(apart(least)) if difference <= SAME or i == least]
    named = min(same, key=simplicity)
    order = sorted(same, key=simplicity) + sorted(set(range(len(spd))) - set(same), key=lambda i: (spd[i], i))
    excess = excess_over(named, differences, size, len(spd) * (len(spd) - 1) // 2)
    placed = zip(found, apart(named), map(Interval._make, excess.T.tolist()), strict=True)
    return [
        d._replace(rank=1 + order.index(i), from_closest=difference, excess_over_closest=interval)
        for i, (d, difference, interval) in enumerate(placed)
    ]


def excess_over(
    closest: int,
    differences: Float[Tensor, "algorithms batch"],
    size: Float[Tensor, " batch"],
    n_comparisons: int,
) -> Float[Tensor, "3 algorithms"]:
    """Each algorithm's excess SPD and the ends of its interval, from (yhat - yhat_a)^2 and yhat^2; see above."""
    spd = differences.mean(dim=1, keepdim=True).clamp_min(EQUAL * size.mean())
    error = mean_and_standard_error((differences / spd - differences[closest] / spd[closest]).T)[1]
    margin = joint_quantile(max(1, n_comparisons)) * error
    log = (spd / spd[closest])[:, 0].log()
    return torch.stack([log, log - margin, log + margin]).expm1()


def _distance(
    reader: Reader,
    family: Family,
    chosen: Chosen,
    problems: Problems,
    per_prompt: Float[Tensor, "batch 5"],
    by_steps: Float[Tensor, "settings batch"],
) -> Distance:
    member = family.algorithm.at(chosen.settings[chosen.best, :, None])
    setting = dict(zip(member.setting_names, member.setting[:, 0].tolist(), strict=True))
    steps_range = (math.nan, math.nan)
    if "steps" in setting:
        low = excess_over(chosen.best, by_steps, per_prompt[:, 1], len(by_steps) - 1)[1]
        alike = chosen.settings[(low <= 0).nonzero()[:, 0].cpu(), -1].tolist()
        steps_range = min([setting["steps"], *alike]), max([setting["steps"], *alike])
    if reader.reading == PROBE:
        setting["scale"] = float(chosen.scales[chosen.best])
    place = member.key, reader.reading, reader.layer, int(problems.sizes[0])
    spd, relative_spd, ilwd, relative_ilwd, cosine = map(float, _distances(per_prompt.mean(dim=0, keepdim=True)))
    errors = dict(zip(DISTANCES, map(float, jackknife_errors(per_prompt, _distances)), strict=True))
    known = *place, member.label(), setting, steps_range
    return Distance(*known, spd, relative_spd, ilwd, relative_ilwd, cosine, errors)


def squared_differences(
    prediction: Float[Tensor, "batch queries"],
    weights: Float[Tensor, "batch queries dims"],
    other_prediction: Float[Tensor, "batch queries"],
    other_weights: Float[Tensor, "batch dims"],
) -> Float[Tensor, "batch 5"]:
    """Each prompt's means over queries of (yhat - yhat_a)^2, yhat^2, ||g - w_a||^2, ||g||^2 and cos(g, w_a)."""
    w_a = other_weights[:, None]
    by_query = [
        (prediction - other_prediction).square(),
        prediction.square(),
        (weights - w_a).square().sum(dim=-1),
        weights.square().sum(dim=-1),
        torch.cosine_similarity(weights, w_a, dim=-1, eps=1e-30),
    ]
    return torch.stack([values.mean(dim=-1) for values in by_query], dim=-1)


def _distances(means: Float[Tensor, "batch 5"]) -> tuple[Tensor, ...]:
    """The DISTANCES from means over prompts."""
    spd, size, ilwd, length, cosine = means.unbind(dim=1)
    return spd, spd / size, ilwd, ilwd / length, cosine


def comparable(algorithms: Sequence[Reference]) -> list[LinearReference]:
    """The algorithms, unless one has no weights to compare or two go by one name."""
    check_each_once("references", [algorithm.key for algorithm in algorithms])
    for algorithm in algorithms:
        if not isinstance(algorithm, LinearReference):
            raise InputError(f"algorithms has {algorithm.key}, but only estimators of linear weights can be compared.")
    return [algorithm for algorithm in algorithms if isinstance(algorithm, LinearReference)]
