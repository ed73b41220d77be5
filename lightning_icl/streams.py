"""Streams of prompts: their seeds, the tokens that stand for their batches, and what validation draws from."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Generator

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import Law, Spectrum

STREAMS = ("train", "validate", "test", "predict", "n_points", "held_out")
MAX_STEPS = 2**25  # of a stream: a 32-bit seed holds 16 streams x 2^25 steps x 8 blocks
MAX_BLOCKS = 8


def block_seed(seed: int, stream: str, step: int, block: int) -> int:
    """A generator seed that no other (stream, step, block) of the same ``seed`` shares.

    torch's CPU generator uses only the low 32 bits of its seed, so hashing into 64 would let two batches, or
    training and validation, collide. The triple is packed into 32 bits instead, and mixed by a bijection (the
    murmur3 finaliser) so that neighbouring steps get distant seeds.
    """
    packed = (STREAMS.index(stream) * MAX_STEPS + step) * MAX_BLOCKS + block
    # The seed enters twice: once alone would make the streams of two seeds translates of each other.
    return _mixed(_mixed(packed ^ _mixed(seed)) ^ _mixed(~seed & 0xFFFFFFFF))


def _mixed(x: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return x ^ (x >> 16)


def stream_generator(seed: int, stream: str, step: int, block: int, device: torch.device | str) -> Generator:
    """The generator of one block of prompts. CPU and CUDA generators of one seed give different numbers."""
    return torch.Generator(device).manual_seed(block_seed(seed, stream, step, block))


class StreamToken(NamedTuple):
    """What a loader yields in place of data: which stream, which of its steps, and which law of several."""

    stream: str
    step: int
    law: int = 0


class StepLoader:
    """An iterable of tokens. It is stateless: the trainer's own counter says where training stands.

    Its empty state tells Lightning that a resume in mid-epoch is safe.
    """

    def __init__(self, stream: str, n_steps: int | None, law: int = 0) -> None:
        self.stream, self.n_steps, self.law = stream, n_steps, law

    def __iter__(self) -> Iterator[StreamToken]:
        step = 0
        while self.n_steps is None or step < self.n_steps:
            yield StreamToken(self.stream, step, self.law)
            step += 1

    def __len__(self) -> int:
        if self.n_steps is None:
            raise TypeError("this stream is endless")
        return self.n_steps

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class ValidationStream(TypedDict, total=False):
    """How a validation stream differs from fresh prompts of the training task; empty where it does not.

    A TypedDict, because the command line would pass over a misspelt key of a dataclass in silence.

    Attributes:
        shift: options of the training task that are changed.
        n_points: the number of examples, or [smallest, largest], in place of the training's.
        task: a law in place of the training task; not beside a shift.

    Example:
        >>> from lightning_icl import PromptDataModule, SparseLinearRegression, ValidationStream
        >>> longer = ValidationStream(n_points=40)
        >>> data = PromptDataModule(SparseLinearRegression(n_dims=8, sparsity=2), validation={"longer": longer})
        >>> data.streams[0].largest_n
        40
    """

    shift: dict[str, Spectrum | Any]  # Any alone would not find a spectrum by its short name
    n_points: int | tuple[int, int]
    task: Law


class EvaluationStream(NamedTuple):
    """What one stream of evaluation prompts draws from; ``name`` is None where there is but one, without a name."""

    name: str | None
    task: Law
    smallest_n: int
    largest_n: int

    def n_points(self, step: int, n_steps: int) -> int:
        """Batch ``step``'s number of examples: from smallest to largest, evenly, so every run sees the same."""
        return self.smallest_n + round((self.largest_n - self.smallest_n) * step / max(1, n_steps - 1))


def evaluation_streams(
    task: Law, n_points: tuple[int, int], validation: Mapping[str, ValidationStream]
) -> list[EvaluationStream]:
    """The streams that ``validation`` names, or the one of fresh prompts without a name."""
    if not validation:
        return [EvaluationStream(None, task.fresh(), *n_points)]
    return [_named_stream(name, stream, task, n_points) for name, stream in validation.items()]


def _named_stream(name: str, stream: ValidationStream, task: Law, n_points: tuple[int, int]) -> EvaluationStream:
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"validation has a stream {name!r}, but a name is made of letters, digits, _ and -.")
    shift, own_task = stream.get("shift", {}), stream.get("task")
    if own_task is not None and shift:
        raise InputError(f"validation.{name} has both a shift and a task; give one of them.")
    try:
        law = own_task or _shifted(task.fresh(), shift)
        smallest_n, largest_n = checked_n_points(stream.get("n_points", n_points))
    except InputError as error:
        raise InputError(f"validation.{name}: {error}") from error
    if law.n_dims != task.n_dims:
        raise InputError(
            f"validation.{name}: its task has n_dims {law.n_dims}, but the model is as wide as the training task's, "
            f"{task.n_dims}."
        )
    return EvaluationStream(name, law, smallest_n, largest_n)


def _shifted(task: Law, shift: Mapping[str, Any]) -> Law:
    for option, value in shift.items():
        if isinstance(value, Mapping):
            raise InputError(f"shift.{option} is {dict(value)}, but there is no such class or it has no such option.")
        if hasattr(value, "class_path"):  # the parser has found the class, but could not make an object of it
            init_args = vars(value.init_args) if hasattr(value, "init_args") else {}
            options = {name: given for name, given in init_args.items() if name.isidentifier()}
            raise InputError(f"shift.{option}: {value.class_path.rpartition('.')[2]} cannot be made with {options}.")
    try:
        return task.shifted(**shift)
    except TypeError as error:
        raise InputError(f"shift is {dict(shift)}, but one of these is of the wrong type.") from error


def checked_n_points(n_points: int | tuple[int, int]) -> tuple[int, int]:
    """The smallest and the largest number of examples."""
    smallest, largest = (n_points, n_points) if isinstance(n_points, int) else n_points
    if not 1 <= smallest <= largest:
        raise InputError(
            f"n_points is {[smallest, largest]}, but it must be a number from 1 up, "
            "or [smallest, largest] with 1 <= smallest <= largest."
        )
    return smallest, largest
