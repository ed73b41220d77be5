"""Which algorithm is it? How far what a layer has computed is from known estimators, in predictions and in weights.

A layer's reading is a scalar function of the query's state: a linear probe for f(x_q), or the model's own read-out.
Its implied weights are its gradient with respect to x_q (von Oswald et al. 2023). With yhat and g the reading and its
gradient, and yhat_a = <w_a, x_q> an algorithm's prediction with weights w_a (Akyurek et al. 2023):

    SPD  = E (yhat - yhat_a)^2     squared label units        relative: SPD / E yhat^2
    ILWD = E ||g - w_a||^2         squared label / x units    relative: ILWD / E ||g||^2
    cosine = E <g, w_a> / (||g|| ||w_a||), 0 where w_a = 0

E is over prompts and their queries. A relative distance is 0 for the algorithm itself and 1 for the zero predictor.
Settings (steps t, step sizes, alpha) are those of the least SPD on separate prompts, for each reading and each number
of examples; the weights are compared under the same settings.

Algorithms are compared with the one of the least SPD, a*, by the excess SPD_a / SPD_a* - 1, paired over prompts: its
95 % interval is that of log(SPD_a / SPD_a*), whose standard error is that of the mean of e_a / SPD_a - e_a* / SPD_a*,
with e_a the squared differences of the prompts. On the log scale because e_a can have tails so long that a mean of 474
has an error of 294 (least squares with as many examples as dimensions): the difference's interval then holds 0, though
by Markov's inequality a mean of numbers above 0 hardly ever comes out at many times what it estimates. The intervals of
all pairs of algorithms hold at once (Bonferroni), since which one is a* is read from the same prompts.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import ridge_probe
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import (
    GD,
    ISTA,
    Case,
    GDPlusPlus,
    Lasso,
    LeastSquares,
    Newton,
    PreprocessThenGD,
    Problems,
    Reference,
    Ridge,
    check_references,
    default_bayes,
    whole_prompts,
)
from lightning_icl.functional.references.iterative import IterativeReference
from lightning_icl.functional.references.linear import PenalisedReference
from lightning_icl.functional.references.reference import (
    Candidates,
    LinearReference,
    SearchedReference,
    in_parts,
    predicted,
    strengths,
)
from lightning_icl.functional.risk import (
    Interval,
    jackknife_errors,
    joint_quantile,
    mean_and_standard_error,
    squared_errors,
    t_quantile,
)
from lightning_icl.functional.tasks import Task
from lightning_icl.instruments.ablation import Progress, silent
from lightning_icl.transformer import Transformer

READ_OUT = "read_out"
EQUAL = 1e-12  # relative SPD below which predictions are the same but for rounding


class Reader(NamedTuple):
    """A reading: the name it goes by, the layer whose query states it reads (0 is the read-in), and how."""

    name: str
    layer: int
    read: Callable[[Tensor], Tensor]  # (batch, queries, d_model) to (batch, queries)


class Readings(NamedTuple):
    """What each reader reads at the queries, and the gradient of that with respect to x_q, in float64."""

    prediction: Float[Tensor, "readings batch queries"]
    weights: Float[Tensor, "readings batch queries dims"]


class Distance(NamedTuple):
    """How far one reading is from the member of one algorithm's family that is closest to it.

    Attributes:
        algorithm: the reference's key.
        reading: layer1, layer2, ..., or read_out, the model's own prediction.
        n_points: number of examples.
        label: the algorithm in words, with its step-size rule and fitted settings.
        setting: the fitted settings by name: steps, step, gamma, alpha; see ``named_setting``.
        spd, relative_spd, ilwd, relative_ilwd, cosine: see above. Each has its standard error over prompts (of the
            ratios by the jackknife).
        excess_over_closest: by how much its SPD exceeds that of the algorithm that is closest to the reading, in units
            of the latter.
        excess_low, excess_high: the ends of its interval; where it holds 0, the prompts cannot tell the two apart.
    """

    algorithm: str
    reading: str
    n_points: int
    label: str
    setting: dict[str, float]
    spd: float
    spd_error: float
    relative_spd: float
    relative_spd_error: float
    ilwd: float
    ilwd_error: float
    relative_ilwd: float
    relative_ilwd_error: float
    cosine: float
    cosine_error: float
    excess_over_closest: float = float("nan")
    excess_low: float = float("nan")
    excess_high: float = float("nan")

    def numbers(self, n_prompts: int) -> Iterator[tuple[str, Interval]]:
        """All of it by name, with Student's intervals for ``n_prompts`` scored prompts; setting/<name> has none."""
        for name in ("spd", "relative_spd", "ilwd", "relative_ilwd", "cosine"):
            value, half = getattr(self, name), t_quantile(n_prompts) * getattr(self, f"{name}_error")
            yield name, Interval(value, value - half, value + half)
        yield "excess_over_closest", Interval(self.excess_over_closest, self.excess_low, self.excess_high)
        for name, value in self.setting.items():
            yield f"setting/{name}", Interval(value, math.nan, math.nan)


