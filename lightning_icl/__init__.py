"""Find out how transformers learn in context: stream tasks, train, score heads, prune, probe."""

from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks import LinearRegression, SparseLinearRegression, Task
from lightning_icl.module import ICLModule
from lightning_icl.transformer import Transformer, TransformerOutput

__all__ = [
    "ICLModule",
    "InputError",
    "LinearRegression",
    "Prompt",
    "PromptDataModule",
    "SparseLinearRegression",
    "Task",
    "Transformer",
    "TransformerOutput",
]
