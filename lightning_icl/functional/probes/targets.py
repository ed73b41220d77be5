"""What a token's state may know: the noise-free target, the weights, and what known algorithms make of the examples."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.prompts import Prompt

__all__ = ["algorithm_weights", "descent_paths", "probe_targets", "shuffled_prompts"]


def descent_paths(prompt: Prompt, n_steps: int) -> dict[str, Float[Tensor, "iterates batch dims"]]:
    """w_hat of GD ("gd") and P-GD ("preprocess_then_gd") after 0 .. n_steps steps from all examples of each prompt.

    Steps are 1/lambda_max of the examples of that prompt, for P-GD of its preprocessed examples.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.probes import descent_paths
        >>> prompt = LinearRegression(n_dims=3).sample(4, 8, 1, torch.Generator().manual_seed(0))
        >>> {name: tuple(path.shape) for name, path in descent_paths(prompt, n_steps=2).items()}
        {'gd': (3, 4, 3), 'preprocess_then_gd': (3, 4, 3)}
    """
    m = estimators.moments(prompt.x, prompt.y, prompt.point_mask)
    paths = {}
    for name, power in (("gd", 0.0), ("preprocess_then_gd", 1.0)):
        step_size = estimators.inverse_curvature(m.rescaled(estimators.feature_scale(m, power)))
        paths[name] = estimators.preprocess_then_gd_path(m, n_steps, step_size, power)
    return paths


def algorithm_weights(prompt: Prompt, n_steps: int) -> dict[str, Float[Tensor, "batch dims"]]:
    """w_hat of least squares and of GD_t and P-GD_t, t = 1 .. n_steps, as in ``descent_paths``.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.probes import algorithm_weights
        >>> prompt = LinearRegression(n_dims=3).sample(4, 8, 1, torch.Generator().manual_seed(0))
        >>> [*algorithm_weights(prompt, n_steps=1)]
        ['least_squares', 'gd_1', 'preprocess_then_gd_1']
    """
    weights = {"least_squares": estimators.least_squares(prompt.x.double(), prompt.y.double())}
    for name, path in descent_paths(prompt, n_steps).items():
        weights |= {f"{name}_{t}": w_hat for t, w_hat in enumerate(path) if t}
    return weights


def probe_targets(
    prompt: Prompt,
    x: Float[Tensor, "batch tokens dims"],
    f: Float[Tensor, "batch tokens"] | None,
    algorithms: Mapping[str, Float[Tensor, "batch dims"]],
) -> dict[str, Float[Tensor, "batch tokens outputs"]]:
    """What the states of tokens at ``x`` may know, by name, in float64.

    "f" is the noise-free target there, if it is told; "preprocessed" R_hat x and "r_hat" X^T y / n, R_hat = diag(r_hat)
    (with the sign of r_hat); where the task has weights, "w" and "support", 1 where w is not 0; then
    <w_hat, x> for each of ``algorithms``.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.probes import probe_targets
        >>> prompt = LinearRegression(n_dims=3).sample(4, 8, 1, torch.Generator().manual_seed(0))
        >>> targets = probe_targets(prompt, prompt.x_query, prompt.f_query, algorithms={})
        >>> {name: tuple(target.shape) for name, target in targets.items()}
        {'f': (4, 1, 1), 'w': (4, 1, 3), 'support': (4, 1, 3), 'r_hat': (4, 1, 3), 'preprocessed': (4, 1, 3)}
    """
    x = x.double()
    r_hat = estimators.moments(prompt.x, prompt.y, prompt.point_mask).moment
    targets = {} if f is None else {"f": f.double()[..., None]}
    of_prompt = {"r_hat": r_hat}
    if prompt.w is not None:
        of_prompt = {"w": prompt.w.double(), "support": (prompt.w != 0).double(), **of_prompt}
    targets |= {name: value[:, None].expand_as(x) for name, value in of_prompt.items()}
    targets["preprocessed"] = x * r_hat[:, None]
    return targets | {name: (x * w_hat[:, None]).sum(dim=-1, keepdim=True) for name, w_hat in algorithms.items()}


def shuffled_prompts(
    targets: Float[Tensor, "batch tokens outputs"], generator: Generator
) -> Float[Tensor, "batch tokens outputs"]:
    """The shuffled-label control: each prompt's targets given to another, along a random cycle (CPU generator).

    Example:
        >>> import torch
        >>> from lightning_icl.functional.probes import shuffled_prompts
        >>> targets = torch.arange(4.0).view(4, 1, 1)
        >>> (shuffled_prompts(targets, torch.Generator().manual_seed(0)) == targets).any()  # none keeps its own
        tensor(False)
    """
    cycle = torch.randperm(targets.shape[0], generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return targets[order.to(targets.device)]
