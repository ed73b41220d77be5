"""Transformers whose weights are written down, not trained, so that their algorithm is known.

The residual stream holds copies of x, x as a first layer rescaled it, and a label slot that starts as y at the examples
and 0 at a query. One head of linear attention (scores divided by the number n of keys, no softmax) adds to every token
k a sum over the examples, (1/n) sum_i <K h_i, Q h_k> O V h_i. With features phi in K and Q, and the label slot in V:

    y_k <- y_k - (eta/n) sum_i y_i <phi_i, phi_k>

is one step of gradient descent on (1/2n) ||y - Phi w||^2: after t of them the slot holds y_i - <w_t, phi_i> at an
example and -<w_t, phi_q> at a query, so the read-out is minus the query's slot (von Oswald et al. 2023). A step size of
each prompt's own, such as 1 / lambda_max, cannot be written so: all have one for all prompts.

    from lightning_icl import Transformer
    from lightning_icl.functional.constructions import ConstructedGD

    c = ConstructedGD(steps=3, step_size=0.2)
    model = Transformer(8, **c.options(8)).double()
    model.load_state_dict(c.state(8))
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import MOST_SEED, InputError, check_between, check_not_negative, check_positive
from lightning_icl.functional.estimators import gd_plus_plus_path, preprocess_then_gd_path

MOST_STEPS = 1000  # a layer each


class Head(NamedTuple):
    """A head that adds (1/n) sum_i <key h_i, query h_k> output value h_i to every token k, of any inner sizes."""

    query: Float[Tensor, "size d_model"]
    key: Float[Tensor, "size d_model"]
    value: Float[Tensor, "value_size d_model"]
    output: Float[Tensor, "d_model value_size"]

    def times(self, factor: float) -> "Head":
        """The head that adds so many times as much."""
        return self._replace(output=factor * self.output)


class WrittenNetwork(NamedTuple):
    """A network head by head: what ``Transformer(n_dims, **options)`` with ``state`` as its weights computes."""

    read_in: Float[Tensor, "d_model inputs"]
    layers: list[list[Head]]
    read_out: Float[Tensor, " d_model"]
    attention: Literal["linear", "softmax"] = "linear"

    def options(self) -> dict[str, Any]:
        """The options of a Transformer of this shape, besides n_dims."""
        return {
            "d_model": len(self.read_in),
            "heads": [len(heads) for heads in self.layers],
            "attention": self.attention,
            "mask": "context",
            "mlp": False,
            "norm": "none",
            "head_dim": [max((len(rows) for head in heads for rows in head[:3]), default=1) for heads in self.layers],
            "position": "none",
            "layout": "pairs",
        }

    def state(self) -> dict[str, Tensor]:
        """The state dict of a Transformer of this shape, in float64; smaller heads are filled up with zeros."""
        state = {
            "read_in.weight": self.read_in,
            "read_in.bias": torch.zeros_like(self.read_out),
            "read_out.weight": self.read_out[None],
            "read_out.bias": torch.zeros(1, dtype=torch.float64),
        }
        for i, (heads, size) in enumerate(zip(self.layers, self.options()["head_dim"], strict=True)):
            if not heads:
                continue
            at = f"layers.{i}.attention"
            # Transformer divides scores by sqrt(head_dim), which the queries make good.
            state[f"{at}.query.weight"] = size**0.5 * torch.cat([_filled(head.query, size) for head in heads])
            state[f"{at}.key.weight"] = torch.cat([_filled(head.key, size) for head in heads])
            state[f"{at}.value.weight"] = torch.cat([_filled(head.value, size) for head in heads])
            state[f"{at}.output.weight"] = torch.cat([_filled(head.output.T, size).T for head in heads], dim=1)
        return state

    def changed(self, layer: int, heads: Sequence[Head]) -> "WrittenNetwork":
        """The network with other heads in one layer, counted from 1."""
        return self._replace(layers=[list(heads) if i == layer else old for i, old in enumerate(self.layers, start=1)])

    def in_softmax(self, scale: float) -> "WrittenNetwork":
        """The network with softmax attention, whose heads do in pairs what one head did, but for the keys' mean.

        softmax_i(c s_i) = (1 + c (s_i - mean s)) / n + O(c^2). Two heads with scores c s_i and -c s_i, the one adding
        1 / 2c of what it reads and the other subtracting it, add (1/n) sum_i (s_i - mean s) v_i + O(c^2): the linear
        head with its keys less their mean (He et al. 2025). In floating point the difference of the two heads loses
        log10(1 / c) digits, so that float32 is best near c = 1e-3.
        """

        def pair(head: Head) -> list[Head]:
            return [head._replace(query=c * head.query).times(1 / (2 * c)) for c in (scale, -scale)]

        layers = [[half for head in heads for half in pair(head)] for heads in self.layers]
        return self._replace(layers=layers, attention="softmax")


@dataclass(frozen=True)
class Construction(ABC):
    """A network that runs a known algorithm, for any number of dimensions; a configuration of it is its arguments.

    Args:
        steps: number of steps of the algorithm.
        step_size: eta, one for all prompts.
        softmax_scale: write it in softmax attention, two heads for each, with scores this small, which runs the
            algorithm on the examples less their mean up to an error of order softmax_scale^2; None is linear attention,
            which runs it exactly.
        weight_noise: standard deviation of Gaussian noise on every weight of the linear network, which are of size 1 or
            of the step size, to start a training beside the algorithm. On the shipped configs .02 leaves the risk as it
            is and .05 makes it diverge.
        seed: of that noise.
    """

    steps: int
    step_size: float
    _: KW_ONLY
    softmax_scale: float | None = None
    weight_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_between(1, MOST_STEPS, steps=self.steps)
        check_positive(step_size=self.step_size)
        if self.softmax_scale is not None:
            check_positive(softmax_scale=self.softmax_scale)
        check_not_negative(weight_noise=self.weight_noise)
        check_between(0, MOST_SEED, seed=self.seed)

    @abstractmethod
    def linear_network(self, n_dims: int) -> WrittenNetwork:
        """The network in linear attention, without noise."""

    @abstractmethod
    def linear_path(
        self, x: Float[Tensor, "batch points dims"], y: Float[Tensor, "batch points"]
    ) -> Float[Tensor, "states batch dims"]:
        """``path`` in linear attention."""

    def arguments(self) -> dict[str, Any]:
        """Its class and arguments: equal where two are the same network."""
        return {"class": type(self).__name__, **asdict(self)}

    @abstractmethod
    def __str__(self) -> str:
        """The algorithm in words, such as "preprocess + GD, 3 steps of 0.2"."""

    def network(self, n_dims: int, weight_noise: float = 0.0) -> WrittenNetwork:
        """The network, without noise unless its standard deviation is given."""
        linear, generator = self.linear_network(n_dims), Generator().manual_seed(self.seed)

        def noisy(weight: Tensor) -> Tensor:
            return weight + weight_noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)

        layers = [[Head(*map(noisy, head)) for head in heads] for heads in linear.layers]
        linear = WrittenNetwork(noisy(linear.read_in), layers, noisy(linear.read_out))
        return linear if self.softmax_scale is None else linear.in_softmax(self.softmax_scale)

    def options(self, n_dims: int) -> dict[str, Any]:
        """The options of its Transformer, besides n_dims."""
        return self.network(n_dims).options()

    def state(self, n_dims: int) -> dict[str, Tensor]:
        """The state dict of its Transformer, in float64, with its noise."""
        return self.network(n_dims, self.weight_noise).state()

    def path(
        self, x: Float[Tensor, "batch points dims"], y: Float[Tensor, "batch points"]
    ) -> Float[Tensor, "states batch dims"]:
        """The algorithm's weights w after the read-in (0) and after each layer: the read-out there is <w, x_q>."""
        if self.softmax_scale is not None:
            x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
        return self.linear_path(x, y)


@dataclass(frozen=True)
class ConstructedGD(Construction):
    """Gradient descent on (1/2n) ||y - X w||^2 from 0, a step and a head a layer; hidden = [x | y].

    With a ``matrix`` A it is preconditioned gradient descent, w <- w - step_size A grad (Ahn et al. 2023).

    Args:
        steps: number of steps, and of layers.
        matrix: A, (dims, dims), row by row; the identity if left out.

    Example:
        >>> import torch
        >>> from lightning_icl import Transformer
        >>> from lightning_icl.functional.constructions import ConstructedGD
        >>> c = ConstructedGD(steps=2, step_size=0.5)
        >>> model = Transformer(2, **c.options(2)).double()
        >>> _ = model.load_state_dict(c.state(2))
        >>> str(c), model.heads
        ('GD, 2 steps of 0.5', [1, 1])
    """

    matrix: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matrix is None:
            return
        widths = [len(row) for row in self.matrix]
        if set(widths) != {len(widths)}:
            raise InputError(f"matrix has rows of {widths}, but it must be as wide as it is long.")
        if not all(math.isfinite(entry) for row in self.matrix for entry in row):
            raise InputError(f"matrix is {self.matrix}, but its entries must be finite numbers.")

    def linear_network(self, n_dims: int) -> WrittenNetwork:
        if self.matrix is not None and len(self.matrix) != n_dims:
            raise InputError(f"matrix has {len(self.matrix)} rows, but the prompts have n_dims {n_dims}.")
        matrix = _eye(n_dims) if self.matrix is None else torch.tensor(self.matrix, dtype=torch.float64)
        x, y = _eye(n_dims + 1).split([n_dims, 1])
        # <x_i, A^T x_k> = <A x_i, x_k>: the step's direction A x_i.
        step = Head(query=matrix.T @ x, key=x, value=y, output=-self.step_size * y.T)
        return WrittenNetwork(_eye(n_dims + 1), [[step] for _ in range(self.steps)], -y[0])

    def linear_path(self, x: Tensor, y: Tensor) -> Tensor:
        if self.matrix is None:
            return preprocess_then_gd_path(x, y, self.steps, self.step_size, power=0.0)
        matrix, path = x.new_tensor(self.matrix), [x.new_zeros(len(x), x.shape[2])]
        for _ in range(self.steps):
            residual = y - torch.einsum("bpd,bd->bp", x, path[-1])
            descent = torch.einsum("bpd,bp->bd", x, residual) / x.shape[1]
            path.append(path[-1] + self.step_size * descent @ matrix.T)
        return torch.stack(path)

    def __str__(self) -> str:
        name = "GD" if self.matrix is None else "preconditioned GD"
        return f"{name}, {self.steps} step{'s' * (self.steps > 1)} of {self.step_size:g}"


