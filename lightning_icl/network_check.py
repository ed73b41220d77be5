"""Whether a network is what InContextNetwork asks for, found by a trial before any work is done."""

import copy
import traceback
from collections.abc import Sequence
from inspect import getsourcefile
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.functional.prompts import Prompt, concatenated
from lightning_icl.functional.seeds import seeded
from lightning_icl.network import InContextNetwork, TransformerOutput

# Of the largest prediction: what is computed once more in tensors of the same shapes differs by less, and by less than
# the second what is computed in others, also by a network that rounds to bfloat16 inside.
SAME, SAME_IN_OTHER_SHAPES, NOTHING = 1e-4, 1e-2, 1e-6
MOST_QUERIES, MOST_HEADS = 3, 16  # that are tried


def check_declared(network: object) -> None:
    """Refuse what is no InContextNetwork, and one that does not say how long x is and which heads it has."""
    name = type(network).__name__
    if not isinstance(network, InContextNetwork):
        said = f"the class {network.__name__}" if isinstance(network, type) else f"a {name}"
        raise InputError(f"the network is {said}, but it must be of a class that derives from InContextNetwork.")
    if getattr(network, "n_dims", None) is None:
        raise InputError(f"{name} has no n_dims, but it must say how long x is: self.n_dims = n_dims.")
    check_at_least(1, **{f"{name}.n_dims": network.n_dims})
    heads = getattr(network, "heads", None)
    if heads is None:
        raise InputError(f"{name} has no heads, but it must list those of each layer: self.heads = [], without any.")
    whole = isinstance(heads, Sequence) and all(isinstance(h, Integral) and int(h) >= 0 for h in heads)
    if not whole or isinstance(heads, str):
        found = repr(heads) if isinstance(heads, Sequence | int | float) else f"a {type(heads).__name__}"
        raise InputError(
            f"{name}.heads is {found}, but it must list the number of heads of each layer, such as [4, 4]; [] without "
            "any."
        )


@torch.no_grad()
def check_network(
    network: InContextNetwork,
    prompt: Prompt,
    n_points: Sequence[int] = (),
    shortest: int | None = None,
    trains: bool = False,
) -> TransformerOutput:
    """What the network shows of the prompts; InputError for what an InContextNetwork must not do.

    Tried is a copy, in evaluation mode, on the prompts' device. That something does not count is tried with a little
    noise on its weights: behind a projection that starts at 0, nothing does.

    Args:
        prompt: at least 4 prompts of the largest size.
        n_points: other numbers of examples that it must take.
        shortest: the fewest examples of padded prompts, where there are such.
        trains: whether its predictions must have a gradient.
    """
    check_declared(network)
    if network.n_dims != prompt.x.shape[-1]:
        raise InputError(
            f"{type(network).__name__}.n_dims is {network.n_dims}, but x has {prompt.x.shape[-1]} dimensions."
        )
    at_queries = {name: getattr(prompt, name)[:, :MOST_QUERIES] for name in ("x_query", "y_query", "f_query")}
    prompt = prompt._replace(**at_queries)
    with seeded(0):  # of a network that draws at random, the global generator
        tried = _copied(network).eval().to(prompt.x.device)
        output = _output(tried, prompt)
        _check_output(tried, prompt, output)
        if trains:
            with torch.inference_mode(False), torch.enable_grad():
                if not _output(tried, prompt.copied()).prediction.requires_grad:
                    raise InputError(
                        f"{type(network).__name__}'s prediction has no gradient in its weights, so that they cannot be "
                        "trained; a detach or no_grad in on_prompt takes it away."
                    )
        for n in n_points:
            _check_output(tried, prompt.first(n), _output(tried, prompt.first(n)))
        noisy = _noisy(network).eval().to(prompt.x.device)
        if not _output(noisy, prompt).prediction.isfinite().all():
            noisy = tried
        _check_independence(noisy, prompt, shortest)
        _check_read(noisy, prompt)
        if any(network.heads):
            _check_heads(noisy, prompt.rows(0, 1))
    return output


def _copied(network: InContextNetwork) -> InContextNetwork:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise InputError(f"{type(network).__name__} cannot be copied (copy.deepcopy): {_in_words(error)}") from error


