"""What each attention head is worth, by several scores, and how far the scores agree.

from lightning_icl.instruments.importance import head_importance

found = head_importance(transformer, prompt)
found.scores["leave_one_out"].raw        # (layers, heads), in squared label units
found.agreement["leave_one_out_and_leave_one_in"].overall
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.agreement import Agreement, rank_agreement
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import (
    DRAWS,
    ImportanceScores,
    full_mask,
    importance_scores,
    layer_ablation_masks,
    leave_one_in_masks,
    leave_one_out_masks,
)
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.risk import bootstrap_weights, mean_and_standard_error, mean_interval
from lightning_icl.instruments.ablation import (
    ZERO,
    AblatedHeads,
    Ablation,
    Metric,
    Progress,
    errors_under_masks,
    silent,
    squared_error,
)
from lightning_icl.transformer import Transformer

Score = Literal["leave_one_out", "leave_one_in", "gradient"]
SCORES: tuple[Score, ...] = get_args(Score)


class HeadScores(NamedTuple):
    """Every score of every head on one set of prompts.

    Attributes:
        scores: by name: "leave_one_out", "leave_one_in" and "gradient" as in ``values_by_score``, with the ablation
            after the name where it is not zero ("leave_one_out_mean").
        agreement: rank correlation of every two of them, by name ("gradient_and_leave_one_in" is not there where
            "leave_one_in_and_gradient" is: the order is that of ``scores``).
        risk, risk_error, risk_interval: the metric of the full model on the same prompts, its standard error and 95 %
            interval.
    """

    scores: dict[str, ImportanceScores]
    agreement: dict[str, Agreement]
    risk: Float[Tensor, ""]
    risk_error: Float[Tensor, ""]
    risk_interval: Float[Tensor, " bounds"]

    def numbers(self, heads: Sequence[int]) -> Iterator["HeadNumber"]:
        """All of it, number by number; of heads that are there, also where they have no share."""
        yield HeadNumber("risk", self.risk, self.risk_interval)
        for name, scores in self.scores.items():
            for i, n_heads in enumerate(heads):
                layer = i + 1
                yield HeadNumber(f"{name}/effective", scores.effective_heads[i], scores.effective_interval[:, i], layer)
                yield HeadNumber(f"{name}/top_share", scores.top_share[i], scores.top_interval[:, i], layer)
                yield HeadNumber(f"{name}/total", scores.total[i], scores.total_interval[:, i], layer)
                for h in range(n_heads):
                    of_head = layer, h + 1
                    yield HeadNumber(f"{name}/importance", scores.raw[i, h], scores.interval[:, i, h], *of_head)
                    yield HeadNumber(f"{name}/share", scores.share[i, h], scores.share_interval[:, i, h], *of_head)
        for pair, agreement in self.agreement.items():
            yield HeadNumber(f"agreement/{pair}", agreement.overall, agreement.interval)
            for i, value in enumerate(agreement.by_layer):
                yield HeadNumber(f"agreement/{pair}", value, agreement.by_layer_interval[:, i], i + 1)


class HeadNumber(NamedTuple):
    """One number of HeadScores, with its interval and its place, counted from 1; None where it is about no single one.

    ``name`` is risk, <score>/effective, top_share, total, importance or share, or agreement/<score>_and_<score>.
    """

    name: str
    value: Float[Tensor, ""]
    interval: Float[Tensor, " bounds"]
    layer: int | None = None
    head: int | None = None


def head_importance(
    transformer: Transformer,
    prompt: Prompt,
    scores: Sequence[Score] = SCORES,
    ablations: Sequence[AblatedHeads] = (ZERO,),
    metric: Metric = squared_error,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> HeadScores:
    """Each score of ``values_by_score`` averaged over the prompts, with intervals, and their agreement.

    All intervals are over prompts, and paired, since every score sees the same ones.
    """
    errors, values = values_by_score(transformer, prompt, scores, ablations, metric, chunk_size, progress)
    weights = bootstrap_weights(len(errors), DRAWS, Generator().manual_seed(0)).to(errors)
    risk, risk_error = mean_and_standard_error(errors)
    return HeadScores(
        {name: importance_scores(value, transformer.heads) for name, value in values.items()},
        {
            f"{a}_and_{b}": rank_agreement(values[a], values[b], transformer.heads, weights)
            for a, b in combinations(values, 2)
        },
        risk,
        risk_error,
        mean_interval(risk, risk_error, len(errors)),
    )


def head_importance_by_points(
    transformer: Transformer,
    prompt: Prompt,
    n_points: Sequence[int],
    scores: Sequence[Score] = SCORES,
    ablations: Sequence[AblatedHeads] = (ZERO,),
    metric: Metric = squared_error,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> dict[int, HeadScores]:
    """``head_importance`` with the first n examples of the same prompts, for each n of ``n_points``."""
    available = prompt.x.shape[1]
    if wrong := [n for n in n_points if not 1 <= n <= available]:
        raise InputError(f"n_points has {wrong[0]}, but the prompts have 1 to {available} examples.")
    return {
        n: head_importance(
            transformer,
            prompt.first(n),
            scores,
            [_first_points(ablated, n) for ablated in ablations],
            metric,
            chunk_size,
            progress,
        )
        for n in n_points
    }


def _first_points(ablated: AblatedHeads, n: int) -> AblatedHeads:
    if ablated.reference is None:
        return ablated
    return ablated._replace(reference=ablated.reference.first(n))


def values_by_score(
    transformer: Transformer,
    prompt: Prompt,
    scores: Sequence[Score] = SCORES,
    ablations: Sequence[AblatedHeads] = (ZERO,),
    metric: Metric = squared_error,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
    """The full model's errors on each prompt, and each score's values (heads in layer order, batch).

    With L the metric of one prompt [ours, but for the last]:

    - leave_one_out: L with the head ablated - L of the full model: what the model loses without the head. Blind to a
      head whose work another one does too.
    - leave_one_in: L with the head's whole layer ablated - L with all of the layer ablated but the head: what the head
      gains alone in its layer, every other layer being whole.
    - gradient: |dL / dmask| at the full model, where the mask multiplies the head's output; one backward pass for all
      heads (Michel et al. 2019, equation 2). It is never negative, so no layer is ever within noise of zero by it, and
      its shares alone do not say that a head is of any use.

    The first two are there once for each of ``ablations``, all their masks in one walk (instruments/ablation.py).
    """
    check_scores(scores, [ablated.ablation for ablated in ablations])
    heads, values = transformer.heads, {}
    errors = errors_under_masks(transformer, prompt, full_mask(heads)[None], metric=metric, chunk_size=chunk_size)[0]
    for ablated in ablations if set(scores) - {"gradient"} else ():
        under = _errors_by_set(transformer, prompt, scores, ablated, metric, chunk_size, progress)
        suffix = "" if ablated.ablation == "zero" else f"_{ablated.ablation}"
        if "leave_one_out" in scores:
            values[f"leave_one_out{suffix}"] = under["out"] - errors
        if "leave_one_in" in scores:
            without_layer = under["layer"].repeat_interleave(torch.tensor(heads, device=errors.device), dim=0)
            values[f"leave_one_in{suffix}"] = without_layer - under["in"]
    if "gradient" in scores:
        values["gradient"] = gradient_magnitudes(transformer, prompt, metric, chunk_size)
    return errors, values


def _errors_by_set(
    transformer: Transformer,
    prompt: Prompt,
    scores: Sequence[Score],
    ablated: AblatedHeads,
    metric: Metric,
    chunk_size: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """The errors under the masks of leave-one-out ("out") and of leave-one-in ("layer", "in"), in one walk."""
    heads = transformer.heads
    masks = {"out": leave_one_out_masks(heads)} if "leave_one_out" in scores else {}
    if "leave_one_in" in scores:
        masks |= {"layer": layer_ablation_masks(heads), "in": leave_one_in_masks(heads)}
    errors = errors_under_masks(
        transformer, prompt, torch.cat(list(masks.values())), ablated, metric, chunk_size, progress
    )
    return dict(zip(masks, errors.split([len(each) for each in masks.values()]), strict=True))


def gradient_magnitudes(
    transformer: Transformer, prompt: Prompt, metric: Metric = squared_error, chunk_size: int = 512
) -> Float[Tensor, "heads batch"]:
    """|dL / dmask| of each prompt's metric L with respect to each head's mask, heads in layer order."""
    real = full_mask(transformer.heads).bool().to(prompt.x.device)
    return torch.cat(
        [_mask_gradient(transformer, part, metric)[:, real].abs().double() for part in prompt.chunks(chunk_size)]
    ).T


def _mask_gradient(transformer: Transformer, prompt: Prompt, metric: Metric) -> Float[Tensor, "batch layers heads"]:
    # Prompts are independent, so the gradient of the sum of their metrics holds every prompt's own.
    with torch.inference_mode(False), torch.enable_grad():
        prompt = prompt.copied()
        shape = (len(prompt.x), *full_mask(transformer.heads).shape)
        mask = torch.ones(shape, dtype=prompt.x.dtype, device=prompt.x.device, requires_grad=True)
        (gradient,) = torch.autograd.grad(metric(transformer.on_prompt(prompt, mask).prediction, prompt).sum(), mask)
    return gradient


def check_scores(scores: Sequence[str], ablations: Sequence[str]) -> None:
    """Refuse names that are no scores or ablations, and the same one twice."""
    for name, given, valid in (("scores", scores, SCORES), ("ablations", ablations, get_args(Ablation))):
        if not given or set(given) - set(valid) or len(set(given)) < len(given):
            raise InputError(f"{name} is {list(given)}, but it must be one or more of {', '.join(valid)}, each once.")
