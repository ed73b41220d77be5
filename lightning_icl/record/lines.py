"""Rows as lines on a terminal."""

import textwrap
from typing import Any

import pandas as pd

from lightning_icl.record.rows import Row, tag

WIDTH = 80  # columns of the closing table


def plus_minus(row: Any, value: str = ".3g", half: str = ".2g") -> str:
    """A row's value and half of its interval, in these formats."""
    return f"{row.value:{value}} ± {(row.high - row.low) / 2:{half}}"


def wrapped(text: str, indent: str = "  ", further: str | None = None) -> list[str]:
    """The text in lines that begin with ``indent``, and all but the first with ``further`` where that is given."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent if further is None else further)


def row_lines(rows: pd.DataFrame, most: int = 12) -> list[str]:
    """A line for each of the first rows: its tag, value and interval."""
    found = [Row._make(None if pd.isna(cell) else cell for cell in row) for row in rows[list(Row._fields)].values]
    width = min(WIDTH - 34, max((len(tag(row)) for row in found), default=0))
    lines = []
    for row in found[:most]:
        said = "no value" if row.value is None else f"{row.value:.4g}"
        if row.low is not None and row.high is not None:
            said += f" [{row.low:.3g}, {row.high:.3g}]"
        lines.append(f"  {tag(row):<{width}}  {said}")
    return lines + [f"  and {len(found) - most} more, in record.jsonl"] * (len(found) > most)