def _noisy(network: InContextNetwork) -> InContextNetwork:
    network, generator = _copied(network), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.is_floating_point() and parameter.numel():
            size = parameter.square().mean().sqrt()
            usual = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * torch.where(size > 0, 0.1 * size, usual))
    return network


def _output(network: InContextNetwork, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
    name, (n_prompts, n_points), n_queries = type(network).__name__, prompt.y.shape, prompt.x_query.shape[1]
    try:
        output = network.on_prompt(prompt, head_mask)
    except InputError:
        raise
    except Exception as error:
        mask = "" if head_mask is None else f" and a head_mask of shape {tuple(head_mask.shape)}"
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _file(network)]
        where = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
        raise InputError(
            f"{name}.on_prompt cannot take {n_prompts} prompts of {n_points} examples and {n_queries} queries{mask}: "
            f"{_in_words(error)}{where}"
        ) from error
    if not isinstance(output, TransformerOutput):
        raise InputError(
            f"{name}.on_prompt returns a {type(output).__name__}, but it must return a TransformerOutput, such as "
            "TransformerOutput(prediction)."
        )
    return output


def _file(network: InContextNetwork) -> str | None:
    try:
        return getsourcefile(type(network))
    except TypeError:  # it was typed in
        return None


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _check_output(network: InContextNetwork, prompt: Prompt, output: TransformerOutput) -> None:
    """Shapes, types and numbers of what ``on_prompt`` returns."""
    name, (n_prompts, n_points), n_queries = type(network).__name__, prompt.y.shape, prompt.x_query.shape[1]
    given = f"{n_prompts} prompts of {n_points} examples and {n_queries} queries"

    def check_tensor(what: str, found: object, *shape: int | str) -> None:
        of_type = isinstance(found, Tensor) and found.dtype == prompt.x.dtype
        if not isinstance(found, Tensor) or not of_type:
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{name}'s {what} is of {kind}, but must be a tensor of {prompt.x.dtype}.")
        if found.dim() != len(shape) or any(n != m for n, m in zip(found.shape, shape, strict=True) if m != "width"):
            wanted = f"({', '.join(map(str, shape))})"
            raise InputError(f"{name}'s {what} has shape {tuple(found.shape)}, but must have {wanted} for {given}.")
        if not found.isfinite().all():
            places = f"{(~found.isfinite()).sum()} of {found.numel()} places"
            raise InputError(f"{name}'s {what} is NaN or infinite in {places}, for {given}.")

    check_tensor("prediction", output.prediction, n_prompts, n_queries)
    if output.prefix_prediction is not None:
        check_tensor("prefix_prediction", output.prefix_prediction, n_prompts, n_points)
    for what in ("query_states", "context_states"):
        if not isinstance(states := getattr(output, what), tuple | list):
            raise InputError(
                f"{name}'s {what} are a {type(states).__name__}, but must be a tuple of tensors, one after the read-in "
                "and one after each layer."
            )
    queries, contexts, n_layers = output.query_states, output.context_states, len(network.heads)
    if queries and len(queries) != (n_layers or max(1, len(queries) - 1)) + 1:
        layers = f"the {n_layers} layers that heads lists" if n_layers else "the layers"
        raise InputError(
            f"{name}'s query_states are {len(queries)}, but must be one after the read-in and one after each of "
            f"{layers}, or none at all."
        )
    if contexts and len(contexts) != len(queries):
        raise InputError(
            f"{name}'s context_states are {len(contexts)}, but must be as many as its query_states, {len(queries)}, or "
            "none at all."
        )
    for i, states in enumerate(queries):
        check_tensor(f"query_states[{i}]", states, n_prompts, n_queries, "width")
    for i, states in enumerate(contexts):
        n_tokens = states.shape[1] if isinstance(states, Tensor) and states.dim() == 3 else 0
        each = max(1, n_tokens // n_points)
        check_tensor(f"context_states[{i}]", states, n_prompts, each * n_points, "width")


def _same(one: Tensor, other: Tensor, within: float) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= within * other.abs().max())


