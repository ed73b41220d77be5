"""A run's checkpoint, opened without a trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from lightning_icl.checkpoint import check_checkpoint
from lightning_icl.command_line import ICLCommandLine, Parser, check_name, set_constructed_shape, settle_network
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.module import ICLModule
from lightning_icl.network import shapes_alone
from lightning_icl.record.folder import config_of
from lightning_icl.record.loading import loaded_module


class Run(NamedTuple):
    """What a checkpoint was trained with: the module in its state, on the CPU, and the data it was trained on.

    ``config`` is the file the data module was made from.
    """

    module: ICLModule
    datamodule: PromptDataModule
    config: Path


def open_run(ckpt_path: str | Path, config: str | Path | None = None, weights_only: bool = True) -> Run:
    """The model of a checkpoint and its data: no trainer, no callback, no random number drawn.

    ``run = open_run("lightning_logs/quickstart/checkpoints/last.ckpt")`` and then, for one,
    ``run.module.network.on_prompt(run.datamodule.held_out("a name", 1024)).prediction``. Another device is
    ``run.module.to(device)`` and ``held_out(..., device)``. Raises InputError, one sentence, for what cannot be opened.

    Args:
        ckpt_path: the checkpoint.
        config: the config it was trained with; found where ``fit`` puts it unless told (``config_of``).
        weights_only: False reads a checkpoint that brings code, and runs it.
    """
    if config is not None and not Path(config).is_file():
        raise InputError(f"config is {config}, but there is no such file.")
    config = Path(config or config_of(ckpt_path))
    reader = _Reader(["validate", "--config", str(config)])
    check_checkpoint(ckpt_path, reader.options.model.as_dict(), False, weights_only)
    return Run(loaded_module(ckpt_path, weights_only=weights_only), reader.datamodule, config)


def check_fit(arguments: Sequence[str]) -> dict[str, Any]:
    """Raise InputError for what ``lightning-icl fit`` with these arguments would refuse: options, model and data.

    The trainer and its callbacks are not made, so that what only they can tell is left to the run. Returns the options.
    """
    return _FitReader(["fit", *arguments]).options.as_dict()


class _Reader(ICLCommandLine):
    """Reads a config as ``validate`` does, and makes its data module and nothing else."""

    subcommand_read = "validate"

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        return {cls.subcommand_read: ICLCommandLine.subcommands()[cls.subcommand_read]}

    @property
    def options(self) -> Namespace:
        """The config, parsed."""
        return self.config[self.subcommand_read]

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # Lightning would warn that there is a sys.argv besides

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None:
        check_name(self.options)
        set_constructed_shape(self.options.model)
        settle_network(self.options.model)

    def make_classes(self) -> None:
        self.datamodule: PromptDataModule = self.built(PromptDataModule, "data")

    def built(self, part: type, name: str) -> Any:
        """An object of the class from its part of the config."""
        parser = Parser()
        parser.add_class_arguments(part, name)
        return parser.instantiate_classes(Namespace({name: self.options[name]}))[name]

    def _run_subcommand(self, subcommand: str) -> None: ...


class _FitReader(_Reader):
    """Reads a config as ``fit`` does, and makes its data module and its model."""

    subcommand_read = "fit"

    def make_classes(self) -> None:
        super().make_classes()
        shapes_alone(lambda: self.built(ICLModule, "model"))
