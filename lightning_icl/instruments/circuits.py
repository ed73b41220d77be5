"""What each head's weights say on their own: its maps in the coordinates of the input tokens, and where it attends.

Coordinates are z = (x_1 .. x_d, y) and, as the last one, a constant 1 that carries the biases; E is the affine read-in
as a matrix (d_model, d + 2). For head h with W_Q, W_K, W_V, W_O (He et al. 2025; Elhage et al. 2021):

    query_key    = (D E)^T W_Q^T W_K (D E) / sqrt(head_dim)     so that a score q.k / sqrt(head_dim) is z_q^T QK z_k
    output_value = E_z^+ W_O W_V (D E)                          what it adds to the (x, y) of the token that attends
    prediction   = r^T F W_O W_V (D E)                          what it adds to the prediction at a query

D is the linear part of the layer norm before the heads, diag(gain) (I - 1 1^T / d_model), with its bias in the column
of the constant; E_z^+ the pseudo-inverse of the read-in without its bias; r the read-out and F the linear part of the
norm before it. In the column of the constant are also the biases of queries, keys and values, added to W (D E), and
those that the layers before add with their heads, in E. Left out: the scale by which a layer norm divides each token,
positions, MLPs, and all that other heads add. So these are exact for a first layer without norm and positions; for
later layers, and for the prediction, they are the direct path through the residual stream. With norm="post" the linear
parts of the norms that the stream itself passes before this head belong to D and E_z^+, and those after it to F.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_icl.functional.prompts import Prompt
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import Layer, MultiHeadAttention, Transformer, as_transformer


class LayerCircuits(NamedTuple):
    """The maps of one layer's heads and what they come to.

    Attributes:
        query_key: scores, rows the attending token's coordinates (x, y, 1), columns the attended one's.
        output_value: rows the coordinates (x, y) added to the attending token, columns (x, y, 1) of the attended one.
        prediction: what (x, y, 1) of an attended token adds to the prediction at a query that attends to it fully.
        query_key_identity: share of the xx block A of query_key that is a multiple of the identity,
            tr(A)^2 / (d ||A||_F^2): 1 for A = a I, about 1/d^2 by chance.
        output_value_y: share of output_value that takes y to y, OV[y, y]^2 / ||OV||_F^2 (over x and y).
        prediction_y: share of the prediction row that weighs y, p_y^2 / sum p^2 (over x and y).
        within_input: share of W_O W_V D E's squared norm that lies in the span of the read-in, and so in output_value.
        step: (tr(A) / d) p_y, the size of the one step of gradient descent (as eta in (eta / n) sum_i y_i <x_i, x_q>)
            that such a head takes under linear attention, and under softmax attention to first order in the scores.
    """

    query_key: Float[Tensor, "heads inputs inputs"]
    output_value: Float[Tensor, "heads outputs inputs"]
    prediction: Float[Tensor, "heads inputs"]
    query_key_identity: Float[Tensor, " heads"]
    output_value_y: Float[Tensor, " heads"]
    prediction_y: Float[Tensor, " heads"]
    within_input: Float[Tensor, " heads"]
    step: Float[Tensor, " heads"]


def coordinates(n_dims: int) -> list[str]:
    """The names of the input coordinates.

    Example:
        >>> from lightning_icl.instruments.circuits import coordinates
        >>> coordinates(2)
        ['x1', 'x2', 'y', '1']
    """
    return [*(f"x{i + 1}" for i in range(n_dims)), "y", "1"]


@torch.no_grad()
def head_circuits(network: InContextNetwork) -> list[LayerCircuits]:
    """Every layer's circuits, in float64; a layer without heads has maps of 0 heads. Of a Transformer alone.

    Example:
        >>> import torch
        >>> from lightning_icl import Transformer
        >>> from lightning_icl.instruments.circuits import head_circuits
        >>> model = Transformer(n_dims=3, d_model=16, heads=[2, 2])
        >>> [tuple(layer.query_key.shape) for layer in head_circuits(model)]  # (heads, inputs, inputs)
        [(2, 5, 5), (2, 5, 5)]
    """
    transformer = as_transformer(network, "circuits are")
    stream, found = _read_in(transformer), []
    for i, layer in enumerate(transformer.blocks):
        found.append(_layer_circuits(layer, stream, _prediction_row(transformer, i)))
        if layer.output_bias is not None:
            stream = torch.cat([stream[:-1] + layer.output_bias[:, None] * stream[-1], stream[-1:]])
        for norm in _stream_norms(layer):
            stream = _passed(norm, stream)
    return found


@torch.no_grad()
def attention_patterns(network: InContextNetwork, prompt: Prompt) -> list[Float[Tensor, "batch heads tokens keys"]]:
    """How much of each key's value every token takes, in each layer; the keys are the first tokens.

    Tokens are the context and then the queries, in the model's layout. Of a Transformer alone.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.circuits import attention_patterns
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> attention_patterns(model, prompt)[0].shape  # (prompts, heads, tokens, keys)
        torch.Size([8, 2, 7, 5])
    """
    transformer = as_transformer(network, "attention patterns are")
    start = transformer.embedded_prompt(prompt)
    states, patterns = start.states, []
    for layer in transformer.blocks:
        if layer.attention is None:
            patterns.append(states.new_zeros(len(states), 0, states.shape[1], start.view.n_keys))
        else:
            patterns.append(layer.attention.pattern(layer.attended(states), start.view))
        states = layer(states, start.view, None)
    return patterns


def _layer_circuits(
    layer: Layer, stream: Float[Tensor, "states inputs"], read: Float[Tensor, " d_model"]
) -> LayerCircuits:
    n_dims = stream.shape[1] - 2
    seen = stream if layer.norm == "post" else _passed(layer.attention_norm, stream)
    query_key, written = _head_maps(layer.attention, seen)
    span = stream[:-1, :-1]
    output_value = torch.linalg.pinv(span) @ written
    prediction = torch.einsum("m,hmi->hi", read, written)
    xx = query_key[:, :n_dims, :n_dims]
    trace = xx.diagonal(dim1=1, dim2=2).sum(dim=1)
    return LayerCircuits(
        query_key,
        output_value,
        prediction,
        query_key_identity=trace.square() / (n_dims * _energy(xx)),
        output_value_y=output_value[:, n_dims, n_dims].square() / _energy(output_value[..., :-1]),
        prediction_y=prediction[:, n_dims].square() / _energy(prediction[..., :-1]),
        within_input=_energy((span @ output_value)[..., :-1]) / _energy(written[..., :-1]),
        step=trace / n_dims * prediction[:, n_dims],
    )


def _head_maps(
    attention: MultiHeadAttention | None, seen: Float[Tensor, "states inputs"]
) -> tuple[Float[Tensor, "heads inputs inputs"], Float[Tensor, "heads d_model inputs"]]:
    """Each head's scores and what it writes, from the inputs as the heads see them."""
    states, constant = seen[:-1], seen[-1]
    d_model, n_inputs = states.shape
    if attention is None:
        return seen.new_zeros(0, n_inputs, n_inputs), seen.new_zeros(0, d_model, n_inputs)
    n_heads = attention.n_heads
    query, key, value = (
        (
            part.weight.to(seen) @ states + (0.0 if part.bias is None else part.bias.to(seen)[:, None] * constant)
        ).unflatten(0, (n_heads, -1))
        for part in (attention.query, attention.key, attention.value)
    )
    output = attention.output.weight.to(seen).unflatten(1, (n_heads, -1)).transpose(0, 1)
    return query.mT @ key / attention.head_dim**0.5, output @ value


