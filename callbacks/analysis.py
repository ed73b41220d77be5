"""What every analysis shares: when it runs, on which prompts, and what becomes of its rows."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from lightning_icl import terminal
from lightning_icl.callbacks.figure_writer import figures_due
from lightning_icl.callbacks.moments import no_training_follows, validate_within_fit, validation_was_missed
from lightning_icl.data import PromptDataModule
from lightning_icl.figures.files import write_figure
from lightning_icl.functional.errors import InputError, check_at_least
from lightning_icl.loggers import log_picture, log_scalars
from lightning_icl.module import ICLModule
from lightning_icl.record import journal
from lightning_icl.record.context import context, fingerprint
from lightning_icl.record.folder import run_folder
from lightning_icl.record.lines import row_lines
from lightning_icl.record.loading import read_record
from lightning_icl.record.rows import Row, frame, plain_rows, tag
from lightning_icl.record.writing import record_rows, trained_steps


class Analysis(Callback, ABC):
    """A callback that measures something at validation epochs.

    A subclass says what in ``analyse``, which returns rows; everything else is made from them. They are appended to
    the run's record (record.jsonl), logged as scalars under their ``tag``, told in the closing table and found in
    ``load_run(folder).table`` and in a study's table. ``figures`` and ``summary`` show them better than by default.

    It runs at every ``every_n_validations``-th validation of ``fit`` (counted across resumes), at its end, however
    that comes, and at each standalone ``validate``. Every process computes the same numbers on the same held-out
    prompts (``datamodule.held_out``), so nothing depends on how many there are; rank 0 writes.

    Attributes:
        shown: what goes to the loggers by default, as regular expressions that a row's tag begins with; all, where
            ``Recorder`` says so.
        more_at_end: whether more is measured where no training follows.
        course: which metrics a figure shows over training, at all examples, as a regular expression; none, if empty.
        rows: what was found last, with the columns of Row; None before.
        measured_at: the optimizer step of that.
        lacking: what ``lacks`` says of the network, since ``setup``.
    """

    shown: ClassVar[tuple[str, ...]] = ("",)
    more_at_end: ClassVar[bool] = False
    course: ClassVar[str] = ""
    # Here and not in __init__, so that a subclass with options of its own may do without super().__init__().
    every_n_validations: int = 1
    lacking: str | None = None
    rows: pd.DataFrame | None = None
    measured_at: int = -1
    _drawn_at: int = -1
    _ended: bool = False  # whether that was with all that is due at the end
    _logged: frozenset[tuple[str, int]] = frozenset()  # (tag, step), so that no point is there twice
    _past: list[pd.DataFrame] | None = None  # the course of this fit, a table a measurement

    def __init__(self, every_n_validations: int = 1) -> None:
        check_at_least(1, every_n_validations=every_n_validations)
        self.every_n_validations = every_n_validations

    def _begin(self) -> None:
        for name in ("rows", "measured_at", "_drawn_at", "_ended", "_logged", "_past"):
            vars(self).pop(name, None)

    @abstractmethod
    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterable[Row]:
        """Measure, without gradients; each row with a metric or a place of its own."""

    def arrays(self) -> Mapping[str, Any]:
        """What was found that is no table of numbers, by name; recorded beside the rows."""
        return {}

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        """Figures of the rows just measured, by name."""
        return {}

    def summary(self, rows: pd.DataFrame) -> list[str]:
        """Lines for the table at the end of a run."""
        return [f"{self.name} (95 % interval):", *row_lines(rows)]

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        """Refuse what cannot be measured here; asked in ``setup``, and by the command line before a run has a folder.

        Nothing is attached to the trainer yet.
        """

    def lacks(self, module: ICLModule) -> str | None:
        """What the network has not that is looked into here, as "this network has no heads"; None where all is there.

        Then nothing is checked or measured, and the closing table has this sentence.
        """
        return None

    def looks_at(self, data: PromptDataModule) -> Sequence[int]:
        """At how many examples, besides the streams' own numbers, the network is asked to predict."""
        return ()

    def shows(self, data: PromptDataModule) -> Sequence[str]:
        """What can be monitored, as in ``shown``."""
        return self.shown

    def suffix(self, trainer: Trainer) -> str:
        """Another of the same class, with other options, has names of its own."""
        alike = [a for a in analyses(trainer) if type(a) is type(self)]
        place = alike.index(self) if self in alike else 0
        return f"_{place + 1}" if place else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module, data = icl_module(pl_module), datamodule(trainer)
        module.check_run(trainer, data, stage)  # which Lightning sets up last
        self.lacking = self.lacks(module)
        if self.lacking is None:
            self.check_run(trainer, module, data, stage)
        run_folder(trainer)
        self._suffix = self.suffix(trainer)
        self.name = type(self).__name__ + self._suffix
        self._past = None  # another run's law may be another
        if stage == "fit":
            self._begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self is analyses(trainer)[0] and validation_was_missed(trainer, pl_module):
            validate_within_fit(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and draw what is due."""
        if trainer.sanity_checking:
            return
        if self.due(trainer, module := icl_module(pl_module)):
            self._measure(trainer, module)
        if self._owes_figures(trainer):
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make what is due at the end and was not made, as EarlyStopping ends a fit after its last validation."""
        module = icl_module(pl_module)
        if self is not analyses(trainer)[0] or not trainer.enable_validation:
            return
        module.closing = True
        if any(a._owes(trainer) or a._owes_figures(trainer) for a in analyses(trainer)):
            validate_within_fit(trainer)
        module.closing = False

    def due(self, trainer: Trainer, module: ICLModule) -> bool:
        """Whether this is one of every n validations, the end of a fit, or a standalone run; and not done already."""
        if no_training_follows(trainer) or self.lacking:
            return self._owes(trainer)
        count = module.validations + (module.validated_at != trainer.global_step)  # callbacks come before the module
        return count % self.every_n_validations == 0 and self.measured_at != trainer.global_step

    def _owes(self, trainer: Trainer) -> bool:
        """Whether what is due at the end is not measured."""
        done = self.measured_at == trainer.global_step and (self._ended or not self.more_at_end)
        return not self.lacking and (trainer.state.fn != "fit" or not done)

    def _owes_figures(self, trainer: Trainer) -> bool:
        fresh = self.measured_at == (trainer.global_step if trainer.state.fn == "fit" else self.measured_at)
        return figures_due(trainer) and self.rows is not None and fresh and self._drawn_at != self.measured_at

    def _measure(self, trainer: Trainer, module: ICLModule) -> None:
        datamodule(trainer).drawn.clear()
        # The trained model computes in the trainer's precision; so does the analysed one.
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            found = plain_rows(self.analyse(trainer, module) or ())
        # Every rank found the same but for rounding; rank 0's word is kept.
        found = trainer.strategy.broadcast(found)
        self.rows = frame(found)
        self.measured_at, self._drawn_at = trained_steps(trainer, module), -1
        self._ended = no_training_follows(trainer)
        if self.course:
            self._past = self._earlier(trainer) if self._past is None else self._past
            while self._past and self._past[-1]["step"].ge(self.measured_at).all():
                self._past.pop()  # measured once more at this step
            self._past.append(self._on_course(self.rows, self.measured_at))
        named = [row._replace(metric=re.sub("/|$", rf"{self._suffix}\g<0>", row.metric, count=1)) for row in found]
        record_rows(trainer, module, self, named, self.arrays())
        new = {
            name: float(row.value)
            for row, name in zip(found, map(tag, named), strict=True)
            if row.value is not None
            and self._is_shown(trainer, tag(row))
            and (name, self.measured_at) not in self._logged
        }
        self._logged |= {(name, self.measured_at) for name in new}
        log_scalars(trainer, new, self.measured_at)
        for name, value in new.items():  # for what monitors a run, such as EarlyStopping
            module.log(name, value, logger=False, sync_dist=True, batch_size=1)

    def _is_shown(self, trainer: Trainer, name: str) -> bool:
        every = any(getattr(c, "scalars", "") == "all" for c in trainer.callbacks)  # type: ignore[attr-defined]
        return every or any(re.match(pattern, name) for pattern in self.shown)

    def _draw(self, trainer: Trainer) -> None:
        assert self.rows is not None
        self._drawn_at = self.measured_at
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        for name, figure in self.figures(self.rows).items():
            try:
                pixels = write_figure(folder / "figures", name + self._suffix, figure)
            except OSError as error:  # a full disk costs the picture, and not the run
                rank_zero_warn(f"the figure {name} could not be written to {folder}: {error}")
                continue
            log_picture(trainer, name + self._suffix, pixels, self.measured_at)

    def over_training(self) -> pd.DataFrame:
        """The rows of ``course`` of this fit's measurements in one context so far, the last among them, with "step"."""
        return pd.concat(self._past or [frame([]).assign(step=0)], ignore_index=True)

    def _on_course(self, rows: pd.DataFrame, step: int) -> pd.DataFrame:
        return rows[rows["metric"].str.match(self.course) & rows["n_points"].isna()].assign(step=step)

    def _earlier(self, trainer: Trainer) -> list[pd.DataFrame]:
        """What a fit that goes on from a checkpoint has measured before it, in the same context."""
        folder = run_folder(trainer)
        found = context(trainer, datamodule(trainer), self)
        if found["command"] != "fit" or folder is None or not (folder / journal.NAME).exists():
            return []
        now, past = fingerprint(found), []
        for m in read_record(folder)[0]:
            if m.analysis == self.name and m.context["command"] == "fit" and fingerprint(m.context) == now:
                own = [r._replace(metric=re.sub(rf"{self._suffix}(?=/|$)", "", r.metric, count=1)) for r in m.rows]
                past.append(self._on_course(frame(own), m.step))
        return [course for course in past if len(course)]


def analyses(trainer: Trainer) -> list[Analysis]:
    """The trainer's analyses, in order."""
    return [c for c in trainer.callbacks if isinstance(c, Analysis)]  # type: ignore[attr-defined]


def datamodule(trainer: Trainer) -> PromptDataModule:
    """The trainer's PromptDataModule, the source of held-out prompts."""
    found = getattr(trainer, "datamodule", None)
    if not isinstance(found, PromptDataModule):
        raise InputError(
            f"the trainer's datamodule is {type(found).__name__}, but the analyses draw their held-out prompts from a "
            "PromptDataModule."
        )
    return found


def icl_module(module: LightningModule) -> ICLModule:
    """The module as what the analyses need, with an InContextNetwork in it."""
    if not isinstance(module, ICLModule):
        raise InputError(f"the module is {type(module).__name__}, but the analyses need an ICLModule.")
    return module


def all_ranks(module: LightningModule, values: Tensor) -> Tensor:
    """The batches of every rank as one, in rank order."""
    gathered = module.all_gather(values)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1) if gathered.dim() > values.dim() else gathered


def progress(trainer: Trainer, items: Sequence[Any], description: str) -> Iterable[Any]:
    """The items behind a progress bar, where the trainer shows one."""
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    return terminal.progress(items, description) if shown else items