def _check_independence(network: InContextNetwork, prompt: Prompt, shortest: int | None) -> None:
    """Predictions must be the same whatever it is that must not count."""
    name, n_points = type(network).__name__, prompt.x.shape[1]
    output = _output(network, prompt)
    prediction = output.prediction

    def check(changed: Prompt, rows: slice, queries: slice, said: str) -> None:
        if not _same(_output(network, changed).prediction[rows, queries], prediction[rows, queries], SAME):
            raise InputError(f"{name} {said}")

    every, others = slice(None), prompt.x_query.roll(1, dims=0)
    check(prompt, every, every, "predicts something else each time, in evaluation mode too; no part may be random.")
    answers = {field: getattr(prompt, field) for field in ("y_query", "f_query", "w", "f")}
    wrong = {field: 1 - 2 * found for field, found in answers.items() if found is not None}
    said = "reads the answers: its prediction changes with y_query, f_query, w or f."
    check(prompt._replace(**wrong), every, every, said)
    half = len(prompt.x) // 2
    kept = prompt.rows(0, half)
    replaced = prompt.rows(half, len(prompt.x))
    replaced = replaced._replace(x=-replaced.x, y=1 - replaced.y, x_query=1 + replaced.x_query)
    check(
        concatenated([kept, replaced]), slice(half), every,
        "sees other prompts of the batch: its prediction for one changes with the next; each prompt must stand alone.",
    )  # fmt: skip
    if prompt.x_query.shape[1] > 1:
        for changed, kept_queries in ((slice(1), slice(1, None)), (slice(-1, None), slice(-1))):
            x_query = prompt.x_query.clone()
            x_query[:, changed] = others[:, changed]
            check(
                prompt._replace(x_query=x_query), every, kept_queries,
                "sees other queries: its prediction at one changes with another; each must see the examples alone.",
            )  # fmt: skip
    if output.prefix_prediction is not None:
        y = prompt.y.clone()
        y[:, -1] += 1
        relabelled = _output(network, prompt._replace(y=y)).prefix_prediction
        if relabelled is None or not _same(relabelled, output.prefix_prediction, SAME):
            raise InputError(f"{name}'s prefix_prediction of an example changes with its label, which it predicts.")
    if shortest is not None and shortest < n_points:
        padded, short = (
            _output(network, p).prediction for p in (prompt.padded_after(shortest), prompt.first(shortest))
        )
        if not _same(padded, short, SAME_IN_OTHER_SHAPES):
            raise InputError(
                f"{name} counts padded examples: {n_points} examples, of which the first {shortest} are not padding, "
                f"must give what these {shortest} alone give (prompt.point_mask is False at padding)."
            )


def _check_read(network: InContextNetwork, prompt: Prompt) -> None:
    output, read = _output(network, prompt), getattr(network, "read", None)
    if read is None or not output.query_states:
        return
    if not _same(read(output.query_states[-1]), output.prediction, SAME):
        raise InputError(
            f"{type(network).__name__}.read of the last of its query_states is not its prediction; it must make "
            "predictions of the states after any layer."
        )


def _check_heads(network: InContextNetwork, prompt: Prompt) -> None:
    """A mask for all prompts, or one for each, must take out each head that the network lists."""
    name, heads = type(network).__name__, network.heads
    places = [(layer, head) for layer, n in enumerate(heads) for head in range(n)]
    places = places[:: -(-len(places) // MOST_HEADS)]
    masks = prompt.x.new_ones(2 + len(places), len(heads), max(heads))
    masks[1] = 0
    for i, (layer, head) in enumerate(places, start=2):
        masks[i, layer, head] = 0
    whole, ones, zeros = (_output(network, prompt, mask).prediction[0] for mask in (None, *masks[:2]))
    lists = f"{name} lists heads {list(heads)}, but"
    if not _same(ones, whole, SAME):
        raise InputError(f"{name}'s prediction changes with a head_mask of ones, which must leave every head as it is.")
    if _same(zeros, ones, NOTHING):
        raise InputError(
            f"{lists} a head_mask of zeros changes nothing: each head's output must be multiplied by its entry before "
            "the output projection; heads is [] where that cannot be."
        )
    each = _output(network, concatenated([prompt] * len(masks)), masks).prediction
    effect = zeros - ones
    if not _same(each[1] - each[0], effect, 0.1):
        raise InputError(
            f"{lists} a head_mask for each prompt, (batch, layers, heads), does something else than the same for all, "
            "(layers, heads)."
        )
    for (layer, head), masked in zip(places, each[2:], strict=True):
        if _same(masked, each[0], NOTHING):
            raise InputError(f"{lists} to mask head {head + 1} of layer {layer + 1} changes nothing.")
