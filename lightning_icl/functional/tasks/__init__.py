"""Laws of regression problems, one file a family."""

from lightning_icl.functional.tasks.classification import LinearClassification
from lightning_icl.functional.tasks.decision_tree import DecisionTree
from lightning_icl.functional.tasks.law import Law
from lightning_icl.functional.tasks.linear import (
    GroupSparseLinearRegression,
    LinearRegression,
    LinearTask,
    SparseLinearRegression,
)
from lightning_icl.functional.tasks.mixture import Mixture
from lightning_icl.functional.tasks.polynomial import PolynomialRegression, QuadraticRegression
from lightning_icl.functional.tasks.pool import TaskPool
from lightning_icl.functional.tasks.relu_network import ReLUNetwork
from lightning_icl.functional.tasks.representation import HiddenRepresentation
from lightning_icl.functional.tasks.sparse_recovery import SparseRecovery
from lightning_icl.functional.tasks.spectrum import Eigenvalues, Flat, PowerLaw, Spectrum, Spiked
from lightning_icl.functional.tasks.task import Task

__all__ = [
    "DecisionTree",
    "Eigenvalues",
    "Flat",
    "GroupSparseLinearRegression",
    "HiddenRepresentation",
    "Law",
    "LinearClassification",
    "LinearRegression",
    "LinearTask",
    "Mixture",
    "PolynomialRegression",
    "PowerLaw",
    "QuadraticRegression",
    "ReLUNetwork",
    "SparseLinearRegression",
    "SparseRecovery",
    "Spectrum",
    "Spiked",
    "Task",
    "TaskPool",
]
