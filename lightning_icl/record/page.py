"""The page a newcomer looks at: TensorBoard's TEXT, CUSTOM SCALARS and HPARAMS."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import Trainer

from lightning_icl.data import PromptDataModule
from lightning_icl.module import ICLModule
from lightning_icl.record.context import options
from lightning_icl.record.folder import CONFIG
from lightning_icl.record.rows import Row, tag

MODEL, ZERO = "val/excess_risk/transformer", "val/excess_risk/zero"
COMPARED = ("ridge", "lasso", "bayes")
TELLING = ("heads", "d_model", "attention", "mlp", "norm", "layout", "optimizer", "learning_rate")  # of the model


def about(data: PromptDataModule, module: ICLModule, max_steps: int) -> str:
    """What a run is, as TEXT shows it."""
    network = module.network
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    n_points = f"{data.smallest_n}" if data.smallest_n == data.largest_n else f"{data.smallest_n} to {data.largest_n}"
    typed = Path(sys.argv[0]).name in ("lightning-icl", "lightning", "__main__.py")
    command = shlex.join(["lightning-icl", *sys.argv[1:]]) if typed else f"(from Python: {sys.argv[0]})"
    model = {name: value for name, value in module.hparams.items() if name != "n_dims"}
    heads = f"{len(network.heads)} layers, heads {list(network.heads)}, " if network.heads else ""
    size = f"{heads}{n_parameters:,} parameters"
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
    values = dict(zip(rows["metric"], rows["value"], strict=True))
    tags = {metric: found for metric, found in _tags(rows).items() if metric.startswith("val/excess_risk/")}
    low = [m for m in tags if m not in (MODEL, ZERO) and values[m] <= values.get(ZERO, float("inf"))]
    first: dict[str, dict[str, list[Any]]] = {}
    band = [MODEL, "val/excess_risk/bayes", "val/excess_risk/ridge"]
    if set(band) <= set(tags):
        charts = {"model (line) between Bayes and ridge (band)": ["Margin", [tags[m] for m in band]]}
        first = {"how far the model has come": charts}
    below = ["Multiline", [tags.get(m, m) for m in [MODEL, *low]]]
    return first | {
        "excess risk": {
            "model and references below the zero predictor": below,
            "model over reference, 1: equal": ["Multiline", ["against/.*/ratio"]],
        },
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


def _tags(rows: pd.DataFrame) -> dict[str, str]:
    """What loggers call the first stream's metrics."""
    streams = [None if pd.isna(stream) else stream for stream in rows["stream"]]
    return {m: tag(Row(m, None, stream=stream)) for m, stream in zip(rows["metric"], streams, strict=True)}


def last_risks(rows: pd.DataFrame) -> dict[str, float]:
    """The model's excess risk and its ratio to ridge, lasso and Bayes, by tag: by these HPARAMS sorts runs."""
    rows = headline(rows).dropna(subset="value")
    tags, found = _tags(rows), rows.set_index("metric")["value"]
    names = [MODEL, *(f"against/{name}/ratio" for name in COMPARED)]
    return {tags[name]: float(found[name]) for name in names if name in found}


def telling_options(data: PromptDataModule, module: ICLModule, steps: int) -> dict[str, Any]:
    """The options that tell one run from another, as HPARAMS takes them."""
    known = {name: module.hparams[name] for name in TELLING if name in module.hparams}
    if network := module.hparams.get("network"):
        name = network["class_path"].rpartition(".")[2]
        known |= {"network": name} | {f"network.{option}": value for option, value in network["init_args"].items()}
    known |= {"task": type(data.task).__name__} | {f"task.{name}": value for name, value in options(data.task).items()}
    known |= {"n_points": data.largest_n, "batch_size": data.batch_size, "seed": data.seed, "steps": steps}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in known.items()}


def way_to_look(trainer: Trainer, folder: Path) -> str:
    """Where a run lies, and how it is looked at, by the loggers it has."""
    folder = folder.absolute()
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    config, checkpoint = folder / CONFIG, folder / "checkpoints" / "last.ckpt"
    runs = folder.parent.parent if (folder.parent / CONFIG).is_file() else folder.parent  # an analysis lies in its run
    ways = [f'in Python: lightning_icl.load_run("{folder}").table']
    for logger in trainer.loggers:
        match type(logger).__name__:
            case "TensorBoardLogger":
                ways.insert(0, f"all runs: tensorboard --logdir {shlex.quote(str(runs))}")
            case "CSVLogger":
                ways.append(f"curves: {folder / 'metrics.csv'}")
            case "WandbLogger":
                url = getattr(getattr(logger, "experiment", None), "url", None)
                ways.append(f"Weights & Biases: {url or f'wandb sync {logger.save_dir}/wandb/latest-run'}")
            case other:
                ways.append(f"{other.removesuffix('Logger')}: {logger.name or ''} {logger.version or ''}".rstrip())
    if config.is_file() and checkpoint.is_file():
        parts = ["--config", config, "--config", "configs/full_analysis.yaml", "--ckpt_path", checkpoint]
        ways.append(f"look further: lightning-icl validate {shlex.join(map(str, parts))}")
    return "\n".join([f"This run is in {folder}", *(f"  {way}" for way in ways)])
