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

import torch

from lightning_icl.functional.constructions import WrittenNetwork
from lightning_icl.instruments.head_pattern import HeadPattern, head_pattern
from lightning_icl.instruments.state_alignment import StateAlignment, state_alignment
from lightning_icl.instruments.weight_alignment import LayerAlignment, weight_alignment
from lightning_icl.transformer import Transformer

__all__ = [
    "HeadPattern",
    "LayerAlignment",
    "StateAlignment",
    "head_pattern",
    "state_alignment",
    "weight_alignment",
    "written",
]


def written(network: WrittenNetwork, n_dims: int) -> Transformer:
    """The network as a Transformer, in float64."""
    with torch.device("meta"):  # untrained weights would be drawn from the global generator
        transformer = Transformer(n_dims, **network.options())
    transformer.load_state_dict(network.state(), assign=True)
    return transformer
