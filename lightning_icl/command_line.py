"""What a command line of ours is: Lightning's, with our module, data and errors."""

import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace, _common, _typehints
from jsonargparse._actions import _ActionHelpClassPath
from jsonargparse.typing import NotEmptyStr, PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

# Imported for their names: jsonargparse finds a class by its short name once it is loaded.
from lightning_icl.callbacks import FigureWriter, PredictionWriter, Recorder
from lightning_icl.callbacks.analysis import analyses
from lightning_icl.checkpoint import check_checkpoint, newest, step_of
from lightning_icl.checks import check_run, check_writable, expanded
from lightning_icl.config_errors import check_overlooked, constructing, sentence
from lightning_icl.data import PromptDataModule
from lightning_icl.divergence import DivergedError
from lightning_icl.endings import replay, stop, way_on
from lightning_icl.functional.errors import MOST_SEED, MOST_THREADS, InputError, check_between
from lightning_icl.functional.tasks import Law
from lightning_icl.help import SUBCOMMANDS, HelpText, of_one_class
from lightning_icl.launcher import disagreement
from lightning_icl.module import ICLModule
from lightning_icl.record import journal
from lightning_icl.record.folder import CONFIG, analysed_run, next_version, run_folder, set_run_folder
from lightning_icl.record.loading import read_config
from lightning_icl.record.loggers import class_of, forget_version, logger_configs, loggers_in, place
from lightning_icl.record.writing import ended_by
from lightning_icl.terminal import NetworkSummary, progress_bar
from lightning_icl.transformer import Transformer
from lightning_icl.weights import load_weights

NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # one folder on any machine, neither hidden nor like a flag

OF_ONE_COMMAND = ("verbose", "return_predictions")  # Lightning's, which others refuse in a config
UNSAID = "ckpt_path is last, but neither run_name nor run_folder says of which run."


