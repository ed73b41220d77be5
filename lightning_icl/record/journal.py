"""A file of lines that is only ever appended to, so that a kill, a full disk or a damaged byte costs one line.

Each line is a JSON object whose last entry, "crc", is the CRC-32 of the line's text before it. What does not check is
passed over and named by its line number. The standard library alone: studies/worker.py loads this file by its path.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

NAME = "record.jsonl"
SEAL = ', "crc": '


class Journal(NamedTuple):
    """The whole lines of a file in order, and the numbers (from 1) of those that are damaged or cut off."""

    lines: list[dict[str, Any]]
    damaged: list[int]


def append(path: Path, line: dict[str, Any]) -> None:
    """Write one line at the end, in one piece and down to the disk; raises OSError where that cannot be."""
    body = json.dumps(line, allow_nan=False)[:-1]
    text = f"{body}{SEAL}{zlib.crc32(body.encode())}}}\n"
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            text = "\n" + text  # a line that was cut off stays one of its own
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Journal:
    """What is there; nothing where there is no file."""
    found = Journal([], [])
    if not path.is_file():
        return found
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        text = raw.decode(errors="replace")
        body, seal, crc = text.rpartition(SEAL)
        if seal and crc == f"{zlib.crc32(body.encode())}}}":
            found.lines.append(json.loads(body + "}"))
        elif text:
            found.damaged.append(number)
    return found


def in_force(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without those that a resume has taken back.

    {"event": "resumed", "kept_to": s} voids what the fit had measured after step s, and that it had finished.
    """
    kept: list[dict[str, Any]] = []
    for line in lines:
        if line.get("event") == "resumed":
            kept = [k for k in kept if not _taken_back(k, line["kept_to"])]
        kept.append(line)
    return kept


def _taken_back(line: dict[str, Any], kept_to: int) -> bool:
    if "event" in line:
        return line["event"] in ("finished", "stopped")
    return line["context"]["command"] == "fit" and line["step"] > kept_to


def is_finished(folder: Path) -> bool:
    """Whether the fit of a run's folder came to its end, and was not gone on with since."""
    return any(line.get("event") == "finished" for line in in_force(read(folder / NAME).lines))
