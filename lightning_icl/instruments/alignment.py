"""How far a network is another one, such as a construction, whatever the basis each is written in.

A network without norm computes the same in any basis of its residual stream, in any basis of each head's queries and
keys and of its values and outputs, with its heads in any order, and with a head split into two that add up to it. Under
linear attention keys and values can also change places: (1/n) sum_i <K h_i, Q h_k> O V h_i is of second degree in h_i
and does not say which factor was called the key. None of this is seen by what is measured here.

from lightning_icl.functional.constructions import ConstructedPreprocessThenGD
from lightning_icl.instruments.alignment import state_alignment, weight_alignment, written

other = written(ConstructedPreprocessThenGD(steps=3, step_size=0.2).network(8), n_dims=8)
state_alignment(transformer, other, fit, score)[2].beyond_input.value  # after layer 2
weight_alignment(transformer, other, fit, score)[1].cosine.value       # of layer 2
"""

import copy
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.constructions import WrittenNetwork
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import Estimate, deviations, explained_share
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import jackknife_errors
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import Transformer, as_transformer

# Directions in which the states vary less than this, relative to the widest, are rounding: no state goes there.
RESOLUTION = 1e-9

States = list[Float[Tensor, "batch tokens d_model"]]  # after the read-in and after each layer


def written(network: WrittenNetwork, n_dims: int) -> Transformer:
    """The network as a Transformer, in float64.

    Example:
        >>> from lightning_icl.instruments.alignment import written
        >>> from lightning_icl.functional.constructions import ConstructedGD
        >>> written(ConstructedGD(steps=2, step_size=0.2).network(3), n_dims=3).heads
        [1, 1]
    """
    with torch.device("meta"):  # untrained weights would be drawn from the global generator
        transformer = Transformer(n_dims, **network.options())
    transformer.load_state_dict(network.state(), assign=True)
    return transformer


class StateAlignment(NamedTuple):
    """How much of the other network's states in one layer is an affine function of the model's there.

    Attributes:
        r2: R^2 over all coordinates of the other's states (summed squares, so each counts by its variance).
        beyond_input: the same of what the other's states hold beyond an affine function of the tokens (its own states
            after the read-in): 1 - squared error from the model's states / squared error from the read-in, on the same
            prompts. Any network that keeps x and y has most of r2; an untrained one has little of this, and what
            tells only the tokens has 0. Undefined where the other's states are such a function, as in layer 0.
    """

    r2: Estimate
    beyond_input: Estimate


@torch.no_grad()
def state_alignment(
    model: InContextNetwork, other: InContextNetwork, fit: Prompt, score: Prompt, chunk_size: int = 512
) -> list[StateAlignment]:
    """The states of each layer (0 is the read-in), of the context's and the query tokens alike.

    One map for both kinds of token, as the layers themselves act alike on both; least squares on ``fit``, scored on
    ``score``, whose prompts the errors are over. Both networks compute in float64.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.alignment import state_alignment
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> fit, score = (task.sample(64, 5, 2, draws) for _ in range(2))
        >>> [round(layer.r2.value, 3) for layer in state_alignment(model, model, fit, score)]  # of itself
        [1.0, 1.0, 1.0]
    """
    mine, theirs = (
        [layer_states(network, prompt, chunk_size) for prompt in (fit, score)]
        for network in comparable(model, other, fit, score)
    )
    found = []
    for layer, target in enumerate(theirs[1]):
        of_model = _unexplained(mine[0][layer], theirs[0][layer], mine[1][layer], target)
        of_input = _unexplained(theirs[0][0], theirs[0][layer], theirs[1][0], target)
        # Below lies the rounding of a map that is exact.
        of_input = of_input if of_input.mean() > 1e-20 * target.square().sum(dim=-1).mean() else 0 * of_input
        found.append(StateAlignment(explained_share(of_model, deviations(target)), explained_share(of_model, of_input)))
    return found


