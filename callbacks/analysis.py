"""What every analysis shares: when it runs, on which prompts, and where its figures go."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lightning_icl.callbacks.figure_writer import figures_due
from lightning_icl.callbacks.moments import no_training_follows
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.module import ICLModule


class Analysis(Callback, ABC):
    """A callback that measures something at validation epochs.

    A subclass says what in ``analyse``, and in ``summary`` what the closing table tells of it. It runs at every
    ``every_n_validations``-th validation of ``fit`` (counted across resumes), at one that ends it at max_steps, and at
    each standalone ``validate``. Every process computes the same numbers on the same held-out prompts
    (``datamodule.held_out``), so nothing depends on how many there are; rank 0 writes files.
    """

    def __init__(self, every_n_validations: int = 1) -> None:
        check_at_least("every_n_validations", every_n_validations, 1)
        self.every_n_validations = every_n_validations
        self.validations = 0
        self.measured_at = -1
        self.records: list[dict[str, Any]] = []

    @abstractmethod
    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        """Measure, log, draw."""

    def record(self) -> dict[str, Any]:
        """What was found, for the run's results.json: numbers, texts, tensors, and lists and dicts of them."""
        return {}

    def summary(self) -> list[str]:
        """Lines for the table at the end of a run; none before the first analysis."""
        return []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        icl_module(pl_module)
        datamodule(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validations += 1
        if self.due(trainer):
            # The trained model computes in the trainer's precision; so does the analysed one.
            with trainer.precision_plugin.forward_context(), torch.no_grad():
                self.analyse(trainer, icl_module(pl_module))
            self.measured_at = trainer.global_step
            self._keep_record(trainer, icl_module(pl_module))

    def _keep_record(self, trainer: Trainer, module: ICLModule) -> None:
        """Add what was found to the run's series, one entry a step, and rewrite results.json."""
        if found := self.record():
            step = trained_steps(trainer, module)
            self.records = [record for record in self.records if record["step"] != step]
            self.records.append({"step": step, **plain(found)})
            save_results(trainer, type(self).__name__, self.records)

    def due(self, trainer: Trainer) -> bool:
        """Whether this validation is one of every n, at the end of a fit's max_steps, or a standalone one."""
        return no_training_follows(trainer) or self.validations % self.every_n_validations == 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations, "records": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]
        self.records = state_dict.get("records", [])


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
    """The module as what the analyses need: a transformer with a head mask."""
    if not isinstance(module, ICLModule):
        raise InputError(f"the module is {type(module).__name__}, but the analyses need an ICLModule.")
    return module


def check_at_least(name: str, value: int, smallest: int) -> None:
    """Refuse a count below ``smallest`` (a standard error, for one, needs 2 prompts)."""
    if value < smallest:
        raise InputError(f"{name} is {value}, but it must be at least {smallest}.")


def all_ranks(module: LightningModule, values: Tensor) -> Tensor:
    """The batches of every rank as one, in rank order."""
    gathered = module.all_gather(values)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1) if gathered.dim() > values.dim() else gathered


def log_scalars(module: LightningModule, values: Mapping[str, float | Tensor]) -> None:
    """Log finite values; a NaN here means "not measurable" and leaves a gap in the chart."""
    # Every rank computed the same but for rounding; rank 0's word keeps them from differing about what is finite, as
    # each logged key is a collective.
    for key, value in module.trainer.strategy.broadcast({k: float(v) for k, v in values.items()}).items():
        if math.isfinite(value):
            module.log(key, value, sync_dist=True, batch_size=1)


def trained_steps(trainer: Trainer, module: ICLModule) -> int:
    """Optimizer steps behind the weights: of this fit, or of the checkpoint a standalone run has loaded."""
    return trainer.global_step if trainer.state.fn == "fit" else module.trained_steps


def progress(trainer: Trainer, items: Sequence[Any], description: str) -> Iterable[Any]:
    """The items behind a progress bar, where the trainer shows one."""
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    return tqdm(items, desc=description, leave=False, disable=not shown, delay=1)


def plain(value: Any) -> Any:
    """The value as JSON knows it: tensors as lists, and null for what is not a finite number."""
    match value:
        case Tensor():
            return plain(value.tolist())
        case tuple() if hasattr(value, "_asdict"):
            return plain(value._asdict())
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


def save_results(trainer: Trainer, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Put an analysis' records, one for each step it was made at, into results.json in the run's folder."""
    save_result(trainer, name, list(records))


def save_result(trainer: Trainer, name: str, value: Any) -> None:
    """Put one entry into results.json in the run's folder, and leave the others."""
    run_folder = trainer.log_dir  # a collective: every rank asks, rank 0 writes
    if not trainer.is_global_zero:
        return
    path = Path(run_folder or trainer.default_root_dir) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {"lightning_icl": version("lightning-icl")}
    known[name] = value
    partial = path.with_suffix(".json.partial")  # so that a kill leaves the old file or the new one
    partial.write_text(json.dumps(known, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def save_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Show a figure in TensorBoard and write figures/NAME.png and .svg in the run's folder (the latest ones stay).

    Only when the run's FigureWriter says so.
    """
    run_folder = trainer.log_dir  # a collective: every rank asks, rank 0 writes
    if not trainer.is_global_zero or not figures_due(trainer):
        return
    pixels = write_figure(Path(run_folder or trainer.default_root_dir) / "figures", name, figure)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def write_figure(folder: Path, name: str, figure: Figure) -> NDArray[np.uint8]:
    """Write NAME.png and NAME.svg, and return the pixels (height, width, 3)."""
    figure.set_dpi(130)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once for both bitmaps, since drawing takes longer than most analyses
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    folder.mkdir(parents=True, exist_ok=True)
    imsave(folder / f"{name}.png", pixels)
    figure.set_layout_engine("none")  # it stays as it was laid out above, which is half the work of drawing
    # No date and no random names inside: the same figure is the same file.
    with rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(folder / f"{name}.svg", metadata={"Date": None})
    return pixels
