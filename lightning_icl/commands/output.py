"""Where a command that measures without a trainer leaves what it found: a new folder with a record."""

import itertools
import sys
from importlib.metadata import version
from pathlib import Path

from lightning_icl.functional.errors import InputError
from lightning_icl.record import journal
from lightning_icl.record.loading import line_of
from lightning_icl.record.rows import Measurement, plain


def new_folder(output: str | None, name: str) -> Path:
    """The folder asked for, which must not exist, or the first of NAME, NAME_2 and so on that is free here."""
    if output is not None:
        if Path(output).exists():
            raise InputError(f"output is {output}, but that exists already; name a folder that does not.")
        return Path(output)
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(Path(name) for name in names if not Path(name).exists())


def record_alone(folder: Path, measurement: Measurement) -> None:
    """The record of a run that made one measurement; to be written last, so that where it is, all is."""
    record = folder / journal.NAME
    started = {"event": "started", "lightning_icl": version("lightning-icl"), "command": measurement.context["command"]}
    journal.append(record, started | {"argv": sys.argv[1:]})
    journal.append(record, plain(line_of(measurement)))
    journal.append(record, {"event": "finished", "steps": measurement.step, "by": "max_steps"})
