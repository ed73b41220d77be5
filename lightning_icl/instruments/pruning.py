"""Pruned models: their read-out refitted, their heads rescaled, trained a little further, or cut for good.

A pruned model is a network and the mask it runs under; its errors are
``errors_under_masks(model.network, prompt, model.mask[None])[0]``.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lightning_icl.functional.heads import (
    HeadMask,
    HeadMasks,
    check_heads,
    check_mask_shape,
    full_mask,
    single_removals,
)
from lightning_icl.functional.probes import best_probe, state_spectrum
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.pruning import PruningCase, Rounds
from lightning_icl.instruments.ablation import errors_under_masks
from lightning_icl.instruments.removal import OF_WHOLE, remove_heads
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import ALL, MultiHeadAttention, Transformer, as_transformer, without_autocast

RELATIVE_STRENGTHS = tuple(10.0**power for power in range(-9, 1))
SINGULAR = 1e-12  # times the largest eigenvalue: below it, kept heads say the same and share the weight


class PrunedModel(NamedTuple):
    """A network under a head mask, whose entries may be scales."""

    network: InContextNetwork
    mask: HeadMask

    def errors(self, prompt: Prompt, chunk_size: int = 512) -> Float[Tensor, " batch"]:
        """Squared error of each prompt; the mean is the excess risk."""
        return errors_under_masks(self.network, prompt, self.mask[None], chunk_size=chunk_size)[0]


def living_heads(network: InContextNetwork) -> Bool[Tensor, "layers heads"]:
    """The heads that write anything: neither their values (rows and biases) nor their output columns are all zero.

    Of a network that is no Transformer, all: which of its weights are whose is not known.

    Example:
        >>> import torch
        >>> from lightning_icl import Transformer
        >>> from lightning_icl.instruments.pruning import living_heads
        >>> model = Transformer(n_dims=3, d_model=16, heads=[2, 2])
        >>> living_heads(model)
        tensor([[True, True],
                [True, True]])
    """
    living = full_mask(network.heads).bool()
    if not isinstance(network, Transformer):
        return living
    for row, layer in zip(living, network.blocks, strict=True):
        if layer.attention is not None:
            by_head = (layer.attention.n_heads, layer.attention.head_dim)
            value, bias = layer.attention.value.weight.ne(0).any(dim=1), layer.attention.value.bias
            read = value if bias is None else value | bias.ne(0)
            written = layer.attention.output.weight.ne(0).any(dim=0)
            alive = torch.stack([read, written]).unflatten(1, by_head).any(dim=2).all(dim=0)
            row[: len(alive)] = alive.cpu()
    return living


def pruning_case(
    network: InContextNetwork,
    prompt: Prompt,
    importance: Float[Tensor, "layers heads"] | None = None,
    chunk_size: int = 512,
    rounds: Rounds = iter,
) -> PruningCase:
    """What a PruningStrategy chooses heads by, on prompts that should not be scored later: ``strategy.keep(case)``.

    Without ``importance`` it is measured here, by leaving each head out. Dead heads are not there to be chosen.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.pruning import pruning_case
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> pruning_case(model, prompt).paper_total  # two heads of layer 1, and one of layer 2
        3
    """

    def errors(masks: Tensor) -> Tensor:
        return errors_under_masks(network, prompt, masks, chunk_size=chunk_size).cpu()

    check_heads(network.heads)
    living = living_heads(network)
    if importance is None:
        scores = errors(torch.cat([living.float()[None], single_removals(living.float())])).mean(dim=1)
        importance = torch.full(living.shape, torch.nan, dtype=scores.dtype)
        importance[living] = scores[1:] - scores[0]
    return PruningCase(importance.cpu().masked_fill(~living, torch.nan), errors, rounds)


@torch.no_grad()
def read_out_refitted(
    network: InContextNetwork, mask: HeadMask, fit: Prompt, choice: Prompt, chunk_size: int = 512
) -> PrunedModel:
    """The model with the read-out (w, b) that fits f best on its own states.

    Minimises sum (f - <w, s> - b)^2 + alpha ||w||^2 over the queries of the ``fit`` prompts, s being the states before
    the read-out (after the final norm) under the mask, in float64. alpha is c tr(S^T S) / d_model, S the centred
    states, with the c of 1e-9, 1e-8, ..., 1 whose squared error on the prompts ``choice`` is smallest.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.pruning import read_out_refitted
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> fit, choice = (task.sample(64, 5, 2, draws) for _ in range(2))
        >>> pruned = read_out_refitted(model, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), fit, choice)
        >>> pruned.mask.sum()
        tensor(3.)
    """

    network = as_transformer(network, "read-outs are refitted")

    def read(prompt: Prompt) -> tuple[Tensor, Tensor]:
        """What the read-out reads at the queries, and f there."""
        outputs = (network.on_prompt(part, mask.to(part.x)) for part in prompt.chunks(chunk_size))
        states = [network.final_norm(of.query_states[-1]).double().flatten(0, 1) for of in outputs]
        return torch.cat(states), prompt.f_query.double().reshape(-1, 1)

    (states, f), (others, true) = read(fit), read(choice)
    spectrum = state_spectrum(states)
    probe, _ = best_probe(spectrum, f, [1], others, true, [c * spectrum.unit for c in RELATIVE_STRENGTHS])
    model = copy.deepcopy(network)
    model.read_out.weight.copy_(probe.weight.mT)
    model.read_out.bias.copy_(probe.intercept)
    return PrunedModel(model, mask)


@torch.no_grad()
def rescaled_masks(network: InContextNetwork, masks: HeadMasks, fit: Prompt, chunk_size: int = 512) -> HeadMasks:
    """The masks with each kept head's 1 replaced by the scale that keeps the stream closest to the full model's.

    Layer by layer from below, the scales a_h minimise sum ||F - P - sum_h a_h c_h||^2 over the context and the queries
    of the ``fit`` prompts (in the last layer over the queries, which alone are read): F is the full model's stream
    after the attention, P the pruned one's before it and c_h what head h adds to P. Since P has the layers below pruned
    and rescaled already, a layer also makes up for them. Of several solutions the one with the smallest sum a_h^2.

    A layer's scales come from second moments, which add up over chunks of ``chunk_size`` prompts. Where there are
    several, the layers below are run again for each layer, so that no more than one chunk's states are ever held; with
    one chunk nothing is run twice.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.pruning import rescaled_masks
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> masks = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
        >>> rescaled_masks(model, masks, prompt)[0, 1, 0] == 0, rescaled_masks(model, masks, prompt).shape
        (tensor(True), torch.Size([1, 2, 2]))
    """
    network = as_transformer(network, "heads are rescaled")
    chunks, scales = fit.unpadded().chunks(chunk_size), torch.zeros_like(masks)
    full = list(_after_attention(network, chunks[0])) if len(chunks) == 1 else []

    def run_again(found: Tensor, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in chunks:
            yield next(islice(_steps(network, part, found, _after_attention(network, part)), depth, None))

    for mask, found in zip(masks, scales, strict=True):
        once = _steps(network, chunks[0], found, full)
        for depth, layer in enumerate(network.blocks):
            steps = [next(once)] if len(chunks) == 1 else run_again(found, depth)
            kept = mask[depth, : network.heads[depth]].nonzero().flatten()
            if layer.attention is not None and len(kept):
                found[depth, kept] = _scales(layer.attention, steps, kept).to(found)
    return scales


def _reads(
    transformer: Transformer, prompt: Prompt, scales: HeadMask | None = None
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Layer by layer what the heads read, and the stream that they add to; in the last layer at the queries alone.

    Between one layer and the next the caller fills in the first one's row of ``scales``; without, all heads are whole.
    """
    start = transformer.embedded_prompt(prompt)
    states = start.states
    for depth, (layer, n_heads) in enumerate(zip(transformer.blocks, transformer.heads, strict=True)):
        at = ALL if depth < len(transformer.heads) - 1 else slice(start.first_query, None)
        mixed = layer.head_outputs(states, start.view, at)
        states = states[:, at]
        yield mixed, states
        row = None if scales is None else scales[depth, :n_heads].to(states)[None]
        states = layer.after_heads(states, mixed, row)


