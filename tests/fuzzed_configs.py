"""Configs that are wrong in one place, made from the classes' own signatures, and what the command line makes of each.

    python tests/fuzzed_configs.py --seed 1 --n 700

Every option of the command line and of each class that a config may name is given in turn each of VALUES, and every
mapping a key that it does not know. Options are not listed here: a new one is walked like the rest. Which n of all
these are tried follows from the seed; they are spread evenly over options, and over values.

A config is right where ``--dry_run true`` answers it (exit status 2; one sentence on stderr, which names the option or
the value; nothing written), or where it accepts it and the run works (status 0 after two steps and a validation).
Everything else is wrong: what is refused only when the run has begun, too. Each is tried in an empty folder by a
process of its own, forked from this one, with limits on memory and time.
"""

import argparse
import inspect
import json
import math
import os
import random
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import Callback

from lightning_icl.callbacks import FigureWriter, PredictionWriter, Recorder
from lightning_icl.cli import LightningICL, main
from lightning_icl.commands.run import _FitReader
from lightning_icl.functional.constructions import Construction
from lightning_icl.functional.pruning import PruningStrategy
from lightning_icl.functional.references import Reference
from lightning_icl.functional.tasks import Law, Spectrum
from lightning_icl.network import InContextNetwork
from lightning_icl.streams import ValidationStream
from lightning_icl.terminal import Bar, NetworkSummary, ProgressLines

