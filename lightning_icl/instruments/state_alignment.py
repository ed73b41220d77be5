"""How far a network's states are another's, whatever the basis each is written in."""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import Estimate, deviations, explained_share
from lightning_icl.functional.prompts import Prompt
from lightning_icl.transformer import Transformer

# Directions in which the states vary less than this, relative to the widest, are rounding: no state goes there.
RESOLUTION = 1e-9

States = list[Float[Tensor, "batch tokens d_model"]]  # after the read-in and after each layer


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
    model: Transformer, other: Transformer, fit: Prompt, score: Prompt, chunk_size: int = 512
) -> list[StateAlignment]:
    """The states of each layer (0 is the read-in), of the context's and the query tokens alike.

    One map for both kinds of token, as the layers themselves act alike on both; least squares on ``fit``, scored on
    ``score``, whose prompts the errors are over. Both networks compute in float64.
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


def comparable(model: Transformer, other: Transformer, *prompts: Prompt) -> tuple[Transformer, Transformer]:
    """Copies of both networks in float64 that read the pairs alone, as their predictions at the queries do.

    Refused where they cannot be compared on these prompts.
    """
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
