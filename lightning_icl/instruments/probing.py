"""What each layer's states know linearly, beside what an untrained network and shuffled labels let a probe find."""

import copy
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_icl.functional import estimators, probes
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import Estimate
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import Case, Ridge, default_bayes, whole_prompts
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.seeds import seeded
from lightning_icl.functional.tasks import Task
from lightning_icl.instruments.ablation import Progress, silent
from lightning_icl.transformer import Transformer

Token = Literal["query", "context"]
Targets = dict[str, Tensor]  # (batch, tokens, outputs) each
TOKENS: tuple[Token, ...] = ("query", "context")


class Scored(NamedTuple):
    """A probe on the scoring prompts.

    ``risk`` is its squared error, summed over outputs: for the target "f" an excess risk, in squared label units.
    ``auc`` is of the target "support" alone. ``alpha`` multiplies the sum of squared weights, beside a sum of squared
    errors.
    """

    alpha: float
    risk: Estimate
    r2: Estimate
    auc: Estimate | None = None


class Probe(NamedTuple):
    """One target, kind of token and layer (0 is the read-in): the probe and its controls.

    ``over_shuffled`` and ``over_untrained`` are the selectivity: R^2 minus that of the control, paired.
    """

    target: str
    token: Token
    layer: int
    trained: Scored
    shuffled: Scored
    over_shuffled: Estimate
    untrained: Scored | None = None
    over_untrained: Estimate | None = None

    def numbers(self) -> Iterator[tuple[str, Estimate, str | None]]:
        """All of it by name, as <arm>/risk, r2 or auc and selectivity/<control>; the risk with a note on its probe."""
        for arm in ("trained", "untrained", "shuffled"):
            scored: Scored | None = getattr(self, arm)
            if scored is None:
                continue
            yield f"{arm}/risk", scored.risk, f"ridge strength {scored.alpha:.3g}"
            yield f"{arm}/r2", scored.r2, None
            if scored.auc is not None:
                yield f"{arm}/auc", scored.auc, None
        for control, over in (("untrained", self.over_untrained), ("shuffled", self.over_shuffled)):
            if over is not None:
                yield f"selectivity/{control}", over, None


class ProbeTable(NamedTuple):
    """Every probe of a transformer, in the order of tokens, layers, targets."""

    rows: tuple[Probe, ...]

    def by_layer(self, target: str, token: Token = "query") -> list[Probe]:
        """One target's probes, one a layer from the read-in on."""
        return [row for row in self.rows if (row.target, row.token) == (target, token)]

    def targets(self, token: Token = "query") -> list[str]:
        """What was probed for."""
        return list(dict.fromkeys(row.target for row in self.rows if row.token == token))


