"""The heads of any network: a gate before each of its output projections.

GatedHeads(MyGPT(n_dims=8), projections="blocks.*.attention.output", heads=4)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.functional.heads import check_mask_shape
from lightning_icl.functional.prompts import Prompt, concatenated
from lightning_icl.network import InContextNetwork, TransformerOutput
from lightning_icl.network_check import check_declared

# From a layer and what its heads read, (batch, tokens, heads, size), to what is projected instead.
Change = Callable[[int, Tensor], Tensor]


class BlockOutput(NamedTuple):
    """What a layer's block gave for so many prompts."""

    value: Any
    n_prompts: int


class GatedHeads(InContextNetwork):
    """A network under head masks, though it knows none: each head's slice of an output projection's input is gated.

    output = W_O concat_h(mask_h A_h V_h) + bias. The slices are gated before the projection, as after it the heads are
    mixed; so is what a head reads under mean and resample ablation (``replaced``), and gradients run through the mask.
    A projection is any module with a weight matrix that is called once in a forward pass, in the order of the layers,
    with an input of shape (batch, tokens, heads x size), such as a Linear or a Conv1D; or the out_proj of an
    nn.MultiheadAttention, which is never called itself. A prompt may have several rows of the batch, one after the
    other, such as one for each query. Without a mask the network is run as it is.

    Args:
        network: the network, whose on_prompt is given no mask.
        projections: the names of its output projections, as ``named_modules`` has them, with * for what differs, such
            as "blocks.*.attention.output".
        heads: number of heads of every projection, or one number for each layer, 0 for a layer without a projection.

    Example:
        >>> import torch
        >>> from lightning_icl import GatedHeads, LinearRegression, Transformer
        >>> network = Transformer(n_dims=3, d_model=16, heads=[4, 4])  # taken for one that knows no masks
        >>> gated = GatedHeads(network, projections="layers.*.attention.output", heads=4)
        >>> prompt = LinearRegression(n_dims=3).sample(2, 8, 5, torch.Generator().manual_seed(0))
        >>> gated.heads, gated.on_prompt(prompt, head_mask=torch.zeros(2, 4)).prediction.shape
        ([4, 4], torch.Size([2, 5]))
    """

    def __init__(self, network: InContextNetwork, projections: str, heads: int | list[int]) -> None:
        super().__init__()
        check_declared(network)
        heads = [int(h) for h in heads] if isinstance(heads, Iterable) else int(heads)  # an array's, too
        self.options["heads"] = heads
        self.network, self.n_dims, self.projections = network, network.n_dims, projections
        modules = dict(network.named_modules())
        names = [name for name in modules if name and fnmatchcase(name, projections)]
        kind = type(network).__name__
        if not names:
            some = dict.fromkeys(_numbers_starred(name) for name, module in modules.items() if _has_matrix(module))
            raise InputError(
                f"projections is {projections!r}, but no module of this {kind} has such a name; those with a weight "
                f"matrix are {', '.join([*some][:12]) or 'none'}."
            )
        if isinstance(heads, int):
            check_at_least(1, heads=heads)
            kinds = list(dict.fromkeys(map(_numbers_starred, names)))
            if len(kinds) > 1:
                raise InputError(
                    f"projections is {projections!r}, which is {' and '.join(kinds)} of this {kind}, but each layer "
                    "has one output projection: name that alone, or give heads as a list, one number for each."
                )
            heads = [heads] * len(names)
        elif not heads or min(heads) < 0 or sum(h > 0 for h in heads) != len(names):
            raise InputError(
                f"heads is {heads}, but projections, {projections!r}, is {len(names)} of this {kind}'s modules, "
                f"{names[0]} to {names[-1]}: give one number for each, and 0 for a layer without."
            )
        self.heads = list(heads)
        # Of each layer the name of its projection, none where it has no heads.
        remaining = iter(names)
        self.names = [_projection(next(remaining), modules, h) if h else None for h in self.heads]
        self.blocks = [None if name is None else _block(name, self.names) for name in self.names]

    def on_prompt(
        self,
        prompt: Prompt,
        head_mask: Float[Tensor, "layers heads"] | Float[Tensor, "batch layers heads"] | None = None,
        replaced: Sequence[Tensor | None] | None = None,
        below: Sequence[BlockOutput | None] = (),
    ) -> TransformerOutput:
        """The network's output where each head's h is mask h + (1 - mask) r.

        r is 0, or else what ``replaced`` holds of each layer, shaped as in ``head_outputs`` (batch or 1 rows). The
        layers of ``below`` are not run, but give again what ``recorded`` found in a batch of which this one is copies.
        """
        if head_mask is None:
            return self.network.on_prompt(prompt)
        return self._changed(prompt, self._gate(prompt, head_mask, replaced), below)

    def recorded(
        self, prompt: Prompt, head_mask: Tensor, replaced: Sequence[Tensor | None] | None = None
    ) -> tuple[TransformerOutput, list[BlockOutput | None]]:
        """``on_prompt`` and what each layer's block gave (None for a layer without heads), for ``below``.

        A layer's block is the largest module with its projection and no other. None are found where blocks cannot be
        given again: where one is not called once, after its projection and before the next, or its rows are not the
        prompts; or where a trial shows that more depends on its being run, or on what else is in the batch.
        """
        few, blocks = prompt.rows(0, 2), list[BlockOutput | None]()
        twice, of_twice = concatenated([few, few]), list[BlockOutput | None]()
        expected = self._changed(few, self._gate(few, head_mask, None), blocks=blocks).prediction
        self._changed(twice, self._gate(twice, head_mask, None), blocks=of_twice)
        values, of_copies = ([of and of.value for of in found] for found in (blocks, of_twice))
        pairs = zip(tree_leaves(values), tree_leaves(of_copies), strict=False)
        by_row = all(
            one is two or (one.dim() > 0 and two.shape == (2 * len(one), *one.shape[1:])) for one, two in pairs
        )
        if blocks and by_row:
            found = self._changed(twice, self._gate(twice, head_mask, None), blocks[:-1]).prediction
            off = (found - expected.repeat(2, 1)).abs().max()
            if off <= torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max():
                blocks.clear()
                return self._changed(prompt, self._gate(prompt, head_mask, replaced), blocks=blocks), blocks
        return self.on_prompt(prompt, head_mask, replaced), []

    def for_training(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        return self.network.for_training(prompt) if head_mask is None else self.on_prompt(prompt, head_mask)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return self.network.hidden_matrices()

    def head_outputs(self, prompt: Prompt) -> list[Float[Tensor, "batch heads tokens size"] | None]:
        """What every head reads at every token, before the output projection, one tensor a layer."""
        outputs: list[Tensor | None] = [None] * len(self.heads)

        def kept(layer: int, read: Tensor) -> Tensor:
            outputs[layer] = read.transpose(1, 2)
            return read

        self._changed(prompt, kept)
        return outputs

    def __getattr__(self, name: str) -> Any:
        """What else the network has, such as its layout, max_points or read."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def _gate(self, prompt: Prompt, head_mask: Tensor, replaced: Sequence[Tensor | None] | None) -> Change:
        check_mask_shape("head_mask has", head_mask.shape[-2:], self.heads)
        masks = head_mask if head_mask.dim() == 3 else head_mask[None]
        if len(masks) not in (1, len(prompt.x)):
            raise InputError(f"head_mask is for {len(masks)} prompts, but the batch has {len(prompt.x)}.")

        def gated(layer: int, read: Tensor) -> Tensor:
            kept = masks[:, layer, : self.heads[layer]].to(read)[:, None, :, None]
            other = None if replaced is None else replaced[layer]
            return read * kept if other is None else read * kept + other.transpose(1, 2) * (1 - kept)

        return gated

    def _changed(
        self,
        prompt: Prompt,
        change: Change,
        below: Sequence[BlockOutput | None] = (),
        blocks: list[BlockOutput | None] | None = None,
    ) -> TransformerOutput:
        """The network's output with ``change`` before each projection but those ``below``; fills ``blocks``."""
        called, ended, recorded = list[str](), list[tuple[str, int]](), dict[str, Any]()

        def projected(layer: int, name: str, states: Any) -> Tensor:
            """What is projected instead of a projection's input."""
            called.append(name)
            n_heads, n_prompts, shape = self.heads[layer], len(prompt.x), tuple(getattr(states, "shape", ()))
            if len(shape) != 3 or shape[0] % n_prompts or shape[2] % n_heads:
                raise InputError(
                    f"the input of {name} has shape {shape}, but that of a projection of {n_heads} heads is (batch, "
                    f"tokens, {n_heads} x size), here with a batch of {n_prompts}."
                )
            # Where a prompt has several rows, such as one for each query, their tokens are all its tokens.
            by_head = states.reshape(n_prompts, -1, n_heads, shape[2] // n_heads)
            return change(layer, by_head).reshape(shape)

        def record(block: str, output: Any) -> None:
            ended.append((block, len(called)))
            recorded[block] = tree_map_only(Tensor, torch.clone, output)  # a later layer may change it in place

        with ExitStack() as stack:
            # The fused kernels of torch's own encoder call no attention, and hand on tensors that nothing else takes.
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            for layer, (name, block) in enumerate(zip(self.names, self.blocks, strict=True)):
                if name is None or block is None:
                    continue
                module, whole = (self.network.get_submodule(of) for of in (name, block))
                if layer < len(below):
                    if (given := below[layer]) is not None:
                        stack.enter_context(_given_again(whole, given.value, len(prompt.x) // given.n_prompts))
                    continue
                stack.enter_context(_input_replaced(module, partial(projected, layer, name)))
                if blocks is not None:
                    ends = whole.register_forward_hook(lambda _, __, output, block=block: record(block, output))
                    stack.callback(ends.remove)
            output = self.network.on_prompt(prompt)
        self._check_called(called, [name for name in self.names[len(below) :] if name is not None])
        if blocks is not None:
            in_turn = [block for block in self.blocks if block is not None]
            if ended == [(block, i) for i, block in enumerate(in_turn, start=1)]:
                blocks.extend(None if b is None else BlockOutput(recorded[b], len(prompt.x)) for b in self.blocks)
        return output

    def _check_called(self, called: list[str], expected: list[str]) -> None:
        if wrong := [name for name in expected if called.count(name) != 1]:
            times = f"{n} times" if (n := called.count(wrong[0])) else "not"
            raise InputError(
                f"{wrong[0]} is {times} called in a forward pass, but heads are gated where their projection is called "
                "once."
            )
        if called != expected:
            raise InputError(
                f"the projections are called in the order {', '.join(called)}, but layers are numbered as the modules "
                f"are listed, {', '.join(expected)}: make the network's modules in the order of its layers."
            )


@contextmanager
def _input_replaced(module: nn.Module, projected: Callable[[Any], Tensor]) -> Iterator[None]:
    """Within, the module projects ``projected`` of its input; of an nn.MultiheadAttention its out_proj does."""
    if not isinstance(module, nn.MultiheadAttention):
        gate = module.register_forward_pre_hook(lambda _, given: (projected(given[0] if given else None), *given[1:]))
        try:
            yield
        finally:
            gate.remove()
        return
    # It gives its out_proj's weight to a function that projects. Within, that is the identity, so that what the heads
    # read comes out, to be changed and projected here.
    out_proj, as_it_is = module.out_proj, nn.Module()
    as_it_is.weight = torch.eye(module.embed_dim).to(out_proj.weight)
    as_it_is.register_parameter("bias", None)

    def project(_: nn.Module, given: Any, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        read, weights = output
        swapped = read.dim() == 3 and not module.batch_first
        of_heads = out_proj(projected(read.transpose(0, 1) if swapped else read))
        return of_heads.transpose(0, 1) if swapped else of_heads, weights

    hook = module.register_forward_hook(project)
    module.out_proj = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        module.out_proj = out_proj
        hook.remove()


@contextmanager
def _given_again(block: nn.Module, output: Any, n_copies: int) -> Iterator[None]:
    """Within, the block is not run, but gives copies of an output, one after the other."""

    def forward(*given: Any, **named: Any) -> Any:
        return tree_map_only(Tensor, lambda of: of.repeat(n_copies, *[1] * (of.dim() - 1)), output)

    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _projection(name: str, modules: dict[str, nn.Module], n_heads: int) -> str:
    """The module to gate: the one of that name, or the nn.MultiheadAttention that it is the out_proj of."""
    above = name.rpartition(".")[0]
    name = above if isinstance(modules[above], nn.MultiheadAttention) else name
    module = modules[name]
    if isinstance(module, nn.MultiheadAttention):
        if module.num_heads != n_heads:
            raise InputError(f"heads is {n_heads} for {name}, but this nn.MultiheadAttention has {module.num_heads}.")
    elif not _has_matrix(module):
        raise InputError(
            f"{name} is a {type(module).__name__}, which has no weight matrix of its own; name the module that "
            "projects what the heads read."
        )
    elif n_heads > max(shape := module.get_parameter("weight").shape):
        raise InputError(f"heads is {n_heads:,} for {name}, but its weight, {tuple(shape)}, has no room for so many.")
    return name


def _block(name: str, names: Sequence[str | None]) -> str:
    """The largest module with this projection and no other of ``names``."""
    others, parts = [f"{other}." for other in names if other not in (None, name)], name.split(".")
    candidates = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return next(path for path in candidates if not any(other.startswith(f"{path}.") for other in others))


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _numbers_starred(name: str) -> str:
    return re.sub(r"\d+", "*", name)
