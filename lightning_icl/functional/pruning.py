"""Which heads to keep: pruning strategies, the paper's among them, and their controls.

Definitions: docs/explanation/science.md, Pruning. A table of importance holds NaN where a layer has no such head, or
none that is alive; no strategy keeps a head there or counts it.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError, check_at_least, check_not_negative
from lightning_icl.functional.heads import HeadMask, HeadMasks, single_removals
from lightning_icl.functional.risk import Interval, joint_quantile, mean_and_standard_error, t_quantile

Errors = Callable[[HeadMasks], Float[Tensor, "masks batch"]]
Rounds = Callable[[range], Iterable[int]]  # what goes through a loop, such as a progress bar
ENUMERATED = 128  # random choices of heads up to which all are scored: their masks share most of their layers


def keep_top(raw: Float[Tensor, "layers heads"], n: int = 1) -> Bool[Tensor, "layers heads"]:
    """The ``n`` most important heads of each layer (all of a layer that has fewer); of -raw, the least important.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import keep_top
        >>> keep_top(torch.tensor([[0.2, 0.5], [0.9, 0.1]]), n=1)
        tensor([[False,  True],
                [ True, False]])
    """
    best = raw.nan_to_num(nan=-torch.inf).topk(min(n, raw.shape[1]), dim=1).indices
    return torch.zeros_like(raw, dtype=torch.bool).scatter(1, best, True) & ~raw.isnan()


def n_choices(living: Bool[Tensor, "layers heads"]) -> int:
    """In how many ways one living head of each later layer can be chosen; layers without any do not count.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import n_choices
        >>> n_choices(torch.ones(3, 4, dtype=torch.bool))  # one of 4 heads in each of 2 later layers
        16
    """
    return math.prod(max(1, n) for n in living[1:].sum(dim=1).tolist())


def random_choices(living: Bool[Tensor, "layers heads"], n: int, generator: Generator) -> HeadMasks:
    """``n`` different choices of one head in each later layer beside all of layer 1, drawn uniformly (CPU generator).

    In random order, so that the first few are a sample themselves; all choices where there are no more than ``n``.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import random_choices
        >>> living, generator = torch.ones(3, 4, dtype=torch.bool), torch.Generator().manual_seed(0)
        >>> random_choices(living, 5, generator).sum(dim=(1, 2))  # 4 + 1 + 1 heads in each of five masks
        tensor([6., 6., 6., 6., 6.])
    """
    heads = [alive.nonzero().flatten().tolist() or [None] for alive in living[1:]]
    if n_choices(living) <= n:
        every = list(itertools.product(*heads))
        chosen = [every[i] for i in torch.randperm(len(every), generator=generator)]
    else:
        drawn: dict[tuple[int | None, ...], None] = {}
        while len(drawn) < n:
            drawn[tuple(of[int(torch.randint(len(of), (), generator=generator))] for of in heads)] = None
        chosen = list(drawn)
    masks = torch.zeros(len(chosen), *living.shape)
    masks[:, 0] = living[0].float()
    for mask, choice in zip(masks, chosen, strict=True):
        for layer, head in enumerate(choice, start=1):
            if head is not None:
                mask[layer, head] = 1
    return masks


def pruning_controls(raw: Float[Tensor, "layers heads"], n_random: int, generator: Generator) -> dict[str, HeadMasks]:
    """The masks that must stand beside the paper's pruned model.

    prune_layer1_instead: the top head of layer 1, all later heads. random_head: all of layer 1, a random head of each
    later layer: every choice where there are at most ENUMERATED, else ``n_random`` of them. least_important: all of
    layer 1, the least important head of each later layer.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import pruning_controls
        >>> importance = torch.tensor([[0.2, 0.5], [0.9, 0.1]])
        >>> controls = pruning_controls(importance, n_random=1, generator=torch.Generator().manual_seed(0))
        >>> {name: masks.shape[0] for name, masks in controls.items()}
        {'prune_layer1_instead': 1, 'random_head': 2, 'least_important': 1}
        >>> controls["least_important"][0]
        tensor([[1., 1.],
                [0., 1.]])
    """
    if n_random < 1:
        raise InputError(f"n_random is {n_random}, but the random-head control needs at least 1 draw.")
    living = ~raw.isnan()
    n = max(n_random, ENUMERATED) if n_choices(living) <= ENUMERATED else n_random
    return {
        "prune_layer1_instead": torch.cat([keep_top(raw)[:1], living[1:]]).float()[None],
        "random_head": random_choices(living, n, generator),
        "least_important": torch.cat([living[:1], keep_top(-raw)[1:]]).float()[None],
    }


def mean_half_width(values: Float[Tensor, "draws batch"], n_choices: int) -> float:
    """Half of the 95 % interval of the mean over all prompts and all ``n_choices`` that the draws are of.

    sqrt((t_batch s_batch)^2 + (1 - draws / n_choices) (t_draws s_draws)^2), where s_batch is the standard error over
    prompts of the means over draws, s_draws that over draws of the means over prompts, and t_n Student's quantile. The
    second part is none where every choice was drawn, and has no bound (NaN) for one draw of several.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import mean_half_width
        >>> errors = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> round(mean_half_width(errors, n_choices=1), 3)  # 3.182 standard errors of 0.6455
        2.054
    """
    draws, batch = values.shape
    _, over_prompts = mean_and_standard_error(values.mean(dim=0))
    half = t_quantile(batch) * float(over_prompts)
    if draws == n_choices or draws == 1:
        return half if draws == n_choices else math.nan
    _, over_draws = mean_and_standard_error(values.mean(dim=1))
    return math.hypot(half, (1 - draws / n_choices) ** 0.5 * t_quantile(draws) * float(over_draws))


class BesideFull(NamedTuple):
    """A pruned model's excess risk and, paired, its difference from the full model's and its ratio to that.

    ``spread`` says between which ratios the draws lie; None where there is one choice.
    """

    excess_risk: Interval
    difference: Interval
    ratio: Interval
    spread: str | None


def beside_full(
    errors: Float[Tensor, "draws batch"], full: Float[Tensor, "one batch"], n_choices: int = 1
) -> BesideFull:
    """The mean over draws, of ``n_choices`` in all, beside the full model on the same prompts.

    The ratio's interval is that of its logarithm, whose error is that of the mean of error / risk - full / full risk.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import beside_full
        >>> full = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> beside_full(2 * full, full).ratio  # on each prompt twice the full model's error
        Interval(value=2.0, low=2.0, high=2.0)
    """

    def mean(values: Tensor) -> Interval:
        value, half = float(values.mean()), mean_half_width(values, n_choices)
        return Interval(value, value - half, value + half)

    risk, whole = errors.mean(), full.mean()
    ratio, spread = float(risk / whole), errors.mean(dim=1) / whole
    factor = float(torch.tensor(mean_half_width(errors / risk - full / whole, n_choices)).exp())
    of = f"the {n_choices:,}" if len(errors) == n_choices else f"{len(errors)} of {n_choices:,}"
    said = f"{spread.min():.2f} to {spread.max():.2f} times over {of} choices" if n_choices > 1 else None
    return BesideFull(mean(errors), mean(errors - full), Interval(ratio, ratio / factor, ratio * factor), said)


def rank_among(errors: Float[Tensor, " batch"], others: Float[Tensor, "others batch"]) -> Interval:
    """The place of a model's risk among its own and those of ``others``, 1 the best, from errors on the same prompts.

    Its interval leaves out the places of those that are better or worse beyond noise: by paired intervals that hold at
    once (Bonferroni), so that it covers the rank on all prompts with at least 95 %.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import rank_among
        >>> errors = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> rank_among(errors, torch.stack([errors - 0.5, errors + 0.5]))  # one of two others is better
        Interval(value=2, low=2, high=2)
    """
    difference, error = mean_and_standard_error((others - errors).T)
    margin, n = joint_quantile(len(others)) * error, len(others) + 1
    better, surely_better = int((difference < 0).sum()), int((difference < -margin).sum())
    return Interval(1 + better, 1 + surely_better, n - int((difference > margin).sum()))


class GreedyPath(NamedTuple):
    """Heads removed one at a time, each time the one whose removal costs least.

    ``masks[i]`` is what is left after i removals: by greedy removal the best use of that many heads. ``errors[i]`` are
    its errors on the prompts of the choice, which are biased downwards further along the path: score the masks on
    other prompts.
    """

    masks: list[HeadMask]
    errors: list[Float[Tensor, " batch"]]

    @property
    def removed(self) -> list[tuple[int, int]]:
        """(layer, head), counted from 1, in the order of removal."""
        gone = [(before > after).nonzero()[0] for before, after in zip(self.masks, self.masks[1:], strict=False)]
        return [(int(layer) + 1, int(head) + 1) for layer, head in gone]

    @property
    def heads_left(self) -> list[int]:
        """The total after each removal, the start first."""
        return [int(mask.sum()) for mask in self.masks]


class PruningCase:
    """What a strategy may know of a model, all of it from prompts that are not scored later.

    Attributes:
        importance: rise of the excess risk without each head; NaN where there is none.
        errors: squared error of each prompt under each of several head masks.
        living: the heads there are to choose from, as a mask.
        paper_total: how many heads the paper's strategy keeps.
    """

    def __init__(self, importance: Float[Tensor, "layers heads"], errors: Errors, rounds: Rounds = iter) -> None:
        self.importance, self.errors, self.rounds = importance, errors, rounds
        self.living: HeadMask = (~importance.isnan()).float()
        self.paper_total = int(self.living[0].sum() + self.living[1:].amax(dim=1).sum())
        self._path = GreedyPath([], [])

    def path(self, n_heads: int) -> GreedyPath:
        """The greedy path down to ``n_heads`` at least; it is walked once, however many ask.

        Each round scores every single removal anew: of h heads down to k, h + (h - 1) + ... + (k + 1) masks.
        """
        masks, errors = [*self._path.masks], [*self._path.errors]  # those who have the path so far keep that
        if not masks:
            masks.append(self.living)
            errors.append(self.errors(self.living[None])[0])
        missing = range(int(masks[-1].sum()), n_heads, -1)
        for _ in self.rounds(missing) if missing else ():
            candidates = single_removals(masks[-1])
            scores = self.errors(candidates)
            cheapest = int(scores.mean(dim=1).argmin())
            masks.append(candidates[cheapest])
            errors.append(scores[cheapest])
        if len(masks) > len(self._path.masks):
            self._path = GreedyPath(masks, errors)
        return self._path


class PruningStrategy(ABC):
    """Says which heads to keep, by settings such as how many: ``n_heads``, where it has that.

    ``key`` is its name in logs and files, with the settings it was given, ``label`` that in figures and tables.
    """

    name: ClassVar[str]
    n_heads: int | None = None

    def __post_init__(self) -> None:
        if self.n_heads is not None:
            check_at_least(1, n_heads=self.n_heads)

    @property
    def key(self) -> str:
        return self.name if self.n_heads is None else f"{self.name}_{self.n_heads}"

    @property
    @abstractmethod
    def label(self) -> str: ...

    @abstractmethod
    def keep(self, case: PruningCase) -> HeadMask:
        """The mask of the heads to keep."""

    def check(self, total: int) -> None:
        """Refuse a model with fewer heads in all than are to be kept."""
        if self.n_heads is not None and self.n_heads > total:
            raise InputError(f"{self.key}: n_heads is {self.n_heads}, but the model has {total} heads.")


@dataclass(frozen=True)
class PaperPruning(PruningStrategy):
    """All heads of layer 1 and the most important head of each later layer [ours, after the paper's captions].

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import PaperPruning, PruningCase
        >>> importance = torch.tensor([[0.2, 0.5], [0.9, 0.1]])
        >>> PaperPruning().keep(PruningCase(importance, errors=lambda masks: torch.ones(len(masks), 1)))
        tensor([[1., 1.],
                [1., 0.]])
    """

    name = "paper"
    label = "paper: layer 1, top head of each later layer"

    def keep(self, case: PruningCase) -> HeadMask:
        return torch.cat([case.living[:1], keep_top(case.importance)[1:].float()])


@dataclass(frozen=True)
class TopHeads(PruningStrategy):
    """The most important heads, of whichever layer.

    Args:
        n_heads: how many; none means as many as the paper's strategy keeps.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import PruningCase, TopHeads
        >>> importance = torch.tensor([[0.2, 0.5], [0.9, 0.1]])
        >>> TopHeads(n_heads=2).keep(PruningCase(importance, errors=lambda masks: torch.ones(len(masks), 1)))
        tensor([[0., 1.],
                [1., 0.]])
    """

    name = "top"
    label = "most important heads of all layers"
    n_heads: int | None = None

    def keep(self, case: PruningCase) -> HeadMask:
        n = min(self.n_heads or case.paper_total, int(case.living.sum()))
        best = case.importance.nan_to_num(nan=-torch.inf).flatten().topk(n).indices
        return torch.zeros_like(case.living).flatten().index_fill(0, best, 1).unflatten(0, case.living.shape)


@dataclass(frozen=True)
class ImportanceThreshold(PruningStrategy):
    """The heads whose importance is at least ``threshold`` times the full model's excess risk.

    Args:
        threshold: the smallest relative rise of the risk that a head is worth keeping for.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import ImportanceThreshold, PruningCase
        >>> importance = torch.tensor([[0.2, 0.5], [0.9, 0.1]])
        >>> case = PruningCase(importance, errors=lambda masks: torch.ones(len(masks), 1))  # the full risk is 1
        >>> ImportanceThreshold(threshold=0.2).keep(case)
        tensor([[1., 1.],
                [1., 0.]])
    """

    name = "threshold"
    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_not_negative(threshold=self.threshold)

    @property
    def key(self) -> str:
        return f"{self.name}_{self.threshold:g}"

    @property
    def label(self) -> str:
        return f"heads that matter by {self.threshold:g} of the risk"

    def keep(self, case: PruningCase) -> HeadMask:
        full_risk = float(case.errors(case.living[None]).mean())
        return (case.importance >= self.threshold * full_risk).float()  # NaN is not


@dataclass(frozen=True)
class GreedyRemoval(PruningStrategy):
    """What is left when the cheapest head is removed, again and again, each time scoring all that are left anew.

    Args:
        n_heads: how many are left; none means as many as the paper's strategy keeps.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import GreedyRemoval, PruningCase
        >>> importance = torch.tensor([[0.2, 0.5], [0.9, 0.1]])
        >>> def errors(masks):  # of each mask: the importance of what is gone
        ...     return (importance * (1 - masks)).sum(dim=(1, 2))[:, None]
        >>> GreedyRemoval(n_heads=2).keep(PruningCase(importance, errors))
        tensor([[0., 1.],
                [1., 0.]])
    """

    name = "greedy"
    label = "greedy removal"
    n_heads: int | None = None

    def keep(self, case: PruningCase) -> HeadMask:
        n = self.n_heads or case.paper_total
        return case.path(n).masks[max(0, int(case.living.sum()) - n)]


def keep_lists(mask: HeadMask) -> list[list[int]]:
    """The heads that are kept of each layer, counted from 1: what ``lightning-icl prune --keep`` takes.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.pruning import keep_lists
        >>> keep_lists(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        [[1, 2], [2]]
    """
    return [(row.nonzero().flatten() + 1).tolist() for row in mask]
