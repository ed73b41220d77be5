r"""An LSTM that learns in context: it takes the examples one after the other, then each query from where they end.

In this folder, for a minute:

lightning-icl fit --config minute.yaml --model.network lstm.LSTM

A wider one, and a longer look into what was trained:

lightning-icl fit --config minute.yaml --model.network lstm.LSTM --model.network.width 128 --run_name lstm
lightning-icl validate --config lightning_logs/lstm/config.yaml --config configs/full_analysis.yaml \
    --ckpt_path lightning_logs/lstm/checkpoints/last.ckpt
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_icl import InContextNetwork, Prompt, TransformerOutput


class LSTM(InContextNetwork):
    """Layers of an LSTM between a linear read-in and read-out; an example is one step, (x_i; y_i).

    Queries are parallel: the step of each, (x_q; 0), is the first after the last example.

    Args:
        n_dims: length of x.
        width: of the states.
        layers: how many LSTMs, each on the states of the one before.
    """

    def __init__(self, n_dims: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.n_dims, self.heads = n_dims, []
        self.read_in = nn.Linear(n_dims + 1, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.read_out = nn.Linear(width, 1)

    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        steps = self.read_in(torch.cat([prompt.x, prompt.y[..., None]], dim=-1))
        if prompt.point_mask is not None:  # each prompt ends at its own last example
            steps = pack_padded_sequence(steps, prompt.point_mask.sum(dim=1).cpu(), True, enforce_sorted=False)
        _, after_examples = self.lstm(steps)
        n_queries = prompt.x_query.shape[1]
        queries = self.read_in(pad(prompt.x_query, (0, 1)))
        each = tuple(state.repeat_interleave(n_queries, dim=1) for state in after_examples)
        _, (states, _) = self.lstm(queries.flatten(0, 1)[:, None], each)  # (layers, batch x queries, width)
        by_layer = states.unflatten(1, (-1, n_queries))
        return TransformerOutput(self.read_out(by_layer[-1]).squeeze(-1), query_states=(queries, *by_layer))
