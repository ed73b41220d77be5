"""What each layer's states know linearly, beside what an untrained network and shuffled labels let a probe find."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_icl.functional import estimators, probes
from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.functional.probes import Estimate
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import Case, Ridge, default_bayes, errors, tuned, whole_prompts
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import Law
from lightning_icl.instruments.ablation import Progress, silent
from lightning_icl.network import InContextNetwork

Token = Literal["query", "context"]
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


class Reading(NamedTuple):
    """One layer's probes at one kind of token on the scoring prompts, in the order of targets."""

    scored: list[Scored]
    errors: Float[Tensor, "batch targets"]


Readings = dict[tuple[Token, int], Reading]  # by kind of token and layer


class ProbeTable(NamedTuple):
    """Every probe of a network, in the order of tokens, layers, targets.

    ``untrained`` is what was found on the untrained network. Where other weights are probed on the same prompts, this
    saves to find it again: ``probe_layers`` takes it in place of that network.
    """

    rows: tuple[Probe, ...]
    untrained: Readings | None = None

    def by_layer(self, target: str, token: Token = "query") -> list[Probe]:
        """One target's probes, one a layer from the read-in on."""
        return [row for row in self.rows if (row.target, row.token) == (target, token)]


@torch.no_grad()
def probe_layers(
    network: InContextNetwork,
    task: Law,
    fit: Prompt,
    choose: Prompt,
    score: Prompt,
    untrained: InContextNetwork | Readings | None = None,
    alpha: float | None = None,
    context_points: int = 8,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> ProbeTable:
    """Ridge probes of the query's and the context tokens' states in every layer, for all targets.

    The network is any that shows states; where it shows none of the context, the query's are probed alone.

    Each probe is fitted on the prompts ``fit``, its strength chosen on ``choose``, and scored on ``score``: three
    separate sets, without padding. Targets (``functional.probes.probe_targets``): f, w, the support, r_hat and
    R_hat x; and what least squares, ridge (with the strength that the law of ``task`` implies, else tuned on ``fit``),
    GD_t and P-GD_t, t = 1 .. depth, predict at the token's x from all examples of its prompt. Steps are 1/lambda_max of
    each prompt. With about as many examples as dimensions the predictions of least squares at a query have no finite
    variance: what is said there of that target is not to be relied on.

    The context tokens are those that hold x_i (in the alternating layout they have not seen y_i), at ``context_points``
    examples spread evenly over the prompt; one probe reads them all.

    The controls go through the same fit and choice: "shuffled" with every prompt's targets given to another while
    fitting and choosing, "untrained" on the states of another network, such as ``network.untrained()``.

    Args:
        untrained: that network, or the ``untrained`` of a table of the same prompts, targets and options.
        alpha: a fixed strength in place of the chosen ones.
        chunk_size: prompts in one forward pass.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.probing import probe_layers
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> fit, choose, score = (task.sample(16, 5, 2, draws) for _ in range(3))
        >>> table = probe_layers(model, task, fit, choose, score)
        >>> [row.layer for row in table.by_layer("f")]  # 0 is the read-in
        [0, 1, 2]
    """
    check_at_least(1, context_points=context_points, chunk_size=chunk_size)
    if alpha is not None:
        probes.check_strength(alpha)
    n_points, n_dims = fit.x.shape[1], network.n_dims
    named = {"fit": fit, "choose": choose, "score": score}
    sets = [_probed(name, prompt, n_points, n_dims) for name, prompt in named.items()]
    places = torch.linspace(0, n_points - 1, min(n_points, context_points)).round().long().to(fit.x.device)
    shown = network.on_prompt(sets[0].rows(0, 1))
    if not shown.query_states:
        raise InputError(f"probes read states, but this {type(network).__name__} shows none (query_states).")
    depth = len(shown.query_states) - 1
    tokens = TOKENS if shown.context_states else TOKENS[:1]
    labels = _labels(task, sets, places, depth)

    def readings(
        model: InContextNetwork, labels: Mapping[Token, Labels]
    ) -> Iterator[tuple[tuple[Token, int], list[Reading]]]:
        states = [_states(model, prompt, places, chunk_size) for prompt in sets]
        with torch.autocast(fit.x.device.type, enabled=False):
            for token, layer in progress([(token, layer) for token in tokens for layer in range(depth + 1)], "probes"):
                yield (token, layer), _read([of_set[token][layer] for of_set in states], labels[token], alpha)

    if isinstance(untrained, InContextNetwork):
        other = len(untrained.on_prompt(sets[0].rows(0, 1)).query_states) - 1
        if other != depth:
            raise InputError(f"the untrained network has {other} layers, but the probed one has {depth}.")
        untrained = {place: reading for place, (reading,) in readings(untrained, labels)}
    both = {token: own.beside_shuffled() for token, own in labels.items()}
    rows: list[Probe] = []
    for (token, layer), (own, shuffled) in readings(network, both):
        control = None if untrained is None else untrained[token, layer]
        rows += _rows(token, layer, labels[token], own, shuffled, control)
    return ProbeTable(tuple(rows), untrained)


def reference_levels(task: Law, fit: Prompt, score: Prompt) -> dict[str, tuple[Estimate, str]]:
    """The excess risk of ridge and, where its posterior is quick to compute, of Bayes; each with its label.

    Their settings follow from the law or are tuned on ``fit``.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.instruments.probing import reference_levels
        >>> task = LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> fit, score = (task.sample(64, 5, 2, draws) for _ in range(2))
        >>> sorted(reference_levels(task, fit, score))
        ['bayes', 'ridge']
    """
    bound = [reference.bound(Case(task, task, 1)) for reference in (Ridge(), *default_bayes(task))]
    references = tuned(bound, whole_prompts(fit))
    found = errors(references, whole_prompts(score))
    return {r.key: (probes.mean_estimate(found[r.key][:, 0]), r.label()) for r in references}


def descent_curves(prompt: Prompt, depth: int) -> dict[str, list[Estimate]]:
    """Excess risk of GD and preprocess-then-GD after 0 .. depth - 1 steps of 1/lambda_max, beside layers 1 .. depth.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.instruments.probing import descent_curves
        >>> task = LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> {name: len(curve) for name, curve in descent_curves(prompt, depth=2).items()}
        {'gd': 2, 'preprocess_then_gd': 2}
    """
    curves = {}
    for name, w_hat in probes.descent_paths(prompt, depth - 1).items():
        path = estimators.predictions(w_hat, prompt.x_query.double())
        curves[name] = [probes.mean_estimate(squared_errors(predicted, prompt.f_query)) for predicted in path]
    return curves


class Labels(NamedTuple):
    """What is probed for at one kind of token: the outputs of all targets side by side, on each set of prompts.

    Probes are fitted and their strengths chosen on the outputs of several arms, one after the other.
    """

    sizes: dict[str, int]  # how many outputs each target has
    fit: Float[Tensor, "batch tokens arms_outputs"]
    choose: Float[Tensor, "batch tokens arms_outputs"]
    score: Float[Tensor, "batch tokens outputs"]
    deviations: list[Float[Tensor, " batch"]]  # of each target on the scoring prompts

    def beside_shuffled(self) -> "Labels":
        """With a second arm, in which every prompt's targets are given to another."""
        generator = torch.Generator().manual_seed(0)
        fit, choose = (
            torch.cat([part, probes.shuffled_prompts(part, generator)], dim=-1) for part in (self.fit, self.choose)
        )
        return self._replace(fit=fit, choose=choose)


def _labels(task: Law, sets: Sequence[Prompt], places: Int[Tensor, " points"], depth: int) -> dict[Token, Labels]:
    """What is probed for at each kind of token, on the prompts to fit on, to choose on and to score on."""
    (ridge,) = tuned([Ridge().bound(Case(task, task, depth))], whole_prompts(sets[0]))
    targets: list[dict[Token, dict[str, Tensor]]] = []
    for prompt in sets:
        steps = probes.algorithm_weights(prompt, depth)
        weights = {"least_squares": steps.pop("least_squares"), "ridge": ridge.weights(whole_prompts(prompt))[:, 0]}
        f = None if prompt.f is None else prompt.f[:, places]
        query = probes.probe_targets(prompt, prompt.x_query, prompt.f_query, weights | steps)
        context = probes.probe_targets(prompt, prompt.x[:, places], f, weights | steps)
        targets.append({"query": query, "context": context})
    labels = {}
    for token in TOKENS:
        sizes = {name: values.shape[-1] for name, values in targets[0][token].items()}
        fit, choose, score = (torch.cat(list(of_set[token].values()), dim=-1) for of_set in targets)
        deviations = [probes.deviations(part) for part in score.split(list(sizes.values()), dim=-1)]
        labels[token] = Labels(sizes, fit, choose, score, deviations)
    return labels


def _states(
    network: InContextNetwork, prompt: Prompt, places: Int[Tensor, " points"], chunk_size: int
) -> dict[Token, list[Float[Tensor, "batch tokens d_model"]]]:
    """The states that are probed, one tensor after the read-in and one after each layer."""
    chunks: dict[Token, list[tuple[Tensor, ...]]] = {"query": [], "context": []}
    for part in prompt.chunks(chunk_size):
        output = network.on_prompt(part)
        chunks["query"].append(output.query_states)
        each = output.context_states[0].shape[1] // prompt.x.shape[1] if output.context_states else 1
        chunks["context"].append(tuple(states[:, each * places] for states in output.context_states))
    return {token: [torch.cat(layer) for layer in zip(*parts, strict=True)] for token, parts in chunks.items()}


def _read(states: Sequence[Tensor], labels: Labels, alpha: float | None) -> list[Reading]:
    """The probes of one layer, whose states on each set are given: a reading for each arm of the labels."""
    sizes, arms = list(labels.sizes.values()), labels.fit.shape[-1] // labels.score.shape[-1]
    (seen, others), (targets, true) = (
        [part.flatten(0, 1) for part in pair] for pair in (states[:2], (labels.fit, labels.choose))
    )
    spectrum, alphas = probes.state_spectrum(seen), None if alpha is None else [alpha]
    probe, chosen = probes.best_probe(spectrum, targets, arms * sizes, others, true, alphas)
    found = []
    for read, strengths in zip(probe.predict(states[2]).chunk(arms, dim=-1), chosen.chunk(arms), strict=True):
        errors = probes.by_target((read - labels.score).square().mean(dim=1), sizes)
        scored = [
            Scored(float(strength), probes.mean_estimate(error), probes.explained_share(error, deviation))
            for strength, error, deviation in zip(strengths, errors.unbind(dim=1), labels.deviations, strict=True)
        ]
        if "support" in labels.sizes:
            place = list(labels.sizes).index("support")
            of_support, support = (values.split(sizes, dim=-1)[place] for values in (read, labels.score))
            scored[place] = scored[place]._replace(auc=probes.area_under_roc(of_support, support > 0))
        found.append(Reading(scored, errors))
    return found


def _rows(
    token: Token, layer: int, labels: Labels, own: Reading, shuffled: Reading, untrained: Reading | None
) -> Iterator[Probe]:
    """The probes of one layer beside their controls, one a target."""
    for i, name in enumerate(labels.sizes):

        def over(control: Reading, i: int = i) -> Estimate:
            return probes.selectivity(own.errors[:, i], control.errors[:, i], labels.deviations[i])

        row = Probe(name, token, layer, own.scored[i], shuffled.scored[i], over(shuffled))
        if untrained is not None:
            row = row._replace(untrained=untrained.scored[i], over_untrained=over(untrained))
        yield row


def _probed(name: str, prompt: Prompt, n_points: int, n_dims: int) -> Prompt:
    """One of the sets of prompts, with all examples of each."""
    if prompt.x.shape[1:] != (n_points, n_dims):
        raise InputError(
            f"the prompts of {name} have shape {tuple(prompt.x.shape)}, but all must have as many examples and the "
            f"model's {n_dims} dimensions."
        )
    if len(prompt.x) < 2:
        raise InputError(f"{name} has {len(prompt.x)} prompts, but it must have at least 2.")
    return prompt.unpadded()
