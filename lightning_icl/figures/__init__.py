# ruff: noqa: F401
"""The figures of a run: rows in, a matplotlib figure out. Studies draw with the same functions, panel by panel."""

from lightning_icl.figures.algorithms import algorithm_match
from lightning_icl.figures.circuits import attention_maps, output_value_maps, prediction_rows, query_key_maps
from lightning_icl.figures.constructions import construction_course
from lightning_icl.figures.files import write_figure
from lightning_icl.figures.heads import importance_map, score_maps, specialisation
from lightning_icl.figures.p_probing import p_probing_risks
from lightning_icl.figures.probes import probe_map, probe_risks
from lightning_icl.figures.pruning import greedy_path, pruning_risks
from lightning_icl.figures.risks import risk_by_estimator, risk_by_points, risk_by_step, risk_by_stream
from lightning_icl.figures.theory import theory_risks
