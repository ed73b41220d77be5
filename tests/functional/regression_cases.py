"""Small regression problems with the awkward shapes and values that every estimator must bear."""

import numpy as np
import torch

PLAIN = [(3, 12, 4, "plain"), (3, 4, 6, "plain"), (2, 1, 3, "plain"), (1, 5, 1, "plain"), (1, 1, 1, "plain")]
AWKWARD = [(2, 9, 4, kind) for kind in ("noiseless", "scaled features", "zero feature", "zero labels", "zero x")]
DUPLICATED = [(2, 9, 4, "duplicated feature"), (2, 3, 5, "duplicated feature"), (2, 6, 3, "duplicated point")]
CASES = PLAIN + AWKWARD + DUPLICATED


def problem(batch, n, d, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    w = torch.randn(batch, d, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    if kind == "scaled features":
        x *= torch.logspace(-1, 1, d, dtype=torch.float64)
    elif kind == "zero feature":
        x[..., 1] = 0
    elif kind == "zero x":
        x[:1] = 0
    elif kind == "duplicated feature":
        x[..., -1] = x[..., 0]
    elif kind == "duplicated point":
        x[:, 1] = x[:, 0]
    y = (x @ w)[..., 0] + (0 if kind == "noiseless" else 0.5) * noise
    return x, 0 * y if kind == "zero labels" else y


def sparse_problem(batch, n, supports, noise_std, weights, seed=0):
    """Prompts of the law: a support drawn uniformly, weights(generator, shape) on it; x is standard normal."""
    generator = torch.Generator().manual_seed(seed)
    d = int(supports.max()) + 1
    chosen = supports[torch.randint(len(supports), (batch,), generator=generator)]
    w = torch.zeros(batch, d, dtype=torch.float64).scatter(1, chosen, weights(generator, chosen.shape).double())
    x = torch.randn(batch, n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    return x, torch.einsum("bpd,bd->bp", x, w) + noise_std * noise, w


def each(*tensors):
    """The prompts one by one, in numpy."""
    return zip(*(t.numpy() for t in tensors), strict=True)


def assert_close(actual, expected, atol=1e-9, rtol=0.0):
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=rtol, atol=atol)
