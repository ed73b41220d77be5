"""What a study runs: its trials, as the commands one would type."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Required, TypedDict

import yaml  # type: ignore[import-untyped]

from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.record.journal import is_finished
from lightning_icl.shipped_configs import config_file, shipped_names

NAME_LENGTH = 120  # of a folder; most file systems allow 255


# TypedDicts, because jsonargparse drops a misspelt key of a dataclass inside a dict in silence.
class Resources(TypedDict, total=False):
    """What one trial is given: CPU cores, and GPUs, of which a fraction means that several trials share one."""

    cpu: float
    gpu: float


class PProbingPlan(TypedDict, total=False):
    """Options of ``lightning-icl p_probe``, run once a seed and setting on the models with as many heads in each layer.

    ``where`` holds overrides that the models must have been trained with.
    """

    steps: int
    seeds: int
    depths: int
    prompts: int
    where: dict[str, Any]


class Scale(TypedDict, total=False):
    """One size of a study.

    ``base``: config files, merged in order. ``overrides``: dotted keys as on the command line, for every trial.
    ``grids``: products of lists of overrides; ``trials``: single overrides. Each trial runs once for each of ``seeds``.
    ``gpu_hours``: an estimate of what it takes.
    """

    base: Required[list[str]]
    seeds: Required[list[int]]
    overrides: NotRequired[dict[str, Any]]
    grids: NotRequired[list[dict[str, list[Any]]]]
    trials: NotRequired[list[dict[str, Any]]]
    resources: NotRequired[Resources]
    p_probing: NotRequired[PProbingPlan]
    gpu_hours: NotRequired[float]


class Cluster(NamedTuple):
    """Where jobs run: on a Ray cluster's ``address`` or, without one, on this machine; and how often one is retried."""

    address: str | None = None
    retries: int = 1


class Job(NamedTuple):
    """One command of a study.

    ``command`` is what follows ``lightning-icl``; ``folder`` what it leaves behind; ``overrides`` what was varied.
    A "fit" job leaves a run's folder, a "p_probe" job the folder of lightning-icl p_probe.
    """

    name: str
    kind: str
    folder: Path
    command: list[str]
    overrides: dict[str, Any]
    seed: int

    def is_finished(self) -> bool:
        """Whether it came to its end, as its own record tells."""
        return is_finished(self.folder)


class Plan(NamedTuple):
    """The jobs of a study: ``trials`` first, then ``p_probings``, which take the trials' checkpoints."""

    trials: list[Job]
    p_probings: list[Job]

    @property
    def jobs(self) -> list[Job]:
        return [*self.trials, *self.p_probings]


def plan(scale: Scale, folder: Path) -> Plan:
    """The jobs of a study in its folder, each once."""
    common = dict(scale.get("overrides", {}))
    seeds = scale["seeds"]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds is {seeds}, but it must list each seed once, such as [1, 2, 3].")
    contents = [_config(name) for name in scale["base"]]
    trials: dict[str, Job] = {}
    for varied, seed in itertools.product(variations(scale), seeds):
        # In one order, so that the same trial has the same name; a class comes before its options in it.
        overrides = dict(sorted((common | varied).items()))
        name = _job_name(varied, seed, [contents, list(overrides.items())])
        job = _fit(name, scale["base"], overrides, varied, seed, folder)
        trials.setdefault(job.name, job)
    return Plan(list(trials.values()), list(_p_probings(scale, list(trials.values()), folder)))


def keeping_configs(scale: Scale, folder: Path) -> Scale:
    """The same with its base configs copied into the study's folder: what is edited later is not for this study."""
    kept = folder / "configs"
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output is {folder}, but a study's files cannot be written there: {error}.") from error
    copies = []
    for name in scale["base"]:
        text = config_text(name)
        copies.append(kept / f"{Path(name).stem}_{_digest(text)}.yaml")
        copies[-1].write_text(text)
    scale = scale.copy()
    scale["base"] = [str(copy) for copy in copies]
    return scale


