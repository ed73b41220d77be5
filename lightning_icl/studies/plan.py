"""What a study runs: its trials, as the commands one would type."""

import hashlib
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Required, TypedDict

import yaml  # type: ignore[import-untyped]

from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.record.journal import is_finished
from lightning_icl.shipped_configs import config_file, shipped_names

NAME_LENGTH = 120  # of a folder; most file systems allow 255


# TypedDicts, because jsonargparse drops a misspelt key of a dataclass inside a dict in silence.
class Resources(TypedDict, total=False):
    """What one trial is given.

    Attributes:
        cpu: CPU cores.
        gpu: GPUs; a fraction means that several trials share one.
    """

    cpu: float
    gpu: float


class PProbingPlan(TypedDict, total=False):
    """Options of ``lightning-icl p_probe``, run once a seed and setting on the models with as many heads in each layer.

    Attributes:
        steps: training steps of each optimiser.
        seeds: how many of each are trained.
        depths: the largest number of layers and of gradient steps.
        prompts: how many to score on.
        accelerator: cpu, gpu or auto.
        where: overrides that the models must have been trained with.
        resources: what each run is given; what a trial is given, unless told.
    """

    steps: int
    seeds: int
    depths: int
    prompts: int
    accelerator: str
    where: dict[str, Any]
    resources: Resources


class Scale(TypedDict, total=False):
    """One size of a study. Each trial runs once for each seed.

    Attributes:
        base: config files, merged in order.
        seeds: the seeds of every trial.
        overrides: dotted keys as on the command line, for every trial.
        grids: products of lists of overrides.
        trials: single overrides.
        resources: what one trial is given.
        p_probing: options of P-probing, where the study has it.
        judged_where: overrides of the trials that the verdicts over all settings are of; those of further arms, such
            as another optimizer, are judged setting by setting only.
        gpu_hours: an estimate of what it takes.
    """

    base: Required[list[str]]
    seeds: Required[list[int]]
    overrides: NotRequired[dict[str, Any]]
    grids: NotRequired[list[dict[str, list[Any]]]]
    trials: NotRequired[list[dict[str, Any]]]
    resources: NotRequired[Resources]
    p_probing: NotRequired[PProbingPlan]
    judged_where: NotRequired[dict[str, Any]]
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
    seeds = scale["seeds"]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds is {seeds}, but it must list each seed once, such as [1, 2, 3].")
    contents = [_config(name) for name in scale["base"]]
    configs = [part for file in scale["base"] for part in ("--config", file)]
    trials: dict[str, Job] = {}
    for varied, seed in itertools.product(variations(scale), seeds):
        # In one order, so that the same trial has the same name; a class comes before its options in it.
        overrides = dict(sorted((scale.get("overrides", {}) | varied).items()))
        name = _job_name(varied, [contents, list(overrides.items())], seed)
        where = folder / "trials" / name
        command = ["fit", *configs, *_flags(overrides), f"--seed_everything={seed}"]
        command += ["--run_folder", str(where), "--ckpt_path", "last"]
        if "figures.when" not in overrides:
            command += ["--figures.when", "never"]
        trials.setdefault(name, Job(name, "fit", where, command, varied, seed))
    judged, common = scale.get("judged_where") or {}, scale.get("overrides", {})
    if "model.heads" in judged:
        raise InputError("judged_where has model.heads, but the claims compare heads; name what parts settings.")
    if not any(judged.items() <= (common | trial.overrides).items() for trial in trials.values()):
        raise InputError(f"judged_where is {judged}, but no trial has that among its overrides (grids, trials).")
    return Plan(list(trials.values()), _p_probings(scale, list(trials.values()), folder))


def _p_probings(scale: Scale, trials: Sequence[Job], folder: Path) -> list[Job]:
    """One job for each seed and setting that has models of several head counts, each with as many in every layer."""
    if "p_probing" not in scale:
        return []
    where, common = scale["p_probing"].get("where", {}), scale.get("overrides", {})
    options = {key: value for key, value in scale["p_probing"].items() if key not in ("where", "resources")}
    groups = defaultdict(list)
    for trial in trials:
        heads = trial.overrides.get("model.heads")
        if isinstance(heads, list) and len(set(heads)) == 1 and where.items() <= (common | trial.overrides).items():
            setting = {"depth": len(heads)} | {k: v for k, v in trial.overrides.items() if k != "model.heads"}
            groups[json.dumps([setting, trial.seed])].append(trial)
    jobs = []
    for group, models in groups.items():
        if len(models) == 1:
            continue
        setting, seed = json.loads(group)
        name = _job_name(setting, [[], [("models", [model.name for model in models]), *options.items()]], seed)
        output = folder / "p_probing" / name
        checkpoints = [str(model.folder / "checkpoints" / "last.ckpt") for model in models]
        names = [str(model.overrides["model.heads"][0]) for model in models]
        command = ["p_probe", "--ckpt_paths", json.dumps(checkpoints), "--names", json.dumps(names)]
        command += [*_flags(options), f"--seed={seed}", "--output", str(output)]
        jobs.append(Job(name, "p_probe", output, command, setting, seed))
    if not jobs:
        raise InputError(
            "p_probing has nothing to compare: it needs trials that differ in model.heads alone, each with as many in "
            f"every layer, trained with where, {where}."
        )
    return jobs


def p_probing_resources(scale: Scale) -> Resources:
    """What each P-probing is given: its own, or what a trial is given, without the GPUs where it uses none."""
    asked, of_trials = scale.get("p_probing", {}), scale.get("resources", {})
    if asked.get("accelerator") == "cpu":
        of_trials = {**of_trials, "gpu": 0}
    return asked.get("resources", of_trials)


def idle_gpus(resources: Resources, trainer: Mapping[str, Any]) -> str | None:
    """What is wrong where a trial is given several GPUs and its trainer takes another number of them, in a sentence."""
    given, devices = math.ceil(resources.get("gpu", 0)), trainer["devices"]
    taken = len(devices) if isinstance(devices, list) else devices
    if given < 2 or (trainer["accelerator"] != "cpu" and str(taken) in ("auto", "-1", str(given))):
        return None
    return (
        f"resources give a trial {given} GPUs, but its trainer.devices is {devices} and trainer.accelerator "
        f"{trainer['accelerator']}; let it take them all, by devices {given} or auto, or give it fewer."
    )


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
        copies.append(str(kept / f"{Path(name).stem}_{_digest(text)}.yaml"))
        Path(copies[-1]).write_text(text)
    return {**scale, "base": copies}


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


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={flag_value(value)}" for key, value in options.items()]


def _job_name(varied: Mapping[str, Any], depends_on: list[Any], seed: int) -> str:
    """What was varied, in words, and a hash of all that the job depends on, so that no other is taken for it."""
    told = []
    for key, value in sorted(varied.items()):
        parts = value if isinstance(value, list) else [value]  # [8, 1, 1] -> 8-1-1: what a folder's name can hold
        short = "-".join(re.sub(r"[^\w.+-]+", "-", flag_value(part)).strip("-") for part in parts)
        told.append(f"{key.rpartition('.')[2]}={short}")
    return "_".join(filter(None, ["_".join(told)[:NAME_LENGTH], f"seed={seed}", _digest([*depends_on, seed])]))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:8]
