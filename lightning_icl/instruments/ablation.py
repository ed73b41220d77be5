"""Running a network under many head masks at once, computing once what they share."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError, check_at_least, check_choice
from lightning_icl.functional.heads import HeadMasks, check_mask_shape
from lightning_icl.functional.prompts import Prompt, concatenated
from lightning_icl.functional.risk import squared_errors
from lightning_icl.gated_heads import GatedHeads
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import Embedded, Transformer

Ablation = Literal["zero", "mean", "resample"]
HeadOutputs = list[Tensor | None]  # one a layer, (batch or 1, heads, tokens, head_dim); None where it has no heads
Metric = Callable[[Float[Tensor, "batch queries"], Prompt], Float[Tensor, " batch"]]
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def squared_error(prediction: Float[Tensor, "batch queries"], prompt: Prompt) -> Float[Tensor, " batch"]:
    """Each prompt's squared error against the noise-free target; its mean is the excess risk."""
    return squared_errors(prediction, prompt.f_query)


def silent(items: Sequence[Any], description: str) -> Iterable[Any]:
    """No progress bar."""
    return items


class AblatedHeads(NamedTuple):
    """What a head that is masked reads instead of its own: h <- mask h + (1 - mask) r.

    zero: r = 0. mean: r is the head's output on the ``reference`` prompts, averaged over them at each token position.
    resample: r is its output on another prompt, the reference prompt of the same row. The reference is a set of prompts
    apart from those that are scored, so that their errors stay independent of each other and standard errors hold;
    it has their numbers of examples and queries, and is always run with every head.
    """

    ablation: Ablation = "zero"
    reference: Prompt | None = None


ZERO = AblatedHeads()


