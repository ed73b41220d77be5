"""Which heads to keep: the paper's pruned model and its controls. Definitions: PAPER.md section 5."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import full_mask


def keep_top(raw: Float[Tensor, "layers heads"], n: int = 1) -> Bool[Tensor, "layers heads"]:
    """The ``n`` most important heads of each layer (all of a layer that has fewer)."""
    return _keep_extreme(raw.nan_to_num(nan=-torch.inf), n, largest=True) & ~raw.isnan()


def keep_least(raw: Float[Tensor, "layers heads"]) -> Bool[Tensor, "layers heads"]:
    """The least important head of each layer."""
    return _keep_extreme(raw.nan_to_num(nan=torch.inf), 1, largest=False)


def _keep_extreme(scores: Tensor, n: int, largest: bool) -> Tensor:
    best = scores.topk(min(n, scores.shape[1]), dim=1, largest=largest).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


def keep_random(heads: Sequence[int], generator: Generator) -> Bool[Tensor, "layers heads"]:
    """One uniformly drawn head of each layer (CPU generator)."""
    drawn: Int[Tensor, " layers"] = torch.stack([torch.randint(h, (), generator=generator) for h in heads])
    return torch.nn.functional.one_hot(drawn, max(heads)).bool()


def pruning_masks(
    raw: Float[Tensor, "layers heads"], heads: Sequence[int], n_random: int, generator: Generator
) -> dict[str, Float[Tensor, "variants layers heads"]]:
    """The pruned model of PAPER.md section 5 and its mask-only controls.

    full: every head. pruned: all of layer 1, the top head of each later layer. prune_layer1_instead: the top head of
    layer 1, all later heads. random_head: all of layer 1, a random head of each later layer (``n_random`` draws).
    least_important: all of layer 1, the least important head of each later layer. One mask each but for random_head.
    """
    if n_random < 1:
        raise InputError(f"n_random is {n_random}, but the random-head control needs at least 1 draw.")
    full = full_mask(heads).to(raw.device)

    def later_layers_keep(kept: Tensor) -> Tensor:
        return torch.cat([full[:1], kept[1:].to(full)])

    top = keep_top(raw)
    draws = [keep_random(heads, generator).to(raw.device) for _ in range(n_random)]
    return {
        "full": full[None],
        "pruned": later_layers_keep(top)[None],
        "prune_layer1_instead": torch.cat([top[:1].to(full), full[1:]])[None],
        "random_head": torch.stack([later_layers_keep(kept) for kept in draws]),
        "least_important": later_layers_keep(keep_least(raw))[None],
    }