@dataclass(frozen=True)
class ConstructedPreprocessThenGD(Construction):
    """Layer 1 makes R_hat x, by a head of size 1 for each coordinate; later layers, of one head each, descend on that.

    hidden = [x | R_hat x | y]. Head j of layer 1 has the label as its key, x_j as its query and value, and so adds
    x_kj (1/n) sum_i y_i x_ij = r_hat_j x_kj to the slot of coordinate j. diag(r_hat) x is a sum of d products of a
    query and a value, so fewer heads cannot make all of it: with ``coordinates`` the others' slots stay 0, and so do
    their weights. Of independent features, those with the largest E w_j^2 Var(x_j) are the ones to keep.

    Args:
        steps: number of steps; there is one layer more.
        step_size: eta, one for all prompts. On n = 40 examples with two weights of +-1, .2 is stable; at n = 16 and .3
            the iteration diverges on rare prompts.
        coordinates: which coordinates layer 1 has a head for, counted from 1; all if left out.

    Example:
        >>> from lightning_icl.functional.constructions import ConstructedPreprocessThenGD
        >>> c = ConstructedPreprocessThenGD(steps=2, step_size=0.2)
        >>> c.options(5)["heads"]  # a head for each coordinate, then one a step
        [5, 1, 1]
    """

    coordinates: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.coordinates
        if named is not None and (len(set(named)) < len(named) or min(named, default=0) < 1):
            raise InputError(f"coordinates is {list(named)}, but it must name each once, counted from 1.")

    def linear_network(self, n_dims: int) -> WrittenNetwork:
        kept = [j - 1 for j in self.coordinates or range(1, n_dims + 1)]
        if max(kept) >= n_dims:
            raise InputError(f"coordinates has {max(kept) + 1}, but the prompts have n_dims {n_dims}.")
        x, rescaled, y = _eye(2 * n_dims + 1).split([n_dims, n_dims, 1])
        first = [Head(query=x[[j]], key=y, value=x[[j]], output=rescaled[[j]].T) for j in kept]
        step = Head(query=rescaled, key=rescaled, value=y, output=-self.step_size * y.T)
        read_in = torch.cat([x, y]).T
        return WrittenNetwork(read_in, [first, *([step] for _ in range(self.steps))], -y[0])

    def linear_path(self, x: Tensor, y: Tensor) -> Tensor:
        if self.coordinates is not None:
            x = x * x.new_tensor([j in self.coordinates for j in range(1, x.shape[2] + 1)])
        path = preprocess_then_gd_path(x, y, self.steps, self.step_size)
        return torch.cat([path[:1], path])  # layer 1 predicts nothing yet

    def __str__(self) -> str:
        what = "" if self.coordinates is None else f" on {len(self.coordinates)} coordinates"
        return f"preprocess + GD{what}, {self.steps} step{'s' * (self.steps > 1)} of {self.step_size:g}"