def _after_attention(transformer: Transformer, prompt: Prompt) -> Iterator[Tensor]:
    """The full model's stream after the attention of each layer."""
    for layer, (mixed, states) in zip(transformer.blocks, _reads(transformer, prompt), strict=True):
        yield states + layer.attention.combined(mixed, None) if layer.attention and mixed is not None else states


def _steps(
    transformer: Transformer, prompt: Prompt, scales: HeadMask, full: Iterable[Tensor]
) -> Iterator[tuple[Float[Tensor, "batch heads counted head_dim"], Float[Tensor, "batch counted d_model"]]]:
    """Layer by layer what the pruned model's heads read, and what its stream lacks of the ``full`` one's.

    At the tokens that the predictions at the queries depend on: not at the prefix queries.
    """
    n_context, n_queries = transformer.tokens_per_point * prompt.x.shape[1], prompt.x_query.shape[1]
    for (mixed, states), after_attention in zip(_reads(transformer, prompt, scales), full, strict=True):
        first_query = states.shape[1] - n_queries
        counted = [*range(min(n_context, first_query)), *range(first_query, states.shape[1])]
        read = states.new_empty(len(states), 0, len(counted), 0) if mixed is None else mixed[:, :, counted]
        yield read, (after_attention - states)[:, counted]


