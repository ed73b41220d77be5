"""Lightning callbacks that look into the model at validation epochs. Import them as ``lightning_icl.callbacks``."""

if __name__ != "lightning_icl.callbacks":
    # The same file under two names would be two classes, and isinstance between them would fail silently.
    raise ImportError("import lightning_icl.callbacks, not callbacks: this folder is part of the package lightning_icl")

from lightning_icl.callbacks.algorithm_match import AlgorithmMatch
from lightning_icl.callbacks.analysis import Analysis
from lightning_icl.callbacks.circuits import Circuits
from lightning_icl.callbacks.construction_comparison import ConstructionComparison
from lightning_icl.callbacks.curriculum import Curriculum
from lightning_icl.callbacks.figure_writer import FigureWriter
from lightning_icl.callbacks.head_importance import HeadImportance
from lightning_icl.callbacks.head_pruning import HeadPruning
from lightning_icl.callbacks.linear_probe import LinearProbe
from lightning_icl.callbacks.prediction_writer import PredictionWriter
from lightning_icl.callbacks.pruning_schedule import PruningSchedule
from lightning_icl.callbacks.recorder import Recorder
from lightning_icl.callbacks.reference_risk import ReferenceRisk

__all__ = [
    "AlgorithmMatch",
    "Analysis",
    "Circuits",
    "ConstructionComparison",
    "Curriculum",
    "FigureWriter",
    "HeadImportance",
    "HeadPruning",
    "LinearProbe",
    "PredictionWriter",
    "PruningSchedule",
    "Recorder",
    "ReferenceRisk",
]
