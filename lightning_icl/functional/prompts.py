"""A batch of in-context regression problems, and how it becomes tokens."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from lightning_icl.functional.errors import InputError

Layout = Literal["pairs", "prefixes", "alternating"]


class Prompt(NamedTuple):
    """A batch of regression problems: labelled examples, and queries to predict.

    ``f_query`` is the noise-free target, so excess risk needs no knowledge of the task; ``y_query`` is
    ``f_query`` plus label noise. ``w`` holds the task weights where the task is linear. ``point_mask`` is
    False at padding (only where the number of examples varies); padded rows of x, y and f are zero. ``f`` is the
    noise-free target at the examples, for layouts that also predict each example from those before it.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> generator = torch.Generator().manual_seed(0)
        >>> prompt = LinearRegression(n_dims=3).sample(2, n_points=5, n_queries=4, generator=generator)
        >>> prompt.x.shape, prompt.y.shape, prompt.x_query.shape
        (torch.Size([2, 5, 3]), torch.Size([2, 5]), torch.Size([2, 4, 3]))
        >>> prompt.first(2).x.shape  # the same prompts with two examples
        torch.Size([2, 2, 3])
    """

    x: Float[Tensor, "batch points dims"]
    y: Float[Tensor, "batch points"]
    x_query: Float[Tensor, "batch queries dims"]
    y_query: Float[Tensor, "batch queries"]
    f_query: Float[Tensor, "batch queries"]
    w: Float[Tensor, "batch dims"] | None = None
    point_mask: Bool[Tensor, "batch points"] | None = None
    f: Float[Tensor, "batch points"] | None = None

    def n_points(self) -> Float[Tensor, " batch"]:
        """How many examples each prompt has, padding not counted, in the dtype of y."""
        if self.point_mask is None:
            return self.y.new_full(self.y.shape[:1], self.y.shape[1])
        return self.point_mask.sum(dim=1).to(self.y)

    def unpadded(self) -> "Prompt":
        """The same prompts without a mask; refused where an example is padding, for what needs all of every prompt."""
        if self.point_mask is None:
            return self
        if not self.point_mask.all():
            raise InputError(
                f"the prompts are padded, but all {self.x.shape[1]} examples of each are needed here: cut them to what "
                f"every prompt has, prompt.first({int(self.n_points().min())})."
            )
        return self._replace(point_mask=None)

    def rows(self, start: int, stop: int) -> "Prompt":
        """The prompts ``start`` to ``stop`` of the batch."""
        return Prompt._make(None if field is None else field[start:stop] for field in self)

    def chunks(self, size: int) -> "list[Prompt]":
        """The batch in pieces of at most ``size`` prompts, which bounds the memory of a forward pass."""
        return [self.rows(start, start + size) for start in range(0, len(self.x), size)]

    def copied(self) -> "Prompt":
        """Copies through which gradients can run, also where the prompts were made under inference mode."""
        return Prompt._make(None if field is None else field.detach().clone() for field in self)

    def first(self, n_points: int) -> "Prompt":
        """The same prompts with their first ``n_points`` examples only."""
        point_mask, f = (None if field is None else field[:, :n_points] for field in (self.point_mask, self.f))
        return self._replace(x=self.x[:, :n_points], y=self.y[:, :n_points], point_mask=point_mask, f=f)

    def double(self) -> "Prompt":
        """The same prompts in float64, for estimators that are solved rather than trained."""
        return Prompt._make(f.double() if f is not None and f.is_floating_point() else f for f in self)

    def padded_after(self, n_points: int) -> "Prompt":
        """The same prompts with every example after the first ``n_points`` blanked and masked."""
        kept = (torch.arange(self.x.shape[1], device=self.x.device) < n_points).expand(self.y.shape)
        if self.point_mask is not None:
            kept = kept & self.point_mask
        f = None if self.f is None else self.f.masked_fill(~kept, 0.0)  # whatever it held, a NaN too
        x, y = self.x.masked_fill(~kept[..., None], 0.0), self.y.masked_fill(~kept, 0.0)
        return self._replace(x=x, y=y, point_mask=kept, f=f)

    def widened(self, n_dims: int) -> "Prompt":
        """The same prompts in ``n_dims`` dimensions, of which the new ones are zero."""
        missing = (0, n_dims - self.x.shape[-1])
        x, x_query = (pad(field, missing) for field in (self.x, self.x_query))
        w = None if self.w is None else pad(self.w, missing)
        return self._replace(x=x, x_query=x_query, w=w)


def concatenated(prompts: Sequence[Prompt]) -> Prompt:
    """One batch from several with equal numbers of points and queries, padded or not.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.prompts import concatenated
        >>> prompt = LinearRegression(n_dims=3).sample(2, 8, 5, torch.Generator().manual_seed(0))
        >>> concatenated([prompt, prompt]).x.shape
        torch.Size([4, 8, 3])
    """
    if any(prompt.point_mask is not None for prompt in prompts):
        prompts = [prompt.padded_after(prompt.x.shape[1]) for prompt in prompts]
    return Prompt._make(None if fields[0] is None else torch.cat(fields) for fields in zip(*prompts, strict=True))


def tokens(prompt: Prompt, layout: Layout) -> Float[Tensor, "batch tokens width"]:
    """The prompt for a Transformer of that ``layout``: the context, then one token per query, (x_q; 0).

    width = dims + 1 in each:

    - pairs: one token per example, (x_i; y_i), as Chen et al. (2024) have.
    - prefixes: the n pairs (x_i; y_i), then each example once more as a query, (x_i; 0).
    - alternating: x_1, y_1, ..., x_n, y_n, (x; 0) for an x and (0; y) for a y. Garg et al. (2022) write a y as
      (y, 0, ..., 0); with a coordinate of its own it is their input up to a linear map, which the read-in learns.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.prompts import tokens
        >>> generator = torch.Generator().manual_seed(0)
        >>> prompt = LinearRegression(n_dims=3).sample(2, n_points=5, n_queries=4, generator=generator)
        >>> [tuple(tokens(prompt, layout).shape) for layout in ("pairs", "prefixes", "alternating")]
        [(2, 9, 4), (2, 14, 4), (2, 14, 4)]
    """
    match layout:
        case "pairs":
            context = [torch.cat([prompt.x, prompt.y[..., None]], dim=-1)]
        case "prefixes":
            context = [torch.cat([prompt.x, prompt.y[..., None]], dim=-1), pad(prompt.x, (0, 1))]
        case "alternating":
            y = pad(prompt.y[..., None], (prompt.x.shape[-1], 0))
            context = [torch.stack([pad(prompt.x, (0, 1)), y], dim=2).flatten(1, 2)]  # (batch, 2 points, width)
        case _:
            assert_never(layout)
    return torch.cat([*context, pad(prompt.x_query, (0, 1))], dim=1)
