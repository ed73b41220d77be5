"""GPT-2 on regression prompts, as Garg et al. (2022) train it, and their weights by the names of here."""

import math
from collections.abc import Sequence

from torch import nn

from lightning_icl.functional.prompts import Layout
from lightning_icl.transformer import Transformer


class GPT2(Transformer):
    """The Transformer that GPT-2 is: pre-norm, causal, biases everywhere, learned positions, a tanh GELU.

    ``transformers.GPT2Model`` on embedded tokens between a linear read-in and read-out, as in Garg et al. (2022), "What
    can transformers learn in-context?", whose standard size the defaults are. Fresh weights are drawn as theirs: in the
    layers from N(0, 0.02^2), divided by sqrt(2 layers) for the matrices that write to the residual stream, biases 0.

    Args:
        n_dims: length of x.
        d_model: width of the residual stream (their n_embd).
        heads: number of heads of each layer, first layer first (their n_head, n_layer times).
        max_points: largest number of examples. Theirs counts the query too: n_positions - 1.
        head_dim: size of every head, or one for each layer; None for d_model / heads of its layer.
        layout: "alternating" is theirs; see Transformer for the others.

    Example:
        >>> import torch
        >>> from lightning_icl import GPT2, LinearRegression
        >>> model = GPT2(n_dims=3, d_model=16, heads=[4, 4], max_points=8)
        >>> prompt = LinearRegression(n_dims=3).sample(2, 8, 5, torch.Generator().manual_seed(0))
        >>> model.on_prompt(prompt).prefix_prediction.shape  # it predicts every example too
        torch.Size([2, 8])
    """

    def __init__(
        self,
        n_dims: int,
        d_model: int = 256,
        heads: Sequence[int] = (8,) * 12,
        max_points: int = 100,
        head_dim: int | Sequence[int] | None = None,
        layout: Layout = "alternating",
    ) -> None:
        super().__init__(
            n_dims,
            d_model,
            heads,
            mask="causal",
            head_dim=head_dim,
            position="learned",
            max_points=max_points,
            layout=layout,
            attention_bias=True,
            activation="gelu_tanh",
        )

    def apply_init(self) -> None:
        for layer in self.blocks:
            for name, parameter in layer.named_parameters():
                if parameter.dim() == 2:
                    writes = name in ("attention.output.weight", "mlp.2.weight")
                    nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * len(self.heads)) if writes else 1))
                elif "norm" not in name:
                    nn.init.zeros_(parameter)
