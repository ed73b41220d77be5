"""Words that people read: for config keys, their values, head configurations, estimators, and errors."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_icl.figures.style import estimator_label as estimator_label  # one of the words, from where it is drawn
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
TELLING = ("data.task",)  # values that need no name before them


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


def is_missing(value: Any) -> bool:
    """Whether a cell of a config column is empty, as that of a key this trial's task does not have."""
    return value is None or str(value) in ("<NA>", "nan", "NaN") or (isinstance(value, float) and math.isnan(value))


def setting_text(setting: Mapping[str, Any] | None) -> str:
    """A setting in words: {"data.task.noise_std": 0.4} -> "noise sd 0.4"; keys without a value are left out."""
    return ", ".join(_said(key, value) for key, value in (setting or {}).items() if not is_missing(value))


def _said(key: str, value: Any) -> str:
    if key in TELLING:
        return value_text(value)
    if key == "depth":
        return f"{value_text(value)} layer{'' if value == 1 else 's'}"
    return f"{key_name(key)} {value_text(value)}"


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