@dataclass(frozen=True)
class ConstructedGDPlusPlus(Construction):
    """GD++ (von Oswald et al. 2023): each layer's head takes a step and maps x to (I - gamma C) x, C = X^T X / n.

    hidden = [x | y]; the head's scores are <x_i, x_k>, its values (x_i, y_i), so its size is d + 1.

    Args:
        steps: number of steps, and of layers.
        gamma: one for all prompts, below 1 / lambda_max(C) to keep every direction; 0 is gradient descent.

    Example:
        >>> from lightning_icl.functional.constructions import ConstructedGDPlusPlus
        >>> c = ConstructedGDPlusPlus(steps=2, step_size=0.2, gamma=0.1)
        >>> c.options(5)["heads"], c.options(5)["d_model"]
        ([1, 1], 6)
    """

    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(gamma=self.gamma)

    def linear_network(self, n_dims: int) -> WrittenNetwork:
        x, y = _eye(n_dims + 1).split([n_dims, 1])
        value = torch.cat([x, y])
        layer = Head(query=x, key=x, value=value, output=-torch.cat([self.gamma * x, self.step_size * y]).T)
        return WrittenNetwork(_eye(n_dims + 1), [[layer] for _ in range(self.steps)], -y[0])

    def linear_path(self, x: Tensor, y: Tensor) -> Tensor:
        return gd_plus_plus_path(x, y, self.steps, self.step_size, self.gamma)

    def __str__(self) -> str:
        return f"GD++, {self.steps} step{'s' * (self.steps > 1)} of {self.step_size:g}, gamma {self.gamma:g}"


def with_idle_head(network: WrittenNetwork, layer: int, generator: Generator, size: float = 0.0) -> WrittenNetwork:
    """One head more in a layer, counted from 1, that attends at random and adds next to nothing: ``size`` times it.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.constructions import ConstructedGD, with_idle_head
        >>> network = ConstructedGD(steps=2, step_size=0.2).network(n_dims=3)
        >>> with_idle_head(network, 1, torch.Generator().manual_seed(0)).options()["heads"]
        [2, 1]
    """
    heads = network.layers[layer - 1]
    drawn = Head(*(torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in heads[0]))
    return network.changed(layer, [*heads, drawn.times(size)])


def with_duplicate(network: WrittenNetwork, layer: int, head: int) -> WrittenNetwork:
    """The head (counted from 1) as two alike, each of which adds half: the function is the same.

    Example:
        >>> from lightning_icl.functional.constructions import ConstructedGD, with_duplicate
        >>> network = ConstructedGD(steps=2, step_size=0.2).network(n_dims=3)
        >>> with_duplicate(network, layer=2, head=1).options()["heads"]
        [1, 2]
    """
    heads = list(network.layers[layer - 1])
    heads[head - 1 : head] = 2 * [heads[head - 1].times(0.5)]
    return network.changed(layer, heads)


def with_cancelling_pair(network: WrittenNetwork, layer: int, head: int, size: float = 1.0) -> WrittenNetwork:
    """Two heads more: one adds ``size`` times what a head adds, the other subtracts it. The function is the same.

    Example:
        >>> from lightning_icl.functional.constructions import ConstructedGD, with_cancelling_pair
        >>> network = ConstructedGD(steps=2, step_size=0.2).network(n_dims=3)
        >>> with_cancelling_pair(network, layer=1, head=1).options()["heads"]
        [3, 1]
    """
    heads = network.layers[layer - 1]
    return network.changed(layer, [*heads, heads[head - 1].times(size), heads[head - 1].times(-size)])


def with_swapped_heads(network: WrittenNetwork, one: tuple[int, int], other: tuple[int, int]) -> WrittenNetwork:
    """Two heads, each given as (layer, head) from 1, in each other's place.

    Example:
        >>> from lightning_icl.functional.constructions import ConstructedPreprocessThenGD, with_swapped_heads
        >>> network = ConstructedPreprocessThenGD(steps=1, step_size=0.2).network(n_dims=3)
        >>> swapped = with_swapped_heads(network, (1, 1), (2, 1))
        >>> swapped.layers[0][0] is network.layers[1][0], swapped.layers[1][0] is network.layers[0][0]
        (True, True)
    """
    layers = [list(heads) for heads in network.layers]
    (i, j), (k, m) = ((layer - 1, head - 1) for layer, head in (one, other))
    layers[i][j], layers[k][m] = layers[k][m], layers[i][j]
    return network._replace(layers=layers)


def with_flipped_sign(network: WrittenNetwork, layer: int, head: int) -> WrittenNetwork:
    """A head that subtracts what it added: a step of descent becomes one of ascent.

    Example:
        >>> import torch
        >>> from lightning_icl.functional.constructions import ConstructedGD, with_flipped_sign
        >>> network = ConstructedGD(steps=2, step_size=0.2).network(n_dims=3)
        >>> flipped = with_flipped_sign(network, layer=1, head=1)
        >>> torch.equal(flipped.layers[0][0].output, -network.layers[0][0].output)
        True
    """
    heads = list(network.layers[layer - 1])
    heads[head - 1] = heads[head - 1].times(-1.0)
    return network.changed(layer, heads)


def _eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _filled(rows: Float[Tensor, "rows d_model"], size: int) -> Float[Tensor, "size d_model"]:
    return torch.nn.functional.pad(rows, (0, 0, 0, size - len(rows)))
