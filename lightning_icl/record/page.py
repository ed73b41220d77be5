"""The page a newcomer looks at: TensorBoard's TEXT, CUSTOM SCALARS and HPARAMS."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_icl.data import PromptDataModule
from lightning_icl.module import ICLModule
from lightning_icl.record.context import options
from lightning_icl.record.rows import Row, tag

MODEL, ZERO = "val/excess_risk/transformer", "val/excess_risk/zero"
COMPARED = ("ridge", "lasso", "bayes")


def about(data: PromptDataModule, module: ICLModule, max_steps: int) -> str:
    """What a run is, as TEXT shows it."""
    transformer = module.transformer
    n_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    n_points = f"{data.smallest_n}" if data.smallest_n == data.largest_n else f"{data.smallest_n} to {data.largest_n}"
    typed = Path(sys.argv[0]).name in ("lightning-icl", "lightning", "__main__.py")
    command = shlex.join(["lightning-icl", *sys.argv[1:]]) if typed else f"(from Python: {sys.argv[0]})"
    model = {name: value for name, value in module.hparams.items() if name != "n_dims"}
    size = f"{len(transformer.heads)} layers, heads {transformer.heads}, {n_parameters:,} parameters"
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| task | `{data.task!r}`, {n_points} examples, {data.n_queries} queries |",
            f"| model | {size}: `{model}` |",
            f"| training | batches of {data.batch_size} prompts, max_steps {max_steps}, seed {data.seed} |",
            f"| the same again | `{command}` |",
        ]
    )  # fmt: skip


def layout(rows: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """The charts of CUSTOM SCALARS: their axes are linear, so what lies above the zero predictor is left out."""
    rows = headline(rows)
    risks = rows[rows["metric"].str.startswith("val/excess_risk/")]
    tags = {metric: _tag(metric, stream) for metric, stream in zip(risks["metric"], risks["stream"], strict=True)}
    values = dict(zip(risks["metric"], risks["value"], strict=True))
    low = [m for m, value in values.items() if m not in (MODEL, ZERO) and value <= values.get(ZERO, float("inf"))]
    charts: dict[str, list[Any]] = {}
    band = [MODEL, "val/excess_risk/bayes", "val/excess_risk/ridge"]
    if set(band) <= set(tags):
        charts["model (line) between Bayes and ridge (band)"] = ["Margin", [tags[m] for m in band]]
    charts["model and references below the zero predictor"] = ["Multiline", [tags.get(m, m) for m in [MODEL, *low]]]
    return {
        "excess risk": charts | {"model over reference, 1: equal": ["Multiline", ["against/.*/ratio"]]},
        "heads": {"effective heads by layer": ["Multiline", [r"heads/leave_one_out/effective/layer\d+"]]},
        "pruning": {"pruned against full": ["Multiline", ["prune/as_is/(full|paper)/excess_risk"]]},
        "probe": {"probe for f(x_q) by layer": ["Multiline", [r"probe/query/f/trained/risk/layer\d+"]]},
    }


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are not about a part: over all examples, on the first stream."""
    streams = rows["stream"].dropna()
    first = rows["stream"].isna() | rows["stream"].eq(streams.iloc[0] if len(streams) else "")
    whole = rows[["n_points", "layer", "head"]].isna().all(axis=1)
    return rows[first & whole].drop_duplicates("metric")  # the first of two analyses of one class


def last_risks(rows: pd.DataFrame) -> dict[str, float]:
    """The model's excess risk and its ratio to ridge, lasso and Bayes, by which HPARAMS sorts runs, by their tags."""
    found = headline(rows).dropna(subset="value").set_index("metric")
    names = [MODEL, *(f"against/{name}/ratio" for name in COMPARED)]
    return {_tag(name, found["stream"][name]): float(found["value"][name]) for name in names if name in found.index}


def _tag(metric: str, stream: Any) -> str:
    """What is about a whole stream, in a logger."""
    return tag(Row(metric, 0.0, stream=None if pd.isna(stream) else stream))


def telling_options(data: PromptDataModule, module: ICLModule, steps: int) -> dict[str, Any]:
    """The options that tell one run from another, as HPARAMS takes them."""
    task = {f"task.{name}": value for name, value in options(data.task).items()}
    known = {**module.hparams, "task": type(data.task).__name__, **task, "n_points": data.largest_n, "seed": data.seed}
    known |= {"batch_size": data.batch_size, "steps": steps}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in known.items()}
