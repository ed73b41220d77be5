"""A run's folder, read again."""

import pydoc
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml  # type: ignore[import-untyped]

from lightning_icl.checkpoint import newest, read
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import Law
from lightning_icl.module import ICLModule
from lightning_icl.network import InContextNetwork
from lightning_icl.record import journal
from lightning_icl.record.context import fingerprint
from lightning_icl.record.rows import Measurement, Row, frame

LEADING = ("analysis", "command", "step", "seed", "context")
# PyYAML's parser in C, where it was built with it: reading configs is most of a study's gathering.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class LoadedRun:
    """What a run left behind; what takes time is made when it is first asked for.

    Attributes:
        folder: where it lies.
        config: its config.yaml; task, data and model are made from it and from the last checkpoint.
        measurements: all that was measured and holds, in order (what a resume took back is left out).
        events: how the run started, was resumed and ended.
        damaged: the numbers of the lines of record.jsonl that could not be read.
    """

    def __init__(self, folder: str | Path, weights_only: bool = True) -> None:
        self.folder, self._weights_only = Path(folder), weights_only
        self.measurements, self.events, self.damaged = read_record(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a number: the columns analysis, command, step, seed and context, and those of Row.

        Rows are of one series only where their ``context`` is equal; ``contexts`` has it in full.
        """
        return measured_table(self.measurements)

    @property
    def contexts(self) -> dict[str, dict[str, Any]]:
        return {fingerprint(found.context): dict(found.context) for found in self.measurements}

    @cached_property
    def data(self) -> PromptDataModule:
        return PromptDataModule(**{"seed": self.config.get("seed_everything", 0), **_made(self.config["data"])})

    @property
    def task(self) -> Law:
        return self.data.task

    @cached_property
    def module(self) -> ICLModule:
        """The module of the newest checkpoint, on the CPU."""
        path = newest(self.folder / "checkpoints", self._weights_only)
        if path is None:
            raise InputError(f"{self.folder} has no checkpoints/last.ckpt to take the model from.")
        return loaded_module(path, weights_only=self._weights_only)

    @property
    def model(self) -> InContextNetwork:
        return self.module.network


def load_run(folder: str | Path, weights_only: bool = True) -> LoadedRun:
    """A run's config, task, model and table, from its folder; raises InputError where that is none.

    ``weights_only=False`` takes the model from checkpoints that bring code, and runs it.

    Example:
        >>> from lightning_icl import load_run
        >>> run = load_run("lightning_logs/quickstart")
        >>> [*run.table.columns][:7]  # a row a number
        ['analysis', 'command', 'step', 'seed', 'context', 'metric', 'value']
        >>> len(run.table[run.table.metric == "val/excess_risk/transformer"]) > 0
        True
        >>> run.model.on_prompt(run.data.held_out("a name", 16)).prediction.shape[0]
        16
    """
    return LoadedRun(folder, weights_only)


def load_model(path: str | Path, data: PromptDataModule, said: str) -> ICLModule:
    """The module of a checkpoint, on the CPU.

    Refuses what is none or cannot predict on the prompts of ``data``, in a sentence that begins with ``said``.
    """
    module = loaded_module(path, said)
    network, longest = module.network, data.streams[0].largest_n
    if network.n_dims != data.task.n_dims:
        raise InputError(f"{said} was trained on n_dims {network.n_dims}, but the task has {data.task.n_dims}.")
    most = getattr(network, "max_points", None)
    if most is not None and most < longest:
        raise InputError(f"{said} has positions for {most} examples, but the prompts have {longest}.")
    return module


def loaded_module(path: str | Path, said: str = "ckpt_path", weights_only: bool = True) -> ICLModule:
    """The module of a checkpoint, on the CPU, ready to predict; no random number is drawn."""
    checkpoint = read(path, said, weights_only)
    options = {name: value for name, value in checkpoint["hyper_parameters"].items() if name != "_instantiator"}
    try:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn before they are loaded
            module = ICLModule(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{said} is {path}, but its hyper_parameters are of no model: {error}") from error
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def read_record(folder: Path) -> tuple[list[Measurement], list[dict[str, Any]], list[int]]:
    """The measurements that hold, the events, and the numbers of damaged lines of RUN/record.jsonl.

    Where an analysis was made twice at one step on the same, the later one holds.
    """
    path = folder / journal.NAME
    if not path.is_file():
        old = folder / "results.json"
        if old.is_file():
            raise InputError(
                f"{folder} has a results.json of an older version and no {journal.NAME}: measure its checkpoint anew "
                "with lightning-icl validate."
            )
        raise InputError(f"{folder} has no {journal.NAME}, so it is not the folder of a run.")
    lines, damaged = journal.read(path)
    holding = journal.in_force(lines)
    found = [_measurement(line) for line in holding if "rows" in line]
    latest = {(m.analysis, m.step, m.context["command"], fingerprint(m.context)): m for m in found}
    return list(latest.values()), [line for line in holding if "event" in line], damaged


def read_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run's folder."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} has no config.yaml.")
    try:
        config = yaml.load(path.read_text(), Loader=LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    match config:
        case {"model": {"heads": list()} | {"network": dict()}, "data": {"task": _}}:
            return config
    raise InputError(f"{path} is not the config of a run: it needs model.heads or model.network, and data.task.")


def measured_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """The rows of all measurements beside what they were measured at."""
    leading = [
        (m.analysis, m.context["command"], m.step, m.context["seed"], fingerprint(m.context))
        for m in measurements
        for _ in m.rows
    ]
    rows = frame(row for m in measurements for row in m.rows)
    return pd.concat([pd.DataFrame(leading, columns=list(LEADING)), rows], axis=1)


def line_of(measurement: Measurement) -> dict[str, Any]:
    """The measurement as a line of the record; what is missing at the end of a row is left out."""
    rows = [list(row) for row in measurement.rows]
    for row in rows:
        while row[-1] is None and len(row) > 2:
            row.pop()
    return {**measurement._asdict(), "rows": rows}


def _measurement(line: dict[str, Any]) -> Measurement:
    rows = [Row(*row) for row in line["rows"]]
    return Measurement(line["analysis"], line["step"], line["context"], rows, line.get("arrays", {}))


def _made(value: Any) -> Any:
    """The objects that a config describes by class_path and init_args."""
    match value:
        case {"class_path": str(path)}:
            found = pydoc.locate(path)
            if not isinstance(found, type):
                raise InputError(f"config.yaml names {path}, but there is no such class here; is its file on the path?")
            return found(**_made(value.get("init_args") or {}), **_made(value.get("dict_kwargs") or {}))
        case dict():
            return {key: _made(item) for key, item in value.items()}
        case list():
            return [_made(item) for item in value]
    return value