@torch.no_grad()
def probe_layers(
    transformer: Transformer,
    task: Task,
    fit: Prompt,
    choose: Prompt,
    score: Prompt,
    untrained: Transformer | None = None,
    alpha: float | None = None,
    context_points: int = 8,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> ProbeTable:
    """Ridge probes of the query's and the context tokens' states in every layer, for all targets of PAPER.md section 6.

    Each probe is fitted on the prompts ``fit``, its strength chosen on ``choose``, and scored on ``score``: three
    separate sets, without padding. Targets (``probe_targets`` in functional/probes.py): f, w, the support, r_hat and
    R_hat x; and what least squares, ridge (with the strength that the law of ``task`` implies, else tuned on ``fit``),
    GD_t and P-GD_t, t = 1 .. depth, predict at the token's x from all examples of its prompt. Steps are 1/lambda_max of
    each prompt. With about as many examples as dimensions the predictions of least squares at a query have no finite
    variance: what is said there of that target is not to be relied on.

    The context tokens are those that hold x_i (in the alternating layout they have not seen y_i), at ``context_points``
    examples spread evenly over the prompt; one probe reads them all.

    The controls go through the same fit and choice: "shuffled" with every prompt's targets given to another while
    fitting and choosing, "untrained" on the states of another network, such as ``untrained_like(transformer)``.

    Args:
        alpha: a fixed strength in place of the chosen ones.
        chunk_size: prompts in one forward pass.
    """
    sets = fit, choose, score
    _check(transformer, untrained, sets, alpha, context_points, chunk_size)
    positions = _spread(fit.x.shape[1], context_points).to(fit.x.device)
    ridge = Ridge().settled(Case(task, task, len(transformer.heads)), whole_prompts(fit))
    assert isinstance(ridge, Ridge)
    targets = [_targets(prompt, positions, ridge, len(transformer.heads)) for prompt in sets]
    models = [transformer] if untrained is None else [transformer, untrained]
    states = [[_states(model, prompt, positions, chunk_size) for prompt in sets] for model in models]
    work = [(token, layer) for token in TOKENS for layer in range(len(transformer.heads) + 1)]
    tasks = {token: _task(token, targets) for token in TOKENS}
    rows = []
    with torch.autocast(fit.x.device.type, enabled=False):
        for token, layer in progress(work, "probes"):
            seen = [[part[token][layer] for part in of_model] for of_model in states]
            rows += _probes_of(token, layer, seen, tasks[token], alpha)
    return ProbeTable(tuple(rows))


def untrained_like(transformer: Transformer, seed: int = 0) -> Transformer:
    """A network of the same architecture with fresh weights, the same for each seed."""
    fresh = copy.deepcopy(transformer).cpu()
    with seeded(seed), torch.no_grad():
        for module in fresh.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        if fresh.position is not None:
            fresh.position.normal_(std=0.02)
        fresh.apply_init()
    return fresh.to(transformer.read_out.weight.device)


def reference_levels(task: Task, fit: Prompt, score: Prompt) -> dict[str, tuple[Estimate, str]]:
    """The excess risk of ridge and, where its posterior is quick to compute, of Bayes; each with its label.

    Their settings follow from the law or are tuned on ``fit``.
    """
    levels = {}
    for reference in [Ridge(), *default_bayes(task)]:
        settled = reference.settled(Case(task, task, 1), whole_prompts(fit))
        risk = probes.mean_estimate(settled.errors(whole_prompts(score))[:, 0])
        levels[reference.key] = risk, settled.label()
    return levels


def descent_curves(prompt: Prompt, depth: int) -> dict[str, list[Estimate]]:
    """Excess risk of GD and preprocess-then-GD after 0 .. depth - 1 steps of 1/lambda_max, beside layers 1 .. depth."""
    curves = {}
    for name, w_hat in probes.descent_paths(prompt, depth - 1).items():
        path = estimators.predictions(w_hat, prompt.x_query.double())
        curves[name] = [probes.mean_estimate(squared_errors(predicted, prompt.f_query)) for predicted in path]
    return curves


class _Task(NamedTuple):
    """What is probed for at one kind of token: the outputs of all targets side by side, on each set of prompts."""

    names: list[str]
    sizes: list[int]
    fit: Tensor  # (batch, tokens, outputs)
    choose: Tensor
    score: Tensor

    def part(self, values: Tensor, name: str) -> Tensor:
        """One target's part of values of all outputs."""
        return values.split(self.sizes, dim=-1)[self.names.index(name)]

    def shuffled(self) -> "_Task":
        """Every prompt's targets given to another while fitting and choosing."""
        generator = torch.Generator().manual_seed(0)
        return self._replace(
            fit=probes.shuffled_prompts(self.fit, generator), choose=probes.shuffled_prompts(self.choose, generator)
        )


class _Reading(NamedTuple):
    """The probes of one layer for all targets: their strengths and what they read on the scoring prompts."""

    alphas: Tensor  # (targets,)
    read: Tensor  # (batch, tokens, outputs)
    errors: Tensor  # (batch, targets)


def _probes_of(token: Token, layer: int, seen: list[list[Tensor]], task: _Task, alpha: float | None) -> list[Probe]:
    """The probes of one layer, whose states on each set are ``seen``: the trained network's, maybe the untrained's."""
    spectra = [probes.state_spectrum(states[0].flatten(0, 1)) for states in seen]
    arms = [_reading(spectra[0], seen[0], labels, alpha) for labels in (task, task.shuffled())]
    arms += [_reading(spectrum, states, task, alpha) for spectrum, states in zip(spectra[1:], seen[1:], strict=True)]
    rows = []
    for i, name in enumerate(task.names):
        deviation = probes.deviations(task.part(task.score, name))
        trained, shuffled, *untrained = (_scored(arm, task, name, deviation) for arm in arms)
        over = [probes.selectivity(arms[0].errors[:, i], arm.errors[:, i], deviation) for arm in arms[1:]]
        row = Probe(name, token, layer, trained, shuffled, over[0])
        rows.append(row._replace(untrained=untrained[0], over_untrained=over[1]) if untrained else row)
    return rows


def _reading(spectrum: probes.StateSpectrum, states: list[Tensor], task: _Task, alpha: float | None) -> _Reading:
    fit, choose = task.fit.flatten(0, 1), task.choose.flatten(0, 1)
    if alpha is None:
        alphas = probes.best_strengths(spectrum, fit, task.sizes, states[1].flatten(0, 1), choose)
    else:
        alphas = fit.new_full((len(task.sizes),), alpha)
    by_output = alphas.repeat_interleave(torch.tensor(task.sizes, device=alphas.device))
    read = spectrum.probe(fit, by_output).predict(states[2])
    return _Reading(alphas, read, probes.by_target((read - task.score).square().mean(dim=1), task.sizes))


def _scored(reading: _Reading, task: _Task, name: str, deviation: Tensor) -> Scored:
    place = task.names.index(name)
    errors, auc = reading.errors[:, place], None
    if name == "support":
        auc = probes.area_under_roc(task.part(reading.read, name), task.part(task.score, name) > 0)
    risk, r2 = probes.mean_estimate(errors), probes.explained_share(errors, deviation)
    return Scored(float(reading.alphas[place]), risk, r2, auc)


def _task(token: Token, targets: list[dict[Token, Targets]]) -> _Task:
    by_set = [part[token] for part in targets]
    sizes = [value.shape[-1] for value in by_set[0].values()]
    return _Task(list(by_set[0]), sizes, *(torch.cat(list(part.values()), dim=-1) for part in by_set))


def _targets(prompt: Prompt, positions: Int[Tensor, " points"], ridge: Ridge, depth: int) -> dict[Token, Targets]:
    steps = probes.algorithm_weights(prompt, depth)
    algorithms = {"least_squares": steps.pop("least_squares"), "ridge": ridge.weights(whole_prompts(prompt))[:, 0]}
    f = None if prompt.f is None else prompt.f[:, positions]
    return {
        "query": probes.probe_targets(prompt, prompt.x_query, prompt.f_query, algorithms | steps),
        "context": probes.probe_targets(prompt, prompt.x[:, positions], f, algorithms | steps),
    }


def _states(
    transformer: Transformer, prompt: Prompt, positions: Int[Tensor, " points"], chunk_size: int
) -> dict[Token, list[Float[Tensor, "batch tokens d_model"]]]:
    """The states that are probed, one tensor after the read-in and one after each layer."""
    chunks: dict[Token, list[tuple[Tensor, ...]]] = {"query": [], "context": []}
    for part in prompt.chunks(chunk_size):
        output = transformer.on_prompt(part)
        chunks["query"].append(output.query_states)
        at = transformer.tokens_per_point * positions
        chunks["context"].append(tuple(states[:, at] for states in output.context_states))
    return {token: [torch.cat(layer) for layer in zip(*parts, strict=True)] for token, parts in chunks.items()}


def _spread(n_points: int, at_most: int) -> Int[Tensor, " points"]:
    """Positions of examples spread evenly from the first to the last."""
    return torch.linspace(0, n_points - 1, min(n_points, at_most)).round().long()


def _check(
    transformer: Transformer,
    untrained: Transformer | None,
    sets: Sequence[Prompt],
    alpha: float | None,
    context_points: int,
    chunk_size: int,
) -> None:
    for name, number in (("context_points", context_points), ("chunk_size", chunk_size)):
        if number < 1:
            raise InputError(f"{name} is {number}, but it must be at least 1.")
    if alpha is not None and not 0 < alpha < float("inf"):
        raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be a finite number above 0.")
    if untrained is not None and len(untrained.heads) != len(transformer.heads):
        raise InputError(
            f"the untrained network has {len(untrained.heads)} layers, but the probed one has {len(transformer.heads)}."
        )
    for name, prompt in zip(("fit", "choose", "score"), sets, strict=True):
        if prompt.x.shape[1:] != sets[0].x.shape[1:] or prompt.x.shape[-1] != transformer.n_dims:
            raise InputError(
                f"the prompts of {name} have shape {tuple(prompt.x.shape)}, but all must have as many examples and the "
                f"model's {transformer.n_dims} dimensions."
            )
        if len(prompt.x) < 2:
            raise InputError(f"{name} has {len(prompt.x)} prompts, but it must have at least 2.")
        if prompt.point_mask is not None and not prompt.point_mask.all():
            raise InputError(f"the prompts of {name} are padded, but a probe's targets need all examples: cut them.")