class Parser(LightningArgumentParser):
    """A parser whose errors are one sentence instead of a page of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpText} | options)

    def format_help(self, *args: Any) -> str:
        return of_one_class(self) or super().format_help(*args)

    def parse_args(self, *args: Any, **options: Any) -> Namespace:  # type: ignore[override]
        try:
            return super().parse_args(*args, **options)
        except Exception as error:  # whatever a module raises that a class is to be imported from
            if isinstance(error, InputError | OSError | UnicodeError) or not self.exit_on_error:
                raise
            if said := sentence("", self, error):
                raise InputError(said) from error
            raise

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser nested in another, which collects the messages
            super().error(message, ex)
        # In a context of its own: jsonargparse's says how far it is with this command line.
        raise InputError(Context().run(sentence, message, self, ex)) from ex


def replacing_lists(adapt: Callable[..., Any]) -> Callable[..., Any]:
    """How our parsers read a value: a list replaces the one before it.

    jsonargparse itself merges two lists of equal length entry by entry, so that a callback would take on options of the
    one which had its place in an earlier config.
    """

    def adapted(val: Any, typehint: Any, append: bool = False, prev_val: Any = None, **rest: Any) -> Any:
        if isinstance(val, list) and not append and isinstance(_common.parent_parser.get(), Parser):
            prev_val = None
        return adapt(val, typehint, append=append, prev_val=prev_val, **rest)

    return adapted


_typehints.adapt_typehints = replacing_lists(_typehints.adapt_typehints)


class ICLCommandLine(LightningCLI):
    """fit, validate, test and predict with an ICLModule on a PromptDataModule."""

    named: Path | None = None  # the folder that the run was told to lie in
    told = ""  # by which option, and its value
    name: str | None = None  # what it was told to be called
    runs: Path  # else it is a new folder in this one, whose name begins with
    kind = "version"
    folder: Path | None = None  # the run's own folder, once it has one
    made: Sequence[Path] = ()  # that one and those it lies in, as far as they were not there before
    again = False  # whether the run may be there already, which is gone on with
    resumed_from: str | Path | None = None
    start: str | None = None  # the checkpoint that the run began from, for all who go on with it
    since: tuple[int, bool] | None = None  # the optimizer steps behind the checkpoint, see step_of

    def __init__(self, args: list[str] | None = None, **kwargs: Any) -> None:
        given = sys.argv[1:] if args is None else args
        named = [name for name in self.subcommands() if name in given]
        self.asked_for = named or [name for name in self.subcommands() if given[:1] != ["--help"]]
        super().__init__(
            ICLModule,
            PromptDataModule,
            parser_class=Parser,
            auto_configure_optimizers=False,
            save_config_callback=None,  # which writes to where the logger does
            args=args,
            **kwargs,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's own --seed_everything takes true for a seed at random, with which no run can be repeated."""
        parser.add_argument("--seed_everything", type=int, default=0, help="The seed of weights and prompts.")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Ours first, so that --help begins with them: the trainer alone has more than all of them."""
        parser.add_lightning_class_args(PromptDataModule, "data")
        parser.add_lightning_class_args(ICLModule, "model")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(FigureWriter, "figures")
        parser.add_lightning_class_args(Recorder, "record")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Trainer, "trainer")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--cpu_threads",
            type=PositiveInt | None,
            default=None,
            help="Threads of each process; null leaves torch's choice. Small models are fastest on 1.",
        )
        parser.add_argument(
            "--run_name",
            type=NotEmptyStr | None,
            default=None,
            help="What the run is called: it lies in lightning_logs/NAME, instead of a new lightning_logs/version_N. "
            "Letters, digits, '.', '_' and '-'. With --ckpt_path last, a fit goes on from the last checkpoint there, "
            "and starts anew where there is none yet.",
        )
        parser.add_argument(
            "--run_folder",
            type=NotEmptyStr | None,
            default=None,
            help="The run's own folder, anywhere; else as --run_name. Without either, validate, test and predict write "
            "into the run whose checkpoint they are given: RUN/validate_0, then RUN/validate_1 and so on.",
        )
        parser.add_argument(
            "--weights",
            type=NotEmptyStr | None,
            default=None,
            help="A file of weights to begin from instead of fresh ones: for a GPT2 state.pt or model_N.pt of Garg et "
            "al. (2022), else a state dict of the network, also as *.safetensors. validate leaves them as a checkpoint "
            "too, which prune and all other commands take.",
        )
        parser.add_argument(
            "--dry_run",
            type=bool,
            default=False,
            nargs="?",
            const=True,
            help="Check all that can be checked before a run, say what it would do and where, and write nothing.",
        )
        # Also into a network, and one inside it, whose class has such an argument.
        for part in ("model", "model.network.init_args", "model.network.init_args.network.init_args"):
            parser.link_arguments("data.task", f"{part}.n_dims", compute_fn=n_dims)
        parser.link_arguments("seed_everything", "data.seed")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.filename": "step={step}"})
        parser.set_defaults({"checkpoint.auto_insert_metric_name": False})
        # A run that goes on in its folder writes over last.ckpt; beside last-v1.ckpt the old one would be found again.
        parser.set_defaults({"checkpoint.enable_version_counter": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if subcommand not in self.asked_for:  # its options would take as long as those that are wanted
            return self.init_parser(**kwargs)
        kwargs["description"] = "\n\n".join(SUBCOMMANDS[subcommand])
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if isinstance(action, _ActionHelpClassPath):
                action.nargs = "?"  # without a class it says which there are
        parser.usage = f"lightning-icl {subcommand} [--config FILE ...] [--OPTION VALUE ...]"  # not 100 lines of them
        if subcommand in ("validate", "test"):  # our Recorder says it better than a dump of every scalar
            parser.set_defaults(verbose=False)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyper-parameters silently override the config; we refuse a mismatch."""

    def _set_seed(self) -> None:
        check_between(0, MOST_SEED, seed_everything=self._get(self.config, "seed_everything"))
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        if self.subcommand is not None:
            check_overlooked(self.parser)
            config = self.config[self.subcommand]
            config.weights_only = config.weights_only is not False  # null leaves it to Lightning, which may run code
            self._find_run(config)
            set_constructed_shape(config.model)
            settle_network(config.model, getattr(self.parser, "args", None) or [])
            if config.cpu_threads is not None:
                check_between(1, MOST_THREADS, cpu_threads=config.cpu_threads)
                torch.set_num_threads(config.cpu_threads)
            fits, options = self.subcommand == "fit", config.model.as_dict()
            if checkpoint := check_checkpoint(config.ckpt_path, options, fits, config.weights_only):
                self.since = step_of(checkpoint)
                if fits:
                    keep_batch_size(config, checkpoint)

    def _find_run(self, config: Namespace) -> None:
        """Which folder the run was told to lie in, and the checkpoint there if it is to go on from the last."""
        for key in ("run_folder", "ckpt_path", "weights", "trainer.default_root_dir", "checkpoint.dirpath"):
            if path := config.get(key):
                config[key] = expanded(key, str(path))
        for key in ("run_folder", "trainer.default_root_dir"):
            if "://" in (config.get(key) or ""):
                raise InputError(
                    f"{key} is {config[key]}, but a run's folder must lie on this machine; checkpoint.dirpath may name "
                    "another place."
                )
        for options in (logger.get("init_args", Namespace()) for logger in logger_configs(config.trainer)):
            if path := options.get("save_dir"):
                options.save_dir = expanded("trainer.logger.save_dir", str(path))
        check_name(config)
        self.runs, version = place(logger_configs(config.trainer), config.trainer)
        places = {"run_name": config.run_name, "run_folder": config.run_folder, "trainer.logger.version": version}
        for option, value in places.items():
            if value and self.named is None:
                self.told = f"{option} is {value}"
                self.named = Path(value) if option == "run_folder" else self.runs / value
        self.again = config.ckpt_path == "last"
        if self.subcommand != "fit" and config.ckpt_path and not self.again:
            run = analysed_run(config.ckpt_path)
            # The config of a training may have the version of its logger, and with it its folder.
            if run is not None and not (config.run_name or config.run_folder) and self.named in (None, run):
                self.named, self.told, self.runs, self.kind = None, "", run, str(self.subcommand)
        self.name = config.run_name
        # Not for the saved config, with which a later ``validate`` would write into the folder of the training.
        if config.run_name or config.run_folder:
            forget_version(logger_configs(config.trainer))
        config.run_name = config.run_folder = None
        if self.again:
            folder = config.checkpoint.dirpath or (self.named and self.named / "checkpoints")
            last = newest(folder, config.weights_only, self.subcommand == "fit") if folder else None
            if last is None and (self.subcommand != "fit" or not folder):
                raise InputError(f"ckpt_path is last, but there is no checkpoint in {folder}." if folder else UNSAID)
            self.start = str(last) if last else None
            if self.named is not None and self.subcommand == "fit":
                with suppress(InputError):  # there is none, or one that no run has written
                    self.start = read_config(self.named).get("ckpt_path")
            config.ckpt_path = str(last) if last else self.start
            self.resumed_from = last if self.named is not None else None
        elif config.ckpt_path:  # which may be gone on with from another folder
            self.start = config.ckpt_path if "://" in config.ckpt_path else os.path.abspath(config.ckpt_path)

    def instantiate_classes(self) -> None:
        with constructing():
            self.make_classes()

    def load_weights(self) -> None:
        """Begin from the weights of a file; a checkpoint has what came of them."""
        config = self.config[self.subcommand]
        if config.weights is None:
            return
        if config.model.construction is not None:
            raise InputError(f"weights is {config.weights}, but model.construction gives weights too; leave one out.")
        if config.ckpt_path:
            rank_zero_info(f"The weights are those of {config.ckpt_path}, not of {config.weights}.")
        else:
            self.model.trained_steps = load_weights(self.model.network, config.weights) or 0

    def make_classes(self) -> None:
        """The data module, the model and the trainer, whose loggers come with the run's folder."""
        options = self._get(self.config, "trainer")
        loggers = options.logger
        if self.subcommand is not None:
            options.logger = False
        super().instantiate_classes()
        options.logger = loggers
        if self.subcommand is not None:
            self.load_weights()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config["default_root_dir"] == "":
            raise InputError("trainer.default_root_dir is '', but it must name a folder; null is this one.")
        for name in ("max_time", "val_check_interval"):
            if config[name] in ({}, ""):
                raise InputError(
                    f"trainer.{name} is {config[name]!r}, but it must name a time, such as {{minutes: 10}}."
                )
        # Lightning's last.ckpt is written by a fast_dev_run too, which is to write nothing.
        if config["enable_checkpointing"] is False or config["fast_dev_run"]:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        callbacks = config["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(progress_bar())
        if config["enable_model_summary"] is not False and not any(isinstance(c, ModelSummary) for c in callbacks):
            callbacks.append(NetworkSummary())
            kwargs["enable_model_summary"] = False  # Lightning's own, with rows of metrics and of 0 FLOPs
        kwargs["callbacks"] = callbacks
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except TypeError as error:  # Lightning's word for a device that cannot be counted, for one
            raise InputError(f"trainer: {error}") from error
        if wrong := disagreement(trainer.num_devices, trainer.num_nodes, os.environ):
            raise InputError(wrong)
        if (start := getattr(trainer.strategy, "_start_method", "popen")) != "popen":
            raise InputError(
                f"trainer.strategy starts processes by {start}, and a signal would end them before they save; use ddp."
            )
        # Where RANK is an old one, Lightning has taken it at its import, and would log nothing.
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        check_run(self.trainer, self.model, self.datamodule, subcommand)
        refused = None
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            try:
                self._check_folder()  # which the other processes may find made already
            except InputError as error:
                refused = error
        if self.trainer.world_size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:  # else there are no others yet
            self.trainer.strategy.setup_environment()
            refused = self.trainer.strategy.broadcast(refused)
        if refused:
            raise refused
        if config.dry_run:
            if self.trainer.is_global_zero:
                where = "nowhere" if self.trainer.fast_dev_run else self.named or f"a new folder of {self.runs}"  # type: ignore[attr-defined]
                print(f"All checks passed. {subcommand} would run {self._in_words(subcommand)}, and write to {where}.")
            return
        try:
            if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._settle(config)
            where = f"write to {self.folder}" if self.folder else "write nothing"
            rank_zero_info(f"{subcommand} will run {self._in_words(subcommand)}, and {where}.")
            super()._run_subcommand(subcommand)
        except BaseException as error:
            self._end_early(error)
            raise

    def after_validate(self) -> None:
        """Leave weights of another program as a checkpoint, for all that take one."""
        config, folder = self.config["validate"], run_folder(self.trainer)
        if config.weights and not config.ckpt_path and folder is not None:
            path = folder / "checkpoints" / "last.ckpt"
            self.trainer.save_checkpoint(path, weights_only=True)
            rank_zero_info(f"The weights of {config.weights} are in {path} too, for prune and all other commands.")

    def after_fit(self) -> None:
        """Make what was due at the end where a run went on that had made its last step, and tell a signal on."""
        trainer, module = self.trainer, self.model
        if self.since and self.since[0] == trainer.global_step:
            rank_zero_info(
                f"nothing was left to train: {self.config['fit'].ckpt_path} has {trainer.global_step} steps behind it, "
                f"and {ended_by(trainer)} allows no more."
            )
        if analyses(trainer) and trainer.enable_validation and module.validated_at < trainer.global_step:
            # Such a fit has no training loop, and with it no validation.
            module.trained_steps, module.closing = trainer.global_step, True
            trainer.validate(module, self.datamodule, verbose=False)
            module.closing = False
        for recorder in (c for c in trainer.callbacks if isinstance(c, Recorder) and c.signalled):  # type: ignore[attr-defined]
            if trainer.is_global_zero:  # another's exit status would have the launcher kill rank 0 in its last lines
                stop(recorder.signalled)

    def _end_early(self, error: BaseException) -> None:
        """Leave no process behind, nor anything of a run that was refused; and say how to go on with another."""
        if (launcher := self.trainer.strategy.launcher) is not None:
            launcher.kill(signal.SIGKILL)  # SIGTERM does not reach a process that waits for the others
        if isinstance(error, InputError | MisconfigurationException):
            self._clear_away()
        if self.subcommand == "fit" and self.folder is not None and (self.folder / CONFIG).exists():
            checkpoint = None
            with suppress(InputError):  # none of them is whole
                checkpoint = newest(self.config["fit"].checkpoint.dirpath or self.folder / "checkpoints", resuming=True)
            if isinstance(error, DivergedError):
                error.add_note(replay(self.folder, checkpoint))
            clipped = " --trainer.gradient_clip_val 1" * isinstance(error, DivergedError)
            error.add_note(way_on(self.trainer.global_step, self.folder, checkpoint) + clipped)

    def _settle(self, config: Namespace) -> None:
        """Give the run its folder, with the config in it, and have all that is written lie there."""
        configs = logger_configs(config.trainer)
        if self.again:  # as was asked for
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        if self.trainer.is_global_zero:
            self.folder = self._make_folder()
            set_run_folder(self.trainer, self.folder)  # the other processes will ask for it (run_folder)
            config.weights_only = True  # whoever trusted that checkpoint may not trust the next
            if self.subcommand == "fit" or self.resumed_from is None:
                self._save_config(config.clone(), self.folder)
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(self.folder / "checkpoints")
        since = self.since if self.resumed_from else None
        self.trainer.loggers = loggers_in(self.folder, configs, self.subcommand == "fit", since, self.name)

    def _save_config(self, config: Namespace, folder: Path) -> None:
        """Say in the run's folder how it was begun, whole or, at a kill or on a full disk, as it was said before."""
        partial, config.ckpt_path = folder / f"{CONFIG}.partial", self.start
        for option in OF_ONE_COMMAND:
            config.pop(option, None)
        try:
            self._parser(self.subcommand).save(config, partial, skip_none=False, overwrite=True)
            partial.replace(folder / CONFIG)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"{CONFIG} cannot be written to {folder}: {error}.") from error

    def _check_folder(self) -> None:
        if self.named is not None and (self.named / CONFIG).exists() and not self.again:
            raise InputError(
                f"{self.told}, but there is such a run already: go on with it by --ckpt_path last, or name another."
            )
        check_writable(self.told or f"the folder of all runs is {self.runs}", self.named or self.runs)
        for callback in self.trainer.checkpoint_callbacks if self.subcommand == "fit" else ():
            if (folder := getattr(callback, "dirpath", None)) and "://" not in folder:
                check_writable(f"checkpoint.dirpath is {folder}", Path(folder))

    def _in_words(self, subcommand: str) -> str:
        """What a run does."""
        trainer, data, config = self.trainer, self.datamodule, self.config[subcommand]
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        steps = f" for {trainer.max_steps:,} steps" if subcommand == "fit" and trainer.max_steps > 0 else ""
        start = f" from {config.ckpt_path}" if config.get("ckpt_path") else ""
        return (
            f"{type(self.model.network).__name__} ({weights:,} weights{start}) on {type(data.task).__name__}"
            f"{steps}, {trainer.world_size} x {trainer.strategy.root_device.type}"
        )

    def _make_folder(self) -> Path:
        inside = (self.named or self.runs).absolute()
        self.made = [path for path in (inside, *inside.parents) if not path.exists()]
        try:
            if self.named is None:
                inside = next_version(self.runs, self.kind)
                self.made = [inside, *self.made]
            inside.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the run's files cannot be written to {inside}: {error}.") from error
        return inside

    def _clear_away(self) -> None:
        """Leave nothing of a run that was refused before its first step."""
        if self.folder is None or self.again:
            return
        lines = journal.read(self.folder / journal.NAME).lines
        begun = any("rows" in line or line.get("steps") for line in lines) or (self.folder / "checkpoints").exists()
        if not begun:
            (self.folder / CONFIG).unlink(missing_ok=True)  # else there would be a run in it already
            if self.folder in self.made:
                shutil.rmtree(self.folder, ignore_errors=True)
            for path in self.made[1:]:
                with suppress(OSError):
                    path.rmdir()


