"""Many small models of one shape, trained at once: the time of a small model is overhead, which they share."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.seeds import seeded

LEARNING_RATE = 1e-2
WARM_UP = 0.05  # of the steps
LARGEST_GRADIENT = 1.0  # norm of the gradient of one model


class Fleet:
    """One model for each arm and seed; what a model does depends on no other.

    Models of one seed start alike in all arms, so arms differ by their prompts alone. AdamW at 1e-2 without decay, the
    gradient of each model clipped to norm 1, linear warm-up for a twentieth of the steps, then half a cosine down to 0.

    Args:
        build: makes one model, which maps a Prompt to predictions (batch, queries), from the CPU's default generator
            (which is left as it was).
        n_arms: how many sets of prompts there are to learn from.
        seeds: what the models are initialised from.
        n_steps: how many steps will be trained.
        device: where the models live.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        n_arms: int,
        seeds: Sequence[int],
        n_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        models = []
        for seed in seeds:
            with seeded(seed):
                models.append(build().to(device))
        start, _ = stack_module_state(models)
        self.model = models[0].to("meta")  # its parameters are passed in
        self.parameters = {  # (arms, seeds, ...)
            name: value.detach().expand(n_arms, *value.shape).clone().requires_grad_() for name, value in start.items()
        }
        self.optimizer = AdamW(self.parameters.values(), lr=LEARNING_RATE, weight_decay=0.0)
        self.schedule = LambdaLR(self.optimizer, lambda step: _rate_factor(step, n_steps))

    def train_step(self, prompts: Prompt) -> None:
        """One step of every model on its mean squared error; ``prompts`` as in ``predictions``."""
        with torch.enable_grad():
            errors = (self._predictions(prompts) - prompts.f_query).square()
            # The models share no parameters: the gradient of the sum is that of each model's own mean.
            errors.mean(dim=(-2, -1)).sum().backward()
        _clip(self.parameters.values())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    @torch.no_grad()
    def predictions(self, prompts: Prompt) -> Float[Tensor, "arms seeds batch queries"]:
        """Every model's predictions; each field of ``prompts`` has axes for arms and seeds before those of a Prompt."""
        return self._predictions(prompts)

    def _predictions(self, prompts: Prompt) -> Tensor:
        def prediction(parameters: dict[str, Tensor], prompt: Prompt) -> Tensor:
            return functional_call(self.model, parameters, (prompt,))

        # The first axis of every field that is there counts the arms, the next the seeds.
        first = Prompt._make(None if field is None else 0 for field in prompts)
        by_seed = vmap(prediction, in_dims=(0, first))
        return vmap(by_seed, in_dims=(0, first))(self.parameters, prompts)


def _rate_factor(step: int, n_steps: int) -> float:
    warm_up = max(1, round(WARM_UP * n_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, n_steps - warm_up))))


def _clip(parameters: Iterable[Tensor]) -> None:
    """Scale down the gradients of each model, (arms, seeds, ...), to a norm of at most LARGEST_GRADIENT."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.flatten(2).square().sum(dim=-1) for g in gradients]).sum(dim=0).sqrt()
    factor = LARGEST_GRADIENT / norm.clamp(min=LARGEST_GRADIENT)
    for g in gradients:
        g.mul_(factor.view(*factor.shape, *[1] * (g.dim() - 2)))
