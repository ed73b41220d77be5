"""The excess risk of every model of a study, beside the references', as a table of the report."""

from typing import NamedTuple

import pandas as pd

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.names import heads_label, in_order, setting_text
from lightning_icl.studies.selection import by_seed
from lightning_icl.studies.statistics import seed_interval
from lightning_icl.studies.table import by_setting, head_list, last_step
from lightning_icl.studies.verdicts import three_digits

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
        for text in in_order(rows["model.heads"].dropna()):
            names = ("transformer", *COMPARED)
            try:
                risk, *others = (by_seed(rows, f"val/excess_risk/{name}", head_list(text)) for name in names)
                ratios = [_interval(risk / other.where(other > 0), log=True) if len(other) else "" for other in others]
                told = int(risk.notna().sum()), _interval(risk), ratios
            except InputError as error:  # two trials of one seed
                told = 0, str(error), []
            found.append(ModelRisk(setting_text(setting), heads_label(text), *told))
    return [one for one in found if one.risk]


def _interval(values: pd.Series, log: bool = False) -> str:
    values = (values.where(values > 0) if log else values).dropna()
    if values.empty:
        return ""
    mean, low, high = map(three_digits, seed_interval(values.tolist(), log=log)[:3])
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean
