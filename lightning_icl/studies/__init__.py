"""Studies: many runs planned in one YAML file, their results in one table, figures and verdicts from that table.

plan (what to run) -> engine (Ray Tune runs it) -> gather (one table) -> figures, claims -> report. Needs the extra
``study``.
"""
