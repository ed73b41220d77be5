"""lightning-icl study: many trials, one table, figures, verdicts and a report."""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lightning_icl.callbacks.analysis import check_at_least
from lightning_icl.commands.run import check_fit
from lightning_icl.functional.errors import InputError
from lightning_icl.record.configs import config_values
from lightning_icl.record.journal import is_finished
from lightning_icl.record.rows import Row
from lightning_icl.shipped_configs import SHIPPED, config_file
from lightning_icl.studies.claims import Claim, judge
from lightning_icl.studies.figures import StudyFigure, write_figures
from lightning_icl.studies.gather import Trial, damage, joined, read_table, read_trial, table_of, write_table
from lightning_icl.studies.names import error_text
from lightning_icl.studies.plan import (
    Cluster,
    Job,
    Plan,
    Resources,
    Scale,
    flag_value,
    idle_gpus,
    keeping_configs,
    p_probing_resources,
    plan,
)
from lightning_icl.studies.report import StudyPage, write_report
from lightning_icl.studies.slurm import slurm_scripts
from lightning_icl.studies.table import MISSING, config_columns
from lightning_icl.studies.worker import USAGE_ERROR, failure, known, tell

VERSIONS = ("torch", "lightning", "ray")


def study(
    name: str,
    scales: dict[str, Scale],
    about: str = "",
    figures: list[StudyFigure] | None = None,
    claims: list[Claim] | None = None,
    scale: str | None = None,
    seeds: list[int] | None = None,
    retries: int = 1,
    output: str | None = None,
    address: str | None = None,
    dry_run: bool = False,
    format: Literal["commands", "slurm"] = "commands",
    figures_only: bool = False,
) -> None:
    """Run a study: many trials from one YAML file, then one table of all their results, figures, verdicts, a report.

    Each trial is an ordinary ``lightning-icl fit`` in a folder of its own. Killed or stopped, and started again, a
    study goes on: finished trials are not repeated, unfinished ones go on from their last checkpoint, failed ones are
    tried again. Writes trials/, results.parquet and .csv, figures/ and report.html.

    Args:
        name: what to call it.
        scales: its sizes by name, each with base configs, overrides, grids, trials, seeds and resources.
        about: what it asks, for the report.
        figures: the figures to draw.
        claims: the claims to judge.
        scale: which of the scales; the first unless told.
        seeds: seeds instead of the scale's.
        retries: how often a crashed trial is tried again.
        output: its folder; studies/NAME-SCALE unless told.
        address: of a Ray cluster to join, such as auto, whose machines all see this folder; else this machine.
        dry_run: only list the trials, as commands.
        format: slurm writes job-array scripts of the commands into the study's folder instead of running them.
        figures_only: run nothing; write table, figures and report of the trials that are finished.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"name is {name!r}, but a study's name is made of letters, digits, _, - and dots.")
    chosen, size = _scale(scales, scale, seeds)
    folder = Path(output or Path("studies", f"{name}-{chosen}"))
    check_at_least(0, retries=retries)
    planned = plan(size, folder)
    if dry_run:
        _list(planned, size)
        return
    refused = {}
    if not figures_only:
        refused = _refused(planned.trials, size.get("resources", {})) | _of_older_versions(planned.trials)
    planned = plan(keeping_configs(size, folder), folder)
    if not figures_only:
        _tell_refused(refused, folder / "logs")
        ready = planned._replace(trials=[job for job in planned.trials if job.name not in refused])
        if format == "slurm":
            _write_slurm(name, ready, size, folder)
            return
        _run(ready, size, folder, Cluster(address, retries))
    table, damaged = _table(planned, folder)
    trials = _trials(planned, folder, damaged)
    judged = judge(claims or [], with_missing(table, planned.trials), size.get("judged_where") or {})
    page = StudyPage(
        name=name,
        about=about,
        findings=judged,
        trials=trials,
        figures=write_figures(figures or [], table, folder / "figures"),
        table=table,
        settings={"scale": chosen, **size},
        versions={"lightning-icl": code_version()}
        | {package: _version(package) for package in VERSIONS}
        | {"python": platform.python_version()},
        command=_typed(),
    )
    report = write_report(page, folder)
    for finding in (f for f in judged if f.setting is None):
        print(f"{finding.verdict:<9}  {finding.statement.rstrip('.')}: {finding.number()}")
    failed, hurt = trials[trials["status"] == "failed"], trials[trials["damage"].notna()]
    for word, told, column in (("FAILED", failed, "error"), ("DAMAGED", hurt, "damage")):
        for trial, said in zip(told["trial"], told[column], strict=True):
            print(f"{word:<9}  {trial}: {said}")
    if left := int(trials["status"].isin(["not run", "not finished"]).sum()):
        print(f"{left} of {len(trials)} are not finished; the same command goes on with them.")
    planned_for = {job.folder for job in planned.jobs}
    others = [path for path in (folder / "trials").glob("*") if path not in planned_for and is_finished(path)]
    if others:
        print(
            f"{len(others)} finished trials of {folder} are left out: they are of other seeds or settings than these."
        )
    print(f"\nreport: {report}\ntable: {folder / 'results.parquet'} and results.csv, {len(table)} rows")
    if len(failed):
        sys.exit(1)


def _scale(scales: dict[str, Scale], name: str | None, seeds: list[int] | None) -> tuple[str, Scale]:
    if not scales:
        raise InputError("scales is {}, but a study needs at least one, such as {quick: {base: [...], seeds: [1]}}.")
    name = name or next(iter(scales))
    if name not in scales:
        raise InputError(f"scale is {name}, but this study has {', '.join(scales)}.")
    size = scales[name].copy()
    if seeds is not None:
        size["seeds"] = seeds
    return name, size


def _list(planned: Plan, size: Scale) -> None:
    for job in planned.jobs:
        print(shlex.join(["lightning-icl", *job.command]))
    hours = f", about {size['gpu_hours']:g} GPU hours by estimate" if "gpu_hours" in size else ""
    print(f"\n{len(planned.trials)} trials and {len(planned.p_probings)} P-probings{hours}.", file=sys.stderr)


def _write_slurm(name: str, planned: Plan, size: Scale, folder: Path) -> None:
    (folder / "logs").mkdir(parents=True, exist_ok=True)  # SLURM does not start a job whose log has no folder
    scripts = slurm_scripts(name, planned, size, folder)
    for file, script in scripts.items():
        (folder / file).write_text(script)
    if not scripts:
        print(f"nothing of {folder} is left to run; use --figures_only.")
        return
    submit, *later = (shlex.quote(str(folder / file)) for file in scripts)
    print(f"job=$(sbatch --parsable {submit})")
    for file in later:
        print(f"sbatch --dependency=afterany:$job {file}")
    print("and when they are done, this command with --figures_only instead of --format slurm.")


def _refused(trials: Sequence[Job], resources: Resources) -> dict[str, str]:
    """The trials whose options cannot work, with the sentence; a study none of whose trials can work does not start.

    Raises InputError also for two trials that come to the same, since seeds are the replications.
    """
    found: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for job in trials:
        varied = json.dumps(job.overrides)
        if varied in found:  # by another seed
            continue
        try:
            options = check_fit(_resolved(job.command[1:]))
            found[varied] = idle_gpus(resources, options["trainer"])
        except Exception as error:  # a user's class may raise anything
            found[varied] = error_text(error)
            continue
        config = json.dumps(options | {"run_folder": None}, sort_keys=True, default=str)
        if first.setdefault(config, job.name) != job.name:
            raise InputError(f"{first[config]} and {job.name} are the same trial; leave one out of grids or trials.")
    if None not in found.values():
        raise InputError(next(filter(None, found.values())))
    return {job.name: sentence for job in trials if (sentence := found[json.dumps(job.overrides)])}


def _resolved(arguments: Sequence[str]) -> list[str]:
    """The arguments with the files that they name as configs."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [str(config_file(part)) if before == "--config" else part for before, part in pairs]