def _scales(
    attention: MultiHeadAttention, steps: Iterable[tuple[Tensor, Tensor]], kept: Tensor
) -> Float[Tensor, " kept"]:
    """The a_h that minimise sum ||missing - sum_h a_h c_h||^2, by the normal equations in float64.

    ``steps`` are what the heads read and what is missing, in chunks of prompts. With head h's outputs m_h and its part
    O_h of the output projection, c_h = O_h m_h: <c_h, c_g> and <c_h, missing> follow from the second moments of m,
    which are smaller than the c_h themselves and add up over the chunks.
    """
    by_head = (attention.n_heads, attention.head_dim)
    o = attention.output.weight.double()
    among, with_missing = torch.zeros_like(o.T @ o), torch.zeros_like(o)
    for read, missing in steps:
        m = read.transpose(1, 2).flatten(2).flatten(0, 1).double()
        among += m.T @ m
        with_missing += missing.flatten(0, 1).double().T @ m
    gram = ((o.T @ o) * among).unflatten(0, by_head).unflatten(2, by_head).sum(dim=(1, 3))
    moment = (o * with_missing).sum(dim=0).unflatten(0, by_head).sum(dim=1)
    kept = kept.to(gram.device)
    return torch.linalg.pinv(gram[kept][:, kept], rtol=SINGULAR, hermitian=True) @ moment[kept]


def fine_tuned(
    network: InContextNetwork, mask: HeadMask, batch: Callable[[int], Prompt], n_steps: int, learning_rate: float = 1e-3
) -> PrunedModel:
    """The model without the heads that are cut, trained a little further.

    ``n_steps`` steps of AdamW without weight decay on the squared error at the queries of fresh prompts ``batch(0)``,
    ``batch(1)``, ...; the learning rate falls linearly to 0 [ours].
    Of a network that is no Transformer the heads are masked in training, which takes longer and is the same.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.pruning import fine_tuned
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> draws = torch.Generator().manual_seed(0)
        >>> keep = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
        >>> fine_tuned(model, keep, lambda step: task.sample(16, 5, 2, draws), n_steps=2).network.heads
        [2, 1]
    """
    # Outside of any inference mode and autocast: the first forbids gradients, the second would reuse old weights.
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(next(network.parameters()).device):
        mask = mask.clone()
        model: InContextNetwork
        if isinstance(network, Transformer) and mask.any():
            model = remove_heads(network, mask)
            mask = full_mask(model.heads)
        else:  # a copy under the mask, as no Transformer is without any head and no other network's can be removed
            model = copy.deepcopy(network)
        on_device = mask.to(next(model.parameters()))
        optimizer = AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        for step in range(n_steps):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / n_steps)
            prompt = batch(step)
            optimizer.zero_grad()
            prediction = model.for_training(prompt, on_device).prediction
            (prediction - prompt.f_query).square().mean().backward()
            optimizer.step()
    return PrunedModel(model.requires_grad_(False), mask)


@torch.no_grad()
def cut_heads_(network: InContextNetwork, keep: HeadMask, optimizer: Optimizer | None = None) -> None:
    """Cut the heads that ``keep`` has no 1 for out of the weights, in place, so that training cannot revive them.

    Their value rows, value biases and output columns become zero, and so do the optimizer's moments there. Then a
    head's output is zero, hence the gradient of its output columns; and these are zero, hence the gradient of its value
    rows and biases. Moments, momenta and weight decay of zeros are zeros: the head stays exactly dead under AdamW, Muon
    and SOAP, which finds the bases of these matrices, and its moments in them, anew.

    Example:
        >>> import torch
        >>> from lightning_icl import Transformer
        >>> from lightning_icl.instruments.pruning import cut_heads_
        >>> model = Transformer(n_dims=3, d_model=16, heads=[2, 2])
        >>> keep = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
        >>> cut_heads_(model, keep)
        >>> bool((model.blocks[1].attention.output.weight[:, :8] == 0).all())  # head 1 of layer 2
        True
    """
    check_mask_shape("keep has", keep.shape, network.heads)
    network = as_transformer(network, "heads are cut out")
    for layer, row in zip(network.blocks, keep, strict=True):
        attention = layer.attention
        if attention is None:
            continue
        cut = row[: attention.n_heads] == 0
        entries = cut.repeat_interleave(attention.head_dim).nonzero().flatten().to(attention.value.weight.device)
        values = [(of_values, 0) for of_values in attention.value.parameters()]
        for weight, dim in (*values, (attention.output.weight, 1)):
            state = {} if optimizer is None else optimizer.state.get(weight, {})
            if cut.any() and OF_WHOLE in state:
                state.clear()
            for tensor in (weight, *(m for m in state.values() if isinstance(m, Tensor) and m.shape == weight.shape)):
                tensor.index_fill_(dim, entries, 0)
