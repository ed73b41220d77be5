r"""The GPT-2 of transformers, which knows nothing of lightning_icl, with its heads under the instruments.

In this folder, for a minute, with pip install transformers:

lightning-icl fit --config minute.yaml --model.optimizer muon --model.learning_rate 5e-3 --trainer.max_steps 1000 \
    --model.network GatedHeads --model.network.network gpt2.TransformersGPT2 --model.network.heads 4 \
    --model.network.projections 'backbone.h.*.attn.c_proj'

GatedHeads finds the heads in what goes into the projections of these names. (lightning_icl has a GPT-2 of its own,
--model.network GPT2, which is faster, and whose heads can be cut for good.)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GPT2Config, GPT2Model

from lightning_icl import InContextNetwork, Prompt, TransformerOutput
from lightning_icl.functional.prompts import tokens


class TransformersGPT2(InContextNetwork):
    """Garg et al. (2022): tokens x_1, y_1, x_2, y_2, ..., then x_q; y_i is read at x_i, from the tokens up to it.

    Args:
        n_dims: length of x.
        width: of the residual stream.
        layers: how many.
        heads: of each layer.
        max_points: largest number of examples.
    """

    def __init__(self, n_dims: int, width: int = 64, layers: int = 3, heads: int = 4, max_points: int = 32) -> None:
        super().__init__()
        self.n_dims, self.heads = n_dims, []  # GatedHeads says how many there are
        sizes = {"n_positions": 2 * max_points + 1, "n_embd": width, "n_layer": layers, "n_head": heads}
        sizes["initializer_range"] = width**-0.5  # GPT-2's 0.02 is for widths of a thousand
        of_text = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "use_cache": False}
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.read_in = nn.Linear(n_dims + 1, width)
        self.backbone = GPT2Model(GPT2Config(**sizes, **of_text, **dropout))
        self.read_out = nn.Linear(width, 1)

    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        n_context, n_queries = 2 * prompt.x.shape[1], prompt.x_query.shape[1]
        there = prompt.y.new_ones(prompt.y.shape, dtype=torch.bool) if prompt.point_mask is None else prompt.point_mask
        there = pad(there.repeat_interleave(2, dim=1), (0, n_queries))  # (batch, keys): no query, yet
        place = torch.arange(n_context + n_queries, device=there.device)
        # Each token sees the context up to itself, and a query itself; so queries are parallel, each at one place.
        visible = (there[:, None] & (place <= place[:, None])) | (place == place[:, None])
        positions = torch.where(place < n_context, place, there.sum(dim=1, keepdim=True))
        states = self.backbone(
            inputs_embeds=self.read_in(tokens(prompt, "alternating")),
            attention_mask=visible[:, None],
            position_ids=positions,
        ).last_hidden_state
        predictions = self.read_out(states).squeeze(-1)
        return TransformerOutput(predictions[:, n_context:], prefix_prediction=predictions[:, :n_context:2])
