"""Find out how transformers learn in context: stream tasks, train, score heads, prune, probe."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks import (
    DecisionTree,
    Eigenvalues,
    Flat,
    GroupSparseLinearRegression,
    HiddenRepresentation,
    Law,
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
from lightning_icl.gated_heads import GatedHeads
from lightning_icl.gpt2 import GPT2
from lightning_icl.network import InContextNetwork, TransformerOutput
from lightning_icl.streams import ValidationStream
from lightning_icl.transformer import Transformer
from lightning_icl.weights import load_weights

# A notebook's MPLBACKEND, handed on to a process without its packages, would end matplotlib's import, and so ours.
_BACKEND = os.environ.get("MPLBACKEND", "")
if _BACKEND.startswith("module://") and find_spec(_BACKEND[9:].partition(".")[0]) is None:
    del os.environ["MPLBACKEND"]

if TYPE_CHECKING:
    from lightning_icl.data import PromptDataModule
    from lightning_icl.export import Predictor, load_network, save_network
    from lightning_icl.module import ICLModule
    from lightning_icl.record import Row, load_run
else:
    # Imported when first asked for: they import Lightning, pandas and safetensors, which a user of plain torch does not
    # pay for.
    _LATER = {"ICLModule": "module", "PromptDataModule": "data", "Row": "record", "load_run": "record"}
    _LATER |= dict.fromkeys(("Predictor", "load_network", "save_network"), "export")

    def __getattr__(name):
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "GPT2",
    "DecisionTree",
    "Eigenvalues",
    "Flat",
    "GatedHeads",
    "GroupSparseLinearRegression",
    "HiddenRepresentation",
    "ICLModule",
    "InContextNetwork",
    "InputError",
    "Law",
    "LinearClassification",
    "LinearRegression",
    "LinearTask",
    "Mixture",
    "PolynomialRegression",
    "PowerLaw",
    "Predictor",
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
    "load_network",
    "load_run",
    "load_weights",
    "save_network",
]
