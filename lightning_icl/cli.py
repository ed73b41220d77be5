"""The entry points: wiring only."""

import os
import signal
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_icl.checks import expanded
from lightning_icl.command_line import UNSAID, ICLCommandLine, Parser
from lightning_icl.config_errors import SHIPPED, check_overlooked, constructing
from lightning_icl.endings import OF_DISKS, Stopped, listening, outlasting
from lightning_icl.functional.errors import InputError
from lightning_icl.help import SUBCOMMANDS, docstring, head_options
from lightning_icl.launcher import is_first, one_launcher
from lightning_icl.record.folder import CONFIG, RUNS, config_of
from lightning_icl.shell import bash_completion, with_environment
from lightning_icl.shipped_configs import config_file
from lightning_icl.terminal import quiet

# Our subcommands besides Lightning's, and what they do. Each is the function of its name in the module of its name in
# lightning_icl.commands, which is imported when it is asked for: a study needs packages that nothing else does.
COMMANDS = {
    "calibrate": "Do the instruments find what is there, on networks whose algorithm is known? PASS or FAIL for each.",
    "export": "Write a trained network's weights (safetensors) and its config, which open without Lightning.",
    "p_probe": "P-probing: is the first layer's output easier to optimise on than the examples?",
    "prune": "Write a smaller checkpoint: some heads removed, the predictions those of the model with them masked.",
    "study": "Run many trials from one YAML file, and write their table, figures, verdicts and report.",
    "theory": "Excess risk of GD, preprocess-then-GD, GD++, ridge, lasso, Bayes over n, d, s, sigma, T: a figure each.",
}


STUDY_PACKAGES = ("jinja2", "pyarrow", "ray")


ABOUT = """\
How does a transformer learn from the examples in its prompt? This trains one on prompts of random regression problems,
and measures which of its heads matter, what pruning them costs, and which algorithm it has learned.

  The first command, some minutes on a CPU, which ends with a table:
    lightning-icl fit --config configs/quickstart.yaml
  The options of a command:
    lightning-icl fit --help

Read more in README.md and, from docs/index.md on, in docs/.
"""


