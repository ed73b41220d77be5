"""How a run ends early: which signal, with which exit status, and how to go on."""

import errno
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any

# What a disk may say to any file in a run: it is full, over a quota, read-only or broken.
OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
Handler = Callable[[int, FrameType | None], None]

NAMES = ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))  # Windows lacks some


class Stopped(SystemExit):
    """A signal has ended the process; its exit status is 128 + the signal's number, as a shell's would be."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def stop(number: int, _: FrameType | None = None) -> None:
    """End the process at once, and all that is cleared up on the way out with it."""
    raise Stopped(number)


def listen(handler: Handler) -> None:
    """Have this told of the signals that end a run, but for those ignored, as nohup does SIGHUP."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextmanager
def listening() -> Iterator[None]:
    """Within this, a signal ends the process by Stopped, unless ``listen`` says otherwise; after it, as before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)


class Unheeded(FileIO):
    """A terminal or a pipe: what is written after its other end has gone is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(data)


@contextmanager
def outlasting() -> Iterator[None]:
    """Within this, a terminal that has gone, or lacks a character, ends nothing that prints to it."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            with suppress(OSError):  # it is in memory
                raw, how = Unheeded(stream.fileno(), "w", closefd=False), (stream.line_buffering, stream.write_through)
                setattr(sys, name, TextIOWrapper(BufferedWriter(raw), stream.encoding, stream.errors, None, *how))
    try:
        yield
    finally:
        for name, stream in before.items():
            print(end="", file=getattr(sys, name), flush=True)
            setattr(sys, name, stream)


def way_on(step: int, folder: Path, checkpoint: str | Path | None) -> str:
    """The last line of a fit that did not come to its end: what there is, and the command that goes on with it."""
    kept = f"It was at step {step}; " + (f"the last checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet")
    parts = ["--config", folder / "config.yaml", "--run_folder", folder, "--ckpt_path", "last"]
    return f"{kept}; go on with: lightning-icl fit {shlex.join(map(str, parts))}"


def replay(folder: Path, checkpoint: str | Path | None) -> str:
    """The command that makes a step again at which training has diverged, and says in which operation."""
    start = ["--ckpt_path", checkpoint] if checkpoint else []
    parts = ["--config", folder / "config.yaml", "--run_folder", folder / "replay", *start]
    return f"Replay it with: lightning-icl fit {shlex.join(map(str, parts))} --trainer.detect_anomaly true"
