"""Does a checkpoint fit the model a config describes?"""

import pickle
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from lightning_icl.functional.errors import InputError
from lightning_icl.transformer import Transformer, head_sizes

TRAINING_OPTIONS = {"optimizer", "learning_rate", "weight_decay", "warmup_steps", "schedule", "target", "init"}
# What an option is where the checkpoint, which may be older than the option, does not say.
DEFAULTS = {name: p.default for name, p in signature(Transformer).parameters.items() if p.default is not p.empty}
KEYWORDS = {"best", "last", "hpc", "registry"}  # Lightning resolves these itself


def check_checkpoint(path: str | Path | None, model: Mapping[str, Any], resuming: bool) -> None:
    """Refuse a checkpoint that is not one, or whose model is not the one the config asks for.

    Without this, Lightning lets the checkpoint's hyper-parameters silently win over YAML and flags. A resumed ``fit``
    must also agree on how it is trained, since the optimizer's state overrides such options; to evaluate, only the
    model must agree.
    """
    if path is None or str(path) in KEYWORDS:
        return
    saved, asked = DEFAULTS | dict(_saved_options(Path(path))), DEFAULTS | dict(model)
    for key in (key for key in asked if key in saved):
        if _plain(key, saved) != _plain(key, asked) and (resuming or key not in TRAINING_OPTIONS):
            raise InputError(
                f"the checkpoint {path} was trained with model.{key} = {saved[key]}, but the config asks for "
                f"{asked[key]}; use the config it was trained with (config.yaml in its run's folder)."
            )


def _plain(key: str, options: Mapping[str, Any]) -> Any:
    """The option in its one form: a list for a tuple, since YAML knows no other, and each layer's size for head_dim."""
    if key == "head_dim":
        return head_sizes(options["d_model"], options["heads"], options["head_dim"])
    value = options[key]
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _saved_options(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"ckpt_path is {path}, but there is no such file.")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise InputError(f"ckpt_path is {path}, but that file is not a readable checkpoint.") from error
    if not isinstance(checkpoint, Mapping) or "hyper_parameters" not in checkpoint:
        raise InputError(f"ckpt_path is {path}, but that file is not a checkpoint of lightning_icl.")
    return checkpoint["hyper_parameters"]
