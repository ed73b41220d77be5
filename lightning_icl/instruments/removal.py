"""Heads taken out of a transformer for good: a smaller model with the predictions of the masked one."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import HeadMask, check_mask_shape
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import Transformer, as_transformer

# Where an optimizer's state of a matrix has this, as SOAP's does, it is in bases of the whole: none of it can be cut.
OF_WHOLE = "left_basis"


class Part(NamedTuple):
    """Which rows (dim 0) or columns (dim 1) of a parameter remain; none where the whole parameter goes."""

    dim: int
    entries: Int[Tensor, " kept"]

    def of(self, values: Tensor) -> Tensor:
        """The remaining part of the parameter, or of anything of its shape, such as an optimizer's moments."""
        return values.index_select(self.dim, self.entries.to(values.device))


def remove_heads(network: InContextNetwork, keep: HeadMask) -> Transformer:
    """The network, a Transformer, with only the heads whose entry in ``keep`` is not 0.

    Its predictions are those that the network had under that mask: a head's output enters the residual stream as
    mask_h O_h (A_h V_h), so a removed head takes its rows of the query, key and value projections, biases included, and
    its columns of the output projection along, and a mask other than 1 becomes a factor of the columns,
    O_h <- mask_h O_h. The output's bias stays, also where a layer ends with no head. Heads are renumbered in order and
    keep their size.

    Example:
        >>> import torch
        >>> from lightning_icl import Transformer
        >>> from lightning_icl.instruments.removal import remove_heads
        >>> model = Transformer(n_dims=3, d_model=16, heads=[2, 2])
        >>> remove_heads(model, torch.tensor([[1.0, 1.0], [0.0, 1.0]])).heads
        [2, 1]
    """
    transformer = as_transformer(network, "heads are removed")
    options = transformer.options | smaller_options(transformer, keep)
    with torch.device("meta"):  # where nothing is drawn and nothing takes up memory
        smaller = type(transformer)(**options)
    state = {name: values.detach() for name, values in transformer.state_dict().items()}
    for i, (row, n_heads, size) in enumerate(zip(keep, transformer.heads, transformer.head_dims, strict=True)):
        if n_heads:
            name = f"layers.{i}.attention.output.weight"
            state[name] = state[name] * row[:n_heads].repeat_interleave(size).to(state[name])
    parts = kept_parts(transformer, keep)
    remain = {name: parts[name].of(values) if name in parts else values.clone() for name, values in state.items()}
    smaller.load_state_dict({name: values for name, values in remain.items() if values.numel()}, assign=True)
    return smaller.train(transformer.training)


def smaller_options(transformer: Transformer, keep: HeadMask) -> dict[str, Any]:
    """The options of Transformer that change with the heads removed: how many remain in each layer, and their sizes."""
    if not {"heads", "head_dim"} <= transformer.options.keys():
        raise InputError(
            f"heads are removed from a network with the options heads and head_dim, but {type(transformer).__name__} "
            "has not both; give its constructor what it lacks, and hand it on to Transformer's."
        )
    kept = [len(heads) for heads in kept_heads(transformer, keep)]
    return {"heads": kept, "head_dim": list(transformer.head_dims)}


def kept_heads(transformer: Transformer, keep: HeadMask) -> list[Tensor]:
    """The numbers, from 0, of the heads of each layer whose entry is not 0."""
    check_mask_shape("keep has", keep.shape, transformer.heads)
    kept = [row[:n_heads].nonzero().flatten() for row, n_heads in zip(keep, transformer.heads, strict=True)]
    if not any(map(len, kept)):
        raise InputError("keep is 0 for every head, but a model needs at least one.")
    return kept


def kept_parts(transformer: Transformer, keep: HeadMask) -> dict[str, Part]:
    """By its name, what remains of each parameter that removing heads makes smaller; the others are not listed."""
    parts: dict[str, Part] = {}
    for i, (layer, kept) in enumerate(zip(transformer.blocks, kept_heads(transformer, keep), strict=True)):
        if layer.attention is None or len(kept) == layer.attention.n_heads:
            continue
        size = layer.attention.head_dim
        entries = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
        place = f"layers.{i}.attention"
        projections = (layer.attention.query, layer.attention.key, layer.attention.value)
        for name, projection in zip(("query", "key", "value"), projections, strict=True):
            parts |= {f"{place}.{name}.{kind}": Part(0, entries) for kind in projection.state_dict()}
        parts[f"{place}.output.weight"] = Part(1, entries)
        if len(kept) == 0:  # then a norm before the heads goes too
            norm = layer.attention_norm.state_dict() if layer.norm == "pre" else {}
            parts |= {f"layers.{i}.attention_norm.{name}": Part(0, entries) for name in norm}
    return parts
