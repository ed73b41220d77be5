"""Pruned models treated in several ways: from head masks to each prompt's squared error."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.prompts import Prompt
from lightning_icl.instruments.ablation import Progress, errors_under_masks, silent
from lightning_icl.instruments.pruning import fine_tuned, read_out_refitted, rescaled_masks
from lightning_icl.network import InContextNetwork
from lightning_icl.transformer import Transformer

Treatment = Callable[[Float[Tensor, "masks layers heads"]], Float[Tensor, "masks batch"]]


def treatments(
    network: InContextNetwork,
    fit: Prompt,
    choice: Prompt,
    score: Prompt,
    batch: Callable[[int], Prompt],
    finetune_steps: int = 40,
    finetune_learning_rate: float = 1e-3,
    chunk_size: int = 512,
    progress: Progress = silent,
) -> dict[str, Treatment]:
    """What is done to a model of which some heads are kept, by name; each is fitted on ``fit``, scored on ``score``.

    - as_is: masked, nothing else.
    - read_out: the read-out refitted in closed form (``read_out_refitted``), its strength chosen on ``choice``.
    - rescaled: the kept heads rescaled in closed form (``rescaled_masks``).
    - fine_tuned: trained further on ``batch(0)``, ``batch(1)``, ... (``fine_tuned``); left out for 0 steps.

    The read-out and each head's output projection are known of a Transformer alone; read_out and rescaled are left out
    for any other network.
    """

    def as_is(masks: Tensor) -> Tensor:
        return errors_under_masks(network, score, masks, chunk_size=chunk_size)

    def read_out(masks: Tensor) -> Tensor:
        every = progress(list(masks), "read-outs refitted")
        refitted = (read_out_refitted(network, mask, fit, choice, chunk_size) for mask in every)
        return torch.stack([model.errors(score, chunk_size) for model in refitted])

    def rescaled(masks: Tensor) -> Tensor:
        return as_is(rescaled_masks(network, masks, fit, chunk_size))

    def trained(masks: Tensor) -> Tensor:
        every, settings = progress(list(masks), "fine-tuning"), (batch, finetune_steps, finetune_learning_rate)
        tuned = (fine_tuned(network, mask, *settings) for mask in every)
        return torch.stack([model.errors(score, chunk_size) for model in tuned])

    found: dict[str, Treatment] = {"as_is": as_is}
    if isinstance(network, Transformer):
        found |= {"read_out": read_out, "rescaled": rescaled}
    return found | ({"fine_tuned": trained} if finetune_steps else {})


def errors_by_model(masks: Mapping[str, Float[Tensor, "draws layers heads"]], treat: Treatment) -> dict[str, Tensor]:
    """Each model's squared errors (draws, batch) under all of its masks, on the CPU.

    Every mask is treated once: a draw may be what a strategy keeps.
    """
    different, which = torch.cat(list(masks.values())).unique(dim=0, return_inverse=True)
    parts = treat(different).cpu()[which].split([len(draws) for draws in masks.values()])
    return dict(zip(masks, parts, strict=True))