def check_name(config: Namespace) -> None:
    """Refuse a run's name that is none, and a run that is told two places."""
    name = config.run_name
    if name and not NAME.fullmatch(name):
        raise InputError(
            f"run_name is {name}, but it must be of letters, digits, '_', '.' and '-', and not begin with the last "
            "two; run_folder takes any path."
        )
    if name and config.run_folder:
        raise InputError(
            f"run_name is {name} and run_folder is {config.run_folder}, but a run has one folder; leave one out."
        )


def keep_batch_size(config: Namespace, checkpoint: Mapping[str, Any]) -> None:
    """Go on with what BatchSizeFinder found: it would search again, and the checkpoint's stream is of that size."""
    callbacks = config.trainer.callbacks or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    others = [callback for callback in callbacks if not issubclass(class_of(callback), BatchSizeFinder)]
    if len(others) < len(callbacks):
        config.trainer.callbacks, config.data.batch_size = others, checkpoint["PromptDataModule"]["batch_size"]


def set_constructed_shape(model: Namespace) -> None:
    """Give the model the shape of its construction, if it has one, where the config leaves it at the defaults."""
    if model.construction is None:
        return
    try:
        made = class_of(model.construction)(**model.construction.get("init_args", Namespace()))
        shape = made.options(model.n_dims)
    except ValueError as error:
        raise InputError(f"model.construction: {error}") from error
    defaults = signature(Transformer).parameters
    as_default = [name for name in shape if _listed(model[name]) == _listed(defaults[name].default)]
    model.update(Namespace({name: shape[name] for name in as_default}))