def layer_states(transformer: Transformer, prompt: Prompt, chunk_size: int = 512) -> States:
    """The states of the context's tokens and then the queries', of a network in float64."""
    chunks = []
    for part in prompt.chunks(chunk_size):
        output = transformer.on_prompt(part.double())
        chunks.append([torch.cat(pair, dim=1) for pair in zip(output.context_states, output.query_states, strict=True)])
    return [torch.cat(layer) for layer in zip(*chunks, strict=True)]


def _unexplained(states: Tensor, targets: Tensor, new_states: Tensor, new_targets: Tensor) -> Float[Tensor, " batch"]:
    """Squared error on the new prompts of the affine map that least squares finds on the others."""
    states, targets = states.flatten(0, 1), targets.flatten(0, 1)
    origin, mean = states.mean(dim=0), targets.mean(dim=0)
    weight = torch.linalg.pinv(states - origin, rtol=RESOLUTION) @ (targets - mean)
    return ((new_states - origin) @ weight + mean - new_targets).square().sum(dim=-1).mean(dim=1)


def comparable(model: InContextNetwork, other: InContextNetwork, *prompts: Prompt) -> tuple[Transformer, Transformer]:
    """Copies of both networks in float64 that read the pairs alone, as their predictions at the queries do.

    Refused where they cannot be compared on these prompts, or are not both a Transformer.
    """
    model, other = (as_transformer(network, "alignments are") for network in (model, other))
    if len(model.heads) != len(other.heads):
        raise InputError(
            f"the model has {len(model.heads)} layers and the other {len(other.heads)}, but only networks of the same "
            "depth are compared."
        )
    if "alternating" in (model.layout, other.layout):
        raise InputError("layout is 'alternating', but networks are compared token by token: both need the pairs.")
    for prompt in prompts:
        if not prompt.unpadded().x.shape[-1] == model.n_dims == other.n_dims:
            raise InputError(
                f"the prompts have {prompt.x.shape[-1]} dimensions, the model {model.n_dims} and the other "
                f"{other.n_dims}, but all must have the same."
            )
    copies = copy.deepcopy(model).double(), copy.deepcopy(other).double()
    for network in copies:
        network.layout = "pairs"
    return copies


class LayerAlignment(NamedTuple):
    """How far a layer's weights do what the other network's do there.

    Attributes:
        cosine: 1 for the same layer, also at another step size; -1 for one that does the opposite; about 0 for one that
            has nothing to do with it. Undefined where one of the two does nothing.
        step: how many times the other's update is in the model's, as of a larger step size.
    """

    cosine: Estimate
    step: Estimate


@torch.no_grad()
def weight_alignment(
    model: InContextNetwork, other: InContextNetwork, fit: Prompt, score: Prompt, chunk_size: int = 512
) -> list[LayerAlignment]:
    """Each layer of the model, given the other's states in its own basis, beside the other's layer.

    Weights are compared by what they do, so nothing is seen of what does not matter to it: bases, heads that are
    permuted or split, keys exchanged with values, directions that no state visits. Let h'_l be the other's states
    before layer l + 1, D'_l = h'_(l+1) - h'_l, and D_l what the model's layer l + 1 adds to the states B h'_l. With
    A D_l that update in the other's basis,

        cosine = E <A D_l, D'_l> / sqrt(E |A D_l|^2 E |D'_l|^2),   step = E <A D_l, D'_l> / E |D'_l|^2,

    over the tokens of the ``score`` prompts. As the model's layer is given the other's states, and not what the model's
    earlier layers make, one wrong layer does not make the later ones wrong.

    The change of basis is affine, found on the ``fit`` prompts. B takes the other's read-in to the model's, by least
    squares over the tokens. A layer of the other that writes in a new direction says what that direction is in the
    model: B is extended to it by least squares between D_l and D'_l, and stays what it was elsewhere. So the sign and
    the size of what is written for the first time are part of the basis, and only later layers, which read it, say
    whether they fit. A is the inverse of B and, where the model writes outside of the range of B, least squares from
    D_l to D'_l, all layers together. In a model that is much wider than the other this alone finds some likeness in
    random weights: compare with an untrained one.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.alignment import weight_alignment
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> fit, score = (task.sample(64, 5, 2, draws) for _ in range(2))
        >>> [round(layer.cosine.value, 3) for layer in weight_alignment(model, model, fit, score)]  # with itself
        [1.0, 1.0]
    """
    model, other = comparable(model, other, fit, score)
    theirs = [list(map(_homogeneous, layer_states(other, prompt, chunk_size))) for prompt in (fit, score)]
    to_model = _to_model(model, fit, theirs[0], chunk_size)
    updates = [
        [_layer_update(model, i, prompt, before @ to_model, chunk_size) for i, before in enumerate(of[:-1])]
        for prompt, of in zip((fit, score), theirs, strict=True)
    ]
    to_other = _to_other(
        to_model, torch.stack(updates[0]).flatten(0, 2), torch.stack(theirs[0]).diff(dim=0).flatten(0, 2)
    )
    found = []
    for done, before, after in zip(updates[1], theirs[1], theirs[1][1:], strict=False):
        mine, wanted = (done @ to_other)[..., :-1], (after - before)[..., :-1]
        moments = torch.stack([(a * b).sum(dim=(1, 2)) for a, b in ((mine, wanted), (mine, mine), (wanted, wanted))], 1)
        values, errors = _cosine_and_step(moments.mean(dim=0)), jackknife_errors(moments, _cosine_and_step)
        found.append(LayerAlignment(*(Estimate(float(v), float(e)) for v, e in zip(values, errors, strict=True))))
    return found


