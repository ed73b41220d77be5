"""The two optimisers that P-probing trains on a representation."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_icl.functional.prompts import Prompt
from lightning_icl.transformer import Transformer


class LinearAttention(nn.Module):
    """(A): k layers of single-head linear attention without MLP or norm, of width 2 (n_dims + 1).

    That holds x_tilde and the label slot of preprocess-then-GD (functional/constructions.py), whose later layers are
    one head each, twice over. The
    read-in starts as a copy of the first features and of the label (see ``leading_first``). The other weights start
    orthogonal but for two: each layer's key starts as its query, so that attention starts as a similarity (from two
    independent ones, some seeds stay for long at the saddle where nothing is predicted); and its output at 0, as
    without a norm k layers make a polynomial of degree 3^k, which explodes from any other start.
    """

    def __init__(self, n_features: int, n_dims: int, depth: int) -> None:
        super().__init__()
        self.network = Transformer(
            n_features, 2 * (n_dims + 1), [1] * depth, attention="linear", mlp=False, norm="none"
        )
        for part in self.network.modules():
            if isinstance(part, nn.Linear):
                nn.init.orthogonal_(part.weight)
        with torch.no_grad():
            read_in = self.network.read_in.weight
            read_in.copy_(torch.eye(*read_in.shape))
            read_in[-1] = read_in[:, -1] = 0
            read_in[-1, -1] = 1
            for layer in self.network.blocks:
                assert layer.attention is not None
                layer.attention.key.weight.copy_(layer.attention.query.weight)
                layer.attention.output.weight.zero_()

    def forward(self, prompt: Prompt) -> Float[Tensor, "batch queries"]:
        return self.network.on_prompt(prompt).prediction


class TunedDescent(nn.Module):
    """(B): a linear map A of the features, then k steps of gradient descent, of which A and the steps are learned.

    x_tilde = A phi, A: (n_dims, n_features); w_0 = 0, w_{t+1} = w_t - eta_t (G w_t - b), yhat = <w_k, A phi(x_q)>, with
    G = X_tilde^T X_tilde / n, b = X_tilde^T y / n and eta_t = exp(s_t) / ||G||_F of each prompt. As
    lambda_max(G) <= ||G||_F <= sqrt(rank) lambda_max(G), a prompt's step is in units of nearly its 1/lambda_max without
    an eigenvalue at every training step, and does not depend on the features' scale. A starts as the first n_dims
    features (see ``leading_first``), and the steps as Chebyshev's for eigenvalues between 1/4 and 1 of ||G||_F: all
    different, as at equal steps the risk has no gradient that would part them (their order does not matter to it).
    """

    def __init__(self, n_features: int, n_dims: int, depth: int) -> None:
        super().__init__()
        self.map = nn.Linear(n_features, n_dims, bias=False)
        nn.init.eye_(self.map.weight)
        self.log_steps = nn.Parameter(-chebyshev_nodes(depth).log())

    def forward(self, prompt: Prompt) -> Float[Tensor, "batch queries"]:
        return (self.map(prompt.x_query) * self.weights(prompt)[:, None]).sum(dim=-1)

    def weights(self, prompt: Prompt) -> Float[Tensor, "batch dims"]:
        """w_k, in the coordinates of x_tilde."""
        x, n = self.map(prompt.x), prompt.n_points()
        gram = x.mT @ x / n[:, None, None]
        moment = (x * prompt.y[..., None]).sum(dim=1) / n[:, None]
        smallest = torch.finfo(x.dtype).tiny
        unit = gram.square().sum(dim=(-2, -1)).clamp(min=smallest).rsqrt()[:, None]
        w = torch.zeros_like(moment)
        for step in self.log_steps.exp():
            w = w + step * unit * (moment - (gram @ w[..., None]).squeeze(-1))
        return w


def chebyshev_nodes(n: int) -> Float[Tensor, " n"]:
    """The roots of the Chebyshev polynomial of degree n on [1/4, 1]."""
    angles = (torch.arange(n) + 0.5) * torch.pi / n
    return 0.625 + 0.375 * angles.cos()
