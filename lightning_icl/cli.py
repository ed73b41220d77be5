"""The entry points: wiring only."""

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_icl.command_line import ICLCommandLine, Parser
from lightning_icl.commands.p_probe import p_probe
from lightning_icl.commands.prune import prune
from lightning_icl.functional.errors import InputError

# Our subcommands besides Lightning's: name -> the function that has its options and does it.
COMMANDS: dict[str, Callable[..., None]] = {
    "p_probe": p_probe,
    "prune": prune,
}
SHIPPED_CONFIGS = Path(__file__).parent / "configs"


class LightningICL(ICLCommandLine):
    """Lightning's subcommands, with ours beside them in --help."""

    def setup_parser(self, *args: Any) -> None:
        super().setup_parser(*args)
        subcommands = self.parser._subcommands_action
        for name, command in COMMANDS.items():
            assert subcommands is not None
            description = (command.__doc__ or "").partition("\n")[0]
            subcommands.add_subcommand(name, command_parser(name), help=description)


def command_parser(name: str) -> Parser:
    """The parser of one of our subcommands: the arguments of its function."""
    parser = Parser(prog=f"lightning-icl {name}", description=(COMMANDS[name].__doc__ or "").partition("Args:")[0])
    parser.add_function_arguments(COMMANDS[name])
    return parser


def fail(message: str) -> NoReturn:
    """Say what is wrong in one sentence and stop, with the exit status of a usage error."""
    print(f"lightning-icl: {message}", file=sys.stderr)
    sys.exit(2)


def with_shipped_configs(args: list[str]) -> list[str]:
    """Let configs/NAME.yaml mean the shipped file where this folder has no such path."""
    resolved = []
    for previous, argument in zip(["", *args], args, strict=False):
        flag, _, value = argument.rpartition("=")
        if previous in ("-c", "--config") or flag in ("-c", "--config"):
            shipped = SHIPPED_CONFIGS / Path(value).name
            if not Path(value).exists() and Path(value).parent.name in ("", "configs") and shipped.exists():
                rank_zero_info(f"{value} is not in this folder; using the one shipped with lightning_icl.")
                argument = f"{flag}={shipped}" if flag else str(shipped)
        resolved.append(argument)
    return resolved


def main(args: list[str] | None = None) -> None:
    """The lightning-icl command."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that class_path: my_task.MyTask finds my_task.py in this folder
    # Lightning 2.6.6 meets a deprecation of torch 2.13 at every start; nobody reading it here can act on it.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    given = with_shipped_configs(sys.argv[1:] if args is None else args)
    if args is None:
        sys.argv[1:] = given  # in place, because the processes that DDP starts are given sys.argv
    try:
        if given and given[0] in COMMANDS:
            options = command_parser(given[0]).parse_args(given[1:])
            COMMANDS[given[0]](**options.as_dict())
        else:
            LightningICL(None if args is None else given)
    except UnicodeDecodeError:
        fail("a file given as --config is not text; give the YAML file there, a checkpoint as --ckpt_path.")
    except (InputError, MisconfigurationException) as error:
        fail(" ".join(str(error).split()))


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
