"""What a measurement was made on: two numbers are one series only where this is the same."""

import inspect
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from lightning.pytorch import Trainer

from lightning_icl.data import PromptDataModule
from lightning_icl.record.rows import plain


def context(trainer: Trainer, data: PromptDataModule, analysis: object) -> dict[str, Any]:
    """The command, the seed, the laws of the evaluation streams, the prompts drawn, and the analysis' own options."""
    closing = getattr(trainer.lightning_module, "closing", False)  # of a fit, whatever makes its last validation
    return {
        "command": "fit" if closing else trainer.state.fn and str(trainer.state.fn.value),
        "seed": data.seed,
        "law": [
            {"stream": stream.name, "task": repr(stream.task), "n_points": [stream.smallest_n, stream.largest_n]}
            for stream in data.streams
        ],
        "n_queries": data.n_queries,
        "prompts": dict(data.drawn),
        "options": options(analysis),
    }


def options(thing: object) -> dict[str, Any]:
    """The arguments of a constructor that the object kept under their names; when to run is none of them."""
    names = inspect.signature(type(thing)).parameters
    return {
        name: _option(getattr(thing, name)) for name in names if name != "every_n_validations" and hasattr(thing, name)
    }


def _option(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array's or a tensor's numbers
        return plain(value.tolist())
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [_option(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _option(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return plain(value)
    if hasattr(value, "__dict__") or hasattr(value, "__slots__"):  # of a class written in Python
        with suppress(ValueError):  # there is no signature, if it builds on one written in C
            return {type(value).__name__: options(value)}
    # Of a type written in C, such as a set. Some have signatures since Python 3.13; none names what it keeps.
    return plain(value)


def fingerprint(found: Mapping[str, Any]) -> str:
    """A short name of a context, whatever the command: equal where one series goes on."""
    alike = {key: value for key, value in found.items() if key != "command"}
    return f"{zlib.crc32(json.dumps(alike, sort_keys=True).encode()):08x}"
