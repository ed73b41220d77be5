"""The figures of a study, drawn from its table alone; a module for each."""

from lightning_icl.studies.figures.effective_heads import EffectiveHeads
from lightning_icl.studies.figures.importance_maps import ImportanceMaps
from lightning_icl.studies.figures.p_probing import PProbing
from lightning_icl.studies.figures.probes import Probes
from lightning_icl.studies.figures.pruning import Pruning
from lightning_icl.studies.figures.risk_by_heads import RiskByHeads
from lightning_icl.studies.figures.risk_by_points import RiskByPoints
from lightning_icl.studies.figures.study_figure import Drawn, StudyFigure, write_figures

__all__ = [
    "Drawn",
    "EffectiveHeads",
    "ImportanceMaps",
    "PProbing",
    "Probes",
    "Pruning",
    "RiskByHeads",
    "RiskByPoints",
    "StudyFigure",
    "write_figures",
]
