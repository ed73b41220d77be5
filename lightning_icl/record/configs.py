"""What a run's config.yaml says, as columns of a study's table."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_icl.checkpoint import network_of
from lightning_icl.functional.errors import InputError
from lightning_icl.network import outline

# Of the trainer what its weights and measurements depend on, and not where it runs (devices, strategy), what it writes
# (loggers, checkpoints, default_root_dir) or what it shows. Callbacks are its analyses, long lists of options.
TRAINER_KEYS = (
    *("max_steps", "max_epochs", "max_time", "limit_train_batches", "overfit_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision", "deterministic"),
    *("val_check_interval", "check_val_every_n_epoch", "limit_val_batches"),
)


def config_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a config, as one would type them: data.task is the class's name, data.task.noise_std a value.

    Lists and mappings are JSON text. Besides there is depth, the number of layers, which only model.heads tells; of
    another network than a Transformer that is its own option of that name, or [].
    """
    trainer = config.get("trainer") or {}
    kept = {f"trainer.{key}": trainer[key] for key in TRAINER_KEYS if key in trainer}
    kept |= {f"{part}.{key}": value for part in ("model", "data") for key, value in config[part].items()}
    flat = {key: value for prefix, nested in kept.items() for key, value in _flat(prefix, nested)}
    heads = network_of(config["model"])["init_args"].get("heads")
    heads = heads if isinstance(heads, list) else []
    flat.pop("model.network.heads", None)
    return flat | {"model.heads": json.dumps(heads), "depth": len(heads)}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case {"class_path": str(path)}:
            yield prefix, path.rpartition(".")[2]
            for key, nested in {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}.items():
                yield from _flat(f"{prefix}.{key}", nested)
        case dict() | list():
            yield prefix, json.dumps(value)
        case _:
            yield prefix, value


def n_parameters(config: Mapping[str, Any]) -> int | None:
    """Parameters of the model of a config; None where its task does not say n_dims."""
    # The n_dims of a pool or of a mixture is its tasks'.
    n_dims = re.search(r'"n_dims": (\d+)', json.dumps(config["data"]["task"]))
    if n_dims is None:
        return None
    try:
        made = outline(network_of(config["model"]), int(n_dims[1]))
    except InputError:  # its class is not here
        return None
    return sum(parameter.numel() for parameter in made.parameters())


def shared_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns that several runs have in common, and their seed; without the heads, by which they are compared."""
    first, *others = [{"seed": config.get("seed_everything"), **config_values(config)} for config in configs]
    del first["model.heads"]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
