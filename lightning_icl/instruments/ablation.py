"""Running a transformer under many head masks at once, computing once what they share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import squared_errors
from lightning_icl.transformer import Transformer

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

    def first(self, n_points: int) -> "AblatedHeads":
        """The same on the first ``n_points`` examples of the reference prompts."""
        return self if self.reference is None else self._replace(reference=self.reference.first(n_points))


ZERO = AblatedHeads()


@torch.no_grad()
def errors_under_masks(
    transformer: Transformer,
    prompt: Prompt,
    masks: Float[Tensor, "masks layers heads"],
    ablated: AblatedHeads = ZERO,
    metric: Metric = squared_error,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> Float[Tensor, "masks batch"]:
    """``metric`` of each prompt under each head mask; see ``predictions_under_masks``."""
    predicted = predictions_under_masks(transformer, prompt, masks, ablated, chunk_size, progress)
    return torch.stack([metric(prediction, prompt) for prediction in predicted])


@torch.no_grad()
def predictions_under_masks(
    transformer: Transformer,
    prompt: Prompt,
    masks: Float[Tensor, "masks layers heads"],
    ablated: AblatedHeads = ZERO,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> Float[Tensor, "masks batch queries"]:
    """What a loop of ``transformer.on_prompt(prompt, mask).prediction`` gives, with less work.

    Masks that agree up to a layer share the states up to there, and a layer's heads are computed once for all masks
    that differ in it alone: the states of all masks form a tree, which is walked depth first. The last layer is
    computed at the queries only. At most ``chunk_size`` prompts times masks run at once in a layer, so memory is
    bounded by depth times ``chunk_size`` prompts' states whatever the number of masks.
    """
    _check(transformer, prompt, masks, ablated, chunk_size)
    mean = _mean_outputs(transformer, ablated, chunk_size) if ablated.ablation == "mean" else None
    out = prompt.x.new_empty(len(masks), *prompt.f_query.shape)
    size = min(chunk_size, len(prompt.x))
    for start in progress(range(0, len(prompt.x), size), "head masks"):
        part = prompt.rows(start, start + size)
        replaced = mean
        if ablated.ablation == "resample":
            assert ablated.reference is not None
            replaced = head_outputs(transformer, ablated.reference.rows(start, start + size))
        at_once = max(1, chunk_size // size)
        _MaskTree(transformer, part, masks, replaced, at_once, out[:, start : start + size]).walk()
    return out


def head_outputs(transformer: Transformer, prompt: Prompt) -> HeadOutputs:
    """What every head reads at every token, before the output projection, one tensor a layer."""
    start = transformer.embedded(transformer.laid_out(prompt), prompt.x_query.shape[1], prompt.point_mask)
    states, outputs = start.states, []
    for layer in transformer.blocks:
        outputs.append(layer.head_outputs(states, start.view))
        states = layer.after_heads(states, outputs[-1])
    return outputs


def _mean_outputs(transformer: Transformer, ablated: AblatedHeads, chunk_size: int) -> HeadOutputs:
    assert ablated.reference is not None
    reference = ablated.reference
    totals: list[Tensor | float] = [0.0] * len(transformer.heads)
    for part in reference.chunks(chunk_size):
        for i, outputs in enumerate(head_outputs(transformer, part)):
            if outputs is not None:
                totals[i] = totals[i] + outputs.double().sum(dim=0, keepdim=True)
    means = [total / len(reference.x) for total in totals]
    return [mean.to(reference.x.dtype) if isinstance(mean, Tensor) else None for mean in means]


class _Branch(NamedTuple):
    """Masks that agree up to and in a layer: by the place of their states before it, and their row of it."""

    parent: int
    row: tuple[float, ...]
    masks: list[int]


class _MaskTree:
    """One chunk of prompts, run under all masks: a tree that branches where masks differ, walked depth first."""

    def __init__(
        self,
        transformer: Transformer,
        prompt: Prompt,
        masks: Tensor,
        replaced: HeadOutputs | None,
        at_once: int,
        out: Tensor,
    ) -> None:
        self.transformer, self.replaced, self.at_once, self.out = transformer, replaced, at_once, out
        self.start = transformer.embedded(transformer.laid_out(prompt), prompt.x_query.shape[1], prompt.point_mask)
        self.rows = masks.tolist()

    def walk(self) -> None:
        """Fill ``out`` with the predictions under each mask."""
        self._descend(0, self.start.states, [list(range(len(self.rows)))])

    def _descend(self, depth: int, states: Tensor, groups: list[list[int]]) -> None:
        """``states`` hold the prompts once for each group of masks, group after group: those that agree below."""
        layers = self.transformer.blocks
        if depth == len(layers):
            predictions = self.transformer.read(states[:, -self.start.n_queries :]).unflatten(0, (len(groups), -1))
            for group, prediction in zip(groups, predictions, strict=True):
                self.out[group] = prediction.to(self.out.dtype)
            return
        # The last layer is needed at the queries alone.
        first = self.start.first_query if depth == len(layers) - 1 else 0
        mixed = layers[depth].head_outputs(states, self.start.view.of_copies(len(groups)), slice(first, None))
        branches = self._branches(groups, depth)
        for begin in range(0, len(branches), self.at_once):
            part = branches[begin : begin + self.at_once]
            parents = [branch.parent for branch in part]
            read = None if mixed is None else _chosen(mixed, parents, len(groups))
            if read is not None:
                # (branches, 1, heads, 1, 1), beside (branches, prompts, heads, tokens, head_dim)
                kept = read.new_tensor([branch.row for branch in part])[:, None, :, None, None]
                read = read.unflatten(0, (len(part), -1)) * kept
                if self.replaced is not None:
                    other = self.replaced[depth]
                    assert other is not None
                    read = read + (1 - kept) * other[:, :, first:]
                read = read.flatten(0, 1)
            after = layers[depth].after_heads(_chosen(states[:, first:], parents, len(groups)), read)
            self._descend(depth + 1, after, [branch.masks for branch in part])

    def _branches(self, groups: list[list[int]], depth: int) -> list[_Branch]:
        """Each group's masks by their row of one layer, as far as this layer has heads."""
        n_heads, found = self.transformer.heads[depth], dict[tuple[int, tuple[float, ...]], list[int]]()
        for parent, masks in enumerate(groups):
            for mask in masks:
                found.setdefault((parent, tuple(self.rows[mask][depth][:n_heads])), []).append(mask)
        return [_Branch(parent, row, masks) for (parent, row), masks in found.items()]


