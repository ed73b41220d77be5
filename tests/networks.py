"""Small networks of one's own, as users write them."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_icl.functional.prompts import Prompt
from lightning_icl.network import InContextNetwork, TransformerOutput


class LSTM(InContextNetwork):
    """Reads the examples one after the other, and each query as one step from there; has no heads, shows no states."""

    def __init__(self, n_dims: int, width: int = 8, layers: int = 1) -> None:
        super().__init__()
        self.n_dims, self.heads = n_dims, []
        self.read_in = nn.Linear(n_dims + 1, width)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.read_out = nn.Linear(width, 1)

    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        return TransformerOutput(self.read(self.states(prompt)[1][-1]))

    def read(self, states: Tensor) -> Tensor:
        return self.read_out(states).squeeze(-1)

    def states(self, prompt: Prompt) -> tuple[list[Tensor], list[Tensor]]:
        """Of the context and of the queries, after the read-in and after each layer."""
        query = self.read_in(torch.cat([prompt.x_query, torch.zeros_like(prompt.x_query[..., :1])], dim=-1))
        context = self.read_in(torch.cat([prompt.x, prompt.y[..., None]], dim=-1))
        contexts, queries = [context], [query]
        for layer in self.layers:
            packed = pack_padded_sequence(contexts[-1], prompt.n_points().long().cpu(), True, enforce_sorted=False)
            last = [state.repeat_interleave(query.shape[1], dim=1) for state in layer(packed)[1]]
            contexts.append(layer(contexts[-1])[0])
            queries.append(layer(queries[-1].flatten(0, 1)[:, None], last)[0].view_as(query))
        return contexts, queries


class ShownLSTM(LSTM):
    """Shows its states."""

    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        context, query = self.states(prompt)
        return TransformerOutput(self.read(query[-1]), tuple(query), tuple(context))