@torch.no_grad()
def errors_under_masks(
    network: InContextNetwork,
    prompt: Prompt,
    masks: HeadMasks,
    ablated: AblatedHeads = ZERO,
    metric: Metric = squared_error,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> Float[Tensor, "masks batch"]:
    """``metric`` of each prompt under each head mask; see ``predictions_under_masks``.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.ablation import errors_under_masks
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> masks = torch.ones(3, 2, 2)
        >>> errors_under_masks(model, prompt, masks).shape  # (masks, prompts)
        torch.Size([3, 8])
    """
    predicted = predictions_under_masks(network, prompt, masks, ablated, chunk_size, progress)
    return torch.stack([metric(prediction, prompt) for prediction in predicted])


@torch.no_grad()
def predictions_under_masks(
    network: InContextNetwork,
    prompt: Prompt,
    masks: HeadMasks,
    ablated: AblatedHeads = ZERO,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> Float[Tensor, "masks batch queries"]:
    """What a loop of ``network.on_prompt(prompt, mask).prediction`` gives, with less work.

    A Transformer's masks that agree up to a layer share the states up to there, and a layer's heads are computed once
    for all masks that differ in it alone: the states of all masks form a tree, which is walked depth first. The last
    layer is computed at the queries only. At most ``chunk_size`` prompts times masks run at once in a layer, so memory
    is bounded by depth times ``chunk_size`` prompts' states whatever the number of masks.

    Any other network with heads runs so many prompts times masks at once by ``on_prompt`` with a mask for each; under
    GatedHeads, masks share with one of them the layers up to the first in which they differ from it. For mean and
    resample ablation it has ``head_outputs(prompt)`` and ``on_prompt(prompt, head_mask, replaced)`` as GatedHeads has.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.ablation import predictions_under_masks
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> predictions_under_masks(model, prompt, torch.ones(3, 2, 2)).shape  # (masks, prompts, queries)
        torch.Size([3, 8, 2])
    """
    _check(network, prompt, masks, ablated, chunk_size)
    reference, rows, replaced = ablated.reference, masks.tolist(), None
    if ablated.ablation == "mean" and reference is not None:
        replaced = _mean_outputs(network, reference, chunk_size)
    out = prompt.x.new_empty(len(masks), *prompt.f_query.shape)
    size = min(chunk_size, len(prompt.x))
    at_once = max(1, chunk_size // size)
    for first in progress(range(0, len(prompt.x), size), "head masks"):
        part, found = prompt.rows(first, first + size), out[:, first : first + size]
        if ablated.ablation == "resample" and reference is not None:
            replaced = head_outputs(network, reference.rows(first, first + size))
        if isinstance(network, Transformer):
            start = network.embedded_prompt(part)
            tree = _MaskTree(network, start, rows, replaced, at_once, found)
            tree.fill(0, start.states, [list(range(len(masks)))])
        else:
            _fill(network, part, masks, replaced, at_once, found)
    return out


def head_outputs(network: InContextNetwork, prompt: Prompt) -> HeadOutputs:
    """What every head reads at every token, before the output projection, one tensor a layer.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.ablation import head_outputs
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> [tuple(layer.shape) for layer in head_outputs(model, prompt)]  # (prompts, heads, tokens, size)
        [(8, 2, 7, 8), (8, 2, 7, 8)]
    """
    if not isinstance(network, Transformer):
        own = getattr(network, "head_outputs", None)
        if own is None:
            raise InputError(
                f"mean and resample ablation need what heads read, but this {type(network).__name__} has no "
                "head_outputs(prompt); wrap it in GatedHeads, or ablate to zero."
            )
        return own(prompt)
    start = network.embedded_prompt(prompt)
    states, outputs = start.states, []
    for layer in network.blocks:
        outputs.append(layer.head_outputs(states, start.view))
        states = layer.after_heads(states, outputs[-1])
    return outputs


def _mean_outputs(network: InContextNetwork, reference: Prompt, chunk_size: int) -> HeadOutputs:
    totals: HeadOutputs = [None] * len(network.heads)
    for part in reference.chunks(chunk_size):
        sums = [None if of is None else of.double().sum(dim=0, keepdim=True) for of in head_outputs(network, part)]
        totals = [of if total is None or of is None else total + of for total, of in zip(totals, sums, strict=True)]
    return [None if total is None else (total / len(reference.x)).to(reference.x.dtype) for total in totals]


def _fill(
    network: InContextNetwork, prompt: Prompt, masks: HeadMasks, replaced: HeadOutputs | None, at_once: int, out: Tensor
) -> None:
    """Fill ``out`` with one chunk's predictions under all masks, ``at_once`` of them in a batch."""
    blocks, agrees = list[Any](), [0] * len(masks)
    if isinstance(network, GatedHeads) and len(masks) > 1:
        base, up_to = _base(masks, network.heads)
        _, blocks = network.recorded(prompt, masks[base], replaced)
        agrees = up_to if blocks else agrees
    for depth in sorted(set(agrees)):
        group = [mask for mask, up_to in enumerate(agrees) if up_to == depth]
        for begin in range(0, len(group), at_once):
            part = group[begin : begin + at_once]
            mask = masks[part].repeat_interleave(len(prompt.x), dim=0).to(prompt.x) if any(network.heads) else None
            options: dict[str, Any] = {"below": blocks[:depth]} if blocks else {}
            if replaced is not None:
                options["replaced"] = [
                    of if of is None or len(of) == 1 else of.repeat(len(part), 1, 1, 1) for of in replaced
                ]
            copies = prompt if len(part) == 1 else concatenated([prompt] * len(part))
            found = network.on_prompt(copies, mask, **options).prediction
            out[part] = found.unflatten(0, (len(part), -1)).to(out.dtype)


def _base(masks: HeadMasks, heads: Sequence[int]) -> tuple[int, list[int]]:
    """The mask that most agree with from below, and up to which layer each does."""
    rows = [[tuple(row[:n]) for row, n in zip(mask, heads, strict=True)] for mask in masks.tolist()]
    left = list(range(len(rows)))
    for layer in range(len(heads)):
        ((most, _),) = Counter(rows[mask][layer] for mask in left).most_common(1)
        left = [mask for mask in left if rows[mask][layer] == most]
    base = rows[left[0]]
    differs = [[mine != of for mine, of in zip(row, base, strict=True)] for row in rows]
    return left[0], [row.index(True) if True in row else len(heads) for row in differs]


class _MaskTree(NamedTuple):
    """One chunk of prompts, run under all masks: a tree that branches where masks differ, walked depth first."""

    network: Transformer
    start: Embedded
    rows: list[list[list[float]]]  # of each mask, by layer
    replaced: HeadOutputs | None
    at_once: int
    out: Tensor

    def fill(self, depth: int, states: Tensor, groups: list[list[int]]) -> None:
        """Fill ``out`` with the predictions under the masks of ``groups``, from their states before a layer.

        ``states`` hold the prompts once for each group, group after group: masks of a group agree below.
        """
        layers = self.network.blocks
        if depth == len(layers):
            predictions = self.network.read(states[:, -self.start.n_queries :]).unflatten(0, (len(groups), -1))
            for group, prediction in zip(groups, predictions, strict=True):
                self.out[group] = prediction.to(self.out.dtype)
            return
        # The last layer is needed at the queries alone.
        first = self.start.first_query if depth == len(layers) - 1 else 0
        mixed = layers[depth].head_outputs(states, self.start.view.of_copies(len(groups)), slice(first, None))
        # Each group's masks by their row of this layer, as far as it has heads.
        n_heads, branches = self.network.heads[depth], dict[tuple[int, tuple[float, ...]], list[int]]()
        for parent, group in enumerate(groups):
            for mask in group:
                branches.setdefault((parent, tuple(self.rows[mask][depth][:n_heads])), []).append(mask)
        ends = list(branches)
        for begin in range(0, len(ends), self.at_once):
            part = ends[begin : begin + self.at_once]
            parents, rows = [parent for parent, _ in part], [row for _, row in part]
            read = None if mixed is None else _chosen(mixed, parents, len(groups))
            if read is not None:
                # (branches, 1, heads, 1, 1), beside (branches, prompts, heads, tokens, head_dim)
                kept = read.new_tensor(rows)[:, None, :, None, None]
                read = read.unflatten(0, (len(part), -1)) * kept
                other = None if self.replaced is None else self.replaced[depth]
                read = (read if other is None else read + (1 - kept) * other[:, :, first:]).flatten(0, 1)
            after = layers[depth].after_heads(_chosen(states[:, first:], parents, len(groups)), read)
            self.fill(depth + 1, after, [branches[end] for end in part])


def _chosen(values: Tensor, parents: list[int], n_groups: int) -> Tensor:
    """Each parent's values, from those of all groups, one group after the other."""
    if len(parents) == n_groups == 1:
        return values  # without a copy
    return values.unflatten(0, (n_groups, -1))[parents].flatten(0, 1)


def _check(network: InContextNetwork, prompt: Prompt, masks: Tensor, ablated: AblatedHeads, chunk_size: int) -> None:
    check_mask_shape("the masks have", masks.shape[1:], network.heads)
    check_at_least(1, chunk_size=chunk_size)
    check_choice("ablation", ablated.ablation, get_args(Ablation))
    if ablated.ablation == "zero":
        return
    if ablated.reference is None:
        raise InputError(f"ablation is {ablated.ablation!r}, but it needs reference prompts to take head outputs from.")
    reference, resampled = ablated.reference, ablated.ablation == "resample"
    same = reference.x.shape[1:] == prompt.x.shape[1:] and reference.x_query.shape[1] == prompt.x_query.shape[1]
    if not same or (resampled and len(reference.x) != len(prompt.x)):
        raise InputError(
            f"the reference prompts have shape {tuple(reference.x.shape)} with {reference.x_query.shape[1]} queries, "
            f"but must match the scored ones, {tuple(prompt.x.shape)} with {prompt.x_query.shape[1]}."
        )
    if prompt.point_mask is None and reference.point_mask is None:
        return
    n, others = prompt.n_points().long(), reference.n_points().long()
    if not (torch.equal(n, others) if resampled else len(torch.cat([n, others]).unique()) == 1):
        raise InputError(
            f"the scored prompts have {n.unique().tolist()} examples and the reference prompts "
            f"{others.unique().tolist()}, padding not counted, but {ablated.ablation} ablation needs "
            f"{'as many in each pair' if resampled else 'one number for all'}: cut them, prompt.first(n)."
        )
