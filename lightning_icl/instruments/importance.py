"""What each attention head is worth, by several scores, and how far the scores agree.

from lightning_icl.instruments.importance import head_importance

found = head_importance(network, prompt)
found.scores["leave_one_out"].raw.value  # (layers, heads), in squared label units
found.agreement["leave_one_out_and_leave_one_in"].overall
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import heads
from lightning_icl.functional.agreement import Agreement, rank_agreement
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import Measured, measured_mean
from lightning_icl.instruments import ablation
from lightning_icl.instruments.ablation import ZERO, AblatedHeads, Metric, Progress, errors_under_masks
from lightning_icl.network import InContextNetwork

Score = Literal["leave_one_out", "leave_one_in", "gradient"]
SCORES: tuple[Score, ...] = get_args(Score)


class HeadScores(NamedTuple):
    """Every score of every head on one set of prompts.

    Attributes:
        scores: by name: "leave_one_out", "leave_one_in" and "gradient" as in ``values_by_score``, with the ablation
            after the name where it is not zero ("leave_one_out_mean").
        agreement: rank correlation of every two of them, by name ("gradient_and_leave_one_in" is not there where
            "leave_one_in_and_gradient" is: the order is that of ``scores``).
        risk: the metric of the full model on the same prompts.
    """

    scores: dict[str, heads.ImportanceScores]
    agreement: dict[str, Agreement]
    risk: Measured


def head_importance(
    network: InContextNetwork,
    prompt: Prompt,
    scores: Sequence[Score] = SCORES,
    ablations: Sequence[AblatedHeads] = (ZERO,),
    metric: Metric = ablation.squared_error,
    chunk_size: int = 512,
    progress: Progress = ablation.silent,
    n_points: int | None = None,
) -> HeadScores:
    """Each score of ``values_by_score`` averaged over the prompts, with intervals, and their agreement.

    All intervals are over prompts, and paired, since every score sees the same ones. With ``n_points`` only the first
    so many examples of the prompts are there, and of the reference prompts.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.importance import head_importance
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> found = head_importance(model, prompt)
        >>> [*found.scores], found.scores["leave_one_out"].raw.value.shape  # (layers, heads)
        (['leave_one_out', 'leave_one_in', 'gradient'], torch.Size([2, 2]))
    """
    if n_points is not None:
        if not 1 <= n_points <= prompt.x.shape[1]:
            raise InputError(f"n_points is {n_points}, but the prompts have 1 to {prompt.x.shape[1]} examples.")
        prompt = prompt.first(n_points)
        ablations = [a if a.reference is None else a._replace(reference=a.reference.first(n_points)) for a in ablations]
    errors, values = values_by_score(network, prompt, scores, ablations, metric, chunk_size, progress)
    n_heads, weights = network.heads, heads.prompt_weights(errors)
    return HeadScores(
        {name: heads.importance_scores(value, n_heads, weights) for name, value in values.items()},
        {f"{a}_and_{b}": rank_agreement(values[a], values[b], n_heads, weights) for a, b in combinations(values, 2)},
        measured_mean(errors),
    )


def values_by_score(
    network: InContextNetwork,
    prompt: Prompt,
    scores: Sequence[Score] = SCORES,
    ablations: Sequence[AblatedHeads] = (ZERO,),
    metric: Metric = ablation.squared_error,
    chunk_size: int = 512,
    progress: Progress = ablation.silent,
) -> tuple[Float[Tensor, " batch"], dict[str, Float[Tensor, "heads batch"]]]:
    """The full model's errors on each prompt, and each score's values, heads in layer order.

    With L the metric of one prompt [ours, but for the last]:

    - leave_one_out: L with the head ablated - L of the full model: what the model loses without the head. Blind to a
      head whose work another one does too.
    - leave_one_in: L with the head's whole layer ablated - L with all of the layer ablated but the head: what the head
      gains alone in its layer, every other layer being whole.
    - gradient: |dL / dmask| at the full model, where the mask multiplies the head's output; one backward pass for all
      heads (Michel et al. 2019, equation 2). It is never negative, so no layer is ever within noise of zero by it, and
      its shares alone do not say that a head is of any use.

    The first two are there once for each of ``ablations``, all their masks in one walk (instruments/ablation.py).

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> from lightning_icl.instruments.importance import values_by_score
        >>> model, task = Transformer(n_dims=3, d_model=16, heads=[2, 2]), LinearRegression(n_dims=3)
        >>> prompt = task.sample(8, 5, 2, torch.Generator().manual_seed(0))
        >>> full, values = values_by_score(model, prompt)
        >>> full.shape, {name: tuple(of.shape) for name, of in values.items()}  # (heads, prompts)
        (torch.Size([8]), {'leave_one_out': (4, 8), 'leave_one_in': (4, 8), 'gradient': (4, 8)})
    """
    check_scores(scores, [ablated.ablation for ablated in ablations])
    n_heads = network.heads
    heads.check_heads(n_heads)
    full, values = heads.full_mask(n_heads), dict[str, Tensor]()
    errors = errors_under_masks(network, prompt, full[None], metric=metric, chunk_size=chunk_size)[0]
    sets = {"out": heads.single_removals(full)} if "leave_one_out" in scores else {}
    if "leave_one_in" in scores:
        sets |= {"layer": heads.layer_ablation_masks(n_heads), "in": heads.leave_one_in_masks(n_heads)}
    for ablated in ablations if sets else ():
        masks = torch.cat(list(sets.values()))
        under = errors_under_masks(network, prompt, masks, ablated, metric, chunk_size, progress)
        by_set = dict(zip(sets, under.split([len(of) for of in sets.values()]), strict=True))
        suffix = "" if ablated.ablation == "zero" else f"_{ablated.ablation}"
        if "leave_one_out" in scores:
            values[f"leave_one_out{suffix}"] = by_set["out"] - errors
        if "leave_one_in" in scores:
            layer_of = [layer for layer, n in enumerate(n_heads) for _ in range(n)]
            values[f"leave_one_in{suffix}"] = by_set["layer"][layer_of] - by_set["in"]
    if "gradient" in scores:
        values["gradient"] = gradient_magnitudes(network, prompt, metric, chunk_size)
    return errors, values


def gradient_magnitudes(
    network: InContextNetwork, prompt: Prompt, metric: Metric = ablation.squared_error, chunk_size: int = 512
) -> Float[Tensor, "heads batch"]:
    """|dL / dmask| of each prompt's metric L with respect to each head's mask, heads in layer order."""
    layer, head = heads.full_mask(network.heads).nonzero(as_tuple=True)
    found = []
    # Gradients also under an inference mode, through copies of what was drawn under one.
    with torch.inference_mode(False), torch.enable_grad():
        for part in prompt.copied().chunks(chunk_size):
            mask = heads.full_mask(network.heads).to(part.x).repeat(len(part.x), 1, 1).requires_grad_()
            # Prompts are independent, so the gradient of the sum of their metrics holds every prompt's own.
            total = metric(network.on_prompt(part, mask).prediction, part).sum()
            (gradient,) = torch.autograd.grad(total, mask)
            found.append(gradient[:, layer, head].abs().double())
    return torch.cat(found).T


def check_scores(scores: Sequence[str], ablations: Sequence[str]) -> None:
    """Refuse names that are no scores or ablations, and the same one twice."""
    for name, asked, valid in (("scores", scores, SCORES), ("ablations", ablations, get_args(ablation.Ablation))):
        if not asked or set(asked) - set(valid) or len(set(asked)) < len(asked):
            raise InputError(f"{name} is {list(asked)}, but it must be one or more of {', '.join(valid)}, each once.")