def settle_network(model: Namespace, args: Sequence[str] = ()) -> None:
    """Leave out the Transformer's options where the network is another, and the network where it is the Transformer.

    Among the ``args`` of a command line an option of the network is seen that is given at its default.
    """
    if model.network is None:
        return
    defaults = {name: p.default for name, p in signature(Transformer).parameters.items() if name != "n_dims"}

    def told(options: Namespace) -> list[str]:
        return [name for name, default in defaults.items() if _listed(options[name]) != _listed(default)]

    if class_of(model.network) is Transformer:
        given = re.findall(r"--model\.network\.(?:init_args\.)?(\w+)", " ".join(map(str, args)))
        if inside := [*told(model.network.init_args), *(name for name in given if name in defaults)]:
            raise InputError(
                f"model.network.{inside[0]} is an option of the Transformer, which is the network unless told: give it "
                f"as model.{inside[0]}."
            )
        model.network = None
        return
    if idle := told(model):
        of_whom = f"{class_of(model.network).__name__} has options of its own, model.network.NAME"
        rank_zero_info(f"Left out, since only a Transformer has them: model.{', model.'.join(idle)}. {of_whom}.")
    for name in defaults:
        del model[name]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def n_dims(task: Namespace | None) -> int | None:
    """The n_dims of a configured task: its own option, or that of a task inside it, or what the task itself says."""
    if task is None:  # which the parser reports after this
        return None
    options = task.get("init_args", Namespace())
    if "n_dims" in options:
        return options.n_dims
    for value in vars(options).values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Namespace) and issubclass(class_of(inner), Law):
                return n_dims(inner)
    return class_of(task)(**options).n_dims
