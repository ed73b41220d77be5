"""The scripts of Garg et al. 2022, from a checkout of github.com/dtsip/in-context-learning, to be timed beside ours.

Nothing in them is changed but this: ``.cuda()`` moves nothing, the bar is off, labels get our task's noise where theirs
has none, and the packages for logging, options and plots that train.py imports but a training step never uses are
stand-ins. Files and wandb are off by their own switch, ``test_run``. They need the package transformers for its GPT-2.
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from lightning_icl import Prompt, SparseLinearRegression

UNUSED = ("eval", "funcy", "munch", "quinine", "schema", "wandb", "xgboost")
QUERIES_AT_ONCE = 512


class _EnoughError(Exception):
    """Ends their loop, which has no other way out."""


class Garg:
    """Their models and their training loop, for one of our tasks and prompts of ``n_points`` examples and a query."""

    def __init__(self, folder: Path, task: SparseLinearRegression, n_points: int) -> None:
        if not (folder / "src" / "train.py").exists():
            raise SystemExit(f"--peer is {folder}, where there is no src/train.py: give a checkout of the repository.")
        self.folder, self.task, self.n_points = folder, task, n_points
        sys.path.insert(0, str(folder / "src"))
        sys.modules.update({name: MagicMock() for name in UNUSED})
        self.script = importlib.import_module("train")
        self.script.tqdm = partial(tqdm, disable=True)  # type: ignore[attr-defined]
        torch.Tensor.cuda = torch.Tensor.cpu  # type: ignore[assignment, method-assign]

    def model(self, size: str | None = None, **options: int) -> nn.Module:
        """Their GPT-2 in one of their sizes (tiny, small, standard), or with n_embd, n_layer and n_head."""
        found: dict[str, Any] = {"family": "gpt2", "n_dims": self.task.n_dims, "n_positions": self.n_points + 1}
        if size is not None:
            found |= yaml.safe_load((self.folder / "src" / "conf" / "models" / f"{size}.yaml").read_text())["model"]
        return self.script.build_model(SimpleNamespace(**found | options))

    def train(self, model: nn.Module, learning_rate: float, batch_size: int, enough: Callable[[], bool]) -> None:
        """Their ``train`` at full size from the start, until ``enough``, which is asked after each step."""
        train_step, get_task_sampler = self.script.train_step, self.script.get_task_sampler

        def watched(*arguments: Any) -> Any:
            found = train_step(*arguments)
            if enough():
                raise _EnoughError
            return found

        def noisy_sampler(*arguments: Any, **options: Any) -> Callable[..., Any]:
            return partial(self._noisy, get_task_sampler(*arguments, **options))

        sizes = {
            name: SimpleNamespace(start=size, end=size, inc=0, interval=1)
            for name, size in (("dims", self.task.n_dims), ("points", self.n_points + 1))
        }
        training = SimpleNamespace(
            task="sparse_linear_regression",
            task_kwargs={"sparsity": self.task.sparsity},
            data="gaussian",
            batch_size=batch_size,
            learning_rate=learning_rate,
            curriculum=SimpleNamespace(**sizes),
            train_steps=sys.maxsize,
            num_tasks=None,
            num_training_examples=None,
            save_every_steps=sys.maxsize,
            keep_every_steps=-1,
        )
        wandb = SimpleNamespace(log_every_steps=sys.maxsize)
        try:
            vars(self.script).update(train_step=watched, get_task_sampler=noisy_sampler)
            self.script.train(model, SimpleNamespace(training=training, wandb=wandb, out_dir="", test_run=True))
        except _EnoughError:
            pass
        finally:
            vars(self.script).update(train_step=train_step, get_task_sampler=get_task_sampler)

    def _noisy(self, sampler: Callable[..., Any], **options: Any) -> Any:
        """One of their tasks, its labels with noise."""
        task = sampler(**options)
        noise_free = task.evaluate
        task.evaluate = lambda xs: noise_free(xs) + self.task.noise_std * torch.randn(xs.shape[:2])
        return task


def predictions(model: nn.Module, prompt: Prompt) -> Tensor:
    """Their model's predictions (batch, queries), each query in a copy of its prompt."""
    n_queries = prompt.x_query.shape[1]
    x = torch.cat([prompt.x.repeat_interleave(n_queries, 0), prompt.x_query.flatten(0, 1)[:, None]], dim=1)
    y = torch.nn.functional.pad(prompt.y.repeat_interleave(n_queries, 0), (0, 1))  # they never see the query's label
    at_once = zip(x.split(QUERIES_AT_ONCE), y.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat([model(xs, ys)[:, -1] for xs, ys in at_once]).unflatten(0, (-1, n_queries))
