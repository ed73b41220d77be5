"""How far a network's layers do what another's do, whatever the basis each is written in."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.probes import Estimate
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import jackknife_errors
from lightning_icl.instruments.state_alignment import RESOLUTION, comparable, layer_states
from lightning_icl.transformer import Transformer


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
    model: Transformer, other: Transformer, fit: Prompt, score: Prompt, chunk_size: int = 512
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
    view = model.embedded(model.laid_out(prompt.rows(0, 1).double()), prompt.x_query.shape[1]).view
    chunks = states[..., :-1].split(chunk_size)
    added = torch.cat([model.blocks[layer](part, view, None) - part for part in chunks])
    return torch.nn.functional.pad(added, (0, 1))


def _homogeneous(states: Tensor) -> Tensor:
    """(h, 1), on which an affine map is linear."""
    return torch.nn.functional.pad(states, (0, 1), value=1.0)
