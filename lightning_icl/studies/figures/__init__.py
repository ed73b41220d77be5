# ruff: noqa: F401
"""The figures of a study, drawn from its table alone."""

from lightning_icl.studies.figures.heads import EffectiveHeads, HeadsByLayer, ImportanceMaps
from lightning_icl.studies.figures.probes import PProbing, Probes
from lightning_icl.studies.figures.pruning import Pruning
from lightning_icl.studies.figures.risks import RiskByHeads, RiskByPoints
from lightning_icl.studies.figures.study_figure import Drawn, StudyFigure, write_figures
