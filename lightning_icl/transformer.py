"""A transformer whose heads can be told apart, counted by layer and masked."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.functional.memory import check_memory
from lightning_icl.functional.prompts import Layout, Prompt, tokens
from lightning_icl.functional.seeds import seeded
from lightning_icl.network import InContextNetwork, TransformerOutput

Attention = Literal["softmax", "linear", "relu"]
Mask = Literal["context", "full", "causal"]
Norm = Literal["none", "pre", "post"]
Position = Literal["none", "learned"]
Activation = Literal["gelu", "gelu_tanh"]
Init = Literal["default", "keys_equal_queries"]
Tokens = slice | Integer[Tensor, " chosen"]  # some of the tokens, by place
ALL = slice(None)


class _TokenCounts(NamedTuple):
    """How many tokens of each kind there are: the context, then prefix queries, then queries."""

    n_context: int
    n_prefix: int
    n_queries: int

    @property
    def n_tokens(self) -> int:
        return sum(self)


class VisibleKeys(NamedTuple):
    """Which tokens, as keys, the others attend to: the visible ones of the first ``n_keys`` (all of them where None).

    Where all tokens see the same keys, ``visible`` has one row for all.
    """

    n_keys: int
    visible: Bool[Tensor, "#batch #tokens keys"] | None

    def of_copies(self, n: int) -> "VisibleKeys":
        """The view of a batch made of ``n`` copies of this one, one after the other."""
        if self.visible is None or len(self.visible) == 1:
            return self
        return self._replace(visible=self.visible.repeat(n, 1, 1))

    def of(self, at: Tokens) -> Bool[Tensor, "#batch 1 #tokens keys"] | None:
        """What these tokens see, in every head."""
        if self.visible is None:
            return None
        return (self.visible if self.visible.shape[1] == 1 else self.visible[:, at])[:, None]


class MultiHeadAttention(nn.Module):
    """Attention whose heads add up: output = sum_h mask_h O_h A_h V_h.

    With ``bias``, queries, keys and values have one; that of the output is the layer's, as it is no head's.

    A_h is softmax(q k^T / sqrt(head_dim)) over the visible keys, or, divided by their number, q k^T / sqrt(head_dim)
    itself ("linear") or its positive part ("relu").
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, kind: Attention, bias: bool = False) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.kind = n_heads, head_dim, kind
        self.query = nn.Linear(d_model, n_heads * head_dim, bias)
        self.key = nn.Linear(d_model, n_heads * head_dim, bias)
        self.value = nn.Linear(d_model, n_heads * head_dim, bias)
        self.output = nn.Linear(n_heads * head_dim, d_model, bias=False)

    def head_outputs(
        self, states: Float[Tensor, "batch tokens d_model"], view: VisibleKeys, at: Tokens = ALL
    ) -> Float[Tensor, "batch heads attending head_dim"]:
        """What each head reads, A_h V_h, at some tokens."""
        keyed = states[:, : view.n_keys].contiguous()
        q, k, v = (
            self._by_head(self.query(states[:, at])),
            self._by_head(self.key(keyed)),
            self._by_head(self.value(keyed)),
        )
        visible = view.of(at)
        if self.kind == "softmax":
            return scaled_dot_product_attention(q, k, v, attn_mask=visible)
        # Tokens come last in the products: small matrices multiply faster so than with the few numbers of a head last.
        factor, (n_tokens, n_keys) = self._factor(k, visible), (q.shape[-2], k.shape[-2])
        alike = visible is None or visible.shape[-2] == 1
        # An exported program has no sizes to choose by; there is one for all.
        fewer = torch.compiler.is_exporting() or (n_tokens + n_keys) * self.head_dim <= 2 * n_tokens * n_keys
        if self.kind == "linear" and alike and fewer:
            return ((v.mT * factor) @ k @ q.mT).mT  # A_h V_h as q (k^T v), the fewer multiplications
        return (v.mT @ self._unnormalised(q, k, visible).mT).mT

    def pattern(
        self, states: Float[Tensor, "batch tokens d_model"], view: VisibleKeys
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """A_h itself: how much of each key's value every token takes; 0 where a key is not visible."""
        q, k = self._by_head(self.query(states)), self._by_head(self.key(states[:, : view.n_keys]))
        visible = view.of(ALL)
        if self.kind != "softmax":
            return self._unnormalised(q, k, visible)
        scores = q @ k.mT / self.head_dim**0.5
        return (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(dim=-1)

    def combined(
        self, mixed: Float[Tensor, "batch heads tokens head_dim"], head_mask: Float[Tensor, "#batch heads"] | None
    ) -> Float[Tensor, "batch tokens d_model"]:
        """The sum of the heads' outputs, each times its mask, in the residual stream."""
        if head_mask is not None:
            mixed = mixed * head_mask[:, :, None, None]
        return self.output(mixed.transpose(1, 2).flatten(-2))

    def _by_head(self, projected: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return projected.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)

    def _unnormalised(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        scores = (k @ q.mT).mT
        return (relu(scores) if self.kind == "relu" else scores) * self._factor(k, visible)

    def _factor(self, k: Tensor, visible: Tensor | None) -> Tensor | float:
        """What a score is multiplied with: 1 / (sqrt(head_dim) n_visible), or 0 where the key is not visible."""
        if visible is None:
            return 1 / (self.head_dim**0.5 * k.shape[-2])
        return visible / (self.head_dim**0.5 * visible.sum(dim=-1, keepdim=True, dtype=k.dtype))


class Layer(nn.Module):
    """Attention and, optionally, a GELU MLP of four times the width, each added to the residual stream.

    ``forward`` is ``after_heads`` of ``head_outputs``; an instrument may change the heads' outputs in between.
    """

    def __init__(
        self,
        d_model: int,
        attention: MultiHeadAttention | None,
        mlp: bool,
        norm: Norm,
        bias: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        # Of the attention's output. It stays when all heads are masked or gone, so it is here and not in the attention.
        self.output_bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        # Without heads, a norm before them would have parameters that nothing uses, which DDP refuses.
        bare = norm == "none" or (norm == "pre" and attention is None)
        self.attention_norm = nn.Identity() if bare else nn.LayerNorm(d_model)
        gelu = nn.GELU("tanh" if activation == "gelu_tanh" else "none")
        self.mlp = (
            nn.Sequential(nn.Linear(d_model, 4 * d_model), gelu, nn.Linear(4 * d_model, d_model)) if mlp else None
        )
        self.mlp_norm = nn.LayerNorm(d_model) if mlp and norm != "none" else nn.Identity()

    def forward(self, states: Tensor, view: VisibleKeys, head_mask: Tensor | None, at: Tokens = ALL) -> Tensor:
        return self.after_heads(states[:, at], self.head_outputs(states, view, at), head_mask)

    def head_outputs(
        self, states: Float[Tensor, "batch tokens d_model"], view: VisibleKeys, at: Tokens = ALL
    ) -> Float[Tensor, "batch heads attending head_dim"] | None:
        """What each head reads at some tokens; None for a layer without heads."""
        if self.attention is None:
            return None
        return self.attention.head_outputs(self.attended(states), view, at)

    def attended(self, states: Tensor) -> Tensor:
        """The states as the heads see them."""
        return states if self.norm == "post" else self.attention_norm(states)

    def after_heads(
        self,
        states: Float[Tensor, "batch tokens d_model"],
        mixed: Float[Tensor, "batch heads tokens head_dim"] | None,
        head_mask: Float[Tensor, "#batch heads"] | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        """The states after this layer, from those before it and what its heads read."""
        if self.attention is not None:
            assert mixed is not None
            states = states + self.attention.combined(mixed, head_mask)
        if self.output_bias is not None:
            states = states + self.output_bias
        if self.norm == "post":
            states = self.attention_norm(states)
            return states if self.mlp is None else self.mlp_norm(states + self.mlp(states))
        return states if self.mlp is None else states + self.mlp(self.mlp_norm(states))


class Embedded(NamedTuple):
    """The residual stream after the read-in, and what the layers need to go on from there.

    The last ``n_queries`` tokens are the queries, the first ``n_context`` the context.
    """

    states: Float[Tensor, "batch tokens d_model"]
    view: VisibleKeys
    n_context: int
    n_queries: int

    @property
    def first_query(self) -> int:
        return self.states.shape[1] - self.n_queries


class Transformer(InContextNetwork):
    """Read-in, layers of multi-head attention, read-out at the queries.

    Tokens are laid out by functional/prompts.py: the context, then the queries' (x_q; 0). Queries are parallel: under
    every mask a query sees context tokens and at most itself, and no context token sees a query, so one prompt trains
    many predictions and each is what it would be alone.

    The layout says what the context is and whether examples are predicted too, each from those before it:

    - "pairs": one token (x_i; y_i) an example; predictions at the queries alone.
    - "prefixes": the pairs, then every example once more as a query (x_i; 0) that sees the pairs 1 .. i - 1 and itself.
      Its prediction is that of "pairs" for the prompt cut there, so one pass trains on every prefix length.
    - "alternating" (Garg et al. 2022): x_1, y_1, x_2, y_2, ...; the prediction of y_i is read at the token of x_i,
      which sees the tokens up to itself.

    Args:
        n_dims: length of x; the token width is n_dims + 1.
        d_model: width of the residual stream.
        heads: number of heads of each layer, first layer first; its length is the depth. A layer may have none.
        attention: "softmax", or "linear" or "relu" scores divided by the number of visible keys.
        mask: "context" (keys are context tokens only), "full" (a query also sees itself) or "causal" (a context token
            sees itself and the earlier ones; a query all of them and itself).
        mlp: whether a GELU MLP of width 4 d_model follows each attention.
        norm: layer norm before each block and before the read-out ("pre"), after each block ("post"), or none.
        head_dim: size of every head, or one for each layer, or None for d_model / heads of its layer (equal parameter
            counts for any heads).
        position: "learned" adds one vector per example position, and one shared by all queries; in the alternating
            layout one per token position, and a query stands right after the last token it sees. "none" adds nothing.
        max_points: largest number of examples; needed only with position="learned".
        layout: "pairs", "prefixes" or "alternating"; the latter two need mask="causal".
        init: "default" draws every weight as torch does; "keys_equal_queries" then gives each head's keys the weights
            of its queries, so that tokens attend to those like them, as in trained models (Trockman and Kolter 2023,
            mimetic initialisation). It changes where training starts and nothing that a layer can express.
        attention_bias: whether queries, keys, values and the heads' sum have biases; a head's value bias goes with the
            head, while the last one stays where all heads of a layer are masked or removed.
        activation: of the MLP, "gelu", or "gelu_tanh" for its approximation by tanh, which GPT-2 has.

    ``head_dims`` holds the size of the heads of each layer.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression, Transformer
        >>> model = Transformer(n_dims=3, d_model=16, heads=[4, 2])  # 4 heads in layer 1, 2 in layer 2
        >>> prompt = LinearRegression(n_dims=3).sample(2, 8, 5, torch.Generator().manual_seed(0))
        >>> output = model.on_prompt(prompt)
        >>> output.prediction.shape, len(output.query_states)  # states after the read-in and each layer
        (torch.Size([2, 5]), 3)
    """

    def __init__(
        self,
        n_dims: int,
        d_model: int = 64,
        heads: Sequence[int] = (8, 8, 8, 8),
        attention: Attention = "softmax",
        mask: Mask = "context",
        mlp: bool = True,
        norm: Norm = "pre",
        head_dim: int | Sequence[int] | None = None,
        position: Position = "none",
        max_points: int | None = None,
        layout: Layout = "pairs",
        init: Init = "default",
        attention_bias: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        _check_options(attention=(attention, Attention), mask=(mask, Mask), norm=(norm, Norm))
        _check_options(position=(position, Position), layout=(layout, Layout), init=(init, Init))
        _check_options(activation=(activation, Activation))
        _check_sizes(n_dims, d_model, heads)
        if max_points is not None:
            check_at_least(1, max_points=max_points)
        elif position == "learned":
            raise InputError(f"max_points is {max_points}, but position='learned' needs the largest number of points.")
        if layout != "pairs" and mask != "causal":
            raise InputError(
                f"mask is {mask!r}, but layout={layout!r} needs mask='causal': otherwise an example would see the "
                "labels it is to predict."
            )
        self.n_dims, self.heads, self.mask, self.layout, self.init = n_dims, list(heads), mask, layout, init
        self.head_dims = head_sizes(d_model, heads, head_dim)
        self.tokens_per_point = 2 if layout == "alternating" else 1
        self.max_points = max_points if position == "learned" else None
        n_positions = self.tokens_per_point * (max_points or 0) + 1 if position == "learned" else 0
        widths = [4 * h * size + 8 * mlp * d_model for h, size in zip(heads, self.head_dims, strict=True)]
        check_memory(
            f"the weights of a model with d_model {d_model:,}, heads {list(heads)}, head_dim {head_dim}, max_points "
            f"{max_points} and n_dims {n_dims:,}",
            d_model * (n_dims + n_positions + sum(widths)),
        )
        self.read_in = nn.Linear(n_dims + 1, d_model)
        self.position = nn.Parameter(0.02 * torch.randn(n_positions, d_model)) if n_positions else None
        self.layers = nn.ModuleList(
            Layer(
                d_model,
                MultiHeadAttention(d_model, h, size, attention, attention_bias) if h else None,
                mlp,
                norm,
                attention_bias,
                activation,
            )
            for h, size in zip(heads, self.head_dims, strict=True)
        )
        self.apply_init()
        self.final_norm = nn.LayerNorm(d_model) if norm == "pre" else nn.Identity()
        self.read_out = nn.Linear(d_model, 1)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        head_mask: Float[Tensor, "layers heads"] | Float[Tensor, "batch layers heads"] | None = None,
        n_queries: int = 1,
        point_mask: Bool[Tensor, "batch points"] | None = None,
        last_context: bool = True,
    ) -> TransformerOutput:
        """Predict at the last ``n_queries`` tokens, and in the prefix layouts at every example.

        ``head_mask`` multiplies each head's output before the output projection (1 keeps, 0 ablates); layers with
        fewer heads than the widest ignore the rest of their row. ``point_mask`` is False at padded examples, which
        come last; what is predicted there means nothing. Masks may be on any device.
        Without ``last_context`` the last layer is computed only at the tokens that predict, which saves time, and
        ``context_states`` ends before it.
        """
        *masks, last_mask = self._masks_by_layer(head_mask, tokens.device)
        start = self.embedded(tokens, n_queries, point_mask)
        *layers, last_layer = self.blocks
        stream = [start.states]
        for layer, mask in zip(layers, masks, strict=True):
            stream.append(layer(stream[-1], start.view, mask))
        at = self._predicts(start)
        if last_context:
            stream.append(last_layer(stream[-1], start.view, last_mask))
            last = stream[-1][:, at]
        else:
            last = last_layer(stream[-1], start.view, last_mask, at)
        predictions, below = self.read(last), stream[: len(self.heads)]
        return TransformerOutput(
            predictions[:, -n_queries:],
            query_states=(*(states[:, start.first_query :] for states in below), last[:, -n_queries:]),
            context_states=tuple(states[:, : start.n_context] for states in stream),
            prefix_prediction=None if self.layout == "pairs" else predictions[:, :-n_queries],
        )

    def apply_init(self) -> None:
        """Make of freshly drawn weights those that ``init`` asks for."""
        if self.init == "keys_equal_queries":
            for layer in self.blocks:
                if layer.attention is not None:
                    layer.attention.key.load_state_dict(layer.attention.query.state_dict())

    @property
    def blocks(self) -> list[Layer]:
        """The layers, as what they are."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def on_prompt(
        self, prompt: Prompt, head_mask: Tensor | None = None, last_context: bool = True
    ) -> TransformerOutput:
        """``forward`` of a prompt in this model's layout."""
        return self(self.laid_out(prompt), head_mask, prompt.x_query.shape[1], prompt.point_mask, last_context)

    def for_training(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        """``on_prompt`` with the last layer at the tokens that predict alone."""
        return self.on_prompt(prompt, head_mask, last_context=False)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of the layers."""
        return [parameter for parameter in self.layers.parameters() if parameter.dim() == 2]

    def untrained(self, seed: int = 0) -> "Transformer":
        """A copy with fresh weights; learned positions are drawn last, as they were always."""
        fresh = copy.deepcopy(self).cpu()
        with seeded(seed), torch.no_grad():
            for module in fresh.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm):
                    module.reset_parameters()
            if fresh.position is not None:
                fresh.position.normal_(std=0.02)
            fresh.apply_init()
        return fresh.to(self.read_out.weight.device)

    def laid_out(self, prompt: Prompt) -> Float[Tensor, "batch tokens width"]:
        """The prompt as tokens, in this model's layout."""
        return tokens(prompt, self.layout)

    def embedded(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        n_queries: int = 1,
        point_mask: Bool[Tensor, "batch points"] | None = None,
    ) -> Embedded:
        """The tokens in the residual stream before the first layer; ``blocks`` and ``read`` take them from there."""
        places = self._places(tokens.shape[1], n_queries)
        point_mask = None if point_mask is None else point_mask.to(tokens.device)
        # Read-in, residual stream and read-out keep the parameters' precision under autocast: bfloat16 has 8 bits of
        # mantissa, so it would round x and y themselves, and a risk of 1e-3 is a difference in the sixth.
        with without_autocast(tokens.device):
            states = self.read_in(tokens) + self._positions(places, point_mask)
        n_keys = places.n_context if self.mask == "context" else places.n_tokens
        view = VisibleKeys(n_keys, self._visible(places, point_mask, tokens.device))
        return Embedded(states, view, places.n_context, n_queries)

    def embedded_prompt(self, prompt: Prompt) -> Embedded:
        """``embedded`` of a prompt in this model's layout."""
        return self.embedded(self.laid_out(prompt), prompt.x_query.shape[1], prompt.point_mask)

    def read(self, states: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch tokens"]:
        """The predictions at states after the last layer."""
        with without_autocast(states.device):
            return self.read_out(self.final_norm(states)).squeeze(-1)

    def _places(self, n_tokens: int, n_queries: int) -> _TokenCounts:
        n_others = n_tokens - n_queries
        if self.layout != "pairs" and n_others % 2:
            raise InputError(
                f"there are {n_others} tokens besides the queries, but layout={self.layout!r} has two for each example."
            )
        n_prefix = n_others // 2 if self.layout == "prefixes" else 0
        return _TokenCounts(n_others - n_prefix, n_prefix, n_queries)

    def _predicts(self, start: Embedded) -> Tokens:
        """Where predictions are read: at each example's prefix query or x token, if there are any, then the queries."""
        if self.layout != "alternating":
            return slice(start.n_context, None)  # between the context and the queries stand prefix queries alone
        place = torch.arange(start.states.shape[1], device=start.states.device)
        return torch.cat([place[: start.n_context : 2], place[start.first_query :]])

    def _masks_by_layer(self, head_mask: Tensor | None, device: torch.device) -> list[Tensor | None]:
        if head_mask is None:
            return [None] * len(self.heads)
        expected = (len(self.heads), max(self.heads))
        if head_mask.shape[-2:] != expected or head_mask.dim() not in (2, 3):
            raise InputError(
                f"head_mask has shape {tuple(head_mask.shape)}, but this model needs {expected} "
                f"(layers, heads of the widest layer), or the same for each prompt of the batch."
            )
        batched = (head_mask if head_mask.dim() == 3 else head_mask[None]).to(device)
        return [batched[:, i, :h] for i, h in enumerate(self.heads)]

    def _positions(self, places: _TokenCounts, point_mask: Tensor | None) -> Tensor | float:
        """What is added to each token: (tokens, d_model), or (batch, tokens, d_model) where queries stand apart."""
        if self.position is None:
            return 0.0
        n_context, n_queries = places.n_context, places.n_prefix + places.n_queries
        if n_context >= len(self.position):
            raise InputError(
                f"the prompt has {n_context // self.tokens_per_point} points, but max_points is {self.max_points}."
            )
        context = self.position[:n_context]
        if self.layout != "alternating":
            return torch.cat([context, self.position[-1:].expand(n_queries, -1)])
        if point_mask is None:
            return torch.cat([context, self.position[n_context : n_context + 1].expand(n_queries, -1)])
        after = self.position[2 * point_mask.sum(dim=1)]  # (batch, d_model)
        return torch.cat([context.expand(len(after), -1, -1), after[:, None].expand(-1, n_queries, -1)], dim=1)

    def _visible(
        self, places: _TokenCounts, point_mask: Tensor | None, device: torch.device
    ) -> Bool[Tensor, "#batch #tokens keys"] | None:
        """Which keys each token sees (one row where all see the same), or None where all see all."""
        context_mask = None if point_mask is None else point_mask.repeat_interleave(self.tokens_per_point, dim=1)
        if self.mask == "context":
            return None if context_mask is None else context_mask[:, None]
        key = torch.arange(places.n_tokens, device=device)
        visible = (key < self._n_seen(places, device)[:, None])[None]
        if context_mask is not None:
            padded = torch.nn.functional.pad(context_mask, (0, places.n_tokens - places.n_context), value=False)
            visible = visible & padded[:, None]
        return visible | ((key == key[:, None]) & (key >= places.n_context))

    def _n_seen(self, places: _TokenCounts, device: torch.device) -> Integer[Tensor, " tokens"]:
        """How many of the context's tokens each token sees: always the first ones."""
        n_context, n_prefix, n_queries = places
        whole = torch.full((n_context + n_queries,), n_context, device=device)
        context = torch.arange(1, n_context + 1, device=device) if self.mask == "causal" else whole[:n_context]
        return torch.cat([context, torch.arange(n_prefix, device=device), whole[n_context:]])


def as_transformer(network: InContextNetwork, needed_by: str) -> Transformer:
    """The network as what it must be for what reads or changes weights; ``needed_by`` begins the refusal."""
    if not isinstance(network, Transformer):
        raise InputError(f"{needed_by} of a Transformer alone, but this network is a {type(network).__name__}.")
    return network


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where computations keep the precision of what they are given; also on a device without autocast, such as meta."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def _check_options(**options: tuple[str, object]) -> None:
    for name, (value, literal) in options.items():
        if value not in get_args(literal):
            raise InputError(f"{name} is {value!r}, but it must be one of {', '.join(get_args(literal))}.")


def _check_sizes(n_dims: int, d_model: int, heads: Sequence[int]) -> None:
    check_at_least(1, n_dims=n_dims, d_model=d_model)
    if not heads or min(heads) < 0 or max(heads) < 1:
        raise InputError(
            f"heads is {list(heads)}, but it must list at least one layer, each with 0 heads or more, and not all 0."
        )


def head_sizes(d_model: int, heads: Sequence[int], head_dim: int | Sequence[int] | None) -> list[int]:
    """The size of the heads of each layer, from the options of a Transformer."""
    if head_dim is None:
        for layer, h in enumerate(heads, start=1):
            if h and d_model % h:
                raise InputError(
                    f"heads is {h} in layer {layer}, which does not divide d_model, {d_model}; "
                    f"choose a divisor of {d_model}, or set head_dim."
                )
        return [d_model // max(h, 1) for h in heads]
    sizes = [head_dim] * len(heads) if isinstance(head_dim, int) else list(head_dim)
    if len(sizes) != len(heads):
        raise InputError(f"head_dim is {sizes}, but it must be one number, or one for each of the {len(heads)} layers.")
    if min(sizes) < 1:
        raise InputError(f"head_dim is {head_dim}, but a head needs at least 1 dimension.")
    return sizes