class TunedRidge(Ridge):
    """Minimises ||y - X w||^2 + alpha ||w||^2, alpha tuned even where the task's law implies one."""

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        if self.alpha is not None:
            return super().candidates(case, tuning)
        # Up to where all but nothing is left, which is the closest to a layer that knows nothing.
        return strengths(tuning, 6) * 100 * tuning.sizes

    def settle(self, case: Case, tuning: Problems) -> None:
        SearchedReference.settle(self, case, tuning)


def default_algorithms(task: Task, max_steps: int = 50) -> list[LinearReference]:
    """GD, P-GD, GD++ and Newton after t <= max_steps steps, ridge, lasso, least squares, and Bayes where it is known.

    GD, P-GD and GD++ take steps of c / lambda_max of each prompt's own (rescaled) examples, c fitted with t.
    """
    return [
        GD(max_steps=max_steps),
        PreprocessThenGD(max_steps=max_steps),
        GDPlusPlus(max_steps=min(max_steps, 20)),
        Newton(max_steps=min(max_steps, 20)),
        TunedRidge(),
        Lasso(),
        LeastSquares(),
        *default_bayes(task),
    ]


def default_sizes(n_points: int) -> list[int]:
    """A quarter, half and all of the examples."""
    return sorted({max(1, n_points // 4), max(1, n_points // 2), n_points})


def algorithm_distances(
    transformer: Transformer,
    fit: Prompt,
    choose: Prompt,
    score: Prompt,
    task: Task,
    algorithms: Sequence[Reference] | None = None,
    n_points: Sequence[int] | None = None,
    alpha: float = 1.0,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> list[Distance]:
    """The distance of every reading to every algorithm, from the first n examples of each prompt, for each n.

    Probes with ridge strength ``alpha`` are fitted on the prompts ``fit`` (anew for each n), the algorithms' settings
    on ``choose``, and the distances are taken on ``score``: three sets apart, all of the law of ``task``.
    """
    compared = comparable(default_algorithms(task) if algorithms is None else algorithms)
    sizes = default_sizes(score.x.shape[1]) if n_points is None else n_points
    case = Case(task, task, len(transformer.heads))
    for algorithm in compared:
        algorithm.check(case)
    _check(sizes, (fit, choose, score))
    found: list[Distance] = []
    for n in progress(sizes, "which algorithm"):
        readers = [*probe_readers(transformer, fit.first(n), alpha, chunk_size), own_reader(transformer)]
        chosen, scored = (prompt.first(n) for prompt in (choose, score))
        found += distances(
            [reader.name for reader in readers],
            compared,
            case,
            (whole_prompts(chosen), readings(transformer, chosen, readers, chunk_size)),
            (whole_prompts(scored), readings(transformer, scored, readers, chunk_size)),
        )
    return found


def probe_readers(transformer: Transformer, fit: Prompt, alpha: float, chunk_size: int = 512) -> list[Reader]:
    """For every layer a linear ridge probe of the query's state for f(x_q), fitted on the prompts ``fit``."""
    # Not as inference tensors: autocast keeps its copies of the weights, which the gradients then run through.
    with torch.inference_mode(False), torch.no_grad():
        states = [transformer.on_prompt(part.copied()).query_states for part in fit.chunks(chunk_size)]
        found = []
        for layer in range(1, len(transformer.heads) + 1):
            seen = torch.cat([by_layer[layer] for by_layer in states]).flatten(0, 1)
            probe = ridge_probe(seen, fit.f_query.reshape(-1, 1).clone(), alpha)
            found.append(Reader(f"layer{layer}", layer, _linear(probe.weight[:, 0], probe.intercept)))
    return found


def _linear(weight: Tensor, intercept: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda states: states.double() @ weight + intercept


def own_reader(transformer: Transformer) -> Reader:
    """The model's own read-out after its last layer."""
    return Reader(READ_OUT, len(transformer.heads), transformer.read)


def readings(transformer: Transformer, prompt: Prompt, readers: Sequence[Reader], chunk_size: int = 512) -> Readings:
    """What each reader reads at the prompts' queries, and its gradient there.

    No query sees another, so the gradient of the sum over queries holds every query's own: one backward pass a reader.
    """
    parts = [_readings(transformer, part, readers) for part in prompt.chunks(chunk_size)]
    return Readings._make(torch.cat(field, dim=1) for field in zip(*parts, strict=True))


def _readings(transformer: Transformer, prompt: Prompt, readers: Sequence[Reader]) -> Readings:
    with torch.inference_mode(False), torch.enable_grad():
        prompt = prompt.copied()
        x_query = prompt.x_query.requires_grad_()
        states = transformer.on_prompt(prompt).query_states
        read = [reader.read(states[reader.layer]) for reader in readers]
        weights = [torch.autograd.grad(one.sum(), x_query, retain_graph=True)[0] for one in read]
        return Readings(torch.stack([one.detach().double() for one in read]), torch.stack(weights).double())


def distances(
    names: Sequence[str],
    algorithms: Sequence[LinearReference],
    case: Case,
    choose: tuple[Problems, Readings],
    score: tuple[Problems, Readings],
) -> list[Distance]:
    """The distance of each named reading to each algorithm; settings from ``choose``, distances on ``score``."""
    found, errors = [], []
    for algorithm in algorithms:
        members = closest_members(algorithm, case, choose[0], choose[1].prediction)
        for name, member, prediction, weights in zip(names, members, *score[1], strict=True):
            w_hat = member.weights(score[0])
            per_prompt = squared_differences(prediction, weights, predicted(w_hat, score[0])[:, 0], w_hat[:, 0])
            found.append(_distance(name, member, int(score[0].sizes[0]), per_prompt))
            errors.append(per_prompt[:, :2])
    # (readings, algorithms, prompts) of (yhat - yhat_a)^2 and yhat^2
    by_reading = torch.stack(errors).unflatten(0, (len(algorithms), -1)).transpose(0, 1)
    excess = torch.stack([excess_over_closest(*of_one.unbind(-1)) for of_one in by_reading], dim=2).flatten(1).T
    fields = ("excess_over_closest", "excess_low", "excess_high")
    return [d._replace(**dict(zip(fields, of, strict=True))) for d, of in zip(found, excess.tolist(), strict=True)]


def excess_over_closest(
    differences: Float[Tensor, "algorithms batch"], sizes: Float[Tensor, "algorithms batch"]
) -> Float[Tensor, "3 algorithms"]:
    """Each algorithm's excess SPD and the ends of its interval, from (yhat - yhat_a)^2 and yhat^2; see above."""
    spd = differences.mean(dim=1, keepdim=True).clamp_min(EQUAL * sizes.mean(dim=1, keepdim=True))
    best = spd[:, 0].nan_to_num(torch.inf).argmin()
    n = len(spd)
    error = mean_and_standard_error((differences / spd - differences[best] / spd[best]).T)[1]
    margin = joint_quantile(max(1, n * (n - 1) // 2)) * error
    log = (spd / spd[best])[:, 0].log()
    return torch.stack([log, log - margin, log + margin]).expm1()


def closest_members(
    algorithm: LinearReference,
    case: Case,
    problems: Problems,
    prediction: Float[Tensor, "readings batch queries"],
) -> list[LinearReference]:
    """For each reading the algorithm with the settings of the least SPD.

    Each is what tuning with the reading in the place of f would give, but a candidate's weights serve all readings.
    """
    # All that does not depend on the prompts is settled by one of them; the setting is then overwritten.
    settled = algorithm.settled(case, next(problems.chunks(1)))
    assert isinstance(settled, LinearReference)
    if not isinstance(settled, SearchedReference):
        return [settled] * len(prediction)
    candidates = settled.candidates(case, problems)
    best = _candidate_spd(settled, candidates, problems, prediction).nan_to_num(torch.inf).argmin(dim=0)
    members: list[LinearReference] = []
    for setting in candidates[best]:
        member = copy.copy(settled)
        member.setting = setting
        members.append(member)
    return members


def _candidate_spd(
    algorithm: SearchedReference, candidates: Candidates, problems: Problems, prediction: Tensor
) -> Float[Tensor, "candidates readings"]:
    """The sum of the squared prediction differences over prompts."""
    total = prediction.new_zeros(len(candidates), len(prediction))
    start = 0
    for part in in_parts(problems):
        read = prediction[:, start : start + len(part.x)]
        for row, w_hat in zip(total, algorithm.fits(part, candidates), strict=True):
            row += squared_errors(read, predicted(w_hat, part)[:, 0].expand_as(read)).sum(dim=-1)
        start += len(part.x)
    return total


def _distance(name: str, algorithm: LinearReference, n_points: int, per_prompt: Float[Tensor, "batch 5"]) -> Distance:
    (spd, _, ilwd, _, cosine), errors = (values.tolist() for values in mean_and_standard_error(per_prompt))
    relative_spd, relative_ilwd = (float(ratio) for ratio in _ratios(per_prompt.mean(dim=0, keepdim=True)))
    relative_spd_error, relative_ilwd_error = (float(error) for error in jackknife_errors(per_prompt, _ratios))
    return Distance(
        algorithm=algorithm.key,
        reading=name,
        n_points=n_points,
        label=algorithm.label(),
        setting=named_setting(algorithm),
        spd=spd,
        spd_error=errors[0],
        relative_spd=relative_spd,
        relative_spd_error=relative_spd_error,
        ilwd=ilwd,
        ilwd_error=errors[2],
        relative_ilwd=relative_ilwd,
        relative_ilwd_error=relative_ilwd_error,
        cosine=cosine,
        cosine_error=errors[4],
    )


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


def _ratios(means: Float[Tensor, "batch 5"]) -> tuple[Tensor, Tensor]:
    return means[:, 0] / means[:, 1], means[:, 2] / means[:, 3]


def named_setting(reference: LinearReference) -> dict[str, float]:
    """A settled reference's fitted settings by name.

    ``steps`` is t; ``step`` the step size and ``gamma`` GD++'s, both times lambda_max of each prompt under the rule
    "per_prompt"; ``alpha`` the strength of a penalty.
    """
    if not isinstance(reference, SearchedReference) or reference.setting is None:
        return {}
    match reference:
        case PreprocessThenGD():
            names = ["step", "steps"]
        case GDPlusPlus():
            names = ["step", "gamma", "steps"]
        case ISTA():
            names = ["alpha", "steps"]
        case IterativeReference():
            names = ["steps"]
        case PenalisedReference():
            names = ["alpha"]
        case _:
            names = ["features"]
    return dict(zip(names, reference.setting[:, 0].tolist(), strict=True))


def comparable(algorithms: Sequence[Reference]) -> list[LinearReference]:
    """The algorithms, unless one has no weights to compare or two go by one name."""
    check_references(algorithms)
    for algorithm in algorithms:
        if not isinstance(algorithm, LinearReference):
            raise InputError(f"algorithms has {algorithm.key}, but only estimators of linear weights can be compared.")
    return [algorithm for algorithm in algorithms if isinstance(algorithm, LinearReference)]


def _check(sizes: Sequence[int], prompts: Sequence[Prompt]) -> None:
    smallest = min(prompt.x.shape[1] for prompt in prompts)
    for n in sizes:
        if not 1 <= n <= smallest:
            raise InputError(f"n_points has {n}, but it must lie between 1 and the prompts' {smallest} examples.")
    for prompt in prompts:
        if prompt.point_mask is not None:
            raise InputError("the prompts have a point_mask, but algorithms are compared on prompts without padding.")
        if len(prompt.x) < 2:
            raise InputError(f"there are {len(prompt.x)} prompts in a set, but standard errors need at least 2.")
