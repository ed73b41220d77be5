"""The one form of every number: a row, and what a set of rows was measured on.

docs/reference/metrics.md has the name of every metric, what it means and its fields.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from lightning_icl.functional.errors import InputError


class Row(NamedTuple):
    """One number: its 95 % interval and its place; None where there is none.

    Attributes:
        metric: its name, grouped by slashes.
        value: the number, None where it has no value (a share of a layer whose total is within noise).
        low: the lower end of its 95 % interval.
        high: the upper end.
        layer: counted from 1, 0 is the read-in; None where it is not about one.
        head: counted from 1 within its layer; None where it is not about one.
        n_points: the number of examples; None where it is about all.
        stream: the validation stream, where it has a name.
        note: what the number is in words, such as "ridge, alpha 0.64 (from the law)".

    Example:
        >>> from lightning_icl import Row
        >>> Row("heads/leave_one_out/share", 0.25, low=0.2, high=0.3, layer=1, head=2)._asdict()["layer"]
        1
    """

    metric: str
    value: float | Tensor | None
    low: float | Tensor | None = None
    high: float | Tensor | None = None
    layer: int | None = None
    head: int | None = None
    n_points: int | None = None
    stream: str | None = None
    note: str | None = None


COLUMNS = Row._fields
NUMBERS = ("value", "low", "high")
TYPES = dict.fromkeys(("metric", "stream", "note"), "str") | dict.fromkeys(NUMBERS, "float64")
TYPES |= dict.fromkeys(("layer", "head", "n_points"), "Int64")


class Measurement(NamedTuple):
    """What one analysis found at one time.

    Attributes:
        analysis: its name, that of its class.
        step: optimizer steps behind the weights.
        context: what it was measured on: command, seed, law, prompts, options; see ``lightning_icl.record.context``.
        rows: the numbers.
        arrays: what is no table of numbers, such as a head's maps, as nested lists by name.
    """

    analysis: str
    step: int
    context: Mapping[str, Any]
    rows: Sequence[Row]
    arrays: Mapping[str, Any] = {}


def tag(row: Row) -> str:
    """The row's name in a logger, its metric and its place: heads/leave_one_out/share/layer1/head2.

    A stream comes after the first part of the metric: val/noisier/excess_risk/ridge.

    Example:
        >>> from lightning_icl import Row
        >>> from lightning_icl.record.rows import tag
        >>> tag(Row("heads/leave_one_out/share", 0.25, layer=1, head=2))
        'heads/leave_one_out/share/layer1/head2'
        >>> tag(Row("val/excess_risk/ridge", 0.5, stream="noisier"))
        'val/noisier/excess_risk/ridge'
    """
    first, _, rest = row.metric.partition("/")
    places = {"n": row.n_points, "layer": row.layer, "head": row.head}
    return "/".join(
        part
        for part in (first, row.stream, rest, *(f"{name}{at}" for name, at in places.items() if at is not None))
        if part
    )


def plain(value: Any) -> Any:
    """The value as JSON knows it: tensors as lists, and null for what is not a finite number."""
    match value:
        case Tensor():
            return plain(value.tolist())
        case tuple() if hasattr(value, "_asdict"):
            return plain(value._asdict())
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float() | str():
            return value
    return getattr(value, "item", lambda: repr(value))()  # numpy's numbers; else a text


def plain_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows with numbers in place of tensors, and None for what is not finite; InputError for what are no rows."""
    if not isinstance(rows, Iterable) or isinstance(rows, Row):
        raise InputError(f"an analysis found {rows!r:.80}, but it must return or yield several rows.")
    found = [_plain_row(row) for row in rows]
    if again := [name for name, n in Counter(map(tag, found)).items() if n > 1]:
        raise InputError(
            f"an analysis found {again[0]} more than once: rows of one metric need another layer, head, "
            "n_points or stream each."
        )
    return found


def _plain_row(row: Row) -> Row:
    if not isinstance(row, Row):
        raise InputError(f"an analysis found {row!r:.80}, but it must find rows, such as Row('a/risk', 0.1, layer=1).")

    def number(given: Any) -> float | None:
        if isinstance(given, Tensor) and given.numel() != 1:
            raise InputError(f"{row.metric} is a tensor of shape {tuple(given.shape)}, but a row holds one number.")
        return None if given is None or not math.isfinite(given) else float(given)

    return row._replace(value=number(row.value), low=number(row.low), high=number(row.high))


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table with the columns of Row; what is missing is NaN, <NA> or None."""
    columns = zip(*rows, strict=True) if (rows := list(rows)) else ((),) * len(COLUMNS)
    return pd.DataFrame({key: pd.array(list(column), TYPES[key]) for key, column in zip(COLUMNS, columns, strict=True)})