def variations(scale: Scale) -> list[dict[str, Any]]:
    """The overrides of each trial: the single ones and every combination of a grid, or one trial without any."""
    found = []
    for grid in scale.get("grids", []):
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"grids: {key} is {values!r}, but it must be a list of values, such as [{values!r}].")
        found += [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    found += [dict(trial) for trial in scale.get("trials", [])]
    for trial in found:
        if "seed_everything" in trial:
            raise InputError("seed_everything is among the overrides, but a study's seeds are listed in seeds.")
        if not all(isinstance(key, str) for key in trial):
            raise InputError(f"{trial} is not a set of overrides: its keys must be options, such as model.heads.")
    return found or [{}]


def config_text(name: str) -> str:
    """The text of a file that a study's ``base`` names."""
    path = config_file(name)
    if path is None:
        raise InputError(f"base has {name}, but there is no such file; {did_you_mean(name, shipped_names())}")
    return path.read_text()


def _config(name: str) -> Any:
    """What a base config says, comments apart."""
    try:
        return yaml.safe_load(config_text(name))
    except yaml.YAMLError as error:
        raise InputError(f"base has {name}, which is not valid YAML: {' '.join(str(error).split())}.") from error


def flag_value(value: Any) -> str:
    """The value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _fit(
    name: str, base: Sequence[str], overrides: Mapping[str, Any], varied: Mapping[str, Any], seed: int, folder: Path
) -> Job:
    command = ["fit", *(part for file in base for part in ("--config", file))]
    command += [f"--{key}={flag_value(value)}" for key, value in overrides.items()]
    where = folder / "trials" / name
    command += [f"--seed_everything={seed}", "--run_folder", str(where), "--ckpt_path", "last"]
    if "figures.when" not in overrides:
        command += ["--figures.when", "never"]
    return Job(name, "fit", where, command, dict(varied), seed)


def _job_name(varied: Mapping[str, Any], seed: int, depends_on: list[Any]) -> str:
    """What was varied, in words, and a hash of all that the job depends on, so that no other is taken for it."""
    told = "_".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in sorted(varied.items()))
    return "_".join(filter(None, [told[:NAME_LENGTH], f"seed={seed}", _digest([*depends_on, seed])]))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:8]


def _short(value: Any) -> str:
    """[8, 1, 1] -> 8-1-1: what a folder's name can hold."""
    parts = value if isinstance(value, list) else [value]
    return "-".join(re.sub(r"[^\w.+-]+", "-", flag_value(part)).strip("-") for part in parts)


def _p_probings(scale: Scale, trials: Sequence[Job], folder: Path) -> Iterator[Job]:
    """One job for each seed and setting that has models of several head counts, each with as many in every layer."""
    options = dict(scale.get("p_probing", {}))
    if "p_probing" not in scale:
        return
    where = options.pop("where", {})
    assert isinstance(where, dict)
    common = scale.get("overrides", {})
    groups: dict[str, list[Job]] = {}
    for trial in trials:
        heads = trial.overrides.get("model.heads")
        if isinstance(heads, list) and len(set(heads)) == 1 and where.items() <= (common | trial.overrides).items():
            others = {key: value for key, value in trial.overrides.items() if key != "model.heads"}
            groups.setdefault(json.dumps([len(heads), others, trial.seed]), []).append(trial)
    compared = [models for models in groups.values() if len(models) > 1]
    if not compared:
        raise InputError(
            "p_probing has nothing to compare: it needs trials that differ in model.heads alone, each with as many in "
            f"every layer, trained with where, {where}."
        )
    yield from (_p_probe(models, options, folder) for models in compared)


def _p_probe(models: Sequence[Job], options: Mapping[str, Any], folder: Path) -> Job:
    depth = len(models[0].overrides["model.heads"])
    varied = {"depth": depth} | {k: v for k, v in models[0].overrides.items() if k != "model.heads"}
    names = [str(model.overrides["model.heads"][0]) for model in models]
    checkpoints = [str(model.folder / "checkpoints" / "last.ckpt") for model in models]
    depends_on = {"models": [model.name for model in models], **options}
    name = _job_name(varied, models[0].seed, [[], list(depends_on.items())])
    where = folder / "p_probing" / name
    command = ["p_probe", "--ckpt_paths", json.dumps(checkpoints), "--names", json.dumps(names)]
    command += [f"--{key}={flag_value(value)}" for key, value in options.items()]
    command += [f"--seed={models[0].seed}", "--output", str(where)]
    return Job(name, "p_probe", where, command, varied, models[0].seed)
