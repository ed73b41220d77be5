"""A state-space model that learns in context: Mamba (Gu and Dao 2023), by mambapy, which is plain torch.

In this folder, for a minute, with pip install mambapy:

lightning-icl fit --config minute.yaml --trainer.max_steps 1000 --model.network mamba.Mamba
"""

import torch
from mambapy.mamba import MambaConfig, ResidualBlock
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_icl import InContextNetwork, Prompt, TransformerOutput


class Mamba(InContextNetwork):
    """Layers of Mamba between a linear read-in and read-out; an example is one step, (x_i; y_i).

    What a layer remembers are its state and its last inputs. Queries are parallel: the step of each, (x_q; 0), is the
    first after the last example.

    Args:
        n_dims: length of x.
        width: of the residual stream.
        layers: how many.
        d_state: numbers that a layer remembers for each of its 2 x width channels.
    """

    def __init__(self, n_dims: int, width: int = 32, layers: int = 2, d_state: int = 8) -> None:
        super().__init__()
        self.n_dims, self.heads = n_dims, []
        self.config = MambaConfig(d_model=width, n_layers=layers, d_state=d_state)
        self.read_in = nn.Linear(n_dims + 1, width)
        self.layers = nn.ModuleList(ResidualBlock(self.config) for _ in range(layers))
        self.read_out = nn.Linear(width, 1)

    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        steps = self.read_in(torch.cat([prompt.x, prompt.y[..., None]], dim=-1))
        (batch, n_points, _), n_queries = steps.shape, prompt.x_query.shape[1]
        channels = steps.new_zeros(batch, self.config.d_inner, 1)
        fresh = channels.expand(-1, -1, self.config.d_state), channels.expand(-1, -1, self.config.d_conv - 1)
        known = [fresh for _ in self.layers]
        for i in range(n_points):
            after, _ = self.step(steps[:, i], known)
            if prompt.point_mask is not None:  # a padded example changes nothing
                counts = prompt.point_mask[:, i, None, None]
                after = [tuple(map(torch.where, (counts,) * 2, *each)) for each in zip(after, known, strict=True)]
            known = after
        queries = self.read_in(pad(prompt.x_query, (0, 1))).flatten(0, 1)
        _, states = self.step(queries, [tuple(t.repeat_interleave(n_queries, dim=0) for t in of) for of in known])
        states = tuple(state.unflatten(0, (batch, n_queries)) for state in states)
        return TransformerOutput(self.read_out(states[-1]).squeeze(-1), query_states=states)

    def step(self, state: Tensor, known: list[tuple[Tensor, ...]]) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
        """What each layer knows after one more token, and the token's states."""
        states, after = [state], []
        for layer, before in zip(self.layers, known, strict=True):
            state, now = layer.step(state, before)
            states, after = [*states, state], [*after, now]
        return after, states