class LightningICL(ICLCommandLine):
    """Lightning's subcommands, with ours beside them in --help."""

    def setup_parser(self, *args: Any) -> None:
        super().setup_parser(*args)
        self.parser.description, self.parser.usage = ABOUT, "lightning-icl COMMAND [--OPTION VALUE ...]"
        for action in self.parser._actions:
            if action.dest in ("config", "print_config"):
                action.help = SUPPRESS  # each command has its own
        subcommands = self.parser._subcommands_action
        assert subcommands is not None
        group = next(group for group in self.parser._action_groups if group.title == "subcommands")
        group.description = "COMMAND --help says more."
        for action in subcommands._choices_actions:
            action.help = SUBCOMMANDS[action.dest][0]
        for name, description in COMMANDS.items():
            subcommands.add_subcommand(name, Parser(prog=f"lightning-icl {name}"), help=description)
        self.parser.add_argument(
            "--print_completion",
            choices=["bash"],
            help='Print a script that completes options: eval "$(lightning-icl --print_completion bash)".',
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Print a completion of all options, where that is asked for, and do nothing else."""
        if (sys.argv[1:] if args is None else args)[:1] != ["--print_completion"]:
            super().parse_arguments(parser, args)
            return
        parsers = {name: parser._subcommands_action.choices[name] for name in self.subcommands()}  # type: ignore[union-attr]
        for name in COMMANDS:
            with suppress(ModuleNotFoundError):  # of the study's packages
                parsers[name] = command_parser(name, command_function(name))
        flags = {name: [flag for flag in p._option_string_actions if flag[-1] != "+"] for name, p in parsers.items()}
        print(bash_completion(flags))
        sys.exit()


def run_command(name: str, args: list[str]) -> None:
    """Do what one of our subcommands says, with the arguments of its function as options."""
    try:
        command = command_function(name)
        command(**command_options(name, command, args))
    except ModuleNotFoundError as error:
        if error.name not in STUDY_PACKAGES:
            raise
        raise InputError(f"{name} needs {error.name}; install it with: pip install 'lightning-icl[study]'.") from error


def command_function(name: str) -> Callable[..., None]:
    """What a subcommand of ours does."""
    return getattr(import_module(f"lightning_icl.commands.{name}"), name)


def command_parser(name: str, command: Callable[..., None]) -> Parser:
    """The arguments of a command's function as options, and YAML files of them."""
    usage = f"lightning-icl {name} [--OPTION VALUE ...]"
    parser = Parser(prog=f"lightning-icl {name}", usage=usage, description=docstring(command))
    parser.add_function_arguments(command)
    head_options(parser)
    if "config" not in signature(command).parameters:
        parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    return parser


def command_options(name: str, command: Callable[..., None], args: list[str]) -> dict[str, Any]:
    """The arguments of a command's function, from YAML files and options; a switch needs no value."""
    parser, arguments = command_parser(name, command), signature(command).parameters
    switches = {f"--{name}" for name, argument in arguments.items() if argument.default is False}
    valued = zip(args, [*args[1:], ""], strict=False)
    args = [f"{a}=true" if a in switches and after not in ("true", "false") else a for a, after in valued]
    given = parser.parse_args(args)
    check_overlooked(parser)
    with constructing():
        options = parser.instantiate_classes(given)
    return {name: options[name] for name in arguments}


def fail(message: str, *notes: str) -> NoReturn:
    """Say what is wrong in one sentence and stop, with the exit status of a usage error."""
    print(f"lightning-icl: {message}", *notes, sep="\n", file=sys.stderr)
    sys.exit(2)


def with_shipped_configs(args: list[str]) -> list[str]:
    """Let configs/NAME.yaml mean the shipped file where this folder has no such path."""
    resolved = []
    for previous, argument in zip(["", *args], args, strict=False):
        flag, _, value = argument.rpartition("=")
        if previous in ("-c", "--config") or flag in ("-c", "--config"):
            shipped = config_file(value)
            if shipped is not None and shipped != Path(value):
                rank_zero_info(f"{value} is not in this folder; using the one shipped with lightning_icl.")
                argument = f"{flag}={shipped}" if flag else str(shipped)
        resolved.append(argument)
    return resolved


def with_own_config(args: Sequence[str]) -> list[str]:
    """The arguments of an analysis that names no config, after that of the run whose checkpoint it takes."""
    command, *rest = args or [""]
    pairs = zip(rest, [*rest[1:], ""], strict=False)
    given = dict(arg.partition("=")[::2] if "=" in arg else (arg, after) for arg, after in pairs)
    path = given.get("--ckpt_path", "null")
    if command not in ("validate", "test", "predict") or path in ("", "null") or given.keys() & {"-c", "--config"}:
        return [*args]
    try:
        return _under(_config_of_last(given) if path == "last" else config_of(expanded("ckpt_path", path)), args)
    except InputError:
        if not any(name.startswith("--data") for name in given):  # else there need be none
            raise
    return [*args]


def _config_of_last(given: Mapping[str, str]) -> Path:
    """Of the run that --ckpt_path last is about."""
    if not (name := given.get("--run_folder") or given.get("--run_name")):
        raise InputError(UNSAID)
    runs = "." if "--run_folder" in given else Path(given.get("--trainer.default_root_dir", "."), RUNS)
    config = Path(expanded("run_folder", str(Path(runs, name))), CONFIG)
    if not config.is_file():
        raise InputError(f"ckpt_path is last, but there is no {config}; name the config of its run: --config.")
    return config


def _under(config: Path, args: Sequence[str]) -> list[str]:
    rank_zero_info(f"The config is that of the checkpoint's run: {config}.")
    return [args[0], f"--config={config}", *args[1:]]


@outlasting()
def main(args: list[str] | None = None) -> None:
    """The lightning-icl command."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that class_path: my_task.MyTask finds my_task.py in this folder
    quiet()
    # Lightning 2.6.6 meets a deprecation of torch 2.13 at every start; nobody reading it here can act on it.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # CSVLogger of any folder with a file in it; a run's has its config, and no logs but its own.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    # Which launcher.py says where it matters, and Lightning also where srun is used.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    given = with_shipped_configs(with_environment(sys.argv[1:] if args is None else args, os.environ))
    if given[:1] != ["fit"]:  # it saves no best ones, of which this tells
        warnings.filterwarnings("ignore", message="The dirpath has changed from")
    if not given:
        with suppress(SystemExit):
            LightningICL(["--help"])
        fail(f"a command is missing, such as fit --config {SHIPPED}.")
    try:
        given = with_own_config(given)
        if args is None:
            sys.argv[1:] = given  # in place, because the processes that DDP starts are given sys.argv
        if given and given[0] in COMMANDS:
            if not is_first(os.environ):
                print(f"{given[0]} takes one process; the first that was started does it.", file=sys.stderr)
                return
            run_command(given[0], given[1:])
        else:
            with one_launcher(), listening():
                LightningICL(None if args is None else given)
    except UnicodeDecodeError:
        fail("a file given as --config is not text; give the YAML file there, a checkpoint as --ckpt_path.")
    except (InputError, MisconfigurationException) as error:
        fail(" ".join(str(error).split()), *getattr(error, "__notes__", ()))
    except OSError as error:
        if error.errno not in OF_DISKS:
            raise
        said = f"lightning-icl: {error.filename2 or error.filename or 'a file'} could not be written: {error.strerror}."
        print(said, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # of a command of ours; a run hears all signals, and says how to go on
        print("lightning-icl: SIGINT has stopped it.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Stopped as stopped:
        said = f"lightning-icl: {stopped.name} has stopped it."
        print(said, *getattr(stopped, "__notes__", ()), sep="\n", file=sys.stderr)
        raise


def lightning_main() -> None:
    """The lightning command: our subcommands; any other is lightning-sdk's, which owns a script of that name."""
    ours = [*LightningCLI.subcommands(), *COMMANDS]
    command = next((arg for arg in sys.argv[1:] if not arg.startswith("-")), None)
    if command is None or set(sys.argv[1:]) & set(ours):
        main()
        return
    for script in entry_points(group="console_scripts", name="lightning"):
        if script.dist is not None and script.dist.name.replace("_", "-").lower() == "lightning-sdk":
            script.load()()
            return
    fail(
        f"{command!r} is not one of {', '.join(ours)}, and lightning-sdk, which has further commands, is not installed."
    )