def _read_in(transformer: Transformer) -> Float[Tensor, "states inputs"]:
    """The affine read-in of (x, y, 1), with the constant once more below: it passes through norms' biases."""
    weight, bias = transformer.read_in.weight.double(), transformer.read_in.bias.double()
    constant = torch.nn.functional.one_hot(torch.tensor(weight.shape[1]), weight.shape[1] + 1).to(weight)
    return torch.cat([torch.cat([weight, bias[:, None]], dim=1), constant[None]])


def _prediction_row(transformer: Transformer, layer: int) -> Float[Tensor, " d_model"]:
    """What a vector written by the heads of this layer adds to the prediction, directly."""
    row = transformer.read_out.weight[0].double()
    norms = [norm for later in transformer.blocks[layer:] for norm in _stream_norms(later)]
    for norm in reversed([*norms, transformer.final_norm]):
        if isinstance(norm, nn.LayerNorm):
            row = row * norm.weight
            row = row - row.mean()
    return row


def _stream_norms(layer: Layer) -> list[nn.Module]:
    """The norms that the residual stream itself passes in this layer, after its heads."""
    return [layer.attention_norm, layer.mlp_norm] if layer.norm == "post" else []


def _passed(norm: nn.Module, stream: Float[Tensor, "states inputs"]) -> Float[Tensor, "states inputs"]:
    """What a norm makes of the stream but for its scale: the mean taken off, gain and bias put on."""
    if not isinstance(norm, nn.LayerNorm):
        return stream
    states, constant = stream[:-1], stream[-1:]
    centred = states - states.mean(dim=0)
    return torch.cat([norm.weight[:, None] * centred + norm.bias[:, None] * constant, constant])


def _energy(maps: Float[Tensor, "heads *rest"]) -> Float[Tensor, " heads"]:
    """The squared Frobenius norm of each head's map."""
    return maps.flatten(1).square().sum(dim=1)
