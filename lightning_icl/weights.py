"""Weights from a file of any of the forms there are, Garg et al.'s (2022) included, into a network that is there.

Their network (github.com/dtsip/in-context-learning) is a GPT2 whose weights have other names; matrices of a Conv1D are
transposed, and queries, keys and values are one. They write y as the token (y, 0, ..., 0), which their read-in W takes
to y W[:, 0]; ours gives y a coordinate of its own, so that [W, W[:, 0]] is the same read-in.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.gpt2 import GPT2
from lightning_icl.network import InContextNetwork, current_names
from lightning_icl.transformer import Transformer

# Our names and theirs, in a layer and outside of one.
GARG_LAYER = {
    r"attention\.(query|key|value)": "attn.c_attn",
    r"attention\.output": "attn.c_proj",
    r"output_bias": "attn.c_proj.bias",
    r"attention_norm": "ln_1",
    r"mlp_norm": "ln_2",
    r"mlp\.0": "mlp.c_fc",
    r"mlp\.2": "mlp.c_proj",
}
GARG = {
    "read_in": "_read_in",
    "read_out": "_read_out",
    "final_norm": "_backbone.ln_f",
    "position": "_backbone.wpe.weight",
}
GARG_UNUSED = r"_backbone\.(wte\.weight|h\.\d+\.attn\.(bias|masked_bias))"  # tokens of text; causal masks of old files


def load_weights(network: InContextNetwork, path: str | Path) -> int | None:
    """Give a network the weights of a file; returns the number of steps that they were trained for, if the file says.

    Read are state.pt and model_N.pt of Garg et al. (2022) for a GPT2, and for every network a state dict of its own in
    a torch file or in *.safetensors, and a checkpoint (.ckpt) of a run. Their models may have more positions than the
    network's max_points needs. The number of heads cannot be seen in weights: it must be given right, and is compared
    with the config.yaml that their training leaves beside them, where that is there.

    Raises InputError, one sentence, for a file that is none of these or whose weights are not the network's. No code
    that a file brings is run.

    Example:
        >>> import torch
        >>> from lightning_icl import Transformer, load_weights
        >>> trained, other = (Transformer(n_dims=3, d_model=16, heads=[4]) for _ in range(2))
        >>> torch.save(trained.state_dict(), "weights.pt")
        >>> load_weights(other, "weights.pt")
        >>> torch.equal(trained.read_out.weight, other.read_out.weight)
        True
    """
    said = f"weights is {path}"
    state, steps = _state(_contents(Path(path), said), said)
    foreign = any(name.startswith("_backbone.") for name in state)
    if foreign and not (isinstance(network, GPT2) and network.layout == "alternating"):
        had = f"layout {network.layout!r}" if isinstance(network, GPT2) else f"the class {type(network).__name__}"
        raise InputError(
            f"{said}, for which, as of Garg et al. (2022), the network must be a GPT2 of layout 'alternating', but it "
            f"has {had}."
        )
    if isinstance(network, Transformer):
        _check_sizes(network, state, said)
    own = network.state_dict()
    if isinstance(network, GPT2) and foreign:
        _check_config(network, Path(path).with_name("config.yaml"), said)
        names = {name: _garg_name(name) for name in own}
        _check_names(names.values(), [name for name in state if not re.fullmatch(GARG_UNUSED, name)], said)
        for name, theirs in names.items():
            if state[theirs].dim() != own[name].dim():
                raise InputError(f"{said}, where {theirs} has the shape {list(state[theirs].shape)}, as no GPT2's has.")
        state = {name: _from_garg(name, state[theirs], len(own["position"])) for name, theirs in names.items()}
    _check_names(own, state, said)
    for name, values in own.items():
        if values.shape != state[name].shape:
            shapes = list(state[name].shape), list(values.shape)
            raise InputError(f"{said}, where {name} has the shape {shapes[0]}, but the network's has {shapes[1]}.")
    network.load_state_dict(state)
    return steps


def _contents(path: Path, said: str) -> Any:
    if not path.is_file():
        raise InputError(f"{said}, but there is no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{said}, but it cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever the bytes make of an unpickler
        raise InputError(
            f"{said}, but that file is no whole one of tensors and plain values: cut off, damaged, or with more in it."
        ) from error


def _state(contents: Any, said: str) -> tuple[dict[str, Tensor], int | None]:
    """The weights by name, and the steps behind them."""
    match contents:
        case {"model_state_dict": state}:
            steps = contents.get("train_step")
        case {"state_dict": dict() as state, "hyper_parameters": _}:  # a checkpoint of a run
            state = {name.removeprefix("network."): values for name, values in current_names(state).items()}
            steps = contents.get("global_step")
        case {"state_dict": dict() as state}:
            steps = None
        case state:
            steps = None
    if not (isinstance(state, Mapping) and state and all(isinstance(values, Tensor) for values in state.values())):
        raise InputError(
            f"{said}, but it holds no weights: a mapping of names to tensors, alone or as model_state_dict."
        )
    return dict(state), steps if isinstance(steps, int) else None


def _check_sizes(network: Transformer, state: Mapping[str, Tensor], said: str) -> None:
    """Compare what follows from options, before single weights are looked at."""
    there, here = _sizes(state, network.tokens_per_point), _sizes(network.state_dict(), network.tokens_per_point)
    if "_backbone.wpe.weight" in state and there.get("max_points", 0) > here["max_points"]:
        del there["max_points"]  # those of later points are left out
    if differ := [name for name in there if there[name] != here.get(name)]:
        its, ours = (", ".join(f"{name} {sizes.get(name)}" for name in differ) for sizes in (there, here))
        raise InputError(
            f"{said}, of a network with {its}, but this one has {ours}: give it what the file has (n_embd is d_model, "
            "n_layer the number of entries of heads, n_positions - 1 max_points; n_head is not seen in weights)."
        )


def _check_config(network: GPT2, path: Path, said: str) -> None:
    """Compare what weights do not show with what the config of their training says."""
    try:
        model = yaml.load(path.read_text(), _Mappings)["model"]
        family, size = model["family"], model["n_embd"] // model["n_head"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, ArithmeticError):
        return  # none, or none of theirs
    if family != "gpt2":
        raise InputError(f"{said}, of the family {family} as {path} says, but only gpt2 is known here.")
    if wrong := [i for i, h in enumerate(network.heads) if h and network.head_dims[i] != size]:
        raise InputError(
            f"{said}, of a network with n_head {model['n_head']} as {path} says, which makes heads of size {size}, but "
            f"in layer {wrong[0] + 1} those of this one have {network.head_dims[wrong[0]]}; give heads that number."
        )


class _Mappings(yaml.SafeLoader):
    """Reads the mappings that are objects of a class, such as Munch, as what they hold."""


_Mappings.add_multi_constructor("", lambda loader, _, node: loader.construct_mapping(node, deep=True))


def _sizes(state: Mapping[str, Tensor], tokens_per_point: int) -> dict[str, int]:
    """What the shapes say of the options of a Transformer, by our names or theirs."""
    found: dict[str, int] = {}
    layers = [re.match(r"(?:layers|_backbone\.h)\.(\d+)\.", name) for name in state]
    for name, values in state.items():
        if name in ("read_in.weight", "_read_in.weight") and values.dim() == 2:
            found |= {"n_dims": values.shape[1] - (name[0] != "_"), "d_model": values.shape[0]}
        elif name in ("position", "_backbone.wpe.weight"):
            found["max_points"] = (len(values) - 1) // tokens_per_point
    return found | {"layers": len({layer[1] for layer in layers if layer})}


def _check_names(wanted: Iterable[str], there: Iterable[str], said: str) -> None:
    wanted, there = list(wanted), list(there)
    if lacks := [name for name in wanted if name not in there]:
        raise InputError(f"{said}, which lacks {_first(lacks)}.")
    if more := [name for name in there if name not in wanted]:
        raise InputError(f"{said}, where {_first(more)} is no weight of the network.")


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if names[1:] else "")


def _garg_name(name: str) -> str:
    """What they call a weight of ours."""
    if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        for ours, theirs in GARG_LAYER.items():
            if re.match(ours, layer[2]):
                return f"_backbone.h.{layer[1]}." + re.sub(ours, theirs, layer[2], count=1)
    first, _, rest = name.partition(".")
    return ".".join([GARG[first], *filter(None, [rest])])


def _from_garg(name: str, values: Tensor, n_positions: int) -> Tensor:
    """A weight of ours from the one of theirs that has it."""
    if name == "read_in.weight":
        return torch.cat([values, values[:, :1]], dim=1)
    if name == "position":
        return values[:n_positions]
    if name.startswith("layers."):
        values = values.t()
    if part := re.search(r"attention\.(query|key|value)", name):
        values = values.tensor_split(3)[("query", "key", "value").index(part[1])]
    return values
