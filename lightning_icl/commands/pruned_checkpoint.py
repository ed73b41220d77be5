"""The checkpoint of a model without some of its heads, ready to go on training."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_icl.checkpoint import PREFIX
from lightning_icl.functional.heads import HeadMask
from lightning_icl.instruments.removal import OF_WHOLE, Part, kept_parts, remove_heads, smaller_options
from lightning_icl.module import ICLModule
from lightning_icl.transformer import Transformer, as_transformer


def pruned_checkpoint(checkpoint: Mapping[str, Any], module: ICLModule, keep: HeadMask) -> dict[str, Any]:
    """The ``checkpoint`` of ``module`` with the heads of ``keep`` (1 or 0) only, its optimizer's state included.

    What the optimizer knows of a parameter is cut like the parameter itself. Where the removed heads were dead (neither
    read nor wrote anything), training goes on as it would have with them: under AdamW always, under Muon up to the
    rounding of its Newton-Schulz and where heads x head_dim <= d_model, as its step's size goes with the longer side of
    a matrix (of a head's block alone under muon_per_head, whatever the number of heads). Not under SOAP: its bases are
    those of a whole matrix, so of one that is cut they are left out, and found anew. What callbacks found in the
    unpruned model, and the files they wrote, is left behind.
    """
    transformer = as_transformer(module.network, "heads are removed")
    parts = {PREFIX + name: part for name, part in kept_parts(transformer, keep).items()}
    smaller = remove_heads(transformer, keep).state_dict(prefix=PREFIX)
    pruned = {
        **checkpoint,
        "state_dict": smaller,
        "hyper_parameters": smaller_model(checkpoint["hyper_parameters"], transformer, keep),
    }
    if "optimizer_states" in checkpoint:  # else it has weights alone (save_weights_only)
        states = checkpoint["optimizer_states"]
        pruned["optimizer_states"] = [_pruned_optimizer(state, module, parts) for state in states]
        pruned["callbacks"] = _unmeasured(checkpoint["callbacks"])
    return pruned


def smaller_model(model: Mapping[str, Any], transformer: Transformer, keep: HeadMask) -> dict[str, Any]:
    """The options of a model, or of the network in it, with those that change with the heads removed."""
    smaller = smaller_options(transformer, keep)
    if network := model.get("network"):
        return {**model, "network": {**network, "init_args": {**(network.get("init_args") or {}), **smaller}}}
    return {**model, **smaller}


def _pruned_optimizer(state: Mapping[str, Any], module: ICLModule, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Its parameters are numbered in the order of its groups; those that go leave no gap."""
    of_name = dict(module.named_parameters())
    name_of = {id(parameter): name for name, parameter in of_name.items()}
    names = [name_of[id(p)] for group in module.fresh_optimizer().param_groups for p in group["params"]]
    remaining = [i for i, name in enumerate(names) if name not in parts or parts[name].entries.numel()]
    number = {old: new for new, old in enumerate(remaining)}
    return {
        "state": {
            number[i]: _cut(known, of_name[names[i]], parts.get(names[i]))
            for i, known in state["state"].items()
            if i in number
        },
        "param_groups": [
            {**group, "params": [number[i] for i in group["params"] if i in number]} for group in state["param_groups"]
        ],
    }


def _cut(known: Mapping[str, Any], parameter: Tensor, part: Part | None) -> dict[str, Any]:
    """Whatever has the parameter's shape, cut to the part; a count of steps is what it was."""
    if part and OF_WHOLE in known:
        return {}
    return {
        key: part.of(value) if part and isinstance(value, Tensor) and value.shape == parameter.shape else value
        for key, value in known.items()
    }


def _unmeasured(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """The callbacks' states without the analyses' series; a ModelCheckpoint's names files of the unpruned run."""
    return {
        name: {key: value for key, value in state.items() if key != "records"} if isinstance(state, Mapping) else state
        for name, state in callbacks.items()
        if not name.startswith("ModelCheckpoint")
    }
