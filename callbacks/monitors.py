"""Whether what monitors a run will find the metric it looks for."""

import re
from collections.abc import Mapping

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_icl.callbacks.analysis import analyses
from lightning_icl.callbacks.pruning_schedule import PruningSchedule
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.module import ICLModule

KNOWN = ("lightning", "lightning_icl")  # packages of which it is known what they log


def check_monitors(trainer: Trainer, module: ICLModule, data: PromptDataModule) -> None:
    """Refuse a metric that nothing logs, which Lightning would only miss after the first validation, hours in.

    Where a callback or module of the user's own is there, which may log anything, it is a warning.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    logged = monitored(trainer, module, data)
    foreign = [type(c).__name__ for c in (module, *callbacks) if type(c).__module__.partition(".")[0] not in KNOWN]
    everything = any(getattr(c, "scalars", "") == "all" for c in callbacks)
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor in (None, "epoch", "step"):
            continue
        said = f"monitor of {type(callback).__name__} is {callback.monitor!r}, but"
        found = [every for pattern, every in logged.items() if re.fullmatch(pattern, callback.monitor)]
        if not found:
            names = [name for pattern in logged for name in spelled_out(pattern)]
            said += f" nothing here is known to log it; {did_you_mean(callback.monitor, names)}"
            if not (foreign or everything or not getattr(callback, "strict", True)):
                raise InputError(said)
            rank_zero_warn(said)
        elif min(found) > 1 and getattr(callback, "strict", True):
            raise InputError(
                f"{said} that is measured once in {min(found)} validations and looked for at each: set "
                "every_n_validations of what measures it to 1."
            )


def monitored(trainer: Trainer, module: ICLModule, data: PromptDataModule) -> Mapping[str, int]:
    """What a fit hands to what monitors it: patterns of names, and at every how many validations."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    names = {"train/loss": 1}
    for kind, name in ((PruningSchedule, "prune/schedule/n_heads"), (LearningRateMonitor, "lr-.*")):
        names |= {name: 1} if any(isinstance(c, kind) for c in callbacks) else {}
    if not trainer.limit_val_batches:
        return names
    streams = ["", *(f"{stream.name}/" for stream in data.streams if stream.name)]
    names |= {f"val/{stream}excess_risk/transformer": 1 for stream in streams}
    layers = f"layer({'|'.join(map(str, range(module.depth + 1)))})"
    for analysis in (a for a in analyses(trainer) if a.lacks(module) is None):
        for pattern in analysis.shows(data):
            whole = pattern.replace("$", "") + ".*" * ("$" not in pattern)
            name = re.sub("/|$", rf"{analysis.suffix(trainer)}\g<0>", whole.replace(r"layer\d+", layers), count=1)
            names[name] = analysis.every_n_validations
    return names


def spelled_out(pattern: str) -> list[str]:
    """The names that a pattern of alternatives stands for; none, if it has more than these."""
    if choice := re.search(r"\(([^()]*)\)", pattern):
        before, after = pattern[: choice.start()], pattern[choice.end() :]
        return [name for one in choice[1].split("|") for name in spelled_out(before + one + after)]
    return [pattern.replace("\\", "")] if re.fullmatch(r"(\\?[\w/.-])*", pattern) else []
