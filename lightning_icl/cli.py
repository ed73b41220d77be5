"""The command line: wiring only."""

import os
import pydoc
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

# Imported for their names: jsonargparse finds a class by its short name once it is loaded.
from lightning_icl.callbacks import PredictionWriter, Summary
from lightning_icl.checkpoint import check_checkpoint
from lightning_icl.config_errors import sentence
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import Task
from lightning_icl.module import ICLModule

SHIPPED_CONFIGS = Path(__file__).parent / "configs"


class Parser(LightningArgumentParser):
    """A parser whose errors are one sentence instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser nested in another, which collects the messages
            super().error(message, ex)
        fail(sentence(message, getattr(ex, "subcommand_parser", None) or self))


class ICLCommandLine(LightningCLI):
    """fit, validate, test and predict with an ICLModule on a PromptDataModule."""

    def __init__(self, args: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(
            ICLModule,
            PromptDataModule,
            parser_class=Parser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--cpu_threads",
            type=PositiveInt | None,
            default=None,
            help="Threads of each process; null leaves torch's choice. Small models are fastest on 1.",
        )
        parser.link_arguments("data.task", "model.n_dims", compute_fn=n_dims)
        parser.link_arguments("seed_everything", "data.seed")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.filename": "step={step}"})
        parser.set_defaults({"checkpoint.auto_insert_metric_name": False})
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def setup_parser(self, *args: Any) -> None:
        super().setup_parser(*args)
        for name in ("validate", "test"):  # our Summary says it better than a dump of every scalar
            if name in getattr(self, "_subcommand_parsers", {}):
                self._subcommand_parsers[name].set_defaults(verbose=False)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyper-parameters silently override the config; we refuse a mismatch."""

    def before_instantiate_classes(self) -> None:
        if self.subcommand is not None:
            config = self.config[self.subcommand]
            if config.cpu_threads is not None:
                torch.set_num_threads(config.cpu_threads)
            check_checkpoint(config.get("ckpt_path"), config.model.as_dict(), resuming=self.subcommand == "fit")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # by convention, a constructor's word for a bad argument
            if "JSONARGPARSE_DEBUG" in os.environ:
                raise
            raise InputError(sentence(str(error), self.parser)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config["logger"] in (None, True):
            folder = config["default_root_dir"] or os.getcwd()
            kwargs["logger"] = TensorBoardLogger(folder, name="lightning_logs", default_hp_metric=False)
        if config["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        callbacks = config["callbacks"] or []
        callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), Summary()]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=20))  # each refresh waits for the device
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)


def n_dims(task: Namespace | None) -> int | None:
    """The n_dims of a configured task: its own option, or that of a task inside it, or what the task itself says."""
    if task is None:  # which the parser reports after this
        return None
    options = task.get("init_args", Namespace())
    if "n_dims" in options:
        return options.n_dims
    for value in vars(options).values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Namespace) and issubclass(_class(inner), Task):
                return n_dims(inner)
    return _class(task)(**options).n_dims


def _class(config: Namespace) -> type:
    found = pydoc.locate(config.class_path)
    assert isinstance(found, type)  # the parser has found it before
    return found


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
    if args is None:
        # In place, because the processes that DDP starts are given sys.argv.
        sys.argv[1:] = with_shipped_configs(sys.argv[1:])
    try:
        ICLCommandLine(args and with_shipped_configs(args))
    except (InputError, MisconfigurationException) as error:
        fail(" ".join(str(error).split()))


def lightning_main() -> None:
    """The lightning command: our subcommands; any other is lightning-sdk's, which owns a script of that name."""
    command = next((arg for arg in sys.argv[1:] if not arg.startswith("-")), None)
    if command is None or set(sys.argv[1:]) & set(LightningCLI.subcommands()):
        main()
        return
    for script in entry_points(group="console_scripts", name="lightning"):
        if script.dist is not None and script.dist.name.replace("_", "-").lower() == "lightning-sdk":
            script.load()()
            return
    fail(
        f"{command!r} is not one of {', '.join(LightningCLI.subcommands())}, "
        "and lightning-sdk, which has further commands, is not installed."
    )
