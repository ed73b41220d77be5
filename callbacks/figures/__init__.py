"""The figures of the analyses: plain results in, a matplotlib figure out."""

from lightning_icl.callbacks.figures.heads import importance_map, score_maps, specialisation
from lightning_icl.callbacks.figures.p_probing import p_probing_risks
from lightning_icl.callbacks.figures.probes import probe_map, probe_risks
from lightning_icl.callbacks.figures.pruning import ScoredPath, greedy_path, pruning_risks
from lightning_icl.callbacks.figures.risks import risk_by_estimator, risk_by_points, risk_by_stream
from lightning_icl.callbacks.figures.style import RiskAndError

__all__ = [
    "RiskAndError",
    "ScoredPath",
    "greedy_path",
    "importance_map",
    "p_probing_risks",
    "probe_map",
    "probe_risks",
    "pruning_risks",
    "risk_by_estimator",
    "risk_by_points",
    "risk_by_stream",
    "score_maps",
    "specialisation",
]
