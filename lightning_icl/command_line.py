"""What a command line of ours is: Lightning's, with our module, data and errors."""

import os
import pydoc
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

# Imported for their names: jsonargparse finds a class by its short name once it is loaded.
from lightning_icl.callbacks import FigureWriter, PredictionWriter, Summary
from lightning_icl.checkpoint import check_checkpoint
from lightning_icl.config_errors import sentence
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import Task
from lightning_icl.module import ICLModule


class Parser(LightningArgumentParser):
    """A parser whose errors are one sentence instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser nested in another, which collects the messages
            super().error(message, ex)
        raise InputError(sentence(message, getattr(ex, "subcommand_parser", None) or self)) from ex


class ICLCommandLine(LightningCLI):
    """fit, validate, test and predict with an ICLModule on a PromptDataModule."""

    run_folder: str | None = None

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
        parser.add_argument(
            "--run_folder",
            type=str | None,
            default=None,
            help="The run's own folder, instead of a new lightning_logs/version_N. With --ckpt_path last, a fit goes "
            "on from the last checkpoint there, and starts anew where there is none yet.",
        )
        parser.link_arguments("data.task", "model.n_dims", compute_fn=n_dims)
        parser.link_arguments("seed_everything", "data.seed")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.filename": "step={step}"})
        parser.set_defaults({"checkpoint.auto_insert_metric_name": False})
        # A run that goes on in its folder writes over last.ckpt; beside last-v1.ckpt the old one would be found again.
        parser.set_defaults({"checkpoint.enable_version_counter": False})
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(FigureWriter, "figures")

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
            self._enter_run_folder(config)
            if config.cpu_threads is not None:
                torch.set_num_threads(config.cpu_threads)
            check_checkpoint(config.get("ckpt_path"), config.model.as_dict(), resuming=self.subcommand == "fit")

    def _enter_run_folder(self, config: Namespace) -> None:
        """Go on with the run that is there, or make sure that there is none."""
        # Not for the saved config, with which a later ``validate`` would write into the folder of the training.
        self.run_folder, config.run_folder = config.run_folder, None
        if self.run_folder is None:
            return
        last = Path(self.run_folder) / "checkpoints" / "last.ckpt"
        if config.get("ckpt_path") == "last":
            if last.exists() and not zipfile.is_zipfile(last):
                rank_zero_info(f"{last} was cut off while it was written; starting anew.")
            config.ckpt_path = str(last) if zipfile.is_zipfile(last) else None
            self.save_config_kwargs = {**self.save_config_kwargs, "overwrite": True}
        elif (Path(self.run_folder) / "config.yaml").exists():
            raise InputError(
                f"run_folder is {self.run_folder}, but there is a run in it already: go on with it by --ckpt_path "
                "last, or name another folder."
            )

    def instantiate_classes(self) -> None:
        try:
            self.make_classes()
        except ValueError as error:  # by convention, a constructor's word for a bad argument
            if "JSONARGPARSE_DEBUG" in os.environ:
                raise
            raise InputError(sentence(str(error), self.parser)) from error

    def make_classes(self) -> None:
        """The data module, the model and the trainer."""
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if self.run_folder is not None and config["logger"] not in (None, True):
            raise InputError(
                f"run_folder is {self.run_folder}, which is where TensorBoard's logger writes, but trainer.logger is "
                "another; leave one of them out."
            )
        if config["logger"] in (None, True):
            kwargs["logger"] = self._logger(config["default_root_dir"] or os.getcwd())
        if config["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        callbacks = config["callbacks"] or []
        callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), Summary()]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=20))  # each refresh waits for the device
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    def _logger(self, folder: str) -> TensorBoardLogger:
        if self.run_folder is None:
            return TensorBoardLogger(folder, name="lightning_logs", default_hp_metric=False)
        run = Path(self.run_folder).absolute()
        return TensorBoardLogger(run.parent, name=run.name, version="", default_hp_metric=False)


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