VALUES: dict[str, Any] = {
    "text": "wrong",
    "true": True,
    "mapping": {"wrong": 1},
    "null": None,
    "empty text": "",
    "empty list": [],
    "empty mapping": {},
    "nan": math.nan,
    "negative": -1,
    "zero": 0,
    "1e9": 10**9,
    "1e30": 1e30,
}
UNKNOWN = "unknown_key"
STREAM = "data.validation.other"
LINEAR = {"class_path": "LinearRegression", "init_args": {"n_dims": 4}}
BASE: dict[str, Any] = {
    "data": {
        "task": {"class_path": "SparseLinearRegression", "init_args": {"n_dims": 4, "sparsity": 2, "noise_std": 0.3}},
        "n_points": 4,
        "n_queries": 2,
        "batch_size": 4,
        "eval_prompts": 8,
        "eval_batch_size": 4,
    },
    "model": {"d_model": 8, "heads": [2, 2]},
    "trainer": {"max_steps": 2, "val_check_interval": 1.0, "accelerator": "cpu", "enable_progress_bar": False},
    "figures": {"when": "never"},
}
# Examples of arguments without a default, by name.
NEEDED: dict[str, Any] = {
    **{"n_dims": 4, "sparsity": 2, "group_size": 2, "n_groups": 1, "task": LINEAR, "tasks": [LINEAR], "n_tasks": 3},
    "network": {"class_path": "GPT2", "init_args": {"d_model": 8, "heads": [2]}},
    **{"projections": "layers.*.attention.output", "heads": [2]},
    **{"values": [2.0, 1.0, 1.0, 0.5], "steps": 2, "step_size": 0.1, "gamma": 0.1, "strategies": ["PaperPruning"]},
}
# What makes a class small, by name, and what it cannot be without though each alone has a default.
SMALL: dict[str, Any] = {
    **{"n_prompts": 8, "fit_prompts": 8, "tuning_prompts": 8, "curve_prompts": 8, "n_random": 2, "finetune_steps": 1},
    "construction": {"class_path": "ConstructedGD", "init_args": {"steps": 2, "step_size": 0.1}},
    "algorithms": ["Ridge"],
}
BESIDE: dict[str, dict[str, Any]] = {"PruningSchedule": {"steps": [1]}, "Curriculum": {"dims_start": 2, "every": 1}}
PAIRED = {"PruningSchedule.validations": ["steps"]}  # options of which only one may be given
# Options of machines: a value that fits starts processes, or waits for those of others.
MACHINES = {"trainer.devices", "trainer.num_nodes"}
# What may be accepted, by value, as a person has read it; all else that is accepted is wrong. Either the documentation
# gives the value a meaning (-1 and null for no limit, a switch that is on, a free name), or a run can do what it says.
MEANT = {
    kind: "|".join(options)
    for kind, options in {
        "text": [r"trainer\.(model_registry|default_root_dir)", r"predictions\.filename|run_name"],
        "true": [
            r"dry_run|weights_only|LinearRegression\.whitened|(model|Transformer)\.(mlp|attention_bias)",
            r"checkpoint\.(save_last|save_on_exception|verbose|auto_insert_metric_name|save_on_train_epoch_end)",
            r"trainer\.(enable_autolog_hparams|enable_model_summary|logger|benchmark|deterministic|inference_mode)",
            r"trainer\.(fast_dev_run|enable_checkpointing|enable_progress_bar|sync_batchnorm)|checkpoint\.save_weights_only",
        ],
        "null": [
            r"trainer\.(callbacks|logger|plugins|profiler|benchmark|deterministic|precision|enable_model_summary)",
            r"trainer\.(max_epochs|max_time|log_every_n_steps|num_sanity_val_steps|default_root_dir)",
            r"trainer\.(limit_(val|test|predict)_batches|gradient_clip_(algorithm|val))",
            r"checkpoint\.(dirpath|train_time_interval|save_on_train_epoch_end|every_n_train_steps)",
            r"run_(folder|name)|weights|(model|Transformer|GPT2)\.(max_points|head_dim|network)",
            r"ReferenceRisk\.references|AlgorithmMatch\.algorithms|HeadPruning\.(strategies|checkpoints)",
            r"IterativeHardThresholding\.sparsity|(ISTA|Ridge)\.alpha|TopHeads\.n_heads|trainer\.val_check_interval",
            r"ConstructedPreprocessThenGD\.coordinates",
            r"PreconditionedGD\.scale|checkpoint\.(every_n_epochs|save_last|monitor)|trainer\.enable_checkpointing",
            r"LinearRegression\.spectrum",
        ],
        "empty text": [r"trainer\.model_registry"],
        "empty list": [r"trainer\.(plugins|logger)", r"ReferenceRisk\.references|HeadPruning\.strategies"],
        "empty mapping": [r"HeadPruning\.checkpoints|data\.validation"],
        "negative": [
            r"trainer\.(max_steps|min_steps|max_epochs|devices|limit_\w+|num_sanity_val_steps)|checkpoint\.save_top_k",
            r"\w+\.weight_mean|PowerLaw\.exponent|(GPT2|Transformer)\.n_dims",
        ],
        "zero": [
            r"(\w+\.(pool|representation)_|)seed(_everything)?|LinearClassification\.flip_probability|\w+\.correlation",
            r"trainer\.(limit_(val|test)_batches|min_steps|fast_dev_run|gradient_clip_val|log_every_n_steps)",
            r"trainer\.num_sanity_val_steps|checkpoint\.(every_n_train_steps|save_top_k)|model\.weight_decay",
            r"trainer\.reload_dataloaders_every_n_epochs|model\.warmup_steps",
            r"ImportanceThreshold\.threshold|PreprocessThenGD\.power|HeadPruning\.path_to",
            r"\w+\.weight_mean|PowerLaw\.exponent|IterativeHardThresholding\.steps|SparseRecovery\.design_seed",
            r"(GPT2|Transformer)\.n_dims",  # which the task's replaces
        ],
        "1e9": [
            r"trainer\.(check_val_every_n_epoch|reload_dataloaders_every_n_epochs|overfit_batches|min_steps|min_epochs)",
            r"trainer\.(limit_(val|train)_batches|num_sanity_val_steps)|checkpoint\.every_n_(epochs|train_steps)",
            r"seed_everything|\w+\.(pool_|)seed|NearestNeighbours\.k|Curriculum\.(every|points_step)",
            r"(GPT2|Transformer)\.n_dims|Transformer\.max_points|HeadPruning\.path_to",
            r"trainer\.limit_(test|predict)_batches|LinearProbe\.chunk_size|SparseRecovery\.design_seed|model\.warmup_steps",
        ],
        "1e30": [r"trainer\.limit_\w+"],
    }.items()
}

MEMORY = 3 * 2**30  # bytes that a config may take beside what is loaded already
SECONDS = 60  # of the processor; and ten times that by the clock, as a busy machine needs

Config = dict[str, Any]


class Fuzzed(NamedTuple):
    """A config that is wrong in one place: in which option, by which of VALUES."""

    option: str
    kind: str
    config: Config

    @property
    def name(self) -> str:
        return f"{self.option}: {self.kind}"


class Outcome(NamedTuple):
    """How a process ended, what it said on stderr, and the files it left."""

    status: int
    said: str
    left: list[str]


def nested(option: str, value: Any) -> Config:
    for part in reversed(option.split(".")):
        value = {part: value}
    config: Config = value
    return config


def callback(name: str, **init_args: Any) -> Config:
    return {"trainer": {"callbacks": [{"class_path": name, "init_args": init_args}]}}


AS_DEFAULT = {"d_model": 64, "heads": [8, 8, 8, 8]}  # a shape that a construction may replace

