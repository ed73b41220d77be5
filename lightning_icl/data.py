"""The data module: streams of fresh prompts."""

import inspect
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from lightning_icl.functional.curriculum import Sizes
from lightning_icl.functional.errors import MOST_SEED, InputError, check_at_least, check_between
from lightning_icl.functional.estimators import moments
from lightning_icl.functional.memory import check_memory
from lightning_icl.functional.prompts import Prompt, concatenated
from lightning_icl.functional.tasks import Law
from lightning_icl.functional.tasks.trial import check_law
from lightning_icl.streams import (
    MAX_BLOCKS,
    MAX_STEPS,
    EvaluationStream,
    StepLoader,
    StreamToken,
    ValidationStream,
    checked_n_points,
    evaluation_streams,
    stream_generator,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BLOCK_PROMPTS = 256


def _batches_ready(trainer: Trainer) -> int:
    """Batches of this epoch so far, by the counter from which Lightning decides when to step (not public)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def train_batches(trainer: Trainer) -> int | None:
    """Batches of a whole fit; None where max_steps does not end it."""
    return None if trainer.max_steps < 0 else trainer.max_steps * trainer.accumulate_grad_batches


class PromptDataModule(LightningDataModule):
    """Streams fresh prompts of one task, sampled on the device that uses them.

    The global batch of a step depends on (seed, stream, step) alone: not on the number of ranks, on gradient
    accumulation or on restarts. The streams train, validate, test, predict and the callbacks' held-out sets never
    share a generator seed. Validation replays the same prompts each time.

    Validation and test draw from ``task.fresh()``, or from each of the laws that ``validation`` names. Named streams
    share their seeds, so that their prompts are paired as far as their laws allow (a shift of the noise level alone
    leaves features, weights and noise the same up to that factor). Predict and the callbacks' held-out sets draw from
    the first.

    Attributes:
        streams: what validation and test draw from, in order.
        curriculum: how the size of training prompts grows, where the Curriculum callback says so.
        drawn: how many prompts of each held-out set were drawn, by name, since this was last emptied.

    Args:
        task: the law of the prompts.
        n_points: number of examples of a prompt; or [smallest, largest], then drawn uniformly for each training
            batch (and the prompts are padded to the largest and masked), and spread evenly over the evaluation batches.
        n_queries: queries of each prompt. They are parallel, so each adds a training signal at the price of a token.
        batch_size: prompts of one optimizer step. Ranks and gradient accumulation divide it.
        eval_prompts: prompts of each of the validation, test and predict streams.
        eval_batch_size: prompts of one evaluation batch, all ranks together.
        seed: seed of every stream, 0 to 2^32 - 1. The command line sets it to seed_everything.
        validation: validation streams by name, such as {in_distribution: {}, noisier: {shift: {noise_std: 1.0}},
            longer: {n_points: 40}, other: {task: {class_path: ...}}}.

    Example:
        >>> from lightning_icl import PromptDataModule, SparseLinearRegression
        >>> task = SparseLinearRegression(n_dims=8, sparsity=2, noise_std=0.4)
        >>> data = PromptDataModule(task, n_points=8, validation={"noisier": {"shift": {"noise_std": 1.0}}})
        >>> data.held_out("a name", 256).x.shape  # the same prompts for the same name
        torch.Size([256, 8, 8])
        >>> [(stream.name, stream.task.noise_std) for stream in data.streams]
        [('noisier', 1.0)]
    """

    def __init__(
        self,
        task: Law,
        n_points: int | tuple[int, int] = 16,
        n_queries: int = 16,
        batch_size: int = 64,
        eval_prompts: int = 2048,
        eval_batch_size: int = 512,
        seed: int = 0,
        validation: Mapping[str, ValidationStream] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.task = task
        self.smallest_n, self.largest_n = checked_n_points(n_points)
        self.n_queries = n_queries
        self.batch_size = batch_size
        self.eval_prompts, self.eval_batch_size = eval_prompts, eval_batch_size
        self.seed = seed
        self.streams = evaluation_streams(task, (self.smallest_n, self.largest_n), validation)
        self.curriculum = Sizes()
        self._asked = batch_size  # and, with the next, as before Lightning's BatchSizeFinder tries others
        self._length: int | None = None
        self.drawn: dict[str, int] = {}
        self._truncated = task
        self._check()

    def _check(self) -> None:
        check_at_least(
            1,
            n_queries=self.n_queries,
            batch_size=self.batch_size,
            eval_prompts=self.eval_prompts,
            eval_batch_size=self.eval_batch_size,
        )
        if self.eval_prompts % self.eval_batch_size:
            raise InputError(
                f"eval_batch_size is {self.eval_batch_size}, but it must divide eval_prompts, {self.eval_prompts}."
            )
        if self._eval_steps() > MAX_STEPS:
            raise InputError(
                f"eval_prompts is {self.eval_prompts}, {self._eval_steps()} times eval_batch_size, but a stream has "
                f"{MAX_STEPS} batches."
            )
        check_between(0, MOST_SEED, seed=self.seed)
        self.check_prompts(batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)

    def check_prompts(self, **counts: int) -> None:
        """Refuse a count of prompts whose tokens do not fit into memory together."""
        longest = max(self.largest_n, *(stream.largest_n for stream in self.streams))
        for name, n in counts.items():
            check_memory(
                f"{name} is {n:,}: so many prompts with n_points {longest:,} and n_queries {self.n_queries:,}",
                n * (longest + self.n_queries) * (self.task.n_dims + 1),
            )

    def setup(self, stage: str) -> None:
        self.curriculum = Sizes()  # the Curriculum callback is set up after this
        if self.trainer is not None:
            self.check_run(self.trainer, self.trainer.lightning_module, stage)

    def check_run(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse what cannot be shared out among ranks and accumulation, before anything runs."""
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
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            names = [name for name in inspect.signature(type(callback)).parameters if name.endswith("_prompts")]
            given = {name: getattr(callback, name, None) for name in names}
            self.check_prompts(**{name: n for name, n in given.items() if isinstance(n, int)})
        self._check_lengths(getattr(getattr(module, "network", None), "max_points", None), training=stage == "fit")
        for law in (self.task, *(stream.task for stream in self.streams)):
            check_law(law)
        if stage == "fit":
            self._asked, self._length = self.batch_size, train_batches(trainer)
            self._check_fit(trainer)

    def _check_lengths(self, max_points: int | None, training: bool) -> None:
        """Refuse prompts with more examples than the model has positions, if it has any."""
        if max_points is None:
            return
        longest = {f"validation.{s.name}" if s.name else "n_points": s.largest_n for s in self.streams}
        for option, n_points in (longest | ({"n_points": self.largest_n} if training else {})).items():
            if n_points > max_points:
                raise InputError(
                    f"data.{option} has prompts of {n_points} examples, but model.max_points is "
                    f"{max_points}: make it {n_points}."
                )

    def _check_fit(self, trainer: Trainer) -> None:
        accumulate = trainer.accumulate_grad_batches
        check_at_least(1, **{"trainer.accumulate_grad_batches": accumulate})
        if (epochs := trainer.check_val_every_n_epoch) is not None:
            check_at_least(1, **{"trainer.check_val_every_n_epoch": epochs})
        parts = trainer.world_size * accumulate
        if self.batch_size % parts:
            raise InputError(
                f"batch_size is {self.batch_size}, but it must divide into processes x "
                f"trainer.accumulate_grad_batches = "
                f"{trainer.world_size} x {accumulate} equal parts; try {self._divisible(parts)}."
            )
        if trainer.max_steps > MAX_STEPS:
            raise InputError(f"trainer.max_steps is {trainer.max_steps}, but a stream has {MAX_STEPS} steps.")
        n_batches = train_batches(trainer)
        interval = getattr(trainer, "val_check_interval", None)  # which a trainer that validates by the clock has not
        if isinstance(interval, (int, float)) and interval <= 0:
            raise InputError(f"trainer.val_check_interval is {interval}, but it must be above 0.")
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
            "curriculum": {name: growth and growth._asdict() for name, growth in self.curriculum._asdict().items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume on another stream than the checkpoint's."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        for name, value in (self.state_dict() | {"batch_size": self._asked}).items():
            if state_dict.get(name, value) != value:
                option = name if name == "curriculum" else f"data.{name}"
                raise InputError(
                    f"the checkpoint was trained with {option} = {state_dict[name]}, but the config asks for "
                    f"{value}; resume with the same, or start a new run."
                )

    def _divisible(self, parts: int) -> int:
        return -(-self.batch_size // parts) * parts

    def train_dataloader(self) -> StepLoader:
        return StepLoader("train", self._length)

    def val_dataloader(self) -> list[StepLoader]:
        return self._loaders("validate")

    def test_dataloader(self) -> list[StepLoader]:
        return self._loaders("test")

    def predict_dataloader(self) -> StepLoader:
        return self._loaders("predict")[0]

    def _loaders(self, stream: str) -> list[StepLoader]:
        return [StepLoader(stream, self._eval_steps(), law) for law in range(len(self.streams))]

    def _eval_steps(self) -> int:
        return self.eval_prompts // self.eval_batch_size

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Turn a token into this rank's share of its batch, sampled on ``device``."""
        if not isinstance(batch, StreamToken):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if batch.stream != "train" or trainer is None:
            return self.sample(batch.stream, batch.step, rank, ranks, device, batch.law)
        # The loader runs one token ahead of training and starts from 0 at a resume, so only the trainer's own counts,
        # which checkpoints keep, say which batch this is: its optimizer steps, and its batches since the last one.
        accumulated = _batches_ready(trainer) % trainer.accumulate_grad_batches
        parts = ranks * trainer.accumulate_grad_batches
        return self.sample("train", trainer.global_step, accumulated * ranks + rank, parts, device)

    def sample(
        self,
        stream: str,
        step: int,
        part: int = 0,
        parts: int = 1,
        device: torch.device | str = "cpu",
        law: int = 0,
    ) -> Prompt:
        """Part ``part`` of ``parts`` of the global batch of one step of a stream; in evaluation, of streams[law]."""
        if stream == "train":
            rows = self._share(self.batch_size, part, parts)
            prompt = self._rows(self._training_task(step), stream, step, self.batch_size, rows, self.largest_n, device)
            return self._trimmed(prompt, step)
        rows, source = self._share(self.eval_batch_size, part, parts), self.streams[law]
        n_points = source.n_points(step, self._eval_steps())
        return self._rows(source.task, stream, step, self.eval_batch_size, rows, n_points, device)

    def _share(self, batch_size: int, part: int, parts: int) -> range:
        share = batch_size // parts
        return range(part * share, (part + 1) * share)

    def _training_task(self, step: int) -> Law:
        """The task, cut to the curriculum's dimensions at ``step``."""
        n_dims = self.curriculum.dims.at(step) if self.curriculum.dims else self.task.n_dims
        if n_dims == self.task.n_dims:
            return self.task
        if n_dims != self._truncated.n_dims:
            self._truncated = self.task.truncated(n_dims)
        return self._truncated

    def posterior_mean(self, prompt: Prompt) -> Float[Tensor, "batch queries"]:
        """E[f | examples] at the queries of a prompt of the step being trained, exact under the law it is of."""
        task = self._training_task(self.trainer.global_step if self.trainer else 0)
        w = task.posterior(moments(prompt.x[..., : task.n_dims], prompt.y, prompt.point_mask)).mean
        return torch.einsum("bd,bqd->bq", w, prompt.x_query[..., : task.n_dims].double()).to(prompt.x)

    def _trimmed(self, prompt: Prompt, step: int) -> Prompt:
        """Training prompts at full size, of which only the step's dimensions and examples are not blank."""
        if self.curriculum.dims:
            prompt = prompt.widened(self.task.n_dims)
        if self.curriculum.points:
            return prompt.padded_after(self.curriculum.points.at(step))
        if self.smallest_n == self.largest_n:
            return prompt
        generator = stream_generator(self.seed, "n_points", step, 0, "cpu")
        return prompt.padded_after(int(torch.randint(self.smallest_n, self.largest_n + 1, (), generator=generator)))

    def held_out(
        self,
        name: str,
        n_prompts: int,
        device: torch.device | str = "cpu",
        n_points: int | None = None,
        stream: EvaluationStream | None = None,
    ) -> Prompt:
        """A fixed set of prompts of its own for each ``name``, with the largest number of examples unless told.

        They are of the law of ``stream``, one of ``streams``; of the first unless told.
        """
        step = zlib.crc32(name.encode()) % MAX_STEPS
        stream = stream or self.streams[0]
        n_points = n_points or stream.largest_n
        self.drawn[name] = n_prompts
        return self._rows(stream.task, "held_out", step, n_prompts, range(n_prompts), n_points, device)

    def _rows(
        self,
        task: Law,
        stream: str,
        step: int,
        batch_size: int,
        rows: range,
        n_points: int,
        device: torch.device | str,
    ) -> Prompt:
        """Some rows of a batch, which is made of up to 8 blocks with a generator each."""
        n_blocks = min(MAX_BLOCKS, -(-batch_size // BLOCK_PROMPTS))
        size = -(-batch_size // n_blocks)
        blocks = range(rows.start // size, -(-rows.stop // size))
        prompts = [
            task.sample(
                min(size, batch_size - block * size),
                n_points,
                self.n_queries,
                stream_generator(self.seed, stream, step, block, device),
            )
            for block in blocks
        ]
        whole = prompts[0] if len(prompts) == 1 else concatenated(prompts)
        return whole.rows(rows.start - blocks.start * size, rows.stop - blocks.start * size)
