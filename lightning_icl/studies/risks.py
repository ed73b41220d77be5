"""The excess risk of every model of a study, beside the references', as a table of the report."""

from typing import NamedTuple

import pandas as pd

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.claims import MODEL
from lightning_icl.studies.names import heads_label, setting_text
from lightning_icl.studies.selection import Heads, by_seed, models
from lightning_icl.studies.statistics import seed_interval
from lightning_icl.studies.table import by_setting, last_step

COMPARED = ("ridge", "lasso", "bayes")


class ModelRisk(NamedTuple):
    """One model in one setting, in words: its excess risk over all examples, and that over each reference's.

    ``ratios`` are geometric means of the ratios of single seeds; "" where a reference was not measured.
    """

    setting: str
    heads: str
    n_seeds: int
    risk: str
    ratios: list[str]


def model_risks(table: pd.DataFrame) -> list[ModelRisk]:
    """Every model that has a risk, at its last step, with 95 % intervals over seeds."""
    found = []
    for setting, rows in by_setting(last_step(table)):
        for heads in models(rows):
            try:
                found += _model_risk(setting_text(setting), rows, heads)
            except InputError as error:  # two trials of one seed
                found.append(ModelRisk(setting_text(setting), heads_label(str(list(heads))), 0, str(error), []))
    return found


def _model_risk(setting: str, rows: pd.DataFrame, heads: Heads) -> list[ModelRisk]:
    risk = by_seed(rows, MODEL, heads)
    others = [by_seed(rows, f"val/excess_risk/{name}", heads) for name in COMPARED]
    n, label = int(risk.notna().sum()), heads_label(str(list(heads)))
    ratios = [_interval(risk / other.where(other > 0), log=True) if len(other) else "" for other in others]
    return [ModelRisk(setting, label, n, _interval(risk), ratios)] if n else []


def _interval(values: pd.Series, log: bool = False) -> str:
    values = values.dropna()
    if log:
        values = values[values > 0]
    if values.empty:
        return ""
    mean, low, high, n = seed_interval(values.tolist(), log=log)
    return f"{mean:.3g}" + (f" [{low:.3g}, {high:.3g}]" if n > 1 else "")
