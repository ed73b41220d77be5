"""The report of a study: one HTML file that needs no other, and the same in short for where Markdown is read."""

import base64
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml  # type: ignore[import-untyped]
from jinja2 import StrictUndefined, Template

from lightning_icl.figures.style import estimator_label
from lightning_icl.functional.errors import InputError
from lightning_icl.studies.figures import Drawn
from lightning_icl.studies.names import heads_label, in_order, setting_text, value_text
from lightning_icl.studies.selection import by_seed
from lightning_icl.studies.statistics import seed_interval
from lightning_icl.studies.table import analysed_on, by_setting, config_columns, head_list, last_step, varied
from lightning_icl.studies.verdicts import Finding, three_digits

STATUSES = ("done", "failed", "not finished", "not run")  # in order; others come after
COMPARED = ("ridge", "lasso", "bayes")  # with the models, in the table of risks
LARGEST_SVG = 600_000  # bytes; a larger drawing is shown as PNG


class StudyPage(NamedTuple):
    """What a report shows.

    ``trials`` has one row a trial: trial, status (done, failed, not finished, not run), error and damage (one sentence,
    or none), seconds, folder, command. ``settings`` is what the study file said; ``command`` makes it all again.
    """

    name: str
    about: str
    findings: Sequence[Finding]
    trials: pd.DataFrame
    figures: Sequence[Drawn]
    table: pd.DataFrame
    settings: dict[str, Any]
    versions: dict[str, str]
    command: str


def write_report(page: StudyPage, folder: Path, now: datetime | None = None) -> Path:
    """Write report.html, and report.md beside it, into the folder; returns the path of the first.

    report.md has verdicts, risks and figures (PNG, in the folder's figures/), for a repository's pages.
    """
    content = _content(page, now or datetime.now(UTC))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.md", "report.html"):
        text = Path(__file__).with_name(f"{name}.jinja").read_text(encoding="utf-8")
        html = name == "report.html"
        template = Template(text, autoescape=html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        (folder / name).write_text(template.render(content), encoding="utf-8")
    return folder / name


def _content(page: StudyPage, now: datetime) -> dict[str, Any]:
    """What the template asks for."""
    trials = page.trials.astype(object).where(page.trials.notna(), None).to_dict("records")
    p_probings = sum(" p_probe " in (trial["command"] or "") for trial in trials)
    jobs = {"trial": len(trials) - p_probings, "P-probing": p_probings}
    statuses = Counter(trial["status"] for trial in trials)
    of_settings = defaultdict(list)
    for finding in page.findings:
        of_settings[None if finding.setting is None else setting_text(finding.setting)].append(finding)
    values = {key: ", ".join(_values(key, page.table[key])) for key in config_columns(page.table)}
    different = varied(page.table)
    return {
        "page": page,
        "overall": of_settings.pop(None, []),
        "by_setting": of_settings,
        "trials": trials,
        "analysed_on": analysed_on(page.table),
        "risks": _risks(page.table),
        "compared": [estimator_label(name) for name in COMPARED],
        "jobs": " and ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in jobs.items() if n or kind == "trial"),
        "statuses": {status: statuses[status] for status in sorted(statuses, key=(*STATUSES, *statuses).index)},
        "compute": duration(sum(trial["seconds"] or 0 for trial in trials)),
        "figures": [(drawn, _images(drawn)) for drawn in page.figures],
        "varied": {key: values[key] for key in different},
        "common": {key: text for key, text in values.items() if text and key not in different},
        "settings": {key: _as_text(value) for key, value in page.settings.items()},
        "seeds": ", ".join(str(seed) for seed in sorted(page.table["seed"].dropna().unique())),
        "now": f"{now:%Y-%m-%d %H:%M %Z}".strip(),
        "duration": duration,
    }


def _risks(table: pd.DataFrame) -> list[tuple[str, str, int, str, list[str]]]:
    """Setting, heads, seeds, excess risk over all examples and its ratios to references' of every model that has one.

    At its last step, with 95 % intervals over seeds; of ratios the geometric mean, "" for what was not measured.
    """
    found = []
    for setting, rows in by_setting(last_step(table)):
        for text in in_order(rows["model.heads"].dropna()):
            metrics = (f"val/excess_risk/{name}" for name in ("transformer", *COMPARED))
            try:
                risk, *others = (by_seed(rows, metric, head_list(text)) for metric in metrics)
                ratios = [_interval(risk / other.where(other > 0), log=True) if len(other) else "" for other in others]
                told = int(risk.notna().sum()), _interval(risk), ratios
            except InputError as error:  # two trials of one seed
                told = 0, str(error), []
            found.append((setting_text(setting), heads_label(text), *told))
    return [row for row in found if row[3]]


def _interval(values: pd.Series, log: bool = False) -> str:
    values = (values.where(values > 0) if log else values).dropna()
    if values.empty:
        return ""
    mean, low, high = map(three_digits, seed_interval(values.tolist(), log=log)[:3])
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def _images(drawn: Drawn) -> list[tuple[str, str]]:
    """Address and words of each picture of a figure: the SVG, sharp at every size, or the PNG if it is far smaller."""
    images = []
    for png in (file for file in drawn.files if file.suffix == ".png"):
        svg = png.with_suffix(".svg")
        sharp = svg in drawn.files and svg.stat().st_size <= LARGEST_SVG
        kind, file = ("svg+xml", svg) if sharp else ("png", png)
        content = base64.b64encode(file.read_bytes()).decode()
        images.append((f"data:image/{kind};base64,{content}", f"{drawn.title} ({png.stem})"))
    return images


def _values(key: str, column: pd.Series) -> list[str]:
    """All values of a config key, in words."""
    values = column.dropna().unique().tolist()
    if key == "model.heads":
        return [text if heads_label(text) == text else f"{text} ({heads_label(text)})" for text in in_order(values)]
    return [value_text(value) for value in sorted(values, key=lambda value: (isinstance(value, str), value))]


def _as_text(value: Any) -> str:
    """A value of the study file, as it stands there."""
    if isinstance(value, dict | list):
        return yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=100).strip()
    return value_text(value)


def duration(seconds: float | int | None) -> str:
    """A time in words: 4000 -> "1 h 7 min"."""
    if seconds is None:
        return ""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