def _cosine_and_step(moments: Float[Tensor, "*batch 3"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    cross, power, other_power = moments.unbind(dim=-1)
    return cross / (power * other_power).sqrt(), cross / other_power


def _to_model(
    model: Transformer, prompt: Prompt, states: list[Tensor], chunk_size: int
) -> Float[Tensor, "homogeneous model_homogeneous"]:
    """B, for states (h', 1) as rows; zero in the directions that they do not visit."""
    rounding = RESOLUTION * float(torch.linalg.matrix_norm(torch.stack(states).flatten(0, 2), 2))
    read_in = states[0].flatten(0, 1)
    back = torch.linalg.pinv(read_in, atol=rounding)
    to_model = back @ _homogeneous(layer_states(model, prompt, chunk_size)[0]).flatten(0, 1)
    visited = back @ read_in  # the projection on these directions
    for layer, (before, after) in enumerate(pairwise(states)):
        update = (after - before).flatten(0, 1)
        new = update - update @ visited
        back = torch.linalg.pinv(new, atol=rounding)
        done = _layer_update(model, layer, prompt, before @ to_model, chunk_size).flatten(0, 1)
        to_model = to_model + back @ (done - update @ to_model)
        visited = visited + back @ new
    return to_model


def _to_other(
    to_model: Tensor, done: Float[Tensor, "samples model_homogeneous"], wanted: Float[Tensor, "samples homogeneous"]
) -> Float[Tensor, "model_homogeneous homogeneous"]:
    """A, which undoes B and makes what was ``done`` outside of its range most like what was ``wanted``."""
    inverse = torch.linalg.pinv(to_model, rtol=RESOLUTION)
    outside = torch.eye(len(inverse)).to(inverse) - inverse @ to_model
    rounding = RESOLUTION * float(torch.linalg.matrix_norm(done, 2))
    return inverse + outside @ torch.linalg.pinv(done @ outside, atol=rounding) @ (wanted - done @ inverse)


def _layer_update(model: Transformer, layer: int, prompt: Prompt, states: Tensor, chunk_size: int) -> Tensor:
    """What a layer, counted from 0, adds to states (h, 1)."""
    view = model.embedded_prompt(prompt.rows(0, 1).double()).view
    chunks = states[..., :-1].split(chunk_size)
    added = torch.cat([model.blocks[layer](part, view, None) - part for part in chunks])
    return torch.nn.functional.pad(added, (0, 1))


def _homogeneous(states: Tensor) -> Tensor:
    """(h, 1), on which an affine map is linear."""
    return torch.nn.functional.pad(states, (0, 1), value=1.0)
