"""Transformers made by hand, whose algorithm is known exactly: PAPER.md section 7."""

import torch

from lightning_icl import Transformer


def blank(n_dims, d_model, heads, head_dim):
    """Linear attention without norm or MLP, all weights zero, in float64."""
    model = Transformer(n_dims, d_model, heads, "linear", mlp=False, norm="none", head_dim=head_dim).double()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def gradient_descent(n_dims, step, depth):
    """hidden = [x | y]: the query's y slot after layer t is minus the prediction after t steps of GD."""
    width = n_dims + 1
    model = blank(n_dims, width, [1] * depth, width)
    with torch.no_grad():
        model.read_in.weight.copy_(torch.eye(width))
        model.read_out.weight[0, -1] = -1
        for layer in model.layers:
            descend(layer.attention, slice(0, n_dims), step)
    return model


def preprocess_then_gd(n_dims, step, depth):
    """hidden = [x | R_hat x | y]: layer 1 fills the middle, a head for each feature; later ones take steps on it."""
    width = 2 * n_dims + 1
    model = blank(n_dims, width, [n_dims] + [1] * (depth - 1), [1] + [width] * (depth - 1))
    with torch.no_grad():
        model.read_in.weight[:n_dims, :n_dims] = torch.eye(n_dims)
        model.read_in.weight[-1, -1] = 1
        model.read_out.weight[0, -1] = -1
        first = model.layers[0].attention
        first.key.weight[:, -1] = 1
        first.query.weight[:, :n_dims] = torch.eye(n_dims)
        first.value.weight[:, :n_dims] = torch.eye(n_dims)
        first.output.weight[n_dims : 2 * n_dims] = torch.eye(n_dims)
        for layer in list(model.layers)[1:]:
            descend(layer.attention, slice(n_dims, 2 * n_dims), step)
    return model


def descend(attention, features, step):
    """One head that adds -(step/n) sum_i y_i <x_i, x_k> to the last slot."""
    size = range(features.start, features.stop)
    attention.query.weight[size, size] = attention.head_dim**0.5
    attention.key.weight[size, size] = 1
    attention.value.weight[-1, -1] = 1
    attention.output.weight[-1, -1] = -step
