"""Find out how transformers learn in context: stream tasks, train, score heads, prune, probe."""

from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks import (
    DecisionTree,
    Eigenvalues,
    Flat,
    GroupSparseLinearRegression,
    HiddenRepresentation,
    LinearClassification,
    LinearRegression,
    LinearTask,
    Mixture,
    PolynomialRegression,
    PowerLaw,
    QuadraticRegression,
    ReLUNetwork,
    SparseLinearRegression,
    SparseRecovery,
    Spectrum,
    Spiked,
    Task,
    TaskPool,
)
from lightning_icl.module import ICLModule
from lightning_icl.record import Row, load_run
from lightning_icl.streams import ValidationStream
from lightning_icl.transformer import Transformer, TransformerOutput

__all__ = [
    "DecisionTree",
    "Eigenvalues",
    "Flat",
    "GroupSparseLinearRegression",
    "HiddenRepresentation",
    "ICLModule",
    "InputError",
    "LinearClassification",
    "LinearRegression",
    "LinearTask",
    "Mixture",
    "PolynomialRegression",
    "PowerLaw",
    "Prompt",
    "PromptDataModule",
    "QuadraticRegression",
    "ReLUNetwork",
    "Row",
    "SparseLinearRegression",
    "SparseRecovery",
    "Spectrum",
    "Spiked",
    "Task",
    "TaskPool",
    "Transformer",
    "TransformerOutput",
    "ValidationStream",
    "load_run",
]
