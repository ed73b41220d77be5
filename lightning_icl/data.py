"""The stream of fresh prompts."""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Generator

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt, concatenated
from lightning_icl.functional.tasks import Task

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STREAMS = ("train", "validate", "test", "predict", "n_points", "held_out")
MAX_STEPS = 2**25  # of a stream: a 32-bit seed holds 16 streams x 2^25 steps x 8 blocks
MAX_BLOCKS = 8
BLOCK_PROMPTS = 256


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


def _batches_ready(trainer: Trainer) -> int:
    """Batches of this epoch so far, by the counter from which Lightning decides when to step (not public)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def stream_generator(seed: int, stream: str, step: int, block: int, device: torch.device | str) -> Generator:
    """The generator of one block of prompts. CPU and CUDA generators of one seed give different numbers."""
    return torch.Generator(device).manual_seed(block_seed(seed, stream, step, block))


class StreamToken(NamedTuple):
    """What a loader yields in place of data: which stream, and which of its steps."""

    stream: str
    step: int


class StepLoader:
    """An iterable of tokens. It is stateless: the trainer's own counter says where training stands.

    Its empty state tells Lightning that a resume in mid-epoch is safe.
    """

    def __init__(self, stream: str, n_steps: int | None) -> None:
        self.stream, self.n_steps = stream, n_steps

    def __iter__(self) -> Iterator[StreamToken]:
        step = 0
        while self.n_steps is None or step < self.n_steps:
            yield StreamToken(self.stream, step)
            step += 1

    def __len__(self) -> int:
        if self.n_steps is None:
            raise TypeError("this stream is endless")
        return self.n_steps

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class PromptDataModule(LightningDataModule):
    """Streams fresh prompts of one task, sampled on the device that uses them.

    The global batch of a step depends on (seed, stream, step) alone: not on the number of ranks, on gradient
    accumulation or on restarts. The streams train, validate, test, predict and the callbacks' held-out sets never
    share a generator seed. Validation replays the same prompts each time.

    Args:
        task: the law of the prompts.
        n_points: number of examples of a prompt; or [smallest, largest], then drawn uniformly for each training
            batch (and the prompts are padded to the largest and masked), and spread evenly over the evaluation batches.
        n_queries: queries of each prompt. They are parallel, so each adds a training signal at the price of a token.
        batch_size: prompts of one optimizer step. Ranks and gradient accumulation divide it.
        eval_prompts: prompts of each of the validation, test and predict streams.
        eval_batch_size: prompts of one evaluation batch, all ranks together.
        seed: seed of every stream, 0 to 2^32 - 1. The command line sets it to seed_everything.
    """

    def __init__(
        self,
        task: Task,
        n_points: int | tuple[int, int] = 16,
        n_queries: int = 16,
        batch_size: int = 64,
        eval_prompts: int = 2048,
        eval_batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task = task
        self.smallest_n, self.largest_n = (n_points, n_points) if isinstance(n_points, int) else n_points
        self.n_queries = n_queries
        self.batch_size = batch_size
        self.eval_prompts, self.eval_batch_size = eval_prompts, eval_batch_size
        self.seed = seed
        self._check()

    def _check(self) -> None:
        if not 1 <= self.smallest_n <= self.largest_n:
            raise InputError(
                f"n_points is {[self.smallest_n, self.largest_n]}, but it must be a number from 1 up, "
                "or [smallest, largest] with 1 <= smallest <= largest."
            )
        for name in ("n_queries", "batch_size", "eval_prompts", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, but it must be at least 1.")
        if self.eval_prompts % self.eval_batch_size:
            raise InputError(
                f"eval_batch_size is {self.eval_batch_size}, but it must divide eval_prompts, {self.eval_prompts}."
            )
        if isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but it must be a whole number between 0 and 2^32 - 1.")

    def setup(self, stage: str) -> None:
        """Refuse what cannot be shared out among ranks and accumulation, before anything runs."""
        trainer = self.trainer
        if trainer is None:
            return
        if self.eval_batch_size % trainer.world_size:
            raise InputError(
                f"eval_batch_size is {self.eval_batch_size}, but it must divide into {trainer.world_size} equal parts, "
                "one for each process."
            )
        if trainer.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision is {trainer.precision}, but prompts are sampled in float32: "
                f"use one of {', '.join(PRECISIONS)}."
            )
        if trainer.strategy.root_device.type == "mps":
            raise InputError("trainer.accelerator is mps, but risks are computed in float64: use cpu or gpu (CUDA).")
        if stage == "fit":
            self._check_fit(trainer)

    def _check_fit(self, trainer: Trainer) -> None:
        accumulate = trainer.accumulate_grad_batches
        parts = trainer.world_size * accumulate
        if self.batch_size % parts:
            raise InputError(
                f"batch_size is {self.batch_size}, but it must divide into processes x accumulated batches = "
                f"{trainer.world_size} x {accumulate} equal parts; try {self._divisible(parts)}."
            )
        if trainer.max_steps > MAX_STEPS:
            raise InputError(f"trainer.max_steps is {trainer.max_steps}, but a stream has {MAX_STEPS} steps.")
        n_batches, interval = self._train_batches(), trainer.val_check_interval
        if isinstance(interval, float) and n_batches:
            interval = max(1, int(n_batches * interval))
        if n_batches is None and not any(isinstance(c, Timer) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise InputError("trainer.max_steps is -1, but the stream is endless: set max_steps or max_time.")
        if n_batches and isinstance(interval, int) and interval > n_batches:
            raise InputError(
                f"trainer.val_check_interval is {interval} batches, but the run has only {n_batches}; "
                "a fraction such as 0.1 validates ten times whatever the length."
            )
        limit = trainer.limit_train_batches
        for name, batches in (("val_check_interval", interval), ("limit_train_batches", limit)):
            if isinstance(batches, int) and batches % accumulate:
                raise InputError(
                    f"trainer.{name} comes to {batches} batches, but it must be a multiple of "
                    f"accumulate_grad_batches, {accumulate}: a checkpoint between two steps would lose gradients."
                )

    def state_dict(self) -> dict[str, Any]:
        """What the training stream depends on; a resume must agree with it."""
        return {
            "task": repr(self.task),
            "n_points": [self.smallest_n, self.largest_n],
            "n_queries": self.n_queries,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume on another stream than the checkpoint's."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        for name, value in self.state_dict().items():
            if state_dict.get(name, value) != value:
                raise InputError(
                    f"the checkpoint was trained with data.{name} = {state_dict[name]}, but the config asks for "
                    f"{value}; resume with the same, or start a new run."
                )

    def _divisible(self, parts: int) -> int:
        return -(-self.batch_size // parts) * parts

    def _train_batches(self) -> int | None:
        if self.trainer is None or self.trainer.max_steps < 0:
            return None
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> StepLoader:
        return StepLoader("train", self._train_batches())

    def val_dataloader(self) -> StepLoader:
        return StepLoader("validate", self.eval_prompts // self.eval_batch_size)

    def test_dataloader(self) -> StepLoader:
        return StepLoader("test", self.eval_prompts // self.eval_batch_size)

    def predict_dataloader(self) -> StepLoader:
        return StepLoader("predict", self.eval_prompts // self.eval_batch_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Turn a token into this rank's share of its batch, sampled on ``device``."""
        if not isinstance(batch, StreamToken):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if batch.stream != "train" or trainer is None:
            return self.sample(batch.stream, batch.step, rank, ranks, device)
        # The loader runs one token ahead of training and starts from 0 at a resume, so only the trainer's own counts,
        # which checkpoints keep, say which batch this is: its optimizer steps, and its batches since the last one.
        accumulated = _batches_ready(trainer) % trainer.accumulate_grad_batches
        parts = ranks * trainer.accumulate_grad_batches
        return self.sample("train", trainer.global_step, accumulated * ranks + rank, parts, device)

    def sample(
        self, stream: str, step: int, part: int = 0, parts: int = 1, device: torch.device | str = "cpu"
    ) -> Prompt:
        """Part ``part`` of ``parts`` of the global batch of one step of a stream."""
        batch_size = self.batch_size if stream == "train" else self.eval_batch_size
        share = batch_size // parts
        n_points = self._drawn_n_points(step) if stream == "train" else self._spread_n_points(step)
        sampled_n = self.largest_n if stream == "train" else n_points
        prompt = self._rows(stream, step, batch_size, part * share, (part + 1) * share, sampled_n, device)
        return prompt if self.smallest_n == self.largest_n or stream != "train" else prompt.padded_after(n_points)

    def held_out(
        self, name: str, n_prompts: int, device: torch.device | str = "cpu", n_points: int | None = None
    ) -> Prompt:
        """A fixed set of prompts of its own for each ``name``, with the largest number of examples unless told."""
        step = zlib.crc32(name.encode()) % MAX_STEPS
        return self._rows("held_out", step, n_prompts, 0, n_prompts, n_points or self.largest_n, device)

    def _rows(
        self,
        stream: str,
        step: int,
        batch_size: int,
        start: int,
        stop: int,
        n_points: int,
        device: torch.device | str,
    ) -> Prompt:
        """Rows ``start`` to ``stop`` of a batch, which is made of up to 8 blocks with a generator each."""
        n_blocks = min(MAX_BLOCKS, -(-batch_size // BLOCK_PROMPTS))
        size = -(-batch_size // n_blocks)
        blocks = range(start // size, -(-stop // size))
        prompts = [
            self.task.sample(
                min(size, batch_size - block * size),
                n_points,
                self.n_queries,
                stream_generator(self.seed, stream, step, block, device),
            )
            for block in blocks
        ]
        whole = prompts[0] if len(prompts) == 1 else concatenated(prompts)
        return whole.rows(start - blocks.start * size, stop - blocks.start * size)

    def _drawn_n_points(self, step: int) -> int:
        if self.smallest_n == self.largest_n:
            return self.largest_n
        generator = stream_generator(self.seed, "n_points", step, 0, "cpu")
        return int(torch.randint(self.smallest_n, self.largest_n + 1, (), generator=generator))

    def _spread_n_points(self, step: int) -> int:
        """Evaluation batch i's number of examples: from smallest to largest, evenly, so every run sees the same."""
        n_batches = self.eval_prompts // self.eval_batch_size
        return self.smallest_n + round((self.largest_n - self.smallest_n) * step / max(1, n_batches - 1))