def _chosen(values: Tensor, parents: list[int], n_groups: int) -> Tensor:
    """Each parent's values, from those of all groups, one group after the other."""
    if len(parents) == n_groups == 1:
        return values  # without a copy
    return values.unflatten(0, (n_groups, -1))[parents].flatten(0, 1)


def _check(transformer: Transformer, prompt: Prompt, masks: Tensor, ablated: AblatedHeads, chunk_size: int) -> None:
    expected = (len(transformer.heads), max(transformer.heads))
    if tuple(masks.shape[1:]) != expected:
        raise InputError(
            f"the masks have shape {tuple(masks.shape[1:])}, but this model needs {expected} (layers, heads of the "
            "widest layer)."
        )
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}, but it must be at least 1.")
    if ablated.ablation not in get_args(Ablation):
        raise InputError(f"ablation is {ablated.ablation!r}, but it must be one of {', '.join(get_args(Ablation))}.")
    if ablated.ablation == "zero":
        return
    if ablated.reference is None:
        raise InputError(f"ablation is {ablated.ablation!r}, but it needs reference prompts to take head outputs from.")
    same = ablated.reference.x.shape[1:] == prompt.x.shape[1:]
    same = same and ablated.reference.x_query.shape[1] == prompt.x_query.shape[1]
    if not same or (ablated.ablation == "resample" and len(ablated.reference.x) != len(prompt.x)):
        raise InputError(
            f"the reference prompts have shape {tuple(ablated.reference.x.shape)} with "
            f"{ablated.reference.x_query.shape[1]} queries, but must match the scored ones, "
            f"{tuple(prompt.x.shape)} with {prompt.x_query.shape[1]}."
        )
