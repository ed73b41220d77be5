"""The figures of the analyses: plain results in, a matplotlib figure out."""

from lightning_icl.callbacks.figures.p_probing import p_probing_risks
from lightning_icl.callbacks.figures.probes import probe_map, probe_risks
from lightning_icl.callbacks.figures.risks import risk_by_estimator, risk_by_points, risk_by_stream
from lightning_icl.callbacks.figures.style import RiskAndError

__all__ = [
    "RiskAndError",
    "p_probing_risks",
    "probe_map",
    "probe_risks",
    "risk_by_estimator",
    "risk_by_points",
    "risk_by_stream",
]