# Where a config names an object of each of these classes.
PLACES: dict[type, Callable[[Any], Config]] = {
    Law: partial(nested, "data.task"),
    Spectrum: lambda made: {"data": {"task": {**LINEAR, "init_args": {"n_dims": 4, "spectrum": made}}}},
    Reference: lambda made: callback("ReferenceRisk", tuning_prompts=8, curve_prompts=8, references=[made]),
    PruningStrategy: lambda made: callback(
        "HeadPruning", n_prompts=8, fit_prompts=8, n_random=2, finetune_steps=1, strategies=[made]
    ),
    Construction: lambda made: {"model": {"construction": made, **AS_DEFAULT}},
    InContextNetwork: partial(nested, "model.network"),
    Callback: lambda made: {"trainer": {"callbacks": [made]}},
}
# The first three's options are walked as figures.when, ...; the others are what a run has without naming them.
OF_THE_COMMAND_LINE = (FigureWriter, PredictionWriter, Recorder, Bar, NetworkSummary, ProgressLines)


def classes(base: type) -> list[type]:
    """The classes of ours that a config can name where an object of this one is due."""
    direct: list[type] = base.__subclasses__()
    found = {c for below in direct for c in (below, *classes(below))} - {*OF_THE_COMMAND_LINE}
    ours = [c for c in found if c.__module__.startswith("lightning_icl.") and not inspect.isabstract(c)]
    return sorted(ours, key=lambda c: c.__name__)


def every_config() -> Iterator[Fuzzed]:
    """All configs with one wrong value."""
    options = [*command_line_options(), *(f"{STREAM}.{option}" for option in ValidationStream.__annotations__)]
    for option in options:
        yield from each_value(option, partial(nested, option))
    for section in sorted({option.rpartition(".")[0] for option in options}):
        yield unknown(section or "the command line", nested(f"{section}.{UNKNOWN}".lstrip("."), 1))
    for base in PLACES:
        yield from each_value(f"{base.__name__}.class_path", partial(of_class, base, {}, "class_path"))
        for made in classes(base):
            name, given = made.__name__, arguments(made)
            whole = {"class_path": name, "init_args": given}
            yield unknown(f"{name} beside init_args", of_class(base, whole, UNKNOWN, 1))
            for option in (*inspect.signature(made).parameters, UNKNOWN):
                tried = partial(of_class, base, whole, f"init_args.{option}")
                yield from [unknown(name, tried(1))] if option == UNKNOWN else each_value(f"{name}.{option}", tried)


def command_line_options() -> list[str]:
    """The options of ``fit``, but for those of the class of its task."""

    class Options(_FitReader):
        def make_classes(self) -> None: ...

    options = Options(["fit", "--data.task", "LinearRegression", "--data.task.n_dims", "4"]).config.fit.as_flat()
    return [*(name for name in vars(options) if name != "config" and not name.startswith("data.task.")), "data.task"]


def arguments(made: type) -> Config:
    """The init_args of an example of a class, small and with what it needs."""
    parameters = inspect.signature(made).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    return (
        {name: NEEDED[name] for name in needed}
        | {p.name: SMALL[p.name] for p in parameters if p.name in SMALL}
        | BESIDE.get(made.__name__, {})
    )


def each_value(option: str, config: Callable[[Any], Config]) -> Iterator[Fuzzed]:
    for kind, value in VALUES.items():
        if option not in MACHINES or kind not in ("1e9", "1e30"):
            yield Fuzzed(option, kind, config(value))


def unknown(where: str, config: Config) -> Fuzzed:
    return Fuzzed(where, UNKNOWN, config)


def of_class(base: type, whole: Config, option: str, value: Any) -> Config:
    """A config that names an object of a class, with a value in one place of its own part."""
    return PLACES[base](merged(whole, nested(option, value)))


def chosen(seed: int, n: int) -> list[Fuzzed]:
    """``n`` of all configs, which take turns by option and then by value."""
    every = sorted(every_config(), key=lambda fuzzed: fuzzed.name)
    random.Random(seed).shuffle(every)
    turns: Counter[Any] = Counter()

    def turn(*of: Any) -> int:
        turns[of] += 1
        return turns[of]

    # Classes of one base have most of their options in common, so that its name is that of an option.
    by_option = [(turn(fuzzed.option.rpartition(".")[2]), fuzzed) for fuzzed in every]
    ranked = [(by, turn(by, fuzzed.kind), fuzzed) for by, fuzzed in by_option]
    return [fuzzed for *_, fuzzed in sorted(ranked, key=lambda r: r[:2])[:n]]


def merged(base: Config, over: Config) -> Config:
    """Two configs as one, a class with its arguments as a whole."""
    both = dict(base)
    for key, value in over.items():
        old, whole = base.get(key), isinstance(value, dict) and (not value or "class_path" in value)
        both[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) and not whole else value
    return both