def _tell_refused(refused: Mapping[str, str], logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for trial, sentence in refused.items():
        print(f"will not run {trial}: {sentence}", file=sys.stderr)
        tell(logs / f"{trial}.txt", {"attempts": 0, "ended": True, "error": sentence})


def _run(planned: Plan, size: Scale, folder: Path, cluster: Cluster) -> None:
    from lightning_icl.studies.engine import run_jobs  # which needs Ray; what else this command does, does not

    run_jobs(planned.trials, folder, size.get("resources", {}), cluster)
    finished = {str(job.folder / "checkpoints" / "last.ckpt") for job in planned.trials if job.is_finished()}
    ready = [job for job in planned.p_probings if set(json.loads(job.command[2])) <= finished]
    run_jobs(ready, folder, p_probing_resources(size), cluster, "P-probing")


def _of_older_versions(trials: Sequence[Job]) -> dict[str, str]:
    """The trials whose folders hold another form of results, which a fit that goes on there would leave behind."""
    old = [job for job in trials if (job.folder / "results.json").is_file()]
    return {job.name: said for job in old if (said := damage(job.folder))}


def _table(planned: Plan, folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The results of all finished trials, with what is wrong with the records of some.

    Of those whose folders are gone or cannot be read it is what the last table had of them.
    """
    trials, damaged = [], {job.name: said for job in planned.jobs if (said := damage(job.folder))}
    for job in filter(Job.is_finished, planned.jobs):
        try:
            trials.append(read_trial(job.folder))
        except Exception as error:  # whatever is wrong with one run, the others stand
            damaged[job.name] = error_text(error)
    tables = [table_of(trials)] if trials else []
    if (folder / "results.parquet").exists():
        known_before = read_table(folder)
        elsewhere = {job.name for job in planned.jobs} - {trial.name for trial in trials}
        tables.append(known_before[known_before["trial"].isin(elsewhere)])
    tables = [table for table in tables if len(table)]
    if not tables:
        raise InputError(
            f"no trial of {folder} has finished, so there is nothing to show; see {folder / 'logs'}."
            + "".join(f" {name}: {said}." for name, said in damaged.items())
        )
    return write_table(_with_overrides(joined(tables), planned), folder), damaged


def _with_overrides(table: pd.DataFrame, planned: Plan) -> pd.DataFrame:
    """The table with a column also for each override that is no column of every table, such as trainer.callbacks."""
    for key in sorted({key for job in planned.trials for key in job.overrides} - set(table.columns)):
        values = {job.name: flag_value(job.overrides[key]) for job in planned.jobs if key in job.overrides}
        table[key] = pd.array(table["trial"].map(values), dtype="str")
    return table


def with_missing(table: pd.DataFrame, trials: Sequence[Job]) -> pd.DataFrame:
    """The table with a row, without a number, of each trial that is not in it, so that claims know of its seed.

    Its config is that of a trial which differs in its seed alone or, where every seed of it failed, what its command
    says. A trial whose command says nothing, as its options cannot work, has no row.
    """
    configs = table.drop_duplicates("trial").set_index("trial")[config_columns(table)].astype(object)
    known_configs = configs.where(configs.notna(), None).to_dict("index")
    alike = {json.dumps(job.overrides): known_configs[job.name] for job in trials if job.name in known_configs}
    missing = []
    for job in trials:
        varied = json.dumps(job.overrides)
        if job.name in known_configs:
            continue
        if varied not in alike:
            alike[varied] = _told_config(job, configs.columns)
        if alike[varied]:
            missing.append(Trial(job.name, job.seed, alike[varied], [(0, Row(MISSING, math.nan))]))
    return joined([table, table_of(missing)]) if missing else table


def _told_config(job: Job, columns: Collection[str]) -> dict[str, Any]:
    """The columns of a trial that never finished: what its command says; nothing where that cannot work."""
    try:
        told = check_fit(_resolved(job.command[1:]))
        plain = json.dumps(told, default=lambda value: dict(value) if isinstance(value, Mapping) else str(value))
        options = config_values(json.loads(plain))  # as a run's config has them
    except Exception:  # a user's class may raise anything, and was named with it before
        return {}
    overrides = {key: flag_value(value) for key, value in job.overrides.items()}
    # Without what the parser derives, such as model.n_dims, which a run's config does not have.
    return {key: options.get(key, overrides.get(key)) for key in {*columns, *overrides}}


def _trials(planned: Plan, folder: Path, damaged: Mapping[str, str]) -> pd.DataFrame:
    """What became of each job: its status, how it failed, what is damaged, how long it took, its folder and command."""
    rows = []
    for job in planned.jobs:
        status, error, seconds = _became(job, folder / "logs" / f"{job.name}.txt")
        command = shlex.join(["lightning-icl", *job.command])
        rows.append((job.name, status, error, damaged.get(job.name), seconds, str(job.folder), command))
    columns = ["trial", "status", "error", "damage", "seconds", "folder", "command"]
    trials = pd.DataFrame(rows, columns=columns)
    trials.to_csv(folder / "trials.csv", index=False)
    return trials


def _became(job: Job, log: Path) -> tuple[str, str | None, float | None]:
    """A job's status, error and seconds: from what the engine wrote or, of another scheduler's, from its log."""
    told = known(log)
    if job.is_finished():
        return "done", None, told.get("seconds")
    if told.get("error"):
        return "failed", told["error"], told.get("seconds")
    said = log.read_text(errors="replace") if log.exists() else ""
    if not told and re.search(r"^(lightning-icl: |Traceback \(most recent)", said, flags=re.MULTILINE):
        return "failed", failure(said, USAGE_ERROR), None
    return "not finished" if told or said else "not run", None, told.get("seconds")


def _typed() -> str:
    """The command that makes the report again, as a person would type it."""
    args = [arg.replace(f"{SHIPPED}{os.sep}", f"configs{os.sep}") for arg in sys.argv[1:] if arg != "--figures_only"]
    return shlex.join(["lightning-icl", *args])


def code_version() -> str:
    """The version of this code and, of a checkout, its commit."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Not the commit of a user's own repository that an environment lies in.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        named = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        commit = subprocess.run(named, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return _version("lightning-icl")
    return f"{_version('lightning-icl')}, git {commit}".replace("-dirty", " with changes that are not committed")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
