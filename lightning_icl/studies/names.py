"""Words that people read: for config keys, their values, head configurations, estimators, and errors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.table import head_list, uniform_heads

KEYS = {
    "data.task.noise_std": "noise sd",
    "data.task.n_dims": "dimensions d",
    "data.task.sparsity": "sparsity s",
    "data.n_points": "examples n",
    "data.n_queries": "queries",
    "model.heads": "heads by layer",
    "model.mlp": "MLP",
    "model.norm": "layer norm",
    "model.d_model": "width",
    "model.head_dim": "head size",
    "model.position": "positional code",
    "trainer.max_steps": "training steps",
    "depth": "layers",
    "step": "training step",
}


def key_name(key: str) -> str:
    """A config key in words: "data.task.noise_std" -> "noise sd"."""
    return KEYS.get(key, key.rpartition(".")[2].replace("_", " "))


def value_text(value: Any) -> str:
    """A config value in words: 0.4 -> "0.4", True -> "on"."""
    if str(value) in ("True", "False"):  # numpy's too
        return "on" if value else "off"
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return str(value)


def setting_text(setting: Mapping[str, Any] | None) -> str:
    """A setting in words: {"data.task.noise_std": 0.4} -> "noise sd 0.4"; keys without a value are left out."""
    given = {key: value_text(value) for key, value in (setting or {}).items() if not pd.isna(value)}
    words = {"data.task": "{}", "depth": "{} layer" if given.get("depth") == "1" else "{} layers"}
    return ", ".join(words.get(key, f"{key_name(key)} {{}}").format(text) for key, text in given.items())


def heads_label(text: str) -> str:
    """A head configuration: "[8, 8]" -> "8 heads", "[8, 1]" as it is."""
    heads = uniform_heads(text)
    return text if heads is None else f"{heads} head{'s' * (heads != 1)}"


def in_order(texts: Iterable[str]) -> list[str]:
    """Head configurations with h heads in every layer first, by h; then the others, by all their heads."""
    return sorted(set(texts), key=lambda text: (uniform_heads(text) is None, sum(head_list(text)), head_list(text)))


def slug(text: str) -> str:
    """The text as a part of a file name: "noise sd 0.4" -> "noise_sd_0.4"."""
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def few(items: Iterable[str], most: int = 4) -> str:
    """A list in words that does not run over: "a, b, c and 3 more"."""
    items = list(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def error_text(error: Exception) -> str:
    """An error in one line: the sentence of an InputError, of others with their class."""
    said = " ".join(str(error).split())
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}".removesuffix(": ")