def outcome(config: Config, *options: str) -> Outcome:
    """What ``fit`` does with a config, in a folder of its own that is empty but for the config."""
    with TemporaryDirectory() as place:
        folder = Path(place, "here")
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        child = os.fork()
        if child == 0:
            _run(folder, Path(place), ["fit", "--config", "config.yaml", *options])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.name != "config.yaml"]
        return Outcome(status, Path(place, "stderr").read_text(errors="replace"), left)


def keep_parser() -> None:
    """Have the command lines of this process and its forks share one parser, which takes longest of all to make."""
    make, kept = LightningICL.setup_parser, dict[str, Any]()

    def setup_parser(self: LightningICL, *args: Any) -> None:
        if not kept:
            before = {*vars(self)}
            make(self, *args)
            kept.update({name: value for name, value in vars(self).items() if name not in before})
        vars(self).update(kept)

    LightningICL.setup_parser = setup_parser  # type: ignore[method-assign]
    with suppress(SystemExit), redirect_stderr(StringIO()):
        main(["fit"])


def _run(folder: Path, place: Path, args: list[str]) -> None:
    """Be the command line, with limits that the system holds: a loop in C listens to no signal handler."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    status = 0
    try:
        os.chdir(folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, 2 * (pages * resource.getpagesize() + MEMORY,))
        resource.setrlimit(resource.RLIMIT_CPU, 2 * (SECONDS,))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10 * SECONDS)
        main(args)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


def verdict(fuzzed: Fuzzed) -> tuple[str, str | None]:
    """Whether a config is "answered", "works" or is "wrong", and why."""
    config = merged(BASE, fuzzed.config)
    for option in PAIRED.get(fuzzed.option, []):
        del config["trainer"]["callbacks"][0]["init_args"][option]
    dry = outcome(config, "--dry_run", "true")
    if dry.status == 2:
        wrong = _not_answered(fuzzed, dry)
        return "wrong" if wrong else "answered", wrong
    wrong = f"the dry run left {dry.left}" if dry.left else _does_not_work(fuzzed, dry)
    wrong = wrong or _does_not_work(fuzzed, outcome(config))
    return "wrong" if wrong else "works", wrong


def sentences(ran: Outcome) -> list[str]:
    return [line for line in ran.said.splitlines() if line.startswith("lightning-icl: ")]


def last_line(ran: Outcome) -> str:
    return (ran.said.strip().splitlines() or [""])[-1]


def _not_answered(fuzzed: Fuzzed, ran: Outcome) -> str | None:
    said = sentences(ran)
    if len(said) != 1 or "Traceback" in ran.said:
        return f"{len(said)} sentences, the last line is: {last_line(ran)}"
    if ran.left:
        return f"files are left, {ran.left}, of: {said[0]}"
    option = UNKNOWN if fuzzed.kind == UNKNOWN else fuzzed.option.rpartition(".")[2]
    value = VALUES.get(fuzzed.kind, UNKNOWN)
    # A number's digits and null may be the sentence's own words.
    shown = [option, *[value] * isinstance(value, str), *[f"class '{value}'"] * (option == "class_path")]
    shown += [*value] if isinstance(value, dict) else []
    if not any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said[0]) for text in shown if text):
        return f"the option is not named: {said[0]}"
    return None


def _does_not_work(fuzzed: Fuzzed, ran: Outcome) -> str | None:
    if ran.status < 0:
        return f"killed by {signal.Signals(-ran.status).name}, after: {last_line(ran)}"
    if ran.status == 2 and (said := sentences(ran)):
        return f"accepted by the dry run, then: {said[0]}"
    if ran.status != 0 or "Traceback" in ran.said:
        where = re.findall(r'File ".*/((?:lightning_icl|callbacks)/[^"]+)", line (\d+)', ran.said)
        return f"status {ran.status}, {':'.join(where[-1]) if where else ''}, {last_line(ran)}"
    is_meant = re.fullmatch(MEANT.get(fuzzed.kind, ""), fuzzed.option)
    return None if is_meant else "accepted, but nobody has said that it can be meant (MEANT)"


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--n", type=int, default=700)
    reader.add_argument("--only", default="", help="A regular expression for the option and the value.")
    asked = reader.parse_args()
    count: Counter[tuple[str, str]] = Counter()
    keep_parser()
    for fuzzed in chosen(asked.seed, asked.n):
        if re.search(asked.only, fuzzed.name):
            became, wrong = verdict(fuzzed)
            count.update([(fuzzed.kind, became), ("all", became)])
            if became != "answered":
                print(f"{fuzzed.name}: {wrong or became}", flush=True)
    for kind in (*VALUES, UNKNOWN, "all"):
        print(json.dumps({"of": kind} | {became: count[kind, became] for became in ("answered", "works", "wrong")}))
    sys.exit(count["all", "wrong"] > 0)
