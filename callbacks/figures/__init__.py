"""The figures of the analyses: plain results in, a matplotlib figure out."""

from lightning_icl.callbacks.figures.algorithms import algorithm_match
from lightning_icl.callbacks.figures.circuits import (
    attention_maps,
    output_value_maps,
    prediction_rows,
    query_key_maps,
)
from lightning_icl.callbacks.figures.heads import importance_map, score_maps, specialisation
from lightning_icl.callbacks.figures.p_probing import p_probing_risks
from lightning_icl.callbacks.figures.probes import probe_map, probe_risks
from lightning_icl.callbacks.figures.pruning import ScoredPath, greedy_path, pruning_risks
from lightning_icl.callbacks.figures.risks import risk_by_estimator, risk_by_points, risk_by_stream
from lightning_icl.callbacks.figures.style import RiskAndError

__all__ = [
    "RiskAndError",
    "ScoredPath",
    "algorithm_match",
    "attention_maps",
    "greedy_path",
    "importance_map",
    "output_value_maps",
    "p_probing_risks",
    "prediction_rows",
    "probe_map",
    "probe_risks",
    "pruning_risks",
    "query_key_maps",
    "risk_by_estimator",
    "risk_by_points",
    "risk_by_stream",
    "score_maps",
    "specialisation",
]
