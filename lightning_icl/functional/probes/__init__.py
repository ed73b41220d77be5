"""Closed-form linear probes: what a layer's state knows linearly, and how surely. PAPER.md section 6.

The samples are tokens, which come in prompts: tokens of one prompt share its examples and its weights, so the prompt is
the unit of every standard error.
"""

from lightning_icl.functional.probes.ridge import (
    STRENGTHS,
    RidgeProbe,
    StateSpectrum,
    best_probe,
    by_target,
    check_strength,
    ridge_probe,
    state_spectrum,
)
from lightning_icl.functional.probes.scores import (
    UNDEFINED,
    Estimate,
    area_under_roc,
    deviations,
    explained_share,
    mean_estimate,
    selectivity,
)
from lightning_icl.functional.probes.targets import algorithm_weights, descent_paths, probe_targets, shuffled_prompts

__all__ = [
    "STRENGTHS",
    "UNDEFINED",
    "Estimate",
    "RidgeProbe",
    "StateSpectrum",
    "algorithm_weights",
    "area_under_roc",
    "best_probe",
    "by_target",
    "check_strength",
    "descent_paths",
    "deviations",
    "explained_share",
    "mean_estimate",
    "probe_targets",
    "ridge_probe",
    "selectivity",
    "shuffled_prompts",
    "state_spectrum",
]
